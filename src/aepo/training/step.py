"""`train_step` does one step of training.

The functions below it are the parts of a step. `aepo.training.runner` loads, logs and saves around it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from aepo.algorithm import Algorithm
from aepo.config import Config, OptimizerConfig
from aepo.control.base import ControlReport, FollowUp, Needs, NoControl, Scored, Step, generator
from aepo.engines import stages
from aepo.loss.aggregates import AGGREGATES
from aepo.loss.policy_loss import LossOutput, k3
from aepo.model.memory import Fit
from aepo.model.policy import Policy, by_length
from aepo.model.shared import prompts_of, whole_prompts
from aepo.sampling.base import Sampler
from aepo.sampling.prompts import Judged, Judging, reward, take_prompts
from aepo.tasks import Task
from aepo.training.activity import Activity
from aepo.training.checkpoint import TrainState
from aepo.types import Batch, BatchStatistics, Completion, Metric, Prompt, Request, Rollout, Sample, asked_for


@dataclass(frozen=True)
class Run:
    """`Run` holds the objects that stay the same in all steps. Only the weights inside `policy` change."""

    config: Config
    """Settings of the run."""
    algorithm: Algorithm
    """Advantage, surrogate, aggregate and control."""
    task: Task
    """The task, with its prompts and rewards."""
    policy: Policy
    """The model that is trained."""
    sampler: Sampler
    """The sampler that draws completions from the policy."""
    optimizer: torch.optim.Optimizer
    """The optimizer of the policy's parameters."""
    reference: Policy | None = None
    """The frozen base model; None if neither the settings nor the control need it."""
    fit: Fit | None = None
    """How an update fits into the memory, if the runner has looked."""
    activity: Activity = field(default_factory=Activity)
    """What is told while a step works."""

    @property
    def microbatch(self) -> int | None:
        """Return the number of rows in one forward and backward pass; None is the whole minibatch.

        The runner has put a number in place of `auto`.
        """
        size = self.config.optimizer.microbatch
        return size if isinstance(size, int) else None


def train_step(run: Run, state: TrainState) -> tuple[TrainState, dict[str, Any], list[Sample]]:
    """Do one step: sample, reward, compare, mix, score, shape, update, measure.

    Args:
        run: The objects of the run. The weights of its policy change.
        state: The state before the step.

    Returns:
        The state after the step, the row for the log, and the samples of the batch. The state's counts of completions
        and tokens are not changed here.
    """
    config, control = run.config, run.algorithm.control
    clock = Clock()
    step = Step(
        number=state.step,
        steps=config.steps,
        prompts=config.sampling.prompts,
        group_size=config.sampling.group_size,
        max_tokens=run.task.max_tokens,
        seed=config.seed,
        temperature=config.sampling.temperature,
    )

    run.sampler.refresh(run.policy)
    drawn = draw(run, state, step)
    clock.lap("sampling")
    if not drawn.ordinary:
        return _skipped(state, drawn, clock)

    ordinary, extra = stages.with_advantages(run.algorithm, drawn.rollouts, drawn.extra, state.control, step)
    samples = control.mix(ordinary, extra, state.control, step)
    scored = score(run, samples, state, step)
    correction = config.mismatch.of(samples, scored)
    if correction:
        scored = replace(scored, correction=correction.weights)
    clock.lap("scoring")

    rate = config.optimizer.rate(step.number, config.steps)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    advantages = control.shape(scored.batch.advantages, scored, state.control)
    updated = update(run, replace(scored, batch=replace(scored.batch, advantages=advantages)), state)
    replay(run, state, step)
    clock.lap("update")

    measured = stages.measure(ordinary, extra, scored, updated.sampled_entropy)
    control_state = control.update(state.control, measured)
    row = {
        "step": step.number + 1,
        **stages.measurements(measured, samples, sampler=_at_temperature_one(run, state)),
        **vars(control.report(state.control, control_state)),
        **updated.row(),
        **(correction.row() if correction else {}),
        "lr": rate,
        "reward_failures": len(drawn.failures),
        **({"reward_error": drawn.failures[0]} if drawn.failures else {}),
        **({"reward_metrics": drawn.metrics} if drawn.metrics else {}),
        "completions": drawn.completions,
        "tokens": drawn.tokens,
        **clock.row(),
    }
    after = replace(state, step=state.step + 1, position=state.position + drawn.prompts, control=control_state)
    return after, row, samples


def _at_temperature_one(run: Run, state: TrainState) -> bool:
    """Return whether ordinary completions are drawn at T = 1, so that the sampler's log-probabilities are pi's."""
    return run.config.sampling.temperature == 1 and run.algorithm.control.token_temperature(state.control) is None


def _skipped(state: TrainState, drawn: Drawn, clock: Clock) -> tuple[TrainState, dict[str, Any], list[Sample]]:
    """Return the state and the row of a step without any reward: nothing is trained and nothing is measured."""
    row = {
        "step": state.step + 1,
        "entropy": None,
        "reward": None,
        "dead_groups": None,
        **dict.fromkeys((field.name for field in fields(ControlReport)), None),
        "alarm": False,
        "trained": 0,
        "extra_completions": 0,
        "extra_used": 0,
        "reward_failures": len(drawn.failures),
        **({"reward_error": drawn.failures[0]} if drawn.failures else {}),
        "completions": drawn.completions,
        "tokens": drawn.tokens,
        **clock.row(),
    }
    return replace(state, step=state.step + 1, position=state.position + drawn.prompts), row, []


# --- sampling and rewards -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """`Drawn` holds everything that was sampled in a step."""

    rollouts: list[Rollout]
    """Completions that have a finite reward."""
    extra: frozenset[int]
    """Numbers of the extra groups."""
    prompts: int
    """Number of prompts that were taken from the training stream."""
    completions: int
    """Number of sampled completions, ordinary and extra."""
    tokens: int
    """Number of sampled completion tokens, ordinary and extra."""
    failures: tuple[str, ...]
    """The reason of each verdict that failed. A completion without a finite reward is left out of the batch and of all
    measurements.
    """
    metrics: Mapping[str, float]
    """What the reward functions log of their calls, by name: means over the step."""

    @property
    def ordinary(self) -> bool:
        """Return whether an ordinary completion has a reward; without one there is nothing to train on."""
        return any(rollout.completion.group not in self.extra for rollout in self.rollouts)


def draw(run: Run, state: TrainState, step: Step) -> Drawn:
    """Sample the step's prompts and the extra groups that the control plans, and compute the rewards.

    Then the control may ask for follow-up rounds, until it asks for nothing more.
    """
    control = run.algorithm.control
    rollouts: list[Rollout] = []
    completions: list[Completion] = []
    prompts: dict[int, Prompt] = {}
    extra: list[int] = []
    wanted, taken = FollowUp(control.plan(state.control, step), step.prompts), 0
    failures: list[str] = []
    metrics: dict[str, Metric] = {}
    while wanted:
        first = len(prompts) + len(extra)
        new = take_prompts(run.task, run.policy, step.seed, state.position + taken, wanted.prompts)
        prompts |= dict(enumerate(new, start=first))
        heat = control.token_temperature(state.control)
        requests = [
            Request(prompt, first + number, step.group_size, step.temperature, heat)
            for number, prompt in enumerate(new)
        ]
        for group, planned in enumerate(wanted.extra, start=first + len(new)):
            requests.append(Request(prompts[planned.prompt], group, planned.count, planned.temperature))
            extra.append(group)
        purpose = f"sampling {taken} {len(extra)}" if taken else "sampling"
        run.activity.begin("sampling", sum(request.count for request in requests))
        draws = step.generator(purpose)
        with Judging(run.task, run.policy, (step.number, step.steps)) as judging:
            answers = judging.sample(run.sampler, requests, max_tokens=step.max_tokens, generator=draws)
            run.activity.begin("rewards", len(answers))
            judged = judging.rewards(answers)
        completions += answers
        rollouts += judged.rollouts
        failures += judged.failures
        for name, metric in judged.metrics.items():
            metrics[name] = metrics.get(name, Metric(0.0, 0)) + metric
        taken += wanted.prompts
        # Without any verdict the control would ask for the same round again, without end.
        wanted = control.follow_up(rollouts, state.control, step) if judged.rollouts else FollowUp()
    return Drawn(
        rollouts,
        frozenset(extra),
        taken,
        completions=len(completions),
        tokens=sum(len(completion.tokens) for completion in completions),
        failures=tuple(failures),
        metrics={name: metric.mean for name, metric in metrics.items()},
    )


def score(run: Run, samples: Sequence[Sample], state: TrainState, step: Step) -> Scored:
    """Collate the samples into a batch and score it with the present weights.

    The result also holds the base model's log-probabilities, if they are needed, and the control's marks. With a
    correction of the sampler's mismatch, the one pass also takes log pi^T at the temperature of each row.
    """
    control = run.algorithm.control
    heats = run.config.mismatch.temperatures(sample.rollout.completion.temperature for sample in samples)
    needs = control.needs(state.control) | Needs(temperatures=heats)
    batch = run.policy.collate(samples)
    run.activity.begin("scoring", len(samples))
    scored = Scored(batch, run.policy.score(batch, needs, run.activity.at), step)
    if needs.reference or run.config.kl_coefficient > 0:
        assert run.reference is not None
        scored = replace(scored, ref_logprobs=run.reference.score(batch, Needs()).logprobs)
    return replace(scored, marks=control.mark(scored, state.control))


@dataclass(frozen=True)
class Probe:
    """`Probe` holds what a run measures before its first step."""

    entropy: Metric
    """The entropy of the base model, nats per token."""
    judged: Judged
    """The rewards of the completions."""
    completions: int
    """Number of completions."""


def probe(run: Run, prompts: int = 32) -> Probe:
    """Measure entropy and rewards before training.

    The measurement uses two ordinary completions of each of the first `prompts` problems of the training stream.
    """
    drawn = take_prompts(run.task, run.policy, run.config.seed, 0, prompts)
    requests = [Request(prompt, group, 2, run.config.sampling.temperature) for group, prompt in enumerate(drawn)]
    draws = generator(run.config.seed, 0, "entropy before training")
    completions = run.sampler.sample(requests, max_tokens=run.task.max_tokens, generator=draws)
    samples = [Sample(Rollout(completion, 0.0), 0.0) for completion in completions]
    batch = run.policy.collate(samples)
    entropy = Metric.of(asked_for(run.policy.score(batch, Needs()).entropy), batch.mask)
    return Probe(entropy, reward(run.task, run.policy, completions, (0, run.config.steps)), len(completions))


# --- the update ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Updated:
    """`Updated` holds what the update measured."""

    losses: Sequence[LossOutput]
    """The loss outputs, one for each microbatch."""
    sampled_entropy: Metric
    """-log pi of the trained tokens under the weights of each pass, summed over all passes, nats."""
    gradient_norms: Sequence[float]
    """The gradient norm of each optimizer step, before clipping."""

    def row(self) -> dict[str, Any]:
        """Return the values for the log: means over all passes."""
        total = Metric(0.0, 0)
        return {
            "ratio": sum((loss.ratio for loss in self.losses), total).mean,
            "clip_fraction": sum((loss.clipped for loss in self.losses), total).mean,
            "approximate_kl": sum((loss.approximate_kl for loss in self.losses), total).mean,
            "gradient_norm": Metric(sum(self.gradient_norms), len(self.gradient_norms)).mean,
            "updates": len(self.gradient_norms),
            "updates_skipped": sum(not math.isfinite(norm) for norm in self.gradient_norms),
        }


def update(run: Run, scored: Scored, state: TrainState, purpose: str = "minibatches") -> Updated:
    """Train on the batch: `epochs` passes over the trained rows, and one optimizer step for each minibatch.

    Args:
        run: The objects of the run. The weights of its policy change.
        scored: The scored batch.
        state: The state before the step.
        purpose: The name of the random draws that shuffle the rows.
    """
    config = run.config.optimizer
    losses: list[LossOutput] = []
    norms: list[float] = []
    sampled = Metric(0.0, 0)
    run.activity.begin("update", int(scored.batch.trained.sum()) * config.epochs)
    for epoch in range(config.epochs):
        shuffle = scored.step.generator(f"{purpose} {epoch}") if run.algorithm.control.shuffle else None
        for rows in minibatches(scored.batch, config.minibatches, shuffle, run.policy.sharing is not None):
            for loss, entropy in accumulate(run, scored, rows, state):
                losses.append(loss)
                sampled = sampled + entropy
            norms.append(optimizer_step(run.policy, run.optimizer, config))
    return Updated(losses, sampled, norms)


def replay(run: Run, state: TrainState, step: Step) -> None:
    """Train once more on the samples that the control kept from earlier steps.

    The ratio is taken against the log-probabilities at the time of sampling. The sampler's own ones are not kept, so
    there is no correction of a mismatch.
    """
    samples = run.algorithm.control.replay(state.control, step)
    if samples:
        batch = run.policy.collate(samples)
        old = BatchStatistics(batch.sampling_logprobs)
        plain = replace(run, algorithm=replace(run.algorithm, control=NoControl()))
        update(plain, Scored(batch, old, step), state, "replay")


def minibatches(batch: Batch, count: int, shuffle: torch.Generator | None, whole: bool = False) -> list[Tensor]:
    """Return the row indices of each minibatch.

    With `shuffle`, ordinary and extra rows are each spread evenly over all minibatches. Without it, the trained rows
    are split in their order.

    Args:
        batch: The batch.
        count: The number of minibatches.
        shuffle: The source of randomness; None keeps the order.
        whole: Whether all trained rows of a prompt are in one minibatch. Prompts with and without extra rows are each
            spread evenly. If there are fewer prompts than minibatches, rows are spread.
    """
    trained, extra = batch.trained.cpu().nonzero()[:, 0], batch.extra.cpu()
    if shuffle is None:
        return [rows for rows in trained.tensor_split(count) if len(rows)]
    if whole:
        prompts = torch.tensor(prompts_of(batch))[trained]
        distinct = prompts.unique()
        if len(distinct) >= count:
            with_extra = torch.isin(distinct, prompts[extra[trained]])
            some = _spread((distinct[~with_extra], distinct[with_extra]), count, shuffle)
            return [trained[torch.isin(prompts, chosen)] for chosen in some]
    return _spread((trained[~extra[trained]], trained[extra[trained]]), count, shuffle)


def _spread(kinds: Sequence[Tensor], count: int, shuffle: torch.Generator) -> list[Tensor]:
    """Return `count` parts, or fewer, over which the shuffled numbers of each kind are spread evenly."""
    parts = []
    for rows in kinds:
        parts.append(rows[torch.randperm(len(rows), generator=shuffle)].tensor_split(count))
    merged = [torch.cat(pair) for pair in zip(*parts, strict=True)]
    return [rows for rows in merged if len(rows)]


def accumulate(run: Run, scored: Scored, rows: Tensor, state: TrainState) -> list[tuple[LossOutput, Metric]]:
    """Run the forward and backward passes of one minibatch, one microbatch at a time.

    The token weights are those of the whole minibatch.

    Returns:
        For each microbatch its loss output and the sum of -log pi over its tokens.
    """
    control = run.algorithm.control
    weights = AGGREGATES[run.algorithm.aggregate](scored.batch.mask[rows])
    parts = _microbatches(run, scored.batch.select(rows))
    needs = control.needs(state.control).in_update
    outputs = []
    for micro in parts:
        weight = weights[micro]
        part = scored.select(rows[micro.cpu()])
        new = run.policy.statistics(part.batch, needs, entropy=needs.entropy_gradient)
        pull = towards_reference(run, part, new)
        output = stages.loss(run.algorithm, part, new, weight, state.control, pull)
        output.loss.backward()
        run.activity.advance(len(micro))
        outputs.append((output, Metric.of(-new.logprobs.detach(), part.batch.mask)))
    return outputs


def _microbatches(run: Run, batch: Batch) -> list[Tensor]:
    """Return the indices of the rows of each microbatch.

    Rows of similar length share a microbatch, so that there is less padding; rows of a prompt, if they share it.
    """
    size = run.microbatch or len(batch)
    if size >= len(batch):
        return [torch.arange(len(batch), device=batch.mask.device)]
    if run.policy.sharing is not None:
        return whole_prompts(batch, size)
    return list(by_length(batch).split(size))


def towards_reference(run: Run, part: Scored, new: BatchStatistics) -> Tensor | None:
    """Return the configured KL penalty towards the base model for each token, [B, T].

    It is None if the KL coefficient is 0 or the batch was not scored with the base model.
    """
    if run.config.kl_coefficient == 0 or part.ref_logprobs is None:
        return None
    return run.config.kl_coefficient * k3(new.logprobs, part.ref_logprobs)


def optimizer_step(policy: Policy, optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> float:
    """Clip the gradient, do one optimizer step, and clear the gradient.

    If the gradient is not finite, no weight changes.

    Returns:
        The gradient norm before clipping.
    """
    norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.max_grad_norm).item()
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def make_optimizer(policy: Policy, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return AdamW over all parameters of the policy."""
    return torch.optim.AdamW(
        policy.model.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


# --- what is logged (docs/metrics.md) -----------------------------------------------------------------------


class Clock:
    """`Clock` measures the wall-clock seconds of the parts of a step, and the process's CPU seconds."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._process = time.process_time()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """End the current part of the step, under this name. The next part starts."""
        now = time.perf_counter()
        self._laps[f"seconds_{name}"] = now - self._last
        self._last = now

    def row(self) -> dict[str, Any]:
        """Return the values for the log: seconds of each part, CPU seconds, and seconds in all up to now."""
        own = time.process_time() - self._process
        return {**self._laps, "seconds_cpu": own, "seconds": time.perf_counter() - self._start}
