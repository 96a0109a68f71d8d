import math

import pytest
import torch

from aepo.algorithm import Algorithm
from aepo.config import make_config
from aepo.control.base import Needs
from aepo.control.erc import ERC
from aepo.errors import InvalidValue
from aepo.loss.surrogates import Clip, GradientPreservingClip
from aepo.types import BatchStatistics
from tests import builders as b
from tests import originals

SURROGATES = {
    "grpo_erc": lambda low, high, dual: Clip(low=low, high=high, dual=dual),
    "gppo_erc": lambda low, high, dual: GradientPreservingClip(low=low, high=high, beta1=1.0, beta2=1.0, dual=dual),
}


def reshaped(old, new, **fields):
    scored = b.scored([b.sample(1.0, 2.0, tokens=(1,) * len(old))], entropy=torch.tensor(old))
    statistics = BatchStatistics(scored.old.logprobs, torch.tensor([new], requires_grad=True))
    found = ERC(**fields).reshape(scored.batch.advantages, scored, statistics, {})
    assert not found.requires_grad
    return found[0].tolist()


def test_golden_tokens_outside_five_percent_get_nothing():
    # Ratios 1.2, 1.02, 0.96, 0.94, 1.06.
    assert reshaped([1.0, 1.0, 1.0, 0.5, 0.5], [1.2, 1.02, 0.96, 0.47, 0.53]) == [0, 2, 2, 0, 0]


def test_golden_the_limits_themselves_are_outside():
    assert reshaped([1.0, 1.0], [0.5, 1.5], low=0.5, high=1.5) == [0, 0]
    assert reshaped([1.0, 1.0], [0.51, 1.49], low=0.5, high=1.5) == [2, 2]


def test_golden_rounding_noise_at_tokens_of_almost_no_entropy_changes_nothing():
    assert reshaped([1e-7, 0.0, 1e-6], [3e-7, 1e-6, 5e-6]) == [2, 2, 2]
    assert reshaped([1e-4, 0.0], [1.5e-4, 1e-4]) == [0, 0]


@pytest.mark.parametrize("case", originals.cases("erc"))
def test_golden_the_authors_functions(case):
    settings, given = case["settings"], case["input"]
    surrogate = SURROGATES[settings["function"]](settings["clip_low"], settings["clip_high"], settings["dual"])
    algorithm = Algorithm(surrogate=surrogate, control=ERC(low=settings["low"], high=settings["high"]))
    old, new = (torch.tensor(given[name], dtype=torch.float64) for name in ("old_entropy", "entropy"))
    part = originals.scored(given, entropy=old)
    _, gradient = originals.loss_and_gradient(
        algorithm, part, given, statistics=lambda logprobs: BatchStatistics(logprobs, new)
    )
    torch.testing.assert_close(gradient, torch.tensor(case["gradient"], dtype=torch.float64), atol=1e-6, rtol=0)
    kept = algorithm.control.reshape(torch.ones_like(old), part, BatchStatistics(old, new), {}) * part.batch.mask
    assert kept.sum().item() / part.batch.mask.sum().item() == pytest.approx(case["kept"])


def test_it_asks_for_the_entropy_in_every_pass_and_nothing_else():
    assert ERC().needs({}) == Needs(entropy_gradient=True)


def test_the_form_on_ce_gppo_is_a_surrogate_away():
    chosen = ["surrogate='gradient-preserving-clip'", "surrogate.beta1=1", "surrogate.beta2=1"]
    config = make_config(method="erc", settings=chosen)
    assert config.algorithm.control == ERC() and config.surrogate == GradientPreservingClip(beta1=1.0, beta2=1.0)


@pytest.mark.parametrize(
    ("field", "value"), [("low", -0.1), ("low", 1.0), ("high", 1.0), ("high", math.inf), ("high", math.nan)]
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        ERC(**{field: value})
