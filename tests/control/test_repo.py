import math

import pytest
import torch

from aepo.control.base import Needs
from aepo.control.repo import REPO
from aepo.control.schedules import Target
from aepo.errors import InvalidValue
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Ratio
from aepo.types import BatchStatistics
from tests import builders as b
from tests import originals

ADVANTAGES, LOGPROBS = [1.0, 1.0, -1.0, -1.0], [-0.1, -5.0, -0.1, -5.0]
ZETAS = [case for case in originals.cases("repo-r") if "zeta" in case["input"]]
RESCALED = [case for case in originals.cases("repo-r") if "adv" in case["input"]]


def reshaped(zeta, advantages=ADVANTAGES, logprobs=LOGPROBS, entropy=None, control=None):
    scored = b.scored([b.sample(0.0, tokens=(1,) * len(logprobs))])
    entropies = None if entropy is None else torch.tensor([entropy], requires_grad=True)
    new = BatchStatistics(torch.tensor([logprobs], requires_grad=True), entropies)
    found = (control or REPO()).reshape(torch.tensor([advantages]), scored, new, {"coefficient": zeta})
    assert not found.requires_grad
    return found[0].tolist()


def test_golden_unlikely_right_tokens_gain_and_unlikely_wrong_ones_are_spared():
    # 1 + 0.05 * 0.1, 1 + 0.05 * 5, -(1 - 0.05 * 0.1), -(1 - 0.05 * 5).
    assert reshaped(0.05) == pytest.approx([1.005, 1.25, -0.995, -0.75])


def test_golden_no_advantage_changes_its_sign():
    assert reshaped(0.5) == pytest.approx([1.05, 3.5, -0.95, 0.0])  # -(1 - 2.5) would be positive
    assert reshaped(-0.5) == pytest.approx([0.95, 0.0, -1.05, -3.5])


def test_golden_the_centred_form_takes_off_what_goes_with_the_log_probability():
    # log pi + H: 0.9, -4, and so on, times 0.1.
    found = reshaped(0.1, entropy=[1.0, 1.0, 2.0, 0.0], control=REPO(form="centred"))
    assert found == pytest.approx([1 - 0.09, 1 + 0.4, -1 - 0.19, -1 + 0.5])


@pytest.mark.parametrize("case", RESCALED)
def test_golden_a_third_partys_rescaling(case):
    given = case["input"]
    assert reshaped(case["settings"]["zeta"], given["adv"], given["logprobs"]) == pytest.approx(case["advantages"])


@pytest.mark.parametrize("case", ZETAS)
def test_golden_a_third_partys_law(case):
    given = case["input"]
    control = REPO(target=Target(str(given["target"])), **case["settings"])
    state = {"coefficient": given["zeta"], "first_entropy": None}
    found = control.update(state, b.measured(given["entropy"]))
    assert found["coefficient"] == pytest.approx(case["zeta"], abs=1e-9)
    assert found["error"] == pytest.approx(given["target"] - given["entropy"])


def test_golden_zeta_goes_from_one_limit_to_the_other():
    control = REPO(target=Target("0.5"), start=0.004, least=0.001, most=0.01)
    state, seen = control.initial_state(), []
    for entropy in (0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6, 0.5, 0.4):
        state = control.update(state, b.measured(entropy))
        seen.append(state["coefficient"])
    # 0.0025 / 2 = 0.00125 stays; 0.000625 is under the least and turns.
    assert seen == pytest.approx([0.008, 0.01, 0.005, 0.0025, 0.00125, -0.001, -0.002, -0.002, -0.001])


def test_golden_the_gradient_is_the_reshaped_advantage():
    scored = b.scored([b.sample(0.0, tokens=(1,) * 4)], logprobs=torch.tensor(LOGPROBS))
    logprobs = scored.old.logprobs.clone().requires_grad_()
    advantages = REPO().reshape(torch.tensor([ADVANTAGES]), scored, BatchStatistics(logprobs), {"coefficient": 0.05})
    policy_loss(logprobs, scored.old.logprobs, advantages, scored.batch.mask, Ratio()).loss.backward()
    assert logprobs.grad[0].tolist() == pytest.approx([-1.005, -1.25, 0.995, 0.75])


def test_the_first_entropy_is_the_default_target():
    control = REPO()
    state = control.update(control.initial_state(), b.measured(0.8))
    assert state["error"] == 0 and state["coefficient"] == control.start
    state = control.update(state, b.measured(0.7, 1))
    assert state["target_entropy"] == pytest.approx(0.8) and state["coefficient"] == pytest.approx(0.002)


def test_a_step_that_measured_nothing_changes_nothing():
    control = REPO()
    state = control.update(control.initial_state(), b.measured(0.5))
    assert control.update(state, b.measured(math.nan, 1)) == state


def test_only_the_centred_form_needs_the_entropy_in_the_update():
    assert REPO().needs({}) == Needs() and REPO(form="centred").needs({}) == Needs(entropy_gradient=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("start", 0.1),
        ("start", -0.1),
        ("start", math.nan),
        ("least", 0.0),
        ("least", 0.1),
        ("most", 0.0),
        ("most", math.inf),
    ],
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        REPO(**{field: value})
