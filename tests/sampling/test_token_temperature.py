"""A temperature for each token, from the entropy of its distribution at temperature 1."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from aepo.errors import InvalidValue
from tests.sampling.test_hf import EOS, LONG, MIDDLE, mixed, p_value, request, run, tiny


@dataclass(frozen=True)
class Warmer:
    """1 + slope * H, so that it differs much from token to token."""

    slope: float = 0.5

    def __call__(self, entropy: Tensor) -> Tensor:
        return 1 + self.slope * entropy


@dataclass(frozen=True)
class Same:
    """A constant."""

    value: float = 1.0

    def __call__(self, entropy: Tensor) -> Tensor:
        return torch.full_like(entropy, self.value)


def heated(requests, heat):
    return [replace(request, token_temperature=heat) for request in requests]


def by_hand(model, tokens, temperature: float, slope: float) -> Tensor:
    """log softmax(logits / (temperature * (1 + slope * H))) after every position, H = -sum p log p in float64."""
    with torch.no_grad():
        logits = model(torch.tensor([list(tokens)])).logits[0].double()
    probs = logits.softmax(-1)
    entropy = -(probs * probs.log()).sum(-1, keepdim=True)
    return (logits / (temperature * (1 + slope * entropy))).log_softmax(-1)


@pytest.mark.parametrize("kind", ["qwen2", "qwen2-window"])
def test_logprobs_are_those_of_the_heated_distribution(kind):
    """Prompts of several lengths, own temperatures, rows that end early: each token's own T(H) holds."""
    model = tiny(kind)
    completions = run(model, heated(mixed(4), Warmer()))
    assert any(c.truncated for c in completions) and not all(c.truncated for c in completions)
    for completion in completions:
        prompt, tokens = completion.prompt.tokens, completion.tokens
        places, labels = slice(len(prompt) - 1, -1), torch.tensor(tokens)[:, None]
        for slope, right in ((0.5, True), (0.55, False)):
            full = by_hand(model, (*prompt, *tokens), completion.temperature, slope)[places]
            expected = full.gather(-1, labels).squeeze(-1).tolist()
            assert (completion.logprobs == pytest.approx(expected, abs=2e-5)) is right


def test_frequencies_are_the_heated_probabilities():
    model = tiny(vocab=6)
    completions = run(model, heated([request(MIDDLE[:2], 6000)], Warmer()), max_tokens=2, seed=1)

    def outcomes(slope: float) -> dict[tuple[int, ...], float]:
        exact: dict[tuple[int, ...], float] = {}
        for first, p in enumerate(by_hand(model, MIDDLE[:2], 1.0, slope)[-1].exp().tolist()):
            if first == EOS:
                exact[(first,)] = p
                continue
            after = by_hand(model, (*MIDDLE[:2], first), 1.0, slope)[-1].exp().tolist()
            exact |= {(first, second): p * q for second, q in enumerate(after)}
        return exact

    assert p_value(completions, outcomes(0.5)) > 0.01
    assert p_value(completions, outcomes(0.75)) < 1e-4


def test_a_constant_of_one_changes_nothing():
    model = tiny()
    assert run(model, heated(mixed(), Same())) == run(model, mixed())


def test_a_constant_multiplies_the_requests_temperature():
    model = tiny()
    warm, plain = run(model, heated(mixed(), Same(1.25))), run(model, mixed())
    hot = run(model, [replace(request, temperature=1.25 * request.temperature) for request in mixed()])
    assert [c.tokens for c in warm] == [c.tokens for c in hot] != [c.tokens for c in plain]
    for one, other in zip(warm, hot, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_rows_decoded_in_parts_draw_the_same_tokens():
    model = tiny()
    whole, parts = (run(model, heated(mixed(), Warmer()), max_rows=rows) for rows in (None, 5))
    assert [c.tokens for c in whole] == [c.tokens for c in parts]


def test_tokens_taken_out_of_the_vocabulary_count_nothing():
    """A logit of -inf adds 0 to the entropy, not NaN, and is never drawn."""
    model = tiny()
    gone = 4

    def mask_out(module, args, output):
        output.logits[..., gone] = -torch.inf
        return output

    model.register_forward_hook(mask_out)
    for completion in run(model, heated([request(LONG, 20)], Warmer())):
        assert gone not in completion.tokens
        assert all(logprob <= 0 for logprob in completion.logprobs)


def test_one_call_has_one_token_temperature():
    requests = [*heated([request()], Warmer(0.5)), *heated([request()], Warmer(0.5))]
    assert len(run(tiny(), requests)) == 2
    with pytest.raises(InvalidValue, match="^token_temperature: got"):
        run(tiny(), [*requests, *heated([request()], Warmer(0.7))])
