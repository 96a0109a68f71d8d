"""The correction of a sampler's mismatch inside the loop, with samplers that are wrong on purpose."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

from aepo.loss.aggregates import token_mean
from aepo.tasks import Paths
from aepo.training import step as training
from aepo.training.checkpoint import TrainState
from aepo.training.step import Run, train_step
from tests.training.test_step import make_run, small

HOT = ("control.start=hot", "control.draw=all", "optimizer.minibatches=1", "optimizer.max_grad_norm=1e9")
RATE = 0.5
LOGGED = ("mismatch_weight", "mismatch_cut_tokens", "mismatch_cut_rows", "mismatch_cut_extra_rows")


@pytest.fixture(autouse=True)
def often_right(monkeypatch):
    monkeypatch.setattr(Paths, "reward", lambda self, problem, text, truncated: float(len(text.split()) % 2))


@dataclass
class Wrong:
    """A sampler that reports log-probabilities which are off by so many nats, at every token of chosen rows."""

    right: object
    off: float
    extra_alone: bool = False

    def refresh(self, policy) -> None:
        self.right.refresh(policy)

    def sample(self, requests, **named):
        return [self.moved(completion) for completion in self.right.sample(requests, **named)]

    def moved(self, completion):
        if self.extra_alone and completion.temperature == 1:
            return completion
        return replace(completion, logprobs=tuple(value + self.off for value in completion.logprobs))


def one_step(model, correction: str, off: float = 0.0, extra_alone: bool = False, settings: tuple = HOT):
    """The change of the weights in a step of plain gradient descent, the log's row, the run and what was scored."""
    run = make_run(small(model, "aepo", 5, *settings, f"mismatch.correction={correction}"))
    run = replace(run, optimizer=torch.optim.SGD(run.policy.model.parameters(), lr=RATE))
    run = replace(run, config=replace(run.config, optimizer=replace(run.config.optimizer, lr=RATE)))
    run = replace(run, sampler=Wrong(run.sampler, off, extra_alone))
    seen = []
    update = training.update

    def spy(run, scored, state, *more):
        if not seen:
            seen.append(scored)
        return update(run, scored, state, *more)

    before = flat(run)
    training.update = spy
    try:
        _, row, _ = train_step(run, TrainState(control=run.algorithm.control.initial_state()))
    finally:
        training.update = update
    return flat(run) - before, row, seen[0]


def flat(run: Run) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in run.policy.model.parameters()]).clone()


def by_hand(model, scored, factors: torch.Tensor) -> torch.Tensor:
    """-rate * gradient of -sum over tokens of factor * A * log pi / number of tokens: one update, so the ratio is 1."""
    run = make_run(small(model, "aepo", 5, *HOT))
    logprobs = run.policy.statistics(scored.batch, training.Needs()).logprobs
    weights = token_mean(scored.batch.mask)
    (-(weights * factors * scored.batch.advantages * logprobs).sum()).backward()
    return torch.cat([-RATE * p.grad.flatten() for p in run.policy.model.parameters()])


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert wanted.abs().max() > 1e-3
    torch.testing.assert_close(got, wanted, atol=2e-6, rtol=1e-3)


def test_golden_a_sampler_off_by_log_2_halves_the_update(quick_model):
    """mu = 2 pi on every token, so TIS weighs every token by 1/2; without a correction nobody notices."""
    plain, row, scored = one_step(quick_model, "none", math.log(2))
    ones = torch.ones_like(scored.batch.mask)
    assert_close(plain, by_hand(quick_model, scored, ones))
    assert not set(LOGGED) & set(row) and scored.correction is None
    half, row, _ = one_step(quick_model, "token_truncate", math.log(2))
    assert_close(half, by_hand(quick_model, scored, ones / 2))
    assert row["mismatch_weight"] == pytest.approx(0.5, abs=1e-4)
    assert row["mismatch_cut_tokens"] == row["mismatch_cut_rows"] == 0.0


def test_golden_a_mask_cuts_the_rows_of_a_wrong_sampler_alone(quick_model):
    """Positives have factor 0.4, which IcePop masks: what is left is the update of the ordinary rows, over the same
    number of tokens.
    """
    moved, row, scored = one_step(quick_model, "token_mask", math.log(2.5), extra_alone=True)
    kept = (~scored.batch.extra).float()[:, None].expand_as(scored.batch.mask)
    assert 0 < scored.batch.extra.sum() < len(scored.batch)
    assert_close(moved, by_hand(quick_model, scored, kept))
    tokens = scored.batch.mask.sum(1)
    share = (tokens[scored.batch.extra].sum() / tokens.sum()).item()
    assert row["mismatch_cut_tokens"] == pytest.approx(share)
    assert row["mismatch_cut_extra_rows"] == 1.0 and row["mismatch_extra"] == pytest.approx(math.log(2.5), abs=1e-4)


def test_golden_a_sequence_weighs_as_the_product_of_its_tokens(quick_model):
    """mu = 1.1 pi: a row of n tokens has the factor 1.1^-n."""
    moved, _, scored = one_step(quick_model, "sequence_truncate", math.log(1.1))
    lengths = scored.batch.mask.sum(1, keepdim=True)
    assert_close(moved, by_hand(quick_model, scored, (1.1**-lengths).expand_as(scored.batch.mask)))


@pytest.mark.parametrize("correction", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_a_right_sampler_is_not_corrected_at_any_temperature(correction, quick_model):
    _, row, scored = one_step(quick_model, correction)
    extra = scored.batch.extra
    assert row["extra_temperature"] == 1.5 and extra.any()
    torch.testing.assert_close(scored.correction, torch.ones_like(scored.correction), atol=2e-4, rtol=0)
    assert row["mismatch_extra"] < 1e-5 and row["mismatch_weight"] == pytest.approx(1.0, abs=1e-4)
    assert [row[name] for name in LOGGED[1:]] == [0.0, 0.0, 0.0]
    # Against log pi at T = 1 the same positives would be far off.
    naive = (scored.old.logprobs - scored.batch.sampling_logprobs)[extra]
    assert naive.abs().max() > 0.1


def test_ordinary_rows_are_compared_at_their_own_temperature(quick_model):
    _, _, scored = one_step(quick_model, "token_truncate", settings=(*HOT, "sampling.temperature=0.8"))
    assert set(scored.old.tempered) == {0.8, 1.5}
    torch.testing.assert_close(scored.correction, torch.ones_like(scored.correction), atol=2e-4, rtol=0)


def test_reference_solutions_are_not_corrected(quick_model):
    run = make_run(small(quick_model, "rpo", 5, "mismatch.correction=sequence_mask"))
    _, row, samples = train_step(run, TrainState(control=run.algorithm.control.initial_state()))
    assert any(sample.extra for sample in samples) and row["mismatch_extra"] is None
    assert row["mismatch_cut_tokens"] == 0.0 and row["mismatch_weight"] == pytest.approx(1.0, abs=1e-4)


def test_without_a_correction_the_pass_is_asked_for_nothing_more(quick_model, monkeypatch):
    score, asked = training.Policy.score, []

    def spy(self, batch, needs, *more):
        asked.append(needs)
        return score(self, batch, needs, *more)

    monkeypatch.setattr(training.Policy, "score", spy)
    one_step(quick_model, "none")
    assert asked[-1] == training.Needs()
    one_step(quick_model, "token_mask")
    assert asked[-1] == training.Needs(temperatures=(1.5,))
