import math

import pytest
import torch

from aepo.entropy import partial as kept_module
from aepo.entropy import tiles as fused_module
from aepo.entropy.partial import FLOOR, Clamped, MinP, Nucleus
from aepo.entropy.statistics import logits_statistics, token_statistics
from aepo.errors import InvalidValue

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


@pytest.mark.parametrize("function", [fused, lambda z, kept: logits_statistics(z, torch.zeros(1).long(), kept=kept)])
def test_golden_the_tokens_near_the_most_probable_one(function):
    """Logits (3, 2, 1, 0, -1): probabilities relative to the largest are (1, .368, .135, .0498, .0183)."""
    for share, keep in ((0.37, 1), (0.36, 2), (0.05, 3), (0.02, 4), (0.018, 5)):
        stats = function(LOGITS, MinP(share))
        assert stats.kept_entropy.item() == pytest.approx(exact(LOGITS[0], keep), abs=1e-6)
        # The label is the most probable token: 1 over the sum of what is kept.
        total = sum(math.exp(-i) for i in range(keep))
        assert stats.kept_logprobs.item() == pytest.approx(-math.log(total), abs=1e-6)
        assert not stats.kept_logprobs.requires_grad


@pytest.mark.parametrize("kept", [*KEPTS, MinP(0.02), MinP(1.0)])
@pytest.mark.parametrize("compile", [False, True])
def test_both_ways_agree_on_the_labels_log_probability_among_the_kept(kept, compile):
    torch.manual_seed(1)
    logits, labels = (2 * torch.randn(40, 17, dtype=torch.float64)).requires_grad_(), torch.randint(17, (40,))
    plain = logits_statistics(logits, labels, kept=kept).kept_logprobs
    head = torch.eye(17, dtype=torch.float64)
    ours = token_statistics(logits, head, labels, kept=kept, chunk=7, compile=compile).kept_logprobs
    torch.testing.assert_close(ours, plain)
    assert not ours.requires_grad and not plain.requires_grad
    if kept in (MinP(0.02), Nucleus(0.8)):
        assert (plain == FLOOR).any() and (plain > -10).any()


@pytest.mark.parametrize("share", [0.0, 1.1, math.nan])
def test_a_bad_share_of_the_largest_probability_is_refused(share):
    with pytest.raises(InvalidValue, match=r"^share: got"):
        MinP(share)


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
    assert fused(LOGITS, None).kept_entropy is None


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


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("by", [-1e-6, 1e-6])
def test_logits_that_come_out_rounded_otherwise_on_the_way_back_stay_kept(monkeypatch, compile, by):
    """A product over fewer rows may round in another way: the least kept token must not fall out, nor the next in."""
    logits = torch.tensor([[2.0, 1.5, 0.5, 0.25]]).requires_grad_()
    kept = Nucleus(0.75)
    plain = logits_statistics(logits, torch.zeros(1).long(), kept=kept).kept_entropy
    stats = fused(logits, kept, compile=compile)
    product = fused_module._Head.logits
    monkeypatch.setattr(fused_module._Head, "logits", lambda *args: product(*args).add_(by))
    (ours,) = torch.autograd.grad(stats.kept_entropy.sum(), logits)
    (right,) = torch.autograd.grad(plain.sum(), logits)
    assert right[0, 1].abs() > 0.01 and right[0, 2] == 0
    torch.testing.assert_close(ours, right, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kept", [Clamped(0.5), Nucleus(0.5)])
def test_ties_at_the_threshold_are_all_kept(kept):
    tied = torch.tensor([[1.0, 1.0, 1.0, 1.0, -1.0, -2.0]]).requires_grad_()
    for stats in (fused(tied, kept), logits_statistics(tied, torch.zeros(1).long(), kept=kept)):
        assert stats.kept_entropy.item() == pytest.approx(math.log(4), abs=1e-6)


@pytest.mark.parametrize("removed", [0.0, 0.1, 0.3, 0.5, 0.51, 0.9, 0.999])
@pytest.mark.parametrize("vocabulary", [1, 2, 101, 1000])
def test_the_clamp_removes_as_many_as_it_says(removed, vocabulary):
    logits = torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    below = (logits < Clamped(removed).threshold(logits)).sum(-1)
    assert below.tolist() == [int(vocabulary * removed)] * 3


@pytest.mark.parametrize(("mass", "most"), [(0.8, 10_000), (0.8, 500), (1.0, 10_000), (0.3, 64), (0.9, 65)])
def test_the_nucleus_is_the_same_however_far_one_looks_first(monkeypatch, mass, most):
    """Rows from one token to the whole vocabulary."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 8.0, 30.0]).unsqueeze(1)
    logits = torch.randn(8, 3000, generator=generator) * scales
    kept = Nucleus(mass, most)
    soon = kept.threshold(logits)
    sizes = (logits >= soon).sum(-1)
    monkeypatch.setattr(kept_module, "_FIRST_LOOKS", ())
    assert torch.equal(soon, kept.threshold(logits))
    assert sizes.min() <= 2 and (sizes[1:] <= most).all()


@pytest.mark.parametrize("compile", [False, True])
def test_tokens_outside_the_vocabulary_and_a_shift_change_no_gradient(compile):
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 3, dtype=torch.float64), torch.randn(12, 3, dtype=torch.float64)
    weight.requires_grad_()
    labels = torch.arange(6)

    def gradient(rows, bias):
        stats = token_statistics(hidden, weight[:rows], labels, bias=bias, kept=Nucleus(0.8), compile=compile, chunk=4)
        return stats.kept_entropy, torch.autograd.grad(stats.kept_entropy.sum(), weight)[0]

    bias = torch.randn(12, dtype=torch.float64)
    masked = torch.cat([bias[:8] - 1e3, torch.full((4,), -torch.inf, dtype=torch.float64)])
    for ours, right in zip(gradient(12, masked), gradient(8, bias[:8]), strict=True):
        torch.testing.assert_close(ours, right, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("spread", "least", "most"), [(2, 0.03, 0.05), (4, 5e-5, 1e-4), (5, 5e-7, 2e-6)])
def test_the_more_peaked_a_row_the_less_the_clamp_changes(spread, least, most):
    """The figures of docs/entropy.md: normal logits, 30 % of 152 064 removed."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(8, 152_064, generator=generator, dtype=torch.float64)
    stats = logits_statistics(logits, torch.zeros(8).long(), kept=Clamped(0.3))
    assert least < (stats.entropy - stats.kept_entropy).mean() < most
