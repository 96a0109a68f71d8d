import pytest
import torch

from aepo.control.aent import AEnt
from aepo.entropy.statistics import logits_statistics, token_statistics
from aepo.errors import InvalidValue
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from aepo.types import BatchStatistics
from tests import builders as b
from tests import originals

LOGITS = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0])


def loss(control, logits, state=None):
    """The loss of one token with advantage 0: the penalty alone, with gradient to the logits."""
    stats = logits_statistics(logits[None], torch.tensor([0]), kept=control.needs({}).kept)
    new = BatchStatistics(stats.logprobs[None], stats.entropy[None], kept_entropy=stats.kept_entropy[None])
    scored = b.scored([b.sample(0.0, tokens=(1,))])
    penalty = control.penalty(scored, new, state or control.initial_state())
    zero = torch.zeros(1, 1)
    return policy_loss(new.logprobs, new.logprobs.detach(), zero, token_mean(scored.batch.mask), Clip(), penalty).loss


def after(control, *entropies, state=None):
    """The state after steps that measured these clamped entropies; the full entropy differs from them."""
    state = state or control.initial_state()
    for number, entropy in enumerate(entropies):
        batch = b.scored([b.sample(1.0, tokens=(1,))], entropy=9.0, kept=entropy)
        state = control.update(state, b.measured(9.0, number, batch=batch))
    return state


@pytest.mark.parametrize(("removed", "entropy"), [(0.0, 0.999973), (0.4, 0.832396)])
def test_golden_the_bonus_is_lambda_times_the_clamped_entropy(removed, entropy):
    # lambda_0 = 2e-4 from the first step on; 0.999973 is the full entropy.
    assert loss(AEnt(removed=removed), LOGITS).item() == pytest.approx(-2e-4 * entropy, rel=1e-5)


@pytest.mark.parametrize(("entropy", "coefficient"), [(0.02, 2.3e-4), (0.10, 2e-4), (0.33, 1e-4)])
def test_golden_the_coefficient_rests_inside_the_band_and_moves_by_beta_times_the_excess(entropy, coefficient):
    state = after(AEnt(), entropy)
    assert state["coefficient"] == pytest.approx(coefficient)
    assert state["error"] == pytest.approx((coefficient - 2e-4) / 1e-3, abs=1e-6)


@pytest.mark.parametrize("case", [case for case in originals.cases("aent") if "logits" in case["input"]])
def test_golden_the_authors_clamped_entropy_and_its_gradient(case):
    logits = torch.tensor(case["input"]["logits"], dtype=torch.float64, requires_grad=True)
    labels = torch.zeros(len(logits), dtype=torch.long)
    kept = AEnt(removed=case["settings"]["removed"]).needs({}).kept
    head = torch.eye(logits.shape[1], dtype=torch.float64)
    entropy = token_statistics(logits, head, labels, kept=kept).kept_entropy
    entropy.sum().backward()
    assert entropy.tolist() == pytest.approx(case["entropy"], abs=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor(case["gradient"], dtype=torch.float64), atol=1e-6, rtol=0)


@pytest.mark.parametrize("case", [case for case in originals.cases("aent") if "coefficient" in case["input"]])
def test_golden_the_authors_rule_of_the_coefficient(case):
    given = case["input"]
    state = after(AEnt(**case["settings"]), given["entropy"], state={"coefficient": given["coefficient"]})
    assert state["coefficient"] == pytest.approx(case["coefficient"], abs=1e-8)


def test_removed_logits_get_no_gradient_and_the_kept_ones_that_of_their_own_entropy():
    control = AEnt(removed=0.4, start=1e-3)
    logits = LOGITS.clone().requires_grad_()
    loss(control, logits).backward()
    assert (logits.grad[3:] == 0).all()
    p = LOGITS[:3].softmax(-1)
    entropy = -(p * p.log()).sum()
    torch.testing.assert_close(logits.grad[:3], 1e-3 * p * (p.log() + entropy))


def test_a_step_down_the_loss_raises_the_clamped_entropy():
    control, logits = AEnt(removed=0.4, start=1e-3), LOGITS.clone().requires_grad_()
    before = loss(control, logits)
    before.backward()
    assert loss(control, logits.detach() - 100 * logits.grad) < before


def test_very_unlikely_tokens_inside_the_removed_share_change_nothing():
    longer = torch.cat([LOGITS, torch.tensor([-30.0, -50.0, -1e4, -torch.inf, -torch.inf])])
    # All 5 likely tokens are kept both times, then the best 3 of them.
    for few, many in ((0.0, 0.5), (0.4, 0.7)):
        assert loss(AEnt(removed=few), LOGITS).item() == pytest.approx(loss(AEnt(removed=many), longer).item())
    logits = longer.clone().requires_grad_()
    loss(AEnt(removed=0.4), logits).backward()
    assert logits.grad.isfinite().all()


def test_the_sensor_is_the_ordinary_rows_clamped_entropy():
    rows = [b.sample(1.0, tokens=(1, 2)), b.sample(1.0, extra=True, tokens=(1, 2))]
    batch = b.scored(rows, entropy=9.0, kept=[[0.02, 0.04], [5.0, 5.0]])
    state = AEnt().update({"coefficient": 2e-4}, b.measured(9.0, batch=batch))
    assert state["error"] == pytest.approx(0.02)  # 0.05 - 0.03


def test_the_coefficient_stays_within_its_bounds():
    assert after(AEnt(), *[9.0] * 3)["coefficient"] == 1e-5
    assert after(AEnt(rate=1.0), *[0.0] * 3)["coefficient"] == 3e-3


def test_the_coefficient_does_not_move_during_the_warmup_nor_without_adapting():
    assert after(AEnt(warmup=2), 0.33, 0.33)["coefficient"] == 2e-4
    assert after(AEnt(warmup=2), 0.33, 0.33, 0.33)["coefficient"] == pytest.approx(1e-4)
    assert after(AEnt(adapt=False), 0.33, 0.33)["coefficient"] == 2e-4


def test_a_step_that_measured_nothing_changes_nothing():
    state = after(AEnt(), 0.33)
    nothing = b.scored([b.sample(1.0, extra=True, tokens=(1,))], kept=0.01)
    assert AEnt().update(state, b.measured(0.5, 1, batch=nothing)) == state


@pytest.mark.parametrize(
    ("field", "value"),
    [("removed", 1.0), ("start", 4e-3), ("entropy_low", -1.0), ("entropy_high", 0.01), ("rate", 0.0), ("low", -1.0),
     ("low", 0.1), ("warmup", -1), ("rate", float("nan"))],
)  # fmt: skip
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        AEnt(**{field: value})
