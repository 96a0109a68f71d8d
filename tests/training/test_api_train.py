"""`aepo.train` from Python, as in a notebook."""

import pytest

import aepo
from aepo.errors import InvalidValue

ROWS = [{"problem": f"{n} 42 :", "answer": str(n)} for n in range(12)]
SMALL = {
    "threads": 1,
    "sampling__prompts": 3,
    "sampling__group_size": 4,
    "evaluation__every": 0,
    "task__style": "plain",
    "task__max_response": 5,
    "task__held_out": 4,
    "quiet": True,
}


def even(completions, **_):
    return [float(len(text) % 2 == 0) for text in completions]


def level(completions, answer, **_):
    return [int(known) / 12 for known in answer]


def test_rows_and_a_function_of_this_process(quick_model, tmp_path):
    run = aepo.train(quick_model, ROWS, even, target=0.7, steps=2, out=tmp_path / "run", **SMALL)
    assert [row["step"] for row in run.metrics] == [1, 2] and run.metrics[0]["target_entropy"] == 0.7
    assert run.samples[0]["prompt_text"].endswith("42 :")
    assert len(run.plot().axes) == 2 and "2 steps" in repr(run)
    assert run.policy.decode([run.policy.encode("3 42")]) == ["3 42"]
    assert run.evaluate(problems=2, samples=2).samples == 2
    assert [row["step"] for row in run.resume(steps=3, quiet=True).metrics] == [1, 2, 3]


def test_several_rewards_a_callback_and_a_loaded_model(quick_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    class Stop(aepo.Callback):
        def on_step(self, row):
            return row["step"] == 1

    loaded = AutoModelForCausalLM.from_pretrained(quick_model), AutoTokenizer.from_pretrained(quick_model)
    settings = {**SMALL, "task__reward_weights": [1.0, 0.5]}
    run = aepo.train(loaded, ROWS, [even, level], "grpo", steps=5, out=tmp_path / "r", callbacks=[Stop()], **settings)
    (row,) = run.metrics
    assert row["reward"] == pytest.approx(row["rewards"]["even"] + 0.5 * row["rewards"]["level"])


def test_two_functions_of_one_name_are_two(quick_model, tmp_path):
    runs = []
    for value in (0.25, 0.75):

        def same(completions, value=value, **_):
            return [value] * (len(completions) - 1) + [0.0]

        runs.append(aepo.train(quick_model, ROWS, same, "grpo", steps=1, out=tmp_path / str(value), **SMALL))
    again = [run.resume(steps=2, quiet=True).metrics[1]["reward_max"] for run in runs]
    assert again == [0.25, 0.75]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"reward": even}, "reward: got .*; must be given together with data"),
        ({"model": 3}, "model: got 'int'; must be a name, a folder, or"),
        ({"data": [{"problem": {1, 2}}]}, "data: got 'list'; must be a file, or rows that JSON can hold"),
        ({"learning_rate": 1e-6}, "which is unknown; .*did you mean optimizer.lr"),
    ],
)
def test_bad_values_are_refused_in_one_line(tmp_path, given, words):
    with pytest.raises(InvalidValue, match=words):
        aepo.train(out=tmp_path / "run", quiet=True, **given)


def test_a_function_of_another_process_is_refused(quick_model, tmp_path):
    from aepo import plugins

    run = aepo.train(quick_model, ROWS, even, "grpo", steps=1, out=tmp_path / "run", **SMALL)
    known, plugins._REGISTERED = plugins._REGISTERED, {}
    try:
        with pytest.raises(InvalidValue, match=r"verifier\.path: got 'python:even.*resume the run there"):
            run.resume(steps=2, quiet=True)
    finally:
        plugins._REGISTERED = known
