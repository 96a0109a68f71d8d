import math

import pytest
import torch

from aepo.algorithm import Algorithm
from aepo.control.bapo import BAPO
from aepo.errors import InvalidValue
from aepo.loss.surrogates import Clip
from aepo.types import BatchStatistics
from tests import builders as b
from tests import originals

PRESET = Clip(dual=3.0)


def found(control, ratios, advantages, mask=None):
    """The ratio bounds that the control finds for one row of tokens."""
    scored = b.scored([b.sample(0.0, tokens=(1,) * len(ratios))])
    batch = scored.batch
    batch.advantages[:] = torch.tensor(advantages)
    if mask is not None:
        batch.mask[:] = torch.tensor(mask)
    new = BatchStatistics(torch.tensor([ratios]).log() + scored.old.logprobs)
    bounds = control.bounds(scored, new, {})
    return 1 - bounds.low, 1 + bounds.high


RATIOS, ADVANTAGES = [2.0, 1.0, 0.5, 0.7], [1.0, 1.0, -1.0, -2.0]


def test_golden_right_answers_that_have_their_share_leave_the_bounds_at_their_start():
    # E+ = 1.2 + 1 = 2.2, E- = 0.6 + 2 * 0.7 = 2.0: rho = 1.1.
    assert found(BAPO(), RATIOS, ADVANTAGES) == pytest.approx((0.6, 1.2))


def test_golden_the_lower_bound_rises_first_then_the_upper_one():
    # c_low 0.8: E- = 0.8 + 2 * 0.8 = 2.4. rho = (c_high + 1) / 2.4 is 1.1875 at 1.85 and 1.2083 at 1.9.
    assert found(BAPO(balance=1.2, low_max=0.8), RATIOS, ADVANTAGES) == pytest.approx((0.8, 1.9))
    # c_low 0.9: E- = 2.7, and (3 + 1) / 2.7 > 1.2 is first reached at 2.25: 3.25 / 2.7 = 1.2037. r = 2 holds it at 3.
    assert found(BAPO(balance=1.2), RATIOS, ADVANTAGES) == pytest.approx((0.9, 3.0))
    assert found(BAPO(balance=1.2), [4.0, *RATIOS[1:]], ADVANTAGES) == pytest.approx((0.9, 2.25))


def test_golden_a_last_step_that_is_too_large_ends_at_the_limit():
    # 0.6, 0.8, and 0.9 instead of 1.0; 1.2, 2.2, and 3.0 instead of 3.2.
    assert found(BAPO(balance=9.0, step=0.2), RATIOS, ADVANTAGES) == pytest.approx((0.9, 3.0))
    assert found(BAPO(balance=9.0, step=1.0), RATIOS, ADVANTAGES) == pytest.approx((0.9, 3.0))


def test_golden_one_sign_alone():
    assert found(BAPO(), [1.0, 1.0], [-1.0, -1.0]) == pytest.approx((0.9, 3.0))
    assert found(BAPO(), [1.0, 1.0], [1.0, 1.0]) == pytest.approx((0.6, 1.2))
    assert found(BAPO(), [1.0, 1.0], [0.0, 0.0]) == pytest.approx((0.6, 1.2))


def test_padding_does_not_count():
    assert found(BAPO(), [1.0, 1.0], [1.0, -5.0], mask=[1.0, 0.0]) == pytest.approx((0.6, 1.2))


@pytest.mark.parametrize("case", originals.cases("bapo"))
def test_golden_the_authors_function(case):
    control, given = BAPO(**case["settings"]), case["input"]
    part = originals.scored(given)
    bounds = control.bounds(part, BatchStatistics(torch.tensor(given["new"], dtype=torch.float64)), {})
    assert (1 - bounds.low, 1 + bounds.high) == pytest.approx(case["bounds"])
    originals.agrees(originals.loss_and_gradient(Algorithm(surrogate=PRESET, control=control), part, given), case)


def test_golden_the_gradient_stops_at_the_bounds_that_were_found():
    given = {"old": [[0.0] * 4], "new": [[math.log(r) for r in RATIOS]], "adv": [ADVANTAGES], "mask": [[1.0] * 4]}

    def gradient(balance):
        algorithm = Algorithm(surrogate=PRESET, control=BAPO(balance=balance))
        return originals.loss_and_gradient(algorithm, originals.scored(given), given)[1].flatten().tolist()

    assert gradient(1.0) == pytest.approx([0, -0.25, 0, 0.35])  # [0.6, 1.2]: the second wrong token is inside
    assert gradient(1.2) == pytest.approx([-0.5, -0.25, 0, 0])  # [0.9, 3.0]: both wrong tokens are out, r = 2 is in


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("balance", 0.0),
        ("balance", math.inf),
        ("low_start", 0.0),
        ("low_start", 1.1),
        ("low_max", 0.5),
        ("low_max", 1.5),
        ("high_start", 1.0),
        ("high_max", 1.1),
        ("high_max", math.inf),
        ("step", 0.0),
        ("step", 1e-9),
        ("step", math.nan),
    ],
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        BAPO(**{field: value})
