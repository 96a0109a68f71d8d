"""The loop. One step, top to bottom, is `train_step`; everything around it loads, logs and saves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aepo.algorithm import Algorithm
from aepo.config import Config, OptimizerConfig
from aepo.control.base import FollowUp, Needs, NoControl, Scored, Step, generator
from aepo.engines import stages
from aepo.engines.collate import collate
from aepo.loss.aggregates import AGGREGATES
from aepo.loss.policy_loss import LossOutput, k3
from aepo.model.policy import Policy, by_length
from aepo.sampling.base import Sampler
from aepo.sampling.prompts import reward, take_prompts
from aepo.tasks import Task
from aepo.training.checkpoint import TrainState
from aepo.types import Batch, BatchStatistics, Completion, Metric, Prompt, Request, Rollout, Sample, asked_for

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What stays the same from step to step (the weights inside `policy` move)."""

    config: Config
    algorithm: Algorithm
    task: Task
    policy: Policy
    sampler: Sampler
    optimizer: torch.optim.Optimizer
    reference: Policy | None = None


def train_step(run: Run, state: TrainState) -> tuple[TrainState, Row, list[Sample]]:
    """Sample, reward, compare, mix, score, shape, update, measure."""
    config, control = run.config, run.algorithm.control
    clock = Clock()
    step = Step(
        number=state.step,
        steps=config.steps,
        prompts=config.sampling.prompts,
        group_size=config.sampling.group_size,
        max_tokens=run.task.max_tokens,
        seed=config.seed,
    )

    run.sampler.refresh(run.policy)
    drawn = draw(run, state, step)
    clock.lap("sampling")

    ordinary, extra = stages.with_advantages(run.algorithm, drawn.rollouts, drawn.extra, state.control, step)
    samples = control.mix(ordinary, extra, state.control, step)
    scored = score(run, samples, state, step)
    clock.lap("scoring")

    advantages = control.shape(scored.batch.advantages, scored, state.control)
    updated = update(run, replace(scored, batch=replace(scored.batch, advantages=advantages)), state)
    replay(run, state, step)
    clock.lap("update")

    measured = stages.measure(ordinary, extra, scored, updated.sampled_entropy)
    control_state = control.update(state.control, measured)
    row = {
        "step": step.number,
        **stages.measurements(measured, samples, sampler=control.token_temperature(state.control) is None),
        **control.report(state.control, control_state),
        **updated.row(),
        "reward_failures": drawn.failures,
        "completions": drawn.completions,
        "tokens": drawn.tokens,
        **clock.row(),
    }
    after = replace(state, step=state.step + 1, position=state.position + drawn.prompts, control=control_state)
    return after, row, samples


# --- sampling and rewards -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    """All that was sampled in a step. extra: the numbers of the extra groups. prompts: taken from the stream.

    failures: completions whose verifier failed; without a finite reward they are left out of everything.
    """

    rollouts: list[Rollout]
    extra: frozenset[int]
    prompts: int
    completions: int
    tokens: int
    failures: int


def draw(run: Run, state: TrainState, step: Step) -> Drawn:
    """The step's prompts and what the control plans beside them; then what follows up, until it wants no more."""
    control = run.algorithm.control
    rollouts: list[Rollout] = []
    completions: list[Completion] = []
    prompts: dict[int, Prompt] = {}
    extra: list[int] = []
    wanted, taken, failures = FollowUp(control.plan(state.control, step), step.prompts), 0, 0
    while wanted:
        first, new = (
            len(prompts) + len(extra),
            take_prompts(run.task, run.policy, step.seed, state.position + taken, wanted.prompts),
        )
        prompts |= dict(enumerate(new, start=first))
        requests = [
            Request(prompt, first + number, step.group_size, token_temperature=control.token_temperature(state.control))
            for number, prompt in enumerate(new)
        ]
        for group, planned in enumerate(wanted.extra, start=first + len(new)):
            requests.append(Request(prompts[planned.prompt], group, planned.count, planned.temperature))
            extra.append(group)
        purpose = f"sampling {taken} {len(extra)}" if taken else "sampling"
        answers = run.sampler.sample(requests, max_tokens=step.max_tokens, generator=step.generator(purpose))
        completions += answers
        judged, failed = reward(run.task, run.policy, answers)
        rollouts += judged
        failures += failed
        taken += wanted.prompts
        # A round without a single verdict would be asked for again for ever.
        wanted = control.follow_up(rollouts, state.control, step) if judged else FollowUp()
    return Drawn(
        rollouts,
        frozenset(extra),
        taken,
        completions=len(completions),
        tokens=sum(len(completion.tokens) for completion in completions),
        failures=failures,
    )


def score(run: Run, samples: Sequence[Sample], state: TrainState, step: Step) -> Scored:
    """The batch with its statistics under the present weights, the base model's log-probabilities, and marks."""
    control = run.algorithm.control
    needs = control.needs(state.control)
    batch = collate(samples, run.policy.pad_token_id).to(run.policy.device)
    scored = Scored(batch, run.policy.score(batch, needs), step)
    if needs.reference or run.config.kl_coefficient > 0:
        assert run.reference is not None
        scored = replace(scored, ref_logprobs=run.reference.score(batch, Needs()).logprobs)
    return replace(scored, marks=control.mark(scored, state.control))


def sampled_batch_entropy(run: Run, prompts: int = 32) -> Metric:
    """The sensor before any training: two ordinary completions of each of the stream's first `prompts` problems."""
    drawn = take_prompts(run.task, run.policy, run.config.seed, 0, prompts)
    requests = [Request(prompt, group, 2) for group, prompt in enumerate(drawn)]
    draws = generator(run.config.seed, 0, "entropy before training")
    completions = run.sampler.sample(requests, max_tokens=run.task.max_tokens, generator=draws)
    samples = [Sample(Rollout(completion, 0.0), 0.0) for completion in completions]
    batch = collate(samples, run.policy.pad_token_id).to(run.policy.device)
    return Metric.of(asked_for(run.policy.score(batch, Needs()).entropy), batch.mask)


# --- the update ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Updated:
    """What the update saw, summed over its minibatches."""

    losses: Sequence[LossOutput]
    sampled_entropy: Metric
    gradient_norms: Sequence[float]

    def row(self) -> Row:
        """For the log."""
        total = Metric(0.0, 0)
        return {
            "ratio": sum((loss.ratio for loss in self.losses), total).mean,
            "clip_fraction": sum((loss.clipped for loss in self.losses), total).mean,
            "approximate_kl": sum((loss.approximate_kl for loss in self.losses), total).mean,
            "gradient_norm": Metric(sum(self.gradient_norms), len(self.gradient_norms)).mean,
        }


def update(run: Run, scored: Scored, state: TrainState, purpose: str = "minibatches") -> Updated:
    """`epochs` passes over the trained rows, one optimizer step for each minibatch."""
    config = run.config.optimizer
    losses: list[LossOutput] = []
    norms: list[float] = []
    sampled = Metric(0.0, 0)
    for epoch in range(config.epochs):
        shuffle = scored.step.generator(f"{purpose} {epoch}") if run.algorithm.control.shuffle else None
        for rows in minibatches(scored.batch, config.minibatches, shuffle):
            for loss, entropy in accumulate(run, scored, rows, state):
                losses.append(loss)
                sampled = sampled + entropy
            norms.append(optimizer_step(run.policy, run.optimizer, config))
    return Updated(losses, sampled, norms)


def replay(run: Run, state: TrainState, step: Step) -> None:
    """Train once more on what the control kept of earlier steps, against the log-probabilities it had then."""
    samples = run.algorithm.control.replay(state.control, step)
    if samples:
        batch = collate(samples, run.policy.pad_token_id).to(run.policy.device)
        old = BatchStatistics(batch.sampling_logprobs)
        plain = replace(run, algorithm=replace(run.algorithm, control=NoControl()))
        update(plain, Scored(batch, old, step), state, "replay")


def minibatches(batch: Batch, count: int, shuffle: torch.Generator | None) -> list[Tensor]:
    """Row indices of each minibatch; ordinary and extra rows are each spread evenly over all of them."""
    trained, extra = batch.trained.cpu().nonzero()[:, 0], batch.extra.cpu()
    if shuffle is None:
        return [rows for rows in trained.tensor_split(count) if len(rows)]
    parts = []
    for rows in (trained[~extra[trained]], trained[extra[trained]]):
        parts.append(rows[torch.randperm(len(rows), generator=shuffle)].tensor_split(count))
    merged = [torch.cat(pair) for pair in zip(*parts, strict=True)]
    return [rows for rows in merged if len(rows)]


def accumulate(run: Run, scored: Scored, rows: Tensor, state: TrainState) -> list[tuple[LossOutput, Metric]]:
    """Backward passes of one minibatch, a microbatch at a time; token weights are the whole minibatch's."""
    control = run.algorithm.control
    weights = AGGREGATES[run.algorithm.aggregate](scored.batch.mask[rows])
    size = run.config.optimizer.microbatch or len(rows)
    if size < len(rows):  # rows of a length together: less padding
        longest_first = by_length(scored.batch.select(rows))
        rows, weights = rows[longest_first.cpu()], weights[longest_first]
    needs = control.needs(state.control).in_update
    outputs = []
    for micro, weight in zip(rows.split(size), weights.split(size), strict=True):
        part = scored.select(micro)
        new = run.policy.statistics(part.batch, needs, entropy=needs.entropy_gradient)
        pull = towards_reference(run, part, new)
        output = stages.loss(run.algorithm, part, new, weight, state.control, pull)
        output.loss.backward()
        outputs.append((output, Metric.of(-new.logprobs.detach(), part.batch.mask)))
    return outputs


def towards_reference(run: Run, part: Scored, new: BatchStatistics) -> Tensor | None:
    """The configured pull towards the base model, [B, T], on rows that were scored with it."""
    if run.config.kl_coefficient == 0 or part.ref_logprobs is None:
        return None
    return run.config.kl_coefficient * k3(new.logprobs, part.ref_logprobs)


def optimizer_step(policy: Policy, optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> float:
    """Clip, step, clear; the norm before clipping. A gradient that is not finite changes no weight."""
    norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.max_grad_norm).item()
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def make_optimizer(policy: Policy, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over all parameters."""
    return torch.optim.AdamW(
        policy.model.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


# --- what is logged (docs/metrics.md) -----------------------------------------------------------------------


class Clock:
    """Wall-clock seconds of the parts of a step, and the process's own seconds of it."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._process = time.process_time()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """The part that ends here."""
        now = time.perf_counter()
        self._laps[f"seconds_{name}"] = now - self._last
        self._last = now

    def row(self) -> Row:
        """The parts and their sum, up to now."""
        own = time.process_time() - self._process
        return {**self._laps, "seconds_cpu": own, "seconds": time.perf_counter() - self._start}
