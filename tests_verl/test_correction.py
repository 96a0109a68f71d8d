"""verl's `rollout_correction` with this package's trainer: verl's own weights, each row at its own temperature."""

from __future__ import annotations

import math

import pytest
import torch
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_weights

from aepo.control.base import Scored, Step
from aepo.errors import InvalidValue
from aepo.integrations.verl import rows
from aepo.integrations.verl.__main__ import compose, overrides
from aepo.integrations.verl.settings import read
from aepo.types import BatchStatistics, Completion, Prompt, Rollout, Sample

NAME = "algorithm.rollout_correction"
STEP = Step(number=0, steps=1, prompts=2, group_size=2, max_tokens=3, seed=0)


def mismatch(*given: str, known: str = "true", top_p: float = 1.0):
    own = ["data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8", "actor_rollout_ref.rollout.n=4"]
    own.append(f"actor_rollout_ref.rollout.calculate_log_probs={known}")
    own.append(f"actor_rollout_ref.rollout.top_p={top_p}")
    return read(compose(overrides([*own, *(f"{NAME}.{word}" for word in given)]))).mismatch


@pytest.mark.parametrize("threshold", ["2.0", "1.05", "0.5_5.0", "0.8_1.2"])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_factors_are_verls(level, threshold):
    torch.manual_seed(0)
    mask = (torch.arange(6)[None] < torch.tensor([6, 1, 4, 3])[:, None]).float()
    log_ratio = 0.4 * torch.randn(4, 6) * mask
    log_ratio[0, 0] = 30.0  # beyond verl's limit of 20
    theirs, _ = compute_rollout_correction_weights(log_ratio, mask, level, threshold)
    ours, cut = mismatch(f"rollout_is={level}", f"rollout_is_threshold={threshold}").weights(log_ratio)
    torch.testing.assert_close(ours * mask, theirs, rtol=1e-6, atol=0)
    assert (cut * mask).any()


def test_golden_factors_of_an_ordinary_and_of_a_tempered_row():
    """mu is twice too sure of the first token of each row. pi at T = 2 has log pi^T = log pi / 2 + log 2 here.

    ordinary: l = (-1.0) - (-1.0 + log 2), 0 -> factors 1/2, 1
    tempered: l = log pi^T - log mu^T = -log 2, 0 -> factors 1/2, 1; by mistake log pi - log mu^T would be l = -0.9, ...
    """
    plain = torch.tensor([[-1.0, -2.0], [-2.0, -1.0]])
    heated = plain / 2 + math.log(2)
    mu = torch.stack([plain[0], heated[1]])
    mu[:, 0] += math.log(2)
    samples = []
    for number, heat in enumerate((1.0, 2.0)):
        prompt = Prompt("0", (5,), {})
        drawn = Completion(prompt, number, heat, (7, 8), tuple(mu[number].tolist()), truncated=False)
        samples.append(Sample(Rollout(drawn, 1.0), 1.0, extra=heat != 1))
    batch = rows.to_batch(samples, [(1, 1)] * 2, 0)
    scored = Scored(batch, BatchStatistics(plain, torch.ones(2, 2), tempered={2.0: heated}), STEP)
    found = mismatch("rollout_is=token")
    assert found.temperatures([1.0, 2.0]) == (2.0,)
    correction = found.of(samples, scored)
    torch.testing.assert_close(correction.weights, torch.tensor([[0.5, 1.0], [0.5, 1.0]]))
    assert correction.row()["mismatch_cut_tokens"] == 0.0
    masked = mismatch("rollout_is=token", "rollout_is_threshold=0.6_5.0").of(samples, scored)
    torch.testing.assert_close(masked.weights, torch.tensor([[0.0, 1.0], [0.0, 1.0]]))
    assert masked.row()["mismatch_cut_tokens"] == 0.5 and masked.row()["mismatch_cut_extra_rows"] == 1.0


def test_the_factors_reach_the_workers():
    fields = {
        name: torch.ones(1, 2) for name in ("responses", "response_mask", "advantages", "old_log_probs", "entropy")
    }
    fields |= {"prompts": torch.ones(1, 1), "prompt_mask": torch.ones(1, 1), "aepo_rows": torch.ones(1, rows.FACTS)}
    assert rows.microbatch(fields, STEP).correction is None
    factors = torch.tensor([[0.5, 2.0]])
    assert rows.microbatch({**fields, rows.CORRECTION: factors}, STEP).correction is factors


def test_verls_words_are_read():
    assert not mismatch().active
    found = mismatch("rollout_is=sequence", "rollout_is_threshold=3.0")
    assert (found.correction, found.bounds) == ("sequence_truncate", (0.0, 3.0))
    found = mismatch("rollout_is=token", "rollout_is_threshold=0.5_4.0")
    assert (found.correction, found.bounds) == ("token_mask", (0.5, 4.0))


@pytest.mark.parametrize(
    "words", [["rollout_is_threshold=0.5"], ["rollout_is_threshold=a"], ["rollout_is_threshold=2.0_3.0"]]
)
def test_a_threshold_that_does_not_work_is_one_line(words):
    with pytest.raises(InvalidValue, match=rf"^{NAME}\.rollout_is_threshold: got"):
        mismatch("rollout_is=token", *words)


def test_a_correction_needs_the_engines_log_probabilities():
    with pytest.raises(InvalidValue, match="calculate_log_probs: got False"):
        mismatch("rollout_is=token", known="false")


def test_a_cut_distribution_cannot_be_corrected():
    mismatch(top_p=0.9)
    with pytest.raises(InvalidValue, match=r"rollout\.top_p: got 0\.9; must be 1 with"):
        mismatch("rollout_is=token", top_p=0.9)
