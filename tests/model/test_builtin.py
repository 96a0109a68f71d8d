"""The built-in base model: what is in its folder, and that the cache never serves a wrong or broken one."""

import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aepo.model.builtin import PAD, QUICK, _collate, _loss, base_model, make_tokenizer, pretrain
from aepo.tasks import TASKS, Paths

BUILT_IN = ("countdown", "paths", "programs")

PATHS = Paths()
TINY = replace(QUICK, hidden=16, steps=3, batch=8)


class Count:
    """A progress callback that counts."""

    def __init__(self):
        self.calls = []

    def __call__(self, step, total, loss):
        self.calls.append((step, total, loss))


def weights(folder):
    return (folder / "model.safetensors").read_bytes()


def test_folder_is_a_hugging_face_model(quick_model):
    config = json.loads((quick_model / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(quick_model)
    model = AutoModelForCausalLM.from_pretrained(quick_model)
    assert config["architectures"] == ["Qwen3ForCausalLM"] and "auto_map" not in config
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == model.config.pad_token_id
    assert model.get_input_embeddings().num_embeddings == len(tokenizer) == len(PATHS.vocabulary) + 3
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("name", BUILT_IN)
def test_one_token_per_word_and_back(name, tmp_path):
    task = TASKS[name]()
    made = make_tokenizer(task.vocabulary)
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
    text = " ".join(task.vocabulary)
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        tokens = tokenizer(text)["input_ids"]
        assert len(set(tokens)) == len(task.vocabulary)
        assert tokenizer.decode(tokens) == text
        assert tokenizer.decode([*tokens, tokenizer.eos_token_id], skip_special_tokens=True) == text
        assert tokenizer("never_seen")["input_ids"] == [tokenizer.unk_token_id]


def test_labels_are_the_completion_and_its_end():
    tokenizer = make_tokenizer(("1", "2", "3", ":"))
    ids, labels = _collate(tokenizer, [("1 :", "2 3"), ("1 2 :", "3")])
    one, two, three, colon = tokenizer("1 2 3 :")["input_ids"]
    end, pad = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(PAD)
    assert ids.tolist() == [[one, colon, two, three, end], [one, two, colon, three, end]]
    assert labels.tolist() == [[-100, -100, two, three, end], [-100, -100, -100, three, end]]
    ids, labels = _collate(tokenizer, [("1 :", "2 3"), ("1 :", "2")])
    assert ids[1].tolist() == [one, colon, two, end, pad]
    assert labels[1].tolist() == [-100, -100, two, end, -100]


def test_loss_is_of_the_next_token_given_those_before():
    tokenizer = make_tokenizer(PATHS.vocabulary)
    model = pretrain(PATHS, tokenizer, replace(TINY, steps=1), seed=0)
    batch = _collate(tokenizer, [("17 42 :", "18 36"), ("1 2 :", "2")])
    with torch.no_grad():
        logprobs = []
        for text, count in (("17 42 : 18 36 <eos>", 3), ("1 2 : 2 <eos>", 2)):
            tokens = tokenizer(text)["input_ids"]
            for end in range(len(tokens) - count, len(tokens)):
                following = model(torch.tensor([tokens[:end]])).logits[0, -1].log_softmax(-1)
                logprobs.append(following[tokens[end]])
        assert _loss(model, *batch).item() == pytest.approx(-torch.stack(logprobs).mean().item(), abs=1e-5)


def test_saved_model_is_the_trained_one(tmp_path):
    folder = base_model(PATHS, pretraining=TINY, cache=tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    trained = pretrain(PATHS, make_tokenizer(PATHS.vocabulary), TINY, seed=0)
    ids = tokenizer("17 42 : 18 36", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, trained(ids).logits)


def test_training_lowers_the_loss_and_is_reported(tmp_path):
    progress = Count()
    base_model(PATHS, pretraining=QUICK, cache=tmp_path, progress=progress)
    assert [call[:2] for call in progress.calls] == [(step, QUICK.steps) for step in range(1, QUICK.steps + 1)]
    assert progress.calls[-1][2] < progress.calls[0][2] - 0.2


def test_same_arguments_same_weights_and_no_trace_in_the_global_random_state(tmp_path):
    state = torch.get_rng_state()
    first = base_model(PATHS, pretraining=TINY, cache=tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(1)
    second = base_model("paths", pretraining=TINY, cache=tmp_path / "b")
    assert first.name == second.name and weights(first) == weights(second)


def test_second_call_does_not_train(tmp_path):
    progress = Count()
    first = base_model(PATHS, pretraining=TINY, cache=tmp_path)
    assert base_model(PATHS, pretraining=TINY, cache=tmp_path, progress=progress) == first
    assert not progress.calls
    assert [path.name for path in tmp_path.iterdir()] == [first.name]


def test_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("AEPO_CACHE", str(tmp_path))
    assert base_model(PATHS, pretraining=TINY).parent == tmp_path


@pytest.mark.parametrize("damage", ["cut", "missing", "no manifest", "empty"])
def test_broken_folder_is_built_again(damage, tmp_path):
    folder = base_model(PATHS, pretraining=TINY, cache=tmp_path)
    good, victim = weights(folder), folder / "model.safetensors"
    if damage == "cut":
        victim.write_bytes(good[:-8] + bytes(8))
    elif damage == "missing":
        victim.unlink()
    elif damage == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        for path in folder.iterdir():
            path.unlink()
    assert base_model(PATHS, pretraining=TINY, cache=tmp_path) == folder
    assert weights(folder) == good
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


@pytest.mark.parametrize("broken", [False, True])
def test_two_builders_at_once_end_with_one_whole_folder(broken, tmp_path):
    """A second build starts and ends inside the first one's last step."""
    inner = []
    if broken:
        folder = base_model(PATHS, pretraining=TINY, cache=tmp_path)
        (folder / "config.json").unlink()

    def progress(step, total, loss):
        if step == total:
            inner.append(base_model(PATHS, pretraining=TINY, cache=tmp_path))

    outer = base_model(PATHS, pretraining=TINY, cache=tmp_path, progress=progress)
    assert [outer] == inner == list(tmp_path.iterdir())
    AutoModelForCausalLM.from_pretrained(outer)


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def progress(step, total, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        base_model(PATHS, pretraining=TINY, cache=tmp_path, progress=progress)
    assert not list(tmp_path.iterdir())


def test_what_shapes_the_weights_shapes_the_name_and_nothing_else_does(tmp_path):
    def build(**fields):
        arguments = {"task": PATHS, "pretraining": replace(TINY, steps=1)} | fields
        return base_model(arguments.pop("task"), cache=tmp_path, **arguments)

    others = [
        build(seed=1),
        build(pretraining=replace(TINY, steps=2)),
        build(pretraining=replace(TINY, steps=1, lr=1e-3)),
        build(task=replace(PATHS, move_weights=(4.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0))),
        build(task="countdown"),
    ]
    assert len({build(), *others}) == 6
    assert build(task=replace(PATHS, train_pairs=64)) == build()


def test_unknown_names_and_tasks_without_data_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no task 'path'; there are countdown, data, gym, paths"):
        base_model("path", cache=tmp_path)
    with pytest.raises(TypeError, match="object has no pre-training data"):
        base_model(object(), cache=tmp_path)
