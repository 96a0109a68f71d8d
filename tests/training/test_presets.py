"""Each preset does in the training loop what its method says.

The test runs a few steps of each preset and records what was drawn, what reached the loss and what was logged. It
repeats them without the control: with the same algorithm, seed and weights. (A preset without a control is compared
with GRPO, and GRPO with Dr. GRPO.) The weights of the two runs must be equal before the step `acts` and differ from it
on. The evidence of each preset must hold for its own run and must fail for the other one.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aepo.algorithm import Algorithm
from aepo.control.base import NoControl
from aepo.control.closed_loop import ClosedLoop
from aepo.engines import stages
from aepo.loss.advantages import (
    group_mean,
    group_mean_std,
    leave_one_out,
    maximum_likelihood,
    pass_at_k,
    quantile_baseline,
)
from aepo.loss.surrogates import Bounds, Surrogate
from aepo.loss.tokens import Tokens
from aepo.methods import METHODS
from aepo.model.policy import Policy
from aepo.tasks import Paths
from aepo.training.checkpoint import TrainState
from aepo.training.step import Run, train_step
from aepo.types import Sample
from tests.training.test_step import make_run, small

STEPS, PROMPTS, GROUP = 4, 8, 4
OFF_POLICY = ("optimizer.minibatches=4",)


@pytest.fixture(scope="module")
def sharp_model(quick_model, tmp_path_factory) -> Path:
    """The quick model with larger logits, so that the entropy differs from token to token."""
    policy, folder = Policy.load(quick_model), tmp_path_factory.mktemp("sharp")
    policy.model.model.norm.weight.data *= 8
    policy.model.save_pretrained(folder)
    policy.tokenizer.save_pretrained(folder)
    return folder


def verdict(self, problem, text, truncated) -> float:
    """Every answer to some prompts is right, every answer to others is wrong, and the rest is mixed."""
    return {0: 0.0, 1: 1.0}.get(problem["start"] % 6, float(sum(text.encode()) % 2))


# --- what is recorded of a run ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """What one call of `policy_loss` got, at the trained tokens. penalty: 0 where there is none.

    rows: the place of each token's completion in the pass. entropy, logprobs: of the policy that sampled. clipped:
    which tokens got no gradient.
    """

    rows: Tensor
    entropy: Tensor
    logprobs: Tensor
    advantages: Tensor
    penalty: Tensor
    weights: Tensor
    bounds: Bounds | None
    surrogate: Surrogate
    clipped: Tensor


@dataclass(frozen=True)
class Recorded:
    """One step."""

    row: dict
    samples: Sequence[Sample]
    passes: Sequence[Pass]
    after: Tensor
    """All weights of the model after the step."""

    @property
    def advantages(self) -> Tensor:
        return torch.cat([each.advantages for each in self.passes])

    @property
    def penalty(self) -> Tensor:
        return torch.cat([each.penalty for each in self.passes])

    @property
    def bonus(self) -> float:
        """The coefficient of the mean entropy in the loss; all rows must be ordinary and in one pass."""
        return -self.penalty.mean().item() / self.row["entropy"]

    @property
    def extra(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.extra]

    @property
    def groups(self) -> dict[int, list[Sample]]:
        """The ordinary rows by group."""
        groups: dict[int, list[Sample]] = {}
        for sample in self.samples:
            if not sample.extra:
                groups.setdefault(sample.rollout.completion.group, []).append(sample)
        return groups


def recorded(run: Run, steps: int) -> list[Recorded]:
    """Run the steps and record them."""
    state, made, parts = TrainState(control=run.algorithm.control.initial_state()), [], []
    loss, policy_loss, signature = stages.loss, stages.policy_loss, inspect.signature(stages.policy_loss)

    def outer(algorithm, part, *args, **more):
        parts.append(part)
        return loss(algorithm, part, *args, **more)

    def inner(*args, **more):
        bound = signature.bind(*args, **more)
        bound.apply_defaults()
        given, old = bound.arguments, parts[-1].old
        mask, nothing = given["weights"] > 0, torch.zeros(given["weights"].shape)
        penalty = nothing if given["penalty"] is None else given["penalty"].detach().clone()
        entropy = nothing if old.entropy is None else old.entropy
        tokens = [values[mask] for values in (entropy, old.logprobs, given["advantages"], penalty, given["weights"])]
        surrogate, policies = given["surrogate"], Tokens.of(given["logprobs"].detach(), given["old_logprobs"], mask)
        clipped = surrogate.clipped(policies, given["advantages"], given["bounds"])[mask]
        passes.append(Pass(mask.nonzero()[:, 0], *tokens, given["bounds"], surrogate, clipped))
        return policy_loss(*args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "loss", outer)
        patch.setattr(stages, "policy_loss", inner)
        patch.setattr(Paths, "reward", verdict)
        for _ in range(steps):
            passes: list[Pass] = []
            state, row, samples = train_step(run, state)
            after = torch.cat([parameter.detach().flatten() for parameter in run.policy.model.parameters()])
            made.append(Recorded(row, samples, passes, after))
    return made


@cache
def steps_of(model: Path, algorithm: Algorithm, settings: tuple[str, ...], steps: int) -> list[Recorded]:
    """The first steps of a run with this algorithm."""
    base = (f"sampling.prompts={PROMPTS}", f"sampling.group_size={GROUP}", "optimizer.minibatches=1")
    run = replace(make_run(small(model, "grpo", STEPS, *base, "optimizer.lr=1e-3", *settings)), algorithm=algorithm)
    if algorithm.control.needs(algorithm.control.initial_state()).reference:
        run = replace(run, reference=Policy.load(model).frozen())
    return recorded(run, steps)


def runs(model: Path, method: str, settings: tuple[str, ...], steps: int) -> tuple[list[Recorded], list[Recorded]]:
    """The steps of the preset, and those without its control."""
    shared = tuple(setting for setting in settings if not setting.startswith("control."))
    algorithm = small(model, method, STEPS, *settings).algorithm
    if isinstance(algorithm.control, ClosedLoop):  # with a model of one's own, a default target only keeps up
        algorithm = replace(algorithm, control=replace(algorithm.control, hold="at"))
    other = METHODS[WITHOUT_CONTROL.get(method, method)].algorithm
    return (
        steps_of(model, algorithm, shared, steps),
        steps_of(model, replace(other, control=NoControl()), shared, steps),
    )


WITHOUT_CONTROL = {
    "grpo": "dr-grpo",
    **dict.fromkeys(("dr-grpo", "rloo", "pass-at-k", "qae", "maxrl", "clip-higher", "ce-gppo"), "grpo"),
    **dict.fromkeys(("gspo", "luspo", "cispo", "gmpo", "sapo", "dppo", "vespo"), "grpo"),
}

# --- evidence: each function makes a check of (the steps of a run, those of the run without the control) --------

Evidence = Callable[[list[Recorded], list[Recorded]], None]


def equal(values, expected) -> None:
    assert values == pytest.approx(expected, rel=1e-4, abs=1e-6)


def rewards_and_groups(step: Recorded) -> tuple[Tensor, Tensor]:
    rewards = torch.tensor([sample.rollout.reward for sample in step.samples])
    return rewards, torch.tensor([sample.rollout.completion.group for sample in step.samples])


def per_token(step: Recorded, function=lambda advantages: advantages) -> list[float]:
    """`function` of the trained rows' own advantages, at each of their tokens, sorted."""
    trained = [sample for sample in step.samples if sample.trained]
    lengths = torch.tensor([len(sample.rollout.completion.tokens) for sample in trained])
    return function(torch.tensor([s.advantage for s in trained])).repeat_interleave(lengths).sort().values.tolist()


def compares(advantage: Callable[[Tensor, Tensor], Tensor], weights: float | None = 1.0) -> Evidence:
    """The loss gets these advantages, with no penalty and no bounds; its weights sum to `weights`, or to less."""

    def check(run, other):
        for step in run:
            equal([sample.advantage for sample in step.samples], advantage(*rewards_and_groups(step)).tolist())
            equal(step.advantages.sort().values.tolist(), per_token(step))
            assert not step.penalty.any() and all(each.bounds is None for each in step.passes)
            total = step.passes[0].weights.sum().item()
            assert total < 0.9 if weights is None else total == pytest.approx(weights)
            reported = ("command", "coefficient", "error", "target_entropy", "extra_temperature")
            assert all(step.row[name] is None for name in reported)
            assert step.row["trained"] == step.row["completions"] == PROMPTS * GROUP

    return check


def draws(*temperatures: float | None, used: int, advantage: float | None, replaced: bool = False) -> Evidence:
    """Extra rows at the temperature of each step (None: no extra rows), `used` at most, at this advantage.

    A command c above 1 gives 1 / (2 - c) times the advantage. The temperature is high after an entropy below the target
    and low after one above it. replaced: they stand in the place of ordinary rows.
    """

    def check(run, other):
        for before, step, temperature in zip([None, *run], run, temperatures, strict=False):
            row = step.row
            assert row["extra_temperature"] == temperature
            assert row["extra_used"] == len(step.extra) <= used
            assert {sample.rollout.completion.temperature for sample in step.extra} == {temperature} - {None}
            if temperature is None:
                assert row["extra_completions"] == 0 and not row["command"]
                continue
            assert row["extra_completions"] >= row["extra_used"] > 0
            assert row["trained"] == PROMPTS * GROUP + (0 if replaced else row["extra_used"])
            if before is not None:
                assert row["command"] * before.row["error"] > 0
            if temperature != 1.0:
                assert (temperature > 1) == (row["command"] > 0)
            if advantage is None:
                assert min(s.advantage for s in step.extra) < 0 < max(s.advantage for s in step.extra)
            else:
                strength = 1 / (2 - max(1.0, abs(row["command"])))
                equal([sample.advantage for sample in step.extra], [advantage * strength] * len(step.extra))
                assert all(sample.rollout.reward > 0.5 for sample in step.extra)
            equal(step.advantages.sort().values.tolist(), per_token(step))

    return check


def reweights(odds: bool) -> Evidence:
    """Nothing is drawn; in step 1 the right rows gain, and with `odds` the advantages of wrong rows shrink."""

    def check(run, other):
        step = run[1]
        assert step.row["extra_completions"] == 0 and step.row["command"] < 0
        with_control, without = step.advantages, other[1].advantages
        # DCPO: a = x / (x + share of right answers), x = 0.1.
        kept = 1 - 0.1 / (0.1 + step.row["reward"]) if odds else 1.0
        gained = with_control - kept * without
        assert (gained > -1e-6).all() and gained.max() > 0.05
        assert (gained[without < 0].abs() < 1e-6).all()

    return check


def reweights_by_length(run, other):
    """The mean length is held; nothing is drawn; in step 1 right rows gain by different amounts, wrong rows nothing."""
    step, without = run[1], other[1].advantages
    assert step.row["quantity"] == "length" and step.row["quantity_reading"] == step.row["length"]
    assert step.row["extra_completions"] == 0 and step.row["command"]
    gained = step.advantages - without
    assert (gained > -1e-6).all() and (gained[without < 0].abs() < 1e-6).all()
    assert len(gained[gained > 1e-4].unique()) > 1


def bonuses(*coefficients: float | Callable[[list[Recorded]], float], logged: bool = True) -> Evidence:
    """The loss has the entropy bonus of this coefficient in each step, and the row has the coefficient."""

    def check(run, other):
        for step, wanted in zip(run, coefficients, strict=False):
            coefficient = wanted(run) if callable(wanted) else wanted
            assert step.bonus == pytest.approx(coefficient, rel=1e-3, abs=1e-8)
            assert step.row["coefficient"] == (pytest.approx(coefficient) if logged else None)

    return check


def measures(sensor: str, target: float) -> Evidence:
    """The error is the distance of this statistic from the target."""
    return lambda run, other: equal([s.row["error"] for s in run], [target - s.row[sensor] for s in run])


def weights_positives(*coefficients: float) -> Evidence:
    """The loss gets positive advantages times the coefficient of each step, and the row has the coefficient."""

    def check(run, other):
        for step, weight in zip(run, coefficients, strict=False):
            equal(step.row["coefficient"], weight)
            wanted = per_token(step, lambda a, weight=weight: torch.where(a > 0, weight * a, a))
            equal(step.advantages.sort().values.tolist(), sorted(wanted))

    return check


def reshapes(check_step: Callable[[Pass, Tensor], bool | Tensor], step: int = 0) -> Evidence:
    """The single pass of this step and the advantages without the control fulfil `check_step`.

    The two runs have the same batch and the same order of tokens in the step in which the control first acts.
    """

    def check(run, other):
        (mine,), (plain,) = run[step].passes, other[step].passes
        assert torch.equal(mine.logprobs, plain.logprobs)
        assert check_step(mine, plain.advantages)

    return check


def signed(positive: float, negative: float) -> Evidence:
    """Right rows have one advantage and wrong rows another, also in groups of equal rewards, and those of 0 are out."""

    def check(run, other):
        for step in run:
            right = [sample.rollout.reward > 0.5 for sample in step.samples]
            wanted = [positive if each else -negative for each in right]
            equal([sample.advantage for sample in step.samples], wanted)
            assert [sample.trained for sample in step.samples] == [advantage != 0 for advantage in wanted]
            assert step.row["trained"] == sum(advantage != 0 for advantage in wanted)
            assert step.row["completions"] == PROMPTS * GROUP and step.row["dead_groups"] > 0
            equal(step.advantages.sort().values.tolist(), per_token(step))

    return check


def one_sign(sign: int) -> Evidence:
    """Above the band (sign 1) only positive advantages are left, below it only negative ones, and they weigh more."""

    def check(run, other):
        for step in run:
            assert (step.advantages * sign >= 0).all() and step.row["error"] * sign < 0
        (mine,), (plain,) = run[0].passes, other[0].passes
        left = mine.advantages != 0
        assert torch.equal(left, plain.advantages * sign > 0)
        assert (mine.advantages[left] / plain.advantages[left] > 1.3).all()  # a group of 4 keeps 3 rows at most

    return check


def follows_zeta(run, other) -> None:
    """zeta doubles below the target."""
    equal([step.row["coefficient"] for step in run], [0.001, 0.002])


def rescaled(mine: Pass, plain: Tensor) -> bool:
    """REPO-R: A times 1 - zeta log pi where A > 0, and 1 + zeta log pi where A < 0."""
    return torch.allclose(mine.advantages, plain * (1 - plain.sign() * 0.001 * mine.logprobs), atol=1e-6, rtol=1e-6)


def centred(mine: Pass, plain: Tensor) -> bool:
    """REPO: A minus zeta times the centred log-probability, also in groups of equal rewards."""
    wanted = plain - 0.001 * (mine.logprobs + mine.entropy)
    return torch.allclose(mine.advantages, wanted, atol=1e-6, rtol=1e-6) and (mine.advantages[plain == 0] != 0).any()


def raised(mine: Pass, plain: Tensor) -> bool:
    """Entropy-Adv: A rises by 0.4 times the entropy, or by |A| / 2 if that is less."""
    return torch.allclose(mine.advantages, plain + torch.minimum(0.4 * mine.entropy, plain.abs() / 2))


def forking(mine: Pass, plain: Tensor) -> bool:
    """The fifth of the tokens with the largest entropy has its advantages, the others have 0."""
    top = mine.entropy >= mine.entropy.topk(int(0.2 * len(plain))).values.min()
    return torch.equal(mine.advantages != 0, top & (plain != 0)) and torch.equal(mine.advantages[top], plain[top])


def one_left_out(mine: Pass, plain: Tensor) -> bool:
    """A single token's advantage becomes 0; its covariance of log-probability and advantage is above 1."""
    changed = mine.advantages != plain
    covariance = (mine.logprobs - mine.logprobs.mean()) * (plain - plain.mean())
    return changed.sum() == 1 and mine.advantages[changed].item() == 0 and 1 < covariance[changed].item() < 5


def steered(mine: Pass, plain: Tensor) -> bool:
    """The factors span 0.8 to 1.2, and 0.8 is where the estimated change of the entropy is largest."""
    change = (plain * (1 - mine.logprobs.exp()) * (mine.logprobs + mine.entropy)).abs()
    span = change.max() - change.min()
    return torch.allclose(mine.advantages, plain * (1.2 - 0.4 * (change - change.min()) / span), atol=1e-5)


def confident_first(mine: Pass, plain: Tensor) -> bool:
    """EDGE: the factor of a completion is the mean entropy of all completions over its own, at most 10."""
    sums, counts = (torch.zeros(PROMPTS * GROUP).index_add_(0, mine.rows, x) for x in (mine.entropy, plain * 0 + 1))
    own = sums / counts
    return torch.allclose(mine.advantages, plain * (own.mean() / own).clamp(max=10)[mine.rows], atol=1e-5)


def moved_by(sign: int) -> Callable[[Pass, Tensor], bool]:
    """EntroPIC at full command: A becomes A + |A| (sign +1) or A - |A| (sign -1) at tokens of probability above 0.3."""

    def check(mine: Pass, plain: Tensor) -> bool:
        confident = mine.logprobs > math.log(0.3)
        return torch.allclose(mine.advantages, plain + sign * plain.abs() * confident) and (plain[confident] != 0).any()

    return check


def bounded_at(*highs: float) -> Evidence:
    """The upper clip bound of each step is this one, as distance from 1, and the row's coefficient follows it."""

    def check(run, other):
        for step, high in zip(run, highs, strict=False):
            equal([each.bounds.high for each in step.passes], [high] * len(step.passes))
            equal(step.row["coefficient"], high - highs[0])

    return check


def clips_less(run, other) -> None:
    assert run[0].row["clip_fraction"] < other[0].row["clip_fraction"]


def balanced(run, other) -> None:
    """The first pass, at a ratio of 1, has the first bounds if right tokens weigh at least as much as wrong ones, else
    the last ones: no bound helps there. All passes have bounds between these.
    """
    first = run[0].passes[0]
    right, wrong = first.advantages.clamp(min=0).sum(), -first.advantages.clamp(max=0).sum()
    assert abs(right - wrong) > 1e-3
    low, high = (0.4, 0.2) if right > wrong else (0.1, 2.0)
    equal([first.bounds.low, first.bounds.high], [low, high])
    found = [(round(each.bounds.low, 6), round(each.bounds.high, 6)) for step in run for each in step.passes]
    assert len(set(found)) > 1 and all(0.1 <= low <= 0.4 and 0.2 <= high <= 2.0 for low, high in found)


def keeps_gradient(run, other) -> None:
    """Tokens leave the bounds in both runs, and with their gradient kept they go further away."""
    assert 0 < other[0].row["clip_fraction"] < run[0].row["clip_fraction"]


def objective(method: str, clips: Callable[[Pass], bool]) -> Evidence:
    """The loss has the surrogate of the method, and `clips` holds of a pass in which the policy has moved."""

    def check(run, other):
        *_, last = run[0].passes
        assert last.surrogate == METHODS[method].algorithm.surrogate and clips(last)

    return check


def whole_rows(mine: Pass) -> bool:
    """Some rows are left out, and every row either as a whole or not at all."""
    shares = [mine.clipped[mine.rows == row].float().mean().item() for row in mine.rows.unique()]
    return set(shares) == {0.0, 1.0}


def no_token(mine: Pass) -> bool:
    return not mine.clipped.any()


def few_tokens(mine: Pass) -> bool:
    return 0 < mine.clipped.float().mean() < 0.5


def kl_cov(run, other) -> None:
    """A fifth of the tokens at most has a penalty, and none has one before the policy moves."""
    first, *later = run[0].passes
    penalised = sum(int((each.penalty > 1e-4).sum()) for each in later)
    assert first.penalty.abs().max() < 1e-4 and 0 < penalised <= 0.2 * len(run[0].advantages)


def protects(run, other) -> None:
    """Half of the wrong tokens at most have a penalty. These are unlikely ones, also before the policy has moved."""
    (first,) = run[0].passes
    held, wrong = first.penalty > 1e-6, first.advantages < 0
    assert 0 < held.sum() <= 0.5 * wrong.sum() and not (held & ~wrong).any()
    assert first.logprobs[held].max() <= first.logprobs[wrong].sort().values[int(0.5 * int(wrong.sum()))]


def entropy_kept(run, other) -> None:
    """No token loses its advantage before the policy has moved, and some do afterwards, though none without control."""
    first, *later = ((each.advantages == 0).sum().item() for each in run[0].passes)
    plain, *moved = ((each.advantages == 0).sum().item() for each in other[0].passes)
    assert first == plain and any(mine > theirs for mine, theirs in zip(later, moved, strict=True))


def archer(run, other) -> None:
    """Tokens have the bound 0.5 without a penalty, or 0.2 with a KL term, which grows from 0 at the base model."""
    bounds = torch.cat([each.bounds.high.flatten() for each in run[0].passes])
    equal(bounds.unique().tolist(), [0.2, 0.5])
    first, *_, last = run[0].passes
    assert first.penalty.max() < 1e-6 < last.penalty.max() and (last.penalty == 0).any()


def hapo(run, other) -> None:
    """Bounds differ from token to token, and so do advantages within a completion; from step 1 on tokens are heated.

    Uncertain tokens keep the advantage over all tokens of their group, before the policy has moved.
    """
    first = run[0].passes[0]
    highs = torch.cat([each.bounds.high.flatten() for each in run[0].passes])
    assert highs.min().item() == pytest.approx(0.28) and highs.max().item() == pytest.approx(0.56, rel=0.01)
    assert [step.row["mismatch"] is None for step in run] == [False, True]
    assert any(len(first.advantages[first.rows == row].unique()) > 1 for row in first.rows.unique())
    wanted = torch.tensor([over_tokens(group)[i] for group in run[0].groups.values() for i in range(GROUP)])
    wanted = wanted[wanted != 0]
    assert torch.isclose(first.advantages[:, None], wanted[None].float(), rtol=1e-4).any()


def over_tokens(group: Sequence[Sample]) -> list[float]:
    """(R - mean) / (std + 1e-6) of each completion, over all tokens of the group."""
    lengths = [len(sample.rollout.completion.tokens) for sample in group]
    rewards = torch.tensor([sample.rollout.reward for sample in group], dtype=torch.float64)
    tokens = rewards.repeat_interleave(torch.tensor(lengths))
    return ((rewards - tokens.mean()) / (tokens.std(correction=0) + 1e-6)).tolist()


def clamped_bonus(run, other) -> None:
    """The bonus on the clamped entropy starts at 2e-4 and falls to its lower limit, far above the band."""
    for step, coefficient in zip(run, (2e-4, 1e-5), strict=True):
        equal(step.row["coefficient"], coefficient)
        clamped = 0.23 - step.row["error"]
        assert step.penalty.mean().item() == pytest.approx(-coefficient * clamped, rel=1e-3)


def bonus_on_hard_prompts(run, other) -> None:
    """alpha = eta * error from step 1 on, at the tokens of groups of which less than half is right."""
    assert run[1].row["coefficient"] == pytest.approx(2e-3 * run[0].row["error"]) and not run[0].penalty.any()
    hard = [g for g in run[1].groups.values() if sum(s.rollout.reward > 0.5 for s in g) < GROUP / 2]
    assert (run[1].penalty <= 0).all()
    assert int((run[1].penalty < 0).sum()) == sum(len(s.rollout.completion.tokens) for group in hard for s in group) > 0


def anchored(run, other) -> None:
    """SIREN's first step measures; from the second on, squared distances have the coefficient 0.005."""
    equal([step.row["coefficient"] for step in run], [0.0, 0.005])
    assert run[0].row["target_entropy"] == run[1].row["target_entropy"] and not run[0].penalty.any()
    assert (run[1].penalty >= 0).all() and run[1].penalty.max() > 0


def entropy_to_go(run, other) -> None:
    """The advantages move with alpha, too, both ways."""
    moved = run[1].advantages - other[1].advantages
    assert moved.min() < 0 < moved.max()


def redraws(run, other) -> None:
    """Prompts are drawn until enough groups differ; only those are trained on, and all are measured."""
    for step in run:
        kept = [group for group in step.groups.values() if group[0].trained]
        assert step.row["completions"] == len(step.samples) and step.row["trained"] == PROMPTS * GROUP
        assert len(kept) == PROMPTS and all(len({s.rollout.reward for s in group}) > 1 for group in kept)
    assert sum(step.row["completions"] for step in run) > PROMPTS * GROUP * len(run)


def shortened(run, other) -> None:
    """Advantages follow the reward less 1 at the limit of 9 tokens, less 0.8 / 1.8 at 8; the log has the verifier's."""
    for step in run:
        rewards, groups = rewards_and_groups(step)
        lengths = [len(sample.rollout.completion.tokens) for sample in step.samples]
        punished = [r - max((n - 7.2) / 1.8, 0.0) for r, n in zip(rewards.tolist(), lengths, strict=True)]
        wanted = group_mean_std(torch.tensor(punished), groups)
        equal([sample.advantage for sample in step.samples], wanted.tolist())
        assert step.row["reward"] == pytest.approx(rewards.mean().item())


def explores(run, other, temperature: float = 1.2, threshold: float = 1.0) -> None:
    """20 more completions at T = 1.2 of each prompt without a right answer; step 1 has a pass for the replay."""
    for step in run:
        hard = sum(not any(s.rollout.reward > 0.5 for s in group) for group in step.groups.values())
        assert step.row["extra_completions"] == 20 * hard > 0 and step.row["extra_temperature"] == temperature
        assert all(abs(s.advantage) > (threshold if s.extra else 0.05) for s in step.samples if s.trained)
    assert [len(step.passes) for step in run] == [1, 2]


def explores_milder(run, other) -> None:
    """UEC-RL: at T = 1.1, with smaller advantages of explored rows, and a replay of right rows alone."""
    explores(run, other, temperature=1.1, threshold=0.5)
    assert any(0.5 < abs(s.advantage) <= 1 for step in run for s in step.extra)
    assert (run[1].passes[1].advantages > 1).all()


def pays_novelty(run, other) -> None:
    """Right answers of a group differ in advantage, wrong ones do not."""
    spread = {True: 0.0, False: 0.0}
    for group in run[0].groups.values():
        for right in spread:
            paid = [s.advantage for s in group if (s.rollout.reward > 0.5) == right]
            spread[right] = max(spread[right], max(paid, default=0.0) - min(paid, default=0.0))
    assert spread[True] > 1e-4 and spread[False] < 1e-6


def adds_solutions(run, other) -> None:
    """One row for each prompt, with advantage 0 and 0.1 * -log pi at its tokens."""
    for step in run:
        solutions = [sample.rollout.completion.tokens for sample in step.extra]
        assert step.row["extra_used"] == PROMPTS and step.row["extra_completions"] == 0
        assert {sample.advantage for sample in step.extra} == {0.0}
        assert int((step.penalty > 0).sum()) == sum(map(len, solutions)) and (step.penalty >= 0).all()


# --- the table ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What a preset must do.

    acts: the first step in which the weights depart from those of the other run. settings: what makes it act within
    a few steps. steps: how many are run. on_policy: whether it acts at all with one update per rollout.
    """

    method: str
    acts: int
    evidence: Sequence[Evidence]
    settings: tuple[str, ...] = ()
    steps: int = 2
    on_policy: bool = True

    def __str__(self) -> str:
        return "-".join([self.method, *(setting.split(".")[-1] for setting in self.settings if "target" in setting)])


BELOW = ("control.target=9",)  # The entropy is below this target; it is above the presets' own.

CASES = (
    # Advantages, surrogates and aggregates.
    Case("grpo", 0, [compares(group_mean_std)]),
    Case("dr-grpo", 0, [compares(group_mean, weights=None)]),
    Case("rloo", 0, [compares(leave_one_out)]),
    Case("pass-at-k", 0, [compares(lambda r, g: pass_at_k(r > 0.5, g, 4))]),
    Case("qae", 0, [compares(lambda r, g: quantile_baseline(r, g, 0.4))]),
    Case("clip-higher", 0, [clips_less], OFF_POLICY, on_policy=False),
    Case("maxrl", 0, [compares(maximum_likelihood)]),
    Case("gspo", 0, [objective("gspo", whole_rows)], (*OFF_POLICY, "optimizer.lr=1e-5")),
    Case("luspo", 0, [objective("luspo", whole_rows)], (*OFF_POLICY, "optimizer.lr=1e-4")),
    Case("cispo", 0, [objective("cispo", no_token)], OFF_POLICY),
    Case("gmpo", 0, [objective("gmpo", few_tokens)], OFF_POLICY),
    Case("sapo", 0, [objective("sapo", no_token)], OFF_POLICY),
    Case("dppo", 0, [objective("dppo", few_tokens)], OFF_POLICY),
    Case("vespo", 0, [objective("vespo", no_token)], OFF_POLICY),
    # AEPO.
    Case("aepo", 1, [draws(None, 0.67, used=8, advantage=2.0)]),
    Case("aepo", 1, [draws(None, 1.5, used=8, advantage=2.0)], BELOW),
    Case("aepo-v1", 1, [draws(None, 0.8, used=8, advantage=1.0, replaced=True)]),
    Case("aepo-v1", 1, [draws(None, 1.2, used=8, advantage=1.0, replaced=True)], BELOW),
    Case("aepo-v6", 1, [draws(None, 0.8, used=8, advantage=1.0, replaced=True)]),
    Case("aepo-v6", 1, [draws(None, 1.2, used=8, advantage=1.0, replaced=True)], BELOW),
    Case("aepo-reference", 0, [draws(1.2, 0.8, used=8, advantage=1.0, replaced=True)]),
    Case("aepo-reference", 0, [draws(1.2, 1.2, used=8, advantage=1.0, replaced=True)], BELOW),
    Case("aepo-no-temperature", 1, [draws(None, 1.0, used=8, advantage=2.0)]),
    Case("aepo-signed", 1, [draws(None, 0.67, used=8, advantage=None)]),
    Case("aepo-signed", 1, [draws(None, 1.5, used=8, advantage=None)], BELOW),
    Case("aepo-reweighted", 1, [reweights(odds=False)]),
    Case("aepo-length", 1, [reweights_by_length]),
    Case("dcpo", 1, [reweights(odds=True)]),
    # A bonus in the loss.
    Case("entropy-reg", 0, [bonuses(0.03, 0.03, logged=False)]),
    Case("entropy-schedule", 0, [bonuses(0.1, 0.1 / math.sqrt(2), 0.1 / math.sqrt(3), logged=False)], steps=3),
    Case("parl", 0, [bonuses(-0.01, -0.01, logged=False)]),
    Case("skywork-or1", 1, [bonuses(0.0, 1e-4, 2e-4), measures("sampled_entropy", 9.0)], BELOW, steps=3),
    Case("trl-adaptive", 1, [bonuses(0.0, 0.005, 0.01), measures("entropy", 9.0)], BELOW, steps=3),
    Case("aent", 0, [clamped_bonus]),
    Case("aer", 1, [bonus_on_hard_prompts], ("control.target=2x",)),
    Case("siren", 1, [anchored]),
    Case("sac-dual", 0, [bonuses(1e-3, lambda run: 1e-3 * math.exp(0.1 * run[0].row["error"]))]),
    Case(
        "trajectory-entropy",
        1,
        [bonuses(0.0, lambda run: 5e-4 * run[0].row["error"]), entropy_to_go],
        ("control.budget=2",),
    ),
    # Advantages reshaped.
    Case("entropy-adv", 0, [reshapes(raised)]),
    Case("forking-tokens", 0, [reshapes(forking)]),
    Case("clip-cov", 0, [reshapes(one_left_out)]),
    Case("kl-cov", 0, [kl_cov], (*OFF_POLICY, "control.share=0.2"), on_policy=False),
    Case("lp-reg", 0, [protects], ("control.share=0.5",)),
    Case("steer", 0, [reshapes(steered)]),
    Case("erc", 0, [entropy_kept], OFF_POLICY, on_policy=False),
    Case("edge-grpo", 0, [reshapes(confident_first)]),
    Case("pos-adv-reweight", 0, [weights_positives(0.0, 0.05, 0.1)], steps=3),
    Case("pos-adv-reweight", 0, [weights_positives(0.0, 0.0)], ("control.threshold=9",)),
    Case("pos-adv-stage", 0, [weights_positives(0.0, 0.0, 0.5, 1.0)], steps=4),
    Case("pos-adv-epoch", 0, [weights_positives(0.0, 0.25, 0.5, 0.75)], steps=4),
    Case("psr", 0, [signed(1.0, 0.0)]),
    Case("nsr", 0, [signed(0.0, 1.0)]),
    Case("w-reinforce", 0, [signed(0.1, 1.0)]),
    Case("entropic", 1, [reshapes(moved_by(1), step=1)], ("control.threshold=0.3",)),
    Case("entropic", 1, [reshapes(moved_by(-1), step=1)], ("control.threshold=0.3", *BELOW)),
    Case(
        "entrocraft",
        0,
        [one_sign(1)],
        ("control.low=0", "control.high=0.1", "control.low_end=0", "control.high_end=0.1"),
    ),
    Case(
        "entrocraft", 0, [one_sign(-1)], ("control.low=8", "control.high=9", "control.low_end=8", "control.high_end=9")
    ),
    Case("repo-r", 0, [follows_zeta, reshapes(rescaled)], BELOW),
    Case("repo", 0, [follows_zeta, reshapes(centred)], BELOW),
    # Clip bounds. The moving bound is made narrow, so that it binds.
    Case(
        "moving-bound",
        0,
        [bounded_at(1 / 0.95 - 1, 1 / 0.95 - 0.75, 1 / 0.95 - 0.5)],
        (*OFF_POLICY, *BELOW, "control.eps=0.05"),
        steps=3,
        on_policy=False,
    ),
    Case("bapo", 0, [balanced], OFF_POLICY, on_policy=False),
    Case("ce-gppo", 0, [keeps_gradient], (*OFF_POLICY, "optimizer.lr=1e-2"), on_policy=False),
    Case("archer", 0, [archer], OFF_POLICY),
    Case("hapo", 0, [hapo], OFF_POLICY),
    # What is sampled and rewarded.
    Case("dynamic-sampling", 0, [redraws]),
    Case("overlong", 0, [shortened]),
    Case("dapo", 0, [redraws, shortened], ("control.first.max_rounds=20",)),
    Case("eframe", 0, [explores], ("control.replay_freq=2",)),
    Case("uec-rl", 0, [explores_milder], ("control.replay_freq=2",)),
    Case("re3", 0, [pays_novelty]),
    Case("rpo", 0, [adds_solutions]),
)


def test_every_preset_is_in_the_table():
    assert {case.method for case in CASES} == set(METHODS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_preset_does_what_its_method_says(case, sharp_model):
    run, other = runs(sharp_model, case.method, case.settings, case.steps)
    for check in case.evidence:
        check(run, other)
        with pytest.raises((AssertionError, AttributeError, TypeError)):
            check(other, other)
    same = [torch.equal(mine.after, theirs.after) for mine, theirs in zip(run, other, strict=True)]
    assert same == [number < case.acts for number in range(case.steps)]


@pytest.mark.parametrize("case", [case for case in CASES if not case.on_policy], ids=str)
def test_what_needs_a_moved_policy_does_nothing_in_a_single_update(case, sharp_model):
    settings = (*case.settings, "optimizer.minibatches=1")
    run, other = runs(sharp_model, case.method, settings, 1)
    assert torch.equal(run[0].after, other[0].after)
