import math
import sys

import pytest
import torch

from aepo.cli import CheckEntropy
from aepo.conformance import Fixture, check_function, load_function
from aepo.entropy.statistics import logits_statistics
from aepo.errors import InvalidValue

FUNCTION = """
from aepo.entropy.statistics import logits_statistics
def good(logits, labels, mask, temperature):
    stats = logits_statistics(logits, labels, temperatures=[temperature])
    return stats.tempered[0], stats.entropy, ((stats.entropy * mask).sum(), mask.sum())
def tempered(logits, labels, mask, temperature):
    stats = logits_statistics(logits / temperature, labels)
    return stats.logprobs, stats.entropy
"""


def good(logits, labels, mask, temperature):
    stats = logits_statistics(logits, labels, temperatures=[temperature])
    return stats.tempered[0], stats.entropy, ((stats.entropy * mask).sum(), mask.sum())


def changed(change):
    """Our own function with its results changed: change(logprobs, entropy, mean, call's arguments)."""

    def function(*call):
        logprobs, entropy, mean = good(*call)
        return change(logprobs, entropy, mean, call)

    return function


def found(function, **settings) -> dict[str, tuple[str, str]]:
    return {f.name: (f.status, f.text) for f in check_function(function, **settings)}


def failed(function, **settings) -> dict[str, str]:
    return {name: text for name, (status, text) in found(function, **settings).items() if status == "FAILED"}


def test_our_own_function_conforms():
    assert {status for status, _ in found(good).values()} == {"ok"}


def test_golden_the_fixtures_values():
    """Row 0, token 0: weights 1, 2, 5, 10, 6 of 24, and label 1."""
    base, weights = Fixture.standard(), [1, 2, 5, 10, 6]
    assert base.weights[0, 0].tolist() == weights
    entropy = math.log(24) - sum(w * math.log(w) for w in weights) / 24
    assert base.entropy()[0, 0].item() == pytest.approx(entropy, abs=1e-12)
    assert base.logprobs(1.0)[0, 0].item() == pytest.approx(math.log(2 / 24), abs=1e-12)
    assert base.logprobs(0.5)[0, 0].item() == pytest.approx(math.log(4 / 166), abs=1e-12)
    assert torch.equal(base.mask.sum(1), torch.tensor([6.0, 1.0, 2.0]))


def late(values):
    return torch.cat([torch.zeros_like(values[:, :1]), values[:, :-1]], 1)


VALUES = {
    "bits": (lambda p, e, m, c: (p, e / math.log(2)), {"values", "temperature"}, "in bits"),
    "sampled": (lambda p, e, m, c: (p, -p), {"values", "temperature"}, "sampled estimate"),
    "tempered entropy": (
        lambda p, e, m, c: (p, logits_statistics(c[0] / c[3], c[1]).entropy),
        {"temperature"},
        "entropy: tempered",
    ),
    "no temperature": (
        lambda p, e, m, c: (logits_statistics(c[0], c[1]).logprobs, e),
        {"temperature"},
        "logprobs: not tempered",
    ),
    "late": (lambda p, e, m, c: (late(p), late(e)), {"values", "temperature"}, "the token before"),
    "next label": (
        lambda p, e, m, c: (logits_statistics(c[0] / c[3], c[1].roll(-1, 1)).logprobs, e),
        {"values", "temperature", "padding"},
        "shift by one: a distribution is read at its neighbour's label",
    ),
    "sign": (lambda p, e, m, c: (-p, e), {"values", "temperature"}, "sign"),
    "bf16": (lambda p, e, m, c: (p, e.bfloat16()), {"values", "temperature"}, "16 bits"),
    "place": (
        lambda p, e, m, c: (p, e + torch.arange(len(e))[:, None]),
        {"values", "temperature", "order"},
        "no cause",
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_a_wrong_value_is_named_by_its_cause(name):
    change, properties, words = VALUES[name]
    causes = failed(changed(change))
    assert set(causes) == properties
    assert all(words in text or prop in ("padding", "order") for prop, text in causes.items()), causes


MEANS = {
    "row means": (lambda e, m: ((e * m).sum(1) / m.sum(1)).mean(), "means of means"),
    "all positions": (lambda e, m: (e * m).mean(), "divided by all positions"),
    "padding's entropies": (lambda e, m: e.mean(), "its entropies are in the sum"),
    "a row's sum": (lambda e, m: (e * m).sum(1).mean(), "a sum per row"),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_wrong_mean_is_named_by_its_cause(name):
    mean, words = MEANS[name]
    causes = failed(changed(lambda p, e, m, c: (p, e, mean(e, c[2]))))
    assert words in causes["token mean"]
    # These two move with the padding as well.
    assert ("padding" in causes) == (name in ("all positions", "padding's entropies"))
    assert not {"values", "temperature", "order", "rank mean"} & set(causes)


def test_ranks_of_different_size():
    scalar = changed(lambda p, e, m, c: (p, e, m[0] / m[1]))
    assert found(scalar)["rank mean"][0] == "not checked"
    assert "mean of the ranks' means" in failed(scalar, combine=lambda means: sum(means) / len(means))["rank mean"]
    weighted = changed(lambda p, e, m, c: (p, e, [m[0], m[1]]))
    assert not failed(weighted, combine=lambda parts: sum(t for t, _ in parts) / sum(n for _, n in parts))


def test_a_models_output_and_input_unshifted():
    def causal(logits, tokens, mask, temperature):
        return good(logits[:, :-1], tokens[:, 1:], mask[:, 1:], temperature)

    def same_width(*call):
        logprobs, entropy, mean = causal(*call)
        first = torch.zeros(len(logprobs), 1)
        return torch.cat([first, logprobs], 1), torch.cat([first, entropy], 1), mean

    assert not failed(causal, causal=True) and not failed(same_width, causal=True)
    unshifted = failed(lambda *call: good(*call)[:2], causal=True)
    assert "shift by one" in unshifted["values"]


def test_what_cannot_be_compared_is_said():
    def broken(*call):
        raise KeyError("x")

    assert all("raised KeyError" in text for text in failed(broken).values())
    assert "shape" in failed(changed(lambda p, e, m, c: (p[:, 1:], e)))["values"]
    assert "returned 1 things" in failed(lambda *call: (0,))["values"]
    only_entropy = found(changed(lambda p, e, m, c: (None, e)))
    assert only_entropy["values"][0] == "ok" and only_entropy["token mean"][0] == "not checked"
    # Entropy that is right within a looser tolerance only.
    assert not failed(changed(lambda p, e, m, c: (p, e.bfloat16())), tolerance=0.02)


def test_none_is_not_checked_and_said():
    nothing = found(lambda *call: (None, None))
    assert {status for status, _ in nothing.values()} == {"not checked"}
    half = found(changed(lambda p, e, m, c: (None, e)))
    assert half["values"] == half["order"] == ("ok", "logprobs not checked (None)")
    assert found(good)["values"] == ("ok", "")
    # A mean alone has its place in the batch and its padding to get right.
    mean = found(changed(lambda p, e, m, c: (None, None, m)))
    assert [name for name, (status, _) in mean.items() if status == "ok"] == ["padding", "order"]
    sometimes = failed(changed(lambda p, e, m, c: (p if len(c[0]) == 3 and c[0].shape[1] == 6 else None, e)))
    assert "logprobs is None in one call and not in another" in sometimes["padding"]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        ({"logprobs": 1, "entropy": 2}, "returned a dict; wanted (logprobs, entropy)"),
        ("ab", "returned a str"),
        ((["a"], None), "a result is a list, not a tensor of numbers"),
        ((None, object()), "a result is a object, not a tensor"),
        (3, "raised TypeError"),
    ],
)
def test_what_is_no_tensor_is_named(returned, words):
    assert all(words in text for text in failed(lambda *call: returned).values())


def test_third_results_that_cannot_be_added_up_are_named():
    assert "cannot be added up" in failed(changed(lambda p, e, m, c: (p, e, ("x", "y"))))["rank mean"]


def test_a_nan_is_called_by_its_name():
    causes = failed(changed(lambda p, e, m, c: (p * math.nan, e, m)))
    assert set(causes) == {"values", "temperature", "padding", "order"}
    assert set(causes.values()) == {"logprobs: NaN at 9 of 9 tokens inside the mask"}
    causes = failed(changed(lambda p, e, m, c: (p, e, m[0] * math.nan / m[1])), combine=sum)
    assert set(causes) == {"padding", "order", "token mean", "rank mean"} and set(causes.values()) == {
        "the mean is NaN"
    }
    # That of padding alone is the padding's fault.
    causes = failed(changed(lambda p, e, m, c: (p, e, (e / (c[2] + (c[0].amax(-1) < 50))).sum())))
    assert "padding is counted" in causes["padding"]
    entropies = failed(changed(lambda p, e, m, c: (p, torch.where(e > 1.5, math.nan, e), m)))
    assert "entropy: NaN at" in entropies["token mean"] and "entropy: NaN at" in entropies["rank mean"]


def test_an_exit_is_no_pass(tmp_path, capsys):
    """`sys.exit(0)` at the top of a file, or in the function, ended the check with exit code 0."""
    (tmp_path / "script.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(InvalidValue, match="importable .SystemExit: 0"):
        load_function(f"{tmp_path}/script.py:f", "function")

    def leaves(*call):
        raise SystemExit(0)

    assert all("raised SystemExit" in text for text in failed(leaves).values())
    mean = changed(lambda p, e, m, c: (p, e, m[0] / m[1]))
    assert "combine raised SystemExit" in failed(mean, combine=leaves)["rank mean"]


def test_a_module_of_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "their_trainer.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert not failed(load_function("their_trainer:good", "function"))


def test_a_check_of_nothing_is_refused(tmp_path, capsys):
    (tmp_path / "mine.py").write_text("def f(*call):\n    return None, None\n")
    with pytest.raises(InvalidValue, match="function: got .*mine.py:f'; must be .*nothing was checked"):
        CheckEntropy(f"{tmp_path}/mine.py:f").run()
    assert capsys.readouterr().out.count("not checked") == 6


def test_command(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(FUNCTION)
    CheckEntropy(f"{tmp_path}/mine.py:good").run()
    assert capsys.readouterr().out.count("ok ") == 6
    with pytest.raises(SystemExit) as ended:
        CheckEntropy(f"{tmp_path}/mine.py:tempered").run()
    said = capsys.readouterr().out
    assert ended.value.code == 1 and "FAILED       temperature: entropy: tempered" in said
    with pytest.raises(InvalidValue, match="function: got 'nothing'; must be written as module:function"):
        load_function("nothing", "function")
    with pytest.raises(InvalidValue, match="importable"):
        load_function("math:nothing", "function")
