import pytest
import torch

from aepo.control.entropy_adv import EntropyAdv
from aepo.errors import InvalidValue
from tests import builders as b


@pytest.mark.parametrize(
    ("advantage", "entropy", "expected"), [(0.5, 2.0, 0.75), (-0.5, 2.0, -0.25), (0.0, 2.0, 0.0), (0.5, 0.1, 0.54)]
)
def test_golden_values(advantage, entropy, expected):
    scored = b.scored([b.sample(1.0, advantage, tokens=(1,))], entropy=entropy)
    shaped = EntropyAdv(alpha=0.4, kappa=2.0).shape(scored.batch.advantages, scored, {})
    assert shaped.item() == pytest.approx(expected)


def test_the_sign_of_the_advantage_is_kept_whatever_the_entropy():
    scored = b.scored([b.sample(1.0, a, tokens=(1,)) for a in (-2.0, -0.01, 0.01, 2.0)], entropy=12.0)
    shaped = EntropyAdv().shape(scored.batch.advantages, scored, {})
    assert torch.equal(shaped.sign(), scored.batch.advantages.sign())


@pytest.mark.parametrize(("field", "value"), [("alpha", 0.0), ("kappa", 1.0), ("alpha", float("nan"))])
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        EntropyAdv(**{field: value})
