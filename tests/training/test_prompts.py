"""Prompts, ends and distributions of a whole run: what the model is shown, how completions are drawn, what is said."""

import json
import math

import pytest

from aepo.config import make_config
from aepo.errors import InvalidValue
from aepo.evaluation.options import Options, Pass
from aepo.evaluation.run import run as evaluate
from aepo.planning.dry_run import dry_run
from aepo.sampling.hf import HFSampler
from aepo.training import runner
from tests.tiny_models import make_model
from tests.tiny_tokenizers import family_tokenizer


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A Llama-3-like model, ten rows of which one has turns, and the settings of a small run on them."""
    monkeypatch.chdir(tmp_path)
    tokenizer = family_tokenizer("llama3")
    tokenizer.chat_template, template = None, tokenizer.chat_template
    make_model(tmp_path / "model", tokenizer=tokenizer, vocab_size=300)
    (tmp_path / "own.jinja").write_text(template.replace("{{ bos_token }}", "{{ bos_token }}{{ mood }}"))
    rows = [{"problem": f"{n} + 1?", "answer": n + 1} for n in range(9)]
    rows.append({"problem": [{"role": "user", "content": "9 + 1?"}], "answer": 10})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        *("model=model", "task=data", "task.train=rows.jsonl", "task.style=chat", "task.held_out=3"),
        *("task.system_prompt=Be brief.", "task.chat_template=own.jinja", "task.chat_template_kwargs={mood='!'}"),
        *("task.verifier.grader=exact", "task.verifier.processes=1", "task.max_response=6", "threads=1", "steps=1"),
        *("sampling.prompts=2", "sampling.group_size=2", "sampling.stop=~", "optimizer.minibatches=1"),
        *("evaluation.every=1", "evaluation.prompts=2", "evaluation.samples=2"),
    ]


@pytest.fixture
def seen(monkeypatch):
    """Every call of the sampler: the sampler, its requests and what it returned."""
    calls = []
    sample = HFSampler.sample

    def spy(self, requests, **more):
        calls.append((self, list(requests), sample(self, requests, **more)))
        return calls[-1][2]

    monkeypatch.setattr(HFSampler, "sample", spy)
    monkeypatch.setattr("aepo.training.runner.check_sampler", lambda *_: None)  # it draws, too
    return calls


def test_a_run_and_its_evaluation_show_the_same_prompt_and_end_alike(job, seen, tmp_path, capsys):
    cuts = ["sampling.temperature=0.7", "sampling.top_k=50", "sampling.min_p=0.001", "sampling.top_p=0.99"]
    runner.start(make_config(method="grpo", settings=[*job, *cuts]), tmp_path / "run")
    said = capsys.readouterr().out
    ends = "a completion ends at <|end_of_text|> (257: generation config, config, tokenizer), "
    ends += "<|eot_id|> (258: chat template)"
    assert f"{ends}, or with the text '~'" in said and said.count("preflight: sampling.temperature = 0.7 and") == 1
    (_, probed, _), _, (training, asked, _), (evaluation, tested, _) = seen
    assert {r.temperature for r in [*probed, *asked]} == {0.7} and {r.temperature for r in tested} == {1.0}
    assert vars(training.cuts) == {"top_p": 0.99, "top_k": 50, "min_p": 0.001}
    assert vars(evaluation.cuts) == {"top_p": 1.0, "top_k": None, "min_p": 0.0}
    for sampler in (training, evaluation):
        assert sampler.eos_token_ids == (257, 258) and sampler.stop.strings == ("~",)
    tokenizer = training.stop.tokenizer
    for request in [*asked, *tested]:
        text = tokenizer.decode(request.prompt.tokens)
        assert text.startswith("<|begin_of_text|>!<|start_header_id|>system<|end_header_id|>\n\nBe brief.")
        assert request.prompt.problem["messages"][0] == ("system", "Be brief.")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert row["mismatch"] is None and math.isfinite(row["entropy"])
    # `aepo evaluate` of the run, with the template gone: the checkpoint carries it.
    (tmp_path / "own.jinja").unlink()
    seen.clear()
    made = evaluate(Options(str(tmp_path / "run" / "checkpoints" / "step-1"), data=tmp_path / "rows.jsonl",
                            prompt="chat", grader="exact", n=1, temperature=1.0, max_tokens=4, limit=2,
                            system_prompt="Be brief.", chat_template_kwargs='{"mood": "!"}'))  # fmt: skip
    assert made["settings"]["stop"] == ["~"] and made["settings"]["stop_tokens"] == [257, 258]
    assert tokenizer.decode(seen[0][1][0].prompt.tokens).startswith("<|begin_of_text|>!<|start")


def test_a_dry_run_shows_the_prompt_and_the_ends_without_the_weights(job, tmp_path, capsys):
    (tmp_path / "model" / "model.safetensors").unlink()
    dry_run(make_config(method="grpo", settings=job))
    said = capsys.readouterr().out
    assert "<|eot_id|> (258: chat template), or with the text '~'" in said
    assert "data: the first prompt has" in said and "Be brief." in said and "assistant<|end_header_id|>" in said


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("task.chat_template_kwargs={moodd='!'}", r"line \d+, row \d+, chat_template_kwargs: got 'moodd'.*mean mood"),
        ("task.chat_template=none.jinja", "task.chat_template: got 'none.jinja'"),
        ("task.style=boxed", r"task.system_prompt: got 'Be brief.'.*rows.jsonl, line \d+, row \d+ is plain text"),
        (
            "task.max_prompt=5",
            r"prompt: got '\d+ tokens in row \d+ \(task.train .*rows.jsonl, line \d+, row \d+; \d+ rows",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused_before_the_run(job, tmp_path, setting, words):
    for call in (lambda config: runner.start(config, tmp_path / "run"), dry_run):
        with pytest.raises(InvalidValue, match=words):
            call(make_config(method="grpo", settings=[*job, setting]))
    assert not (tmp_path / "run").exists()


def test_options_of_an_evaluation():
    assert Options("m", n=1, top_k=5, min_p=0.1).passes() == (Pass(1.0, 1.0, 1, (1,), 5, 0.1),)
    (one,) = Options("m", n=1, top_k=5).passes()
    assert one.label == "T=1, top-p=1, top-k=5"
    assert one.settings() == {"temperature": 1.0, "top_p": 1.0, "top_k": 5, "n": 1}
    assert Pass(0.6, 0.95, 4, (1,)).settings() == {"temperature": 0.6, "top_p": 0.95, "n": 4}
    for options, words in {
        Options("m", top_k=0): "--top-k: got 0",
        Options("m", min_p=1.0): "--min-p: got 1.0",
        Options("m", stop=("",)): "--stop",
    }.items():
        with pytest.raises(InvalidValue, match=f"^{words}"):
            options.check()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"chat_template_kwargs": "x"}, "^--chat-template-kwargs: got 'x'; must be a table"),
        ({"system_prompt": "x"}, "^--system-prompt: got 'x'; must be left out, or used with chat prompts"),
        ({"chat_template": "none.jinja", "prompt": "chat"}, "^--chat-template: got 'none.jinja'"),
    ],
)
def test_chat_options_that_cannot_work_are_named_as_options(job, tmp_path, given, words):
    (tmp_path / "rows.jsonl").write_text('{"problem": "p", "answer": 1}\n')
    with pytest.raises(InvalidValue, match=words):
        evaluate(Options("model", data=tmp_path / "rows.jsonl", **given))
