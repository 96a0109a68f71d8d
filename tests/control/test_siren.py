from dataclasses import replace

import pytest
import torch

from aepo.control.siren import SIREN
from aepo.entropy.partial import Nucleus
from aepo.entropy.statistics import logits_statistics
from aepo.errors import InvalidValue
from aepo.loss.aggregates import sequence_mean_token_mean, token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from aepo.types import BatchStatistics
from tests import builders as b

# Two completions of 4 and 6 tokens: 10 tokens, of which the top 20 % are 2.0 and 1.5.
KEPT = torch.tensor([[0.1, 2.0, 0.3, 0.0, 0.0, 0.0], [0.2, 0.4, 0.1, 1.5, 1.2, 0.3]])


def rows():
    return [b.sample(1.0, tokens=(1,) * 4), b.sample(0.0, tokens=(1,) * 6)]


def two_completions(control, kept=KEPT, samples=None):
    return b.marked(control, b.scored(samples or rows(), entropy=9.0, kept=kept))


def after(control, *batches):
    state = control.initial_state()
    for number, batch in enumerate(batches):
        state = control.update(state, b.measured(9.0, number, batch=batch))
    return state


def places(marks):
    return [tuple(place) for place in marks.nonzero().tolist()]


def test_golden_the_peaks_are_the_top_fifth_of_all_tokens():
    assert places(two_completions(SIREN()).marks["peaks"]) == [(0, 1), (1, 3)]
    kept = torch.tensor([[0.1, 2.0, 0.3, 1.9, 0.0, 0.0], [0.2, 0.4, 0.1, 1.5, 1.2, 0.3]])
    assert places(two_completions(SIREN(), kept).marks["peaks"]) == [(0, 1), (0, 3)]


def test_golden_the_authors_peaks_are_above_each_completions_own_quantile():
    # 80 % quantiles by linear interpolation: 0.3 + 0.4 * 1.7 = 0.98 of four, 1.2 of six (not above itself).
    assert places(two_completions(SIREN(peaks="completion")).marks["peaks"]) == [(0, 1), (1, 3)]
    own = two_completions(SIREN(peaks="completion", share=0.4))  # quantiles 0.1 + 0.8 * 0.2 = 0.26 and 0.4
    assert places(own.marks["peaks"]) == [(0, 1), (0, 2), (1, 3), (1, 4)]


def test_rows_that_are_not_trained_on_have_no_peaks():
    samples = rows()
    samples[0] = replace(samples[0], trained=False)
    for peaks in ("batch", "completion"):
        marks = two_completions(SIREN(peaks=peaks), samples=samples).marks["peaks"]
        assert places(marks) == [(1, 3)]


def test_golden_anchor_error_and_penalty():
    # First step: H_i = 2.0 and 1.5, anchor 1.75. Then 1.0 and 0.9: error 0.8; 0.005 * 0.75^2 and 0.005 * 0.85^2.
    control = SIREN()
    later = torch.where(KEPT == 2.0, 1.0, torch.where(KEPT == 1.5, 0.9, KEPT / 10))
    first = after(control, two_completions(control))
    assert (first["anchor"], first["error"], first["coefficient"]) == (1.75, 0.0, 0.005)
    second = control.update(first, b.measured(9.0, 1, batch=two_completions(control, later)))
    assert second["anchor"] == second["target_entropy"] == 1.75
    assert second["error"] == pytest.approx(0.8)
    batch = two_completions(control, later)
    penalty = control.penalty(batch, batch.old, first)
    expected = 0.005 * torch.tensor([[0.5625], [0.7225]]) * batch.batch.mask
    torch.testing.assert_close(penalty, expected)


def test_the_first_step_measures_and_adds_nothing():
    control = SIREN()
    batch = two_completions(control)
    assert control.penalty(batch, batch.old, control.initial_state()) is None
    assert control.needs(control.initial_state()).kept == Nucleus(mass=0.8, most=10_000)


def test_a_completion_without_peaks_has_no_term():
    control = SIREN()
    batch = two_completions(control, torch.where(KEPT == 1.5, 0.0, KEPT * torch.tensor([[10.0], [0.1]])))
    assert batch.marks["peaks"].sum(1).tolist() == [2.0, 0.0]
    penalty = control.penalty(batch, batch.old, {"anchor": 5.0})
    assert (penalty[0, :4] > 0).all() and (penalty[1] == 0).all()


def policy(control, logits):
    labels = torch.zeros(logits.shape[:-1], dtype=torch.long)
    stats = logits_statistics(logits, labels, kept=control.needs({}).kept)
    return BatchStatistics(stats.logprobs, stats.entropy, kept_entropy=stats.kept_entropy)


@pytest.mark.parametrize(("aggregate", "shares"), [(token_mean, (0.4, 0.6)), (sequence_mean_token_mean, (0.5, 0.5))])
def test_the_gradient_is_the_written_formulas(aggregate, shares):
    torch.manual_seed(0)
    control = SIREN(share=0.5)
    logits = torch.randn(2, 6, 9, requires_grad=True)
    new = policy(control, logits)
    batch = two_completions(control, new.kept_entropy.detach())
    peaks, mask = batch.marks["peaks"], batch.batch.mask
    penalty = control.penalty(batch, new, {"anchor": 0.7})
    weights = aggregate(mask)
    loss = policy_loss(new.logprobs, new.logprobs.detach(), torch.zeros_like(mask), weights, Clip(), penalty).loss
    means = [new.kept_entropy[i][peaks[i].bool()].mean() for i in range(2)]
    written = sum(share * 0.005 * (mean - 0.7) ** 2 for share, mean in zip(shares, means, strict=True))
    torch.testing.assert_close(loss, written)
    (expected,) = torch.autograd.grad(written, logits, retain_graph=True)
    (got,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(got, expected)
    assert (got[peaks == 0] == 0).all() and got.abs().sum() > 0


@pytest.mark.parametrize("anchor", [0.0, 3.0])
def test_a_step_down_the_loss_moves_the_entropy_towards_the_anchor(anchor):
    torch.manual_seed(1)
    control = SIREN(share=0.5)
    logits = torch.randn(2, 6, 9, requires_grad=True)
    new = policy(control, logits)
    batch = two_completions(control, new.kept_entropy.detach())
    control.penalty(batch, new, {"anchor": anchor}).sum().backward()
    moved = policy(control, logits.detach() - 1e-2 * logits.grad)
    change = ((moved.kept_entropy - new.kept_entropy) * batch.marks["peaks"]).sum()
    assert change * (anchor - 1.0) > 0  # the entropies are about 1 nat


def test_extra_rows_do_not_enter_the_sensor():
    samples = [*rows(), b.sample(1.0, extra=True, group=9, tokens=(1,))]
    kept = torch.cat([KEPT, torch.full((1, 6), 9.0)])
    control = SIREN(share=0.3)  # 3 of 11 tokens
    batch = two_completions(control, kept, samples)
    assert batch.marks["peaks"].sum() == 3
    assert after(control, batch)["anchor"] == 1.75


def test_a_step_that_measured_nothing_changes_nothing():
    control = SIREN()
    state = after(control, two_completions(control))
    nothing = b.scored([b.sample(1.0, extra=True, tokens=(1,))], kept=0.01)
    assert control.update(state, b.measured(0.5, 1, batch=nothing)) == state


@pytest.mark.parametrize(
    "fields",
    [{"coefficient": 0.0}, {"mass": 0.0}, {"mass": 1.1}, {"most": 0}, {"share": 0.0}, {"share": 1.1},
     {"coefficient": float("nan")}],
)  # fmt: skip
def test_bad_values_are_refused(fields):
    with pytest.raises(InvalidValue, match=rf"^control\.{next(iter(fields))}: got"):
        SIREN(**fields)
