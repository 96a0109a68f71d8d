import pytest
import torch

from aepo.checks import InvalidValue
from aepo.entropy import logits_statistics, token_statistics
from aepo.kept import Clamped, Nucleus

LOGITS = torch.tensor([[3.0, 2.0, 1.0, 0.0, -1.0]])
KEPTS = [Clamped(0.0), Clamped(0.4), Clamped(0.9), Nucleus(0.8), Nucleus(0.99, most=3), Nucleus(1e-6)]


def fused(logits, kept, **options):
    """Through hidden states: an identity head makes the logits themselves the hidden states."""
    head = torch.eye(logits.shape[-1], dtype=logits.dtype)
    labels = torch.zeros(len(logits), dtype=torch.long)
    return token_statistics(logits, head, labels, kept=kept, **options)


def exact(logits, keep):
    """By hand: entropy of the renormalised `keep` largest logits of one row."""
    p = logits.sort(descending=True).values[:keep].double().softmax(-1)
    return -(p * p.log()).sum().item()


@pytest.mark.parametrize("function", [fused, lambda z, kept: logits_statistics(z, torch.zeros(1).long(), kept=kept)])
def test_golden_clamped_entropy(function):
    """2509.03493: logits (3, 2, 1, 0, -1), two of five removed: 0.832396; none removed: 0.999973."""
    assert function(LOGITS, Clamped(0.4)).kept_entropy.item() == pytest.approx(0.832396, abs=1e-6)
    assert function(LOGITS, Clamped(0.0)).kept_entropy.item() == pytest.approx(0.999973, abs=1e-6)


@pytest.mark.parametrize(("mass", "keep"), [(0.6, 1), (0.65, 2), (0.8, 2), (0.87, 2), (0.88, 3), (0.9999, 5)])
def test_the_nucleus_is_the_fewest_tokens_that_reach_the_mass(mass, keep):
    # softmax = (.636, .234, .086, .032, .012), cumulated (.636, .870, .957, .988, 1)
    assert fused(LOGITS, Nucleus(mass)).kept_entropy.item() == pytest.approx(exact(LOGITS[0], keep), abs=1e-6)


@pytest.mark.parametrize("kept", KEPTS)
@pytest.mark.parametrize("chunk", [3, 100])
@pytest.mark.parametrize("compile", [False, True])
def test_both_ways_agree_with_each_other_and_with_autograd(kept, chunk, compile):
    torch.manual_seed(0)
    logits = (2 * torch.randn(10, 17, dtype=torch.float64)).requires_grad_()
    mix = torch.randn(3, 10, dtype=torch.float64)

    def gradient(stats):
        loss = (mix[0] * stats.logprobs + mix[1] * stats.entropy + mix[2] * stats.kept_entropy).sum()
        return torch.autograd.grad(loss, logits)[0]

    plain = logits_statistics(logits, torch.zeros(10, dtype=torch.long), kept=kept)
    ours = fused(logits, kept, chunk=chunk, compile=compile)
    torch.testing.assert_close(ours.kept_entropy, plain.kept_entropy)
    torch.testing.assert_close(gradient(ours), gradient(plain))


def test_the_kept_entropys_gradient_alone_by_finite_differences():
    torch.manual_seed(1)
    logits = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    for kept in (Clamped(0.5), Nucleus(0.8)):
        assert torch.autograd.gradcheck(lambda z, kept=kept: fused(z, kept).kept_entropy, logits)


def test_no_gradient_reaches_the_removed_logits():
    logits = LOGITS.clone().requires_grad_()
    fused(logits, Clamped(0.4)).kept_entropy.sum().backward()
    assert (logits.grad[0, 3:] == 0).all() and (logits.grad[0, :3] != 0).all()


def test_very_negative_logits_inside_the_removed_part_change_nothing():
    more = torch.cat([LOGITS, torch.full((1, 5), -50.0)], dim=1)
    assert fused(more, Clamped(0.7)).kept_entropy.item() == pytest.approx(exact(LOGITS[0], 3), abs=1e-6)


def test_tokens_outside_the_vocabulary_make_no_nan():
    logits = torch.cat([LOGITS, torch.full((1, 2), -torch.inf)], dim=1)
    for kept in (Clamped(0.0), Nucleus(1.0)):
        assert fused(logits.clamp_min(-1e30), kept).kept_entropy.item() == pytest.approx(0.999973, abs=1e-6)


def test_what_was_not_asked_for_is_not_a_number():
    assert fused(LOGITS, None).kept_entropy.isnan().all()


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: Clamped(1.0), "removed"),
        (lambda: Clamped(-0.1), "removed"),
        (lambda: Nucleus(0.0), "mass"),
        (lambda: Nucleus(1.1), "mass"),
        (lambda: Nucleus(0.8, most=0), "most"),
    ],
)
def test_bad_parts_are_refused_by_name(make, field):
    with pytest.raises(InvalidValue, match=f"^{field}: got"):
        make()
