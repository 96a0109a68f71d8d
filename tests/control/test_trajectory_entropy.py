from dataclasses import replace
from itertools import product

import pytest
import torch

from aepo.control.entropy_reg import EntropyReg
from aepo.control.schedules import Schedule
from aepo.control.tokens import entropy_to_go
from aepo.control.trajectory_entropy import TrajectoryEntropy
from aepo.errors import InvalidValue
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from tests import builders as b

ENTROPY = [[1.0, 0.5, 2.0], [1.0, 1.0, 7.0]]  # the second completion has two tokens
ON = {"coefficient": 0.1}


def two_completions(**options):
    rows = [b.sample(1.0, 0.3, tokens=(1, 2, 3)), b.sample(0.0, -0.3, tokens=(1, 2))]
    return b.scored(rows, entropy=torch.tensor(ENTROPY), **options)


def shaped(control, scored, state=ON):
    return control.shape(torch.zeros_like(scored.batch.mask), scored, state)


class Tree:
    """All completions of `depth` tokens out of two, with a distribution of its own after each prefix."""

    def __init__(self, depth):
        torch.manual_seed(depth)
        prefixes = [prefix for length in range(depth) for prefix in product(range(2), repeat=length)]
        self.logits = torch.randn(len(prefixes), 2, dtype=torch.float64, requires_grad=True)
        self.paths = list(product(range(2), repeat=depth))
        places = [[prefixes.index(path[:t]) for t in range(depth)] for path in self.paths]
        self.policy = b.token_policy(self.logits[torch.tensor(places)], self.paths)
        self.probability = self.policy.logprobs.sum(1).exp()

    def gradient(self, value):
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]

    def scored(self):
        rows = [b.sample(0.0, tokens=path) for path in self.paths]
        return b.scored(rows, logprobs=self.policy.logprobs.detach(), entropy=self.policy.entropy.detach())


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("gamma", [1.0, 0.9, 0.5])
def test_golden_the_identity_by_enumeration(depth, gamma):
    tree = Tree(depth)
    policy, discount = tree.policy, gamma ** torch.arange(depth)
    exact = tree.gradient((tree.probability * (policy.entropy * discount).sum(1)).sum())
    to_go = discount * entropy_to_go(policy.entropy.detach(), torch.ones_like(policy.entropy), gamma)
    terms = (discount * policy.entropy + to_go * policy.logprobs).sum(1)
    torch.testing.assert_close(tree.gradient((tree.probability.detach() * terms).sum()), exact)


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize("baseline", ["group", "position"])
def test_golden_without_discount_the_practical_loss_has_the_exact_gradient(depth, baseline):
    tree, control = Tree(depth), TrajectoryEntropy(gamma=1.0, baseline=baseline)
    scored, state = tree.scored(), {"coefficient": 0.5}
    loss = policy_loss(
        tree.policy.logprobs, scored.old.logprobs, shaped(control, scored, state),
        tree.probability.detach()[:, None].expand(-1, depth), Clip(), control.penalty(scored, tree.policy, state),
    ).loss  # fmt: skip
    exact = tree.gradient((tree.probability * tree.policy.entropy.sum(1)).sum())
    torch.testing.assert_close(tree.gradient(loss), -0.5 * exact)


def test_the_direct_term_alone_misses_a_part_of_the_gradient():
    tree, control = Tree(2), TrajectoryEntropy(gamma=1.0, to_go=False)
    assert (shaped(control, tree.scored()) == 0).all()
    exact = tree.gradient((tree.probability * tree.policy.entropy.sum(1)).sum())
    direct = tree.gradient((tree.probability.detach() * tree.policy.entropy.sum(1)).sum())
    assert (exact - direct).abs().max() > 1e-3


def test_golden_entropy_to_go_against_both_baselines():
    # gamma 0.5: to go (0.75, 1.0, 0) and (0.5, 0).
    group = 0.1 * (torch.tensor([[0.75, 1.0, 0.0], [0.5, 0.0, 0.0]]) - 2.25 / 5)
    group[1, 2] = 0.0  # padding
    torch.testing.assert_close(shaped(TrajectoryEntropy(gamma=0.5), two_completions()), group)
    position = torch.tensor([[0.0125, 0.05, 0.0], [-0.0125, -0.05, 0.0]])
    torch.testing.assert_close(shaped(TrajectoryEntropy(gamma=0.5, baseline="position"), two_completions()), position)


def test_each_group_has_its_own_baseline_and_untrained_rows_do_not_enter_it():
    rows = [b.sample(1.0, group=g, tokens=(1, 2), number=i) for g in (0, 1) for i in (0, 1)]
    rows[1] = replace(rows[1], trained=False)
    scored = b.scored(rows, entropy=torch.tensor([[0.0, 1.0], [0.0, 9.0], [0.0, 2.0], [0.0, 4.0]]))
    result = shaped(TrajectoryEntropy(gamma=1.0), scored)[[0, 2, 3]]
    torch.testing.assert_close(result, 0.1 * torch.tensor([[0.5, -0.5], [0.5, -1.5], [2.5, -1.5]]))


def test_golden_the_dual_variable_rises_below_the_budget_and_falls_above_it():
    # S = 1 + 0.25 + 0.5 = 1.75 and 1.5 nats, their mean 1.625; B = 1.2 * 1.625 = 1.95.
    control = TrajectoryEntropy(gamma=0.5, budget=1.2, rate=0.01, start=0.01)
    first = control.update(control.initial_state(), b.measured(0.9, batch=two_completions()))
    assert first["target_entropy"] == pytest.approx(1.95) and first["error"] == pytest.approx(0.325)
    assert first["coefficient"] == pytest.approx(0.01325)
    high = replace(two_completions(), old=replace(two_completions().old, entropy=2 * torch.tensor(ENTROPY)))
    second = control.update(first, b.measured(1.8, 1, batch=high))
    assert second["target_entropy"] == pytest.approx(1.95)
    assert second["coefficient"] == pytest.approx(0.01325 - 0.01 * 1.3)


def test_a_negative_lower_limit_makes_it_two_sided():
    control = TrajectoryEntropy(budget=0.5, rate=0.01, low=-0.02)
    state = control.initial_state()
    for number in range(9):
        state = control.update(state, b.measured(0.9, number, batch=two_completions()))
    assert state["coefficient"] == -0.02
    penalty = control.penalty(two_completions(), two_completions().old, state)
    assert penalty[0].tolist() == pytest.approx([0.02, 0.01, 0.04])
    assert TrajectoryEntropy(budget=0.5, rate=0.01).update(state, b.measured(0.9))["coefficient"] == 0.0


def test_extra_rows_do_not_enter_the_sensor():
    rows = [b.sample(1.0, tokens=(1, 2)), b.sample(1.0, extra=True, group=9, tokens=(1, 2))]
    scored = b.scored(rows, entropy=torch.tensor([[1.0, 0.5], [8.0, 8.0]]))
    assert TrajectoryEntropy(gamma=0.5).reading(b.measured(0.75, batch=scored)) == pytest.approx(1.25)


@pytest.mark.parametrize("baseline", ["group", "position"])
def test_without_looking_ahead_and_with_a_fixed_coefficient_it_is_entropy_reg(baseline):
    control = TrajectoryEntropy(gamma=0.0, rate=0.0, start=0.03, baseline=baseline)
    reg, tree = EntropyReg(coefficient=Schedule("0.03")), Tree(2)
    scored = tree.scored()
    state = control.update(control.initial_state(), b.measured(0.9, batch=scored))
    advantages = torch.tensor([[1.0], [-1.0], [0.5], [0.0]]) * scored.batch.mask
    losses = [
        policy_loss(
            tree.policy.logprobs, scored.old.logprobs, one.shape(advantages, scored, state),
            token_mean(scored.batch.mask), Clip(), one.penalty(scored, tree.policy, state),
        ).loss
        for one in (control, reg)
    ]  # fmt: skip
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(tree.gradient(losses[0]), tree.gradient(losses[1]))


def test_the_first_step_measures_and_adds_nothing():
    control, scored = TrajectoryEntropy(), two_completions()
    state = control.initial_state()
    assert (shaped(control, scored, state) == 0).all()
    assert control.penalty(scored, scored.old, state) is None


def test_a_step_that_measured_nothing_changes_nothing():
    control = TrajectoryEntropy()
    state = control.update(control.initial_state(), b.measured(0.9, batch=two_completions()))
    nothing = b.scored([b.sample(1.0, extra=True, tokens=(1,))], entropy=0.1)
    assert control.update(state, b.measured(0.1, 1, batch=nothing)) == state


@pytest.mark.parametrize(
    "fields",
    [{"gamma": 1.1}, {"gamma": -0.1}, {"budget": 0.0}, {"rate": -1.0}, {"start": 1.0}, {"low": 1.0},
     {"gamma": float("nan")}],
)  # fmt: skip
def test_bad_values_are_refused(fields):
    with pytest.raises(InvalidValue, match=rf"^control\.{next(iter(fields))}: got"):
        TrajectoryEntropy(**fields)
