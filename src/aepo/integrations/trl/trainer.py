"""`EntropyControlTrainer` is TRL's `GRPOTrainer`, with a control's hooks called around each round of generation.

The trainer overrides `_generate_and_score_completions`. TRL first draws and scores the ordinary rows, then the
tempered rows. The control makes a mixed batch of both, which goes back to TRL in TRL's own form and with the same
number of rows. The loss of this package replaces TRL's loss only where TRL's loss cannot express the method
(`aepo.integrations.trl.losses.own_loss`).

Rows are numbered over all ranks, rank by rank, as TRL gathers them. The data that a decision needs is gathered, so
every rank makes the same decision.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aepo.control.base import Measured, Scored, State, Step, most_needed
from aepo.engines import stages
from aepo.engines.collate import collate
from aepo.errors import InvalidValue
from aepo.integrations.trl import rows as table
from aepo.integrations.trl.config import EntropyControlConfig
from aepo.integrations.trl.losses import own_loss
from aepo.integrations.trl.rows import Rows
from aepo.integrations.trl.sampling import SamplingTrainer
from aepo.integrations.trl.statistics import beyond_trl
from aepo.loss.policy_loss import LossOutput
from aepo.types import BatchStatistics, Metric, Rollout, Sample, asked_for

STATE_FILE = "aepo_state.json"


@dataclass(frozen=True)
class Round:
    """`Round` holds what the updates after one round of generation need."""

    scored: Scored
    """The mixed batch of all ranks, with the advantages that it is trained with."""
    state: State
    """The control's state during the round."""


class EntropyControlTrainer(SamplingTrainer):
    """`EntropyControlTrainer` is TRL's `GRPOTrainer` that trains at the entropy that you set.

    It takes the arguments of `GRPOTrainer`; `args` is an `EntropyControlConfig`.

    Raises:
        InvalidValue: An argument or the model does not work with the method; the message is one line.
    """

    def __init__(self, model: Any, reward_funcs: Any = None, args: Any = None, *rest: Any, **named: Any) -> None:
        if not isinstance(args, EntropyControlConfig):
            raise InvalidValue("args", type(args).__name__, "an EntropyControlConfig")
        for name in ("tools", "rollout_func", "environment_factory"):
            if named.get(name) is not None:
                raise InvalidValue(name, "a value", "left out: one completion has one prompt and one temperature here")
        self._algorithm = args.algorithm
        self._acts = self._algorithm.control
        self._own_loss = own_loss(self._algorithm)
        self.entropy_state: State = self._acts.initial_state()
        self.rounds = 0
        self._round: Round | None = None
        super().__init__(model, reward_funcs, args, *rest, **named)
        self._check_model()

    # --- one round of generation --------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Rows:
        if not self.model.training:
            return super()._generate_and_score_completions(inputs)  # type: ignore[no-any-return]
        control, state, step = self._acts, self.entropy_state, self._step_facts(len(inputs))
        needs = replace(control.needs(state), entropy_gradient=False)
        ordinary = self._draw(inputs, range(step.prompts))
        stats = None if beyond_trl(needs) else ordinary.stats
        stats = self._ranks.stats(stats or self._stats(ordinary.rows, needs))
        extra = self._draw_extra(inputs, control.plan(state, step), step.prompts)

        some, more = self._compare(ordinary.rollouts, extra.rollouts, state, step)
        samples = control.mix(some, more, state, step)
        sources = _sources(samples, [*ordinary.rollouts, *extra.rollouts])
        used = [source - len(ordinary.rollouts) for source in sources if source >= len(ordinary.rollouts)]
        known = [stats, *self._stats_of_some(extra.rows, used, needs)]
        scored = self._scored(samples, _order(sources, len(ordinary.rollouts)), known, step)
        scored = replace(scored, marks=control.mark(scored, state))
        shaped = control.shape(scored.batch.advantages, scored, state)
        self._round = Round(replace(scored, batch=replace(scored.batch, advantages=shaped)), state)

        measured = stages.measure(
            some, more, scored, mixed_sampled_entropy=Metric.of(-scored.old.logprobs, scored.trained)
        )
        self.entropy_state = self._ranks.agree(control.update(state, measured))
        self.rounds += 1
        self._log_round(state, measured, samples)
        placed = table.placement(sources, scored.batch.trained.tolist(), len(ordinary.rollouts))
        return self._output(ordinary.rows, extra.rows, placed, shaped)

    def _step_facts(self, rows: int) -> Step:
        """Return the place of this round in the run, over all ranks; `rows` is the number of rows of one rank."""
        updates = self.state.max_steps * self.args.gradient_accumulation_steps
        return Step(
            number=self.rounds,
            steps=math.ceil(updates / (self.args.steps_per_generation * self.num_iterations)),
            prompts=rows * self._ranks.number // self.num_generations,
            group_size=self.num_generations,
            max_tokens=self.max_completion_length,
            seed=self.args.seed,
        )

    def _compare(
        self, ordinary: list[Rollout], extra: list[Rollout], state: State, step: Step
    ) -> tuple[list[Sample], list[Sample]]:
        """Return the ordinary and the extra samples with their advantages.

        A completion without a finite reward is left out.
        """
        finite = stages.rewarded([*ordinary, *extra])
        return stages.with_advantages(self._algorithm, finite, {r.completion.group for r in extra}, state, step)

    def _scored(
        self, samples: Sequence[Sample], order: Sequence[int], stats: Sequence[BatchStatistics], step: Step
    ) -> Scored:
        """Return the mixed batch with its statistics.

        Args:
            samples: The samples of the mixed batch, in its order.
            order: The row of each sample in the joined `stats`.
            stats: The statistics of all ordinary rows, then those of the extra rows that are used.
            step: The place of the round in the run.
        """
        batch = collate(samples, self._ranks.pad_token_id).to(self.accelerator.device)
        old = table.joined(stats, batch.mask.shape[1]).select(torch.tensor(order, device=batch.mask.device))
        return Scored(batch, table.inside(old, batch.mask), step)

    def _check_model(self) -> None:
        """Refuse a model, or a way to distribute it, with which the passes of this package do not work."""
        if self._own_loss and getattr(self, "aux_loss_enabled", False):
            why = f"0.0: the loss of the method {self.args.method} has no load-balancing loss of experts"
            raise InvalidValue("router_aux_loss_coef", self.router_aux_loss_coef, why)
        if beyond_trl(most_needed(self._acts)):
            self._check_own_pass()

    # --- back to TRL ----------------------------------------------------------------------------------------------

    def _output(self, ordinary: Rows, extra: Rows, placed: table.Placement, shaped: Tensor) -> Rows:
        """Return this rank's rows as TRL expects them, with the extra rows in the places that they take.

        The advantages are per token, [B, T], and the number of tokens is counted again.

        Args:
            ordinary: The ordinary rows of this rank.
            extra: The extra rows of all ranks.
            placed: The places of the rows, over all ranks.
            shaped: The advantages of the mixed batch after `shape`, [N, T].
        """
        count = len(ordinary["advantages"])
        first = self.accelerator.process_index * count
        taken = {place - first: number for place, number in placed.taken if first <= place < first + count}
        out = table.place(ordinary, extra, [*taken], [*taken.values()], self._ranks.pad_token_id)
        row = torch.tensor(placed.row[first : first + count], device=shaped.device)
        trained, row = (row >= 0)[:, None], row.clamp(min=0)
        out["completion_mask"] = out["completion_mask"] * trained
        out["advantages"] = table.fit(shaped, out["completion_mask"].shape[1])[row] * trained
        if self._own_loss:
            out["aepo_row"] = row
        out |= table.images(out, self._image_token)
        out["num_items_in_batch"] = self.accelerator.gather(out["completion_mask"].sum()).sum()
        return out

    # --- the loss, where a control acts in every pass --------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Rows) -> Tensor:
        if not self._own_loss or not self.model.training:
            return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]
        assert self._round is not None
        mask = inputs["completion_mask"].float()
        part = table.narrowed(self._round.scored.select(inputs["aepo_row"]), mask.shape[1])
        new = self._present(model, inputs, mask, self._round.state)
        if "importance_sampling_ratio" in inputs:
            part = replace(part, correction=inputs["importance_sampling_ratio"].expand_as(mask))
        weights = self._weights(mask, inputs)
        output = stages.loss(self._algorithm, part, new, weights, self._round.state)
        self._log_loss(output, new, mask)
        return output.loss

    def _present(self, model: Any, inputs: Rows, mask: Tensor, state: State) -> BatchStatistics:
        """Return the statistics of these rows under the current policy, with gradient."""
        needs = self._acts.needs(state).in_update
        stats = None if beyond_trl(needs) else self._trl_statistics(model, inputs)
        if stats is None:
            return self._own_pass(model, inputs, needs)
        return table.inside(replace(stats, entropy=asked_for(stats.entropy).detach()), mask)

    def _weights(self, mask: Tensor, inputs: Rows) -> Tensor:
        """Return TRL's weight of each token in this backward pass, [B, T]."""
        accumulated = self.current_gradient_accumulation_steps
        # `num_items_in_batch` counts the whole round over all ranks, and gradients are averaged over the ranks.
        share = accumulated / self.args.steps_per_generation / self._ranks.number
        tokens = inputs["num_items_in_batch"].clamp(min=1) * share
        return table.token_weights(
            self.loss_type,
            mask,
            window_tokens=tokens,
            longest=self.max_completion_length,
            accumulated=accumulated,
        )

    # --- log and checkpoint -------------------------------------------------------------------------------------------

    def _log_round(self, before: State, measured: Measured, samples: Sequence[Sample]) -> None:
        """Log the numbers of docs/metrics.md that a round has, under `aepo/`."""
        row = stages.measurements(measured, samples, sampler=False)
        for name, value in {**row, **vars(self._acts.report(before, self.entropy_state))}.items():
            if isinstance(value, int | float):
                self._metrics["train"][f"aepo/{name}"].append(float(value))

    def _log_loss(self, output: LossOutput, new: BatchStatistics, mask: Tensor) -> None:
        """Log the entropy and the clipped share under TRL's names, and the ratio as `aepo/ratio`."""
        metrics = {
            "entropy": Metric.of(asked_for(new.entropy).detach(), mask),
            "clip_ratio/region_mean": output.clipped,
            "aepo/ratio": output.ratio,
        }
        sums = torch.tensor([[m.total, m.count] for m in metrics.values()], device=mask.device)
        for name, (total, count) in zip(metrics, self.accelerator.reduce(sums, "sum").tolist(), strict=True):
            self._metrics["train"][name].append(Metric(total, count).mean)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
            data = {"method": self.args.method, "rounds": self.rounds, "state": self.entropy_state}
            (folder / STATE_FILE).write_text(json.dumps(data))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        file = Path(checkpoint) / STATE_FILE
        if not file.exists():
            raise InvalidValue("resume_from_checkpoint", checkpoint, f"a checkpoint of this trainer, with {STATE_FILE}")
        data = json.loads(file.read_text())
        if data["method"] != self.args.method:
            raise InvalidValue("method", self.args.method, f"{data['method']!r}, which the checkpoint was made with")
        self.rounds, self.entropy_state = data["rounds"], data["state"]


class AEPOTrainer(EntropyControlTrainer):
    """`AEPOTrainer` is `EntropyControlTrainer` under the name of the default method."""


def _sources(samples: Sequence[Sample], rollouts: Sequence[Rollout]) -> list[int]:
    """Return, for each sample, the index of its rollout in `rollouts`.

    Completions are compared, because the stages return changed copies of the rollouts.
    """
    numbers = {id(rollout.completion): number for number, rollout in enumerate(rollouts)}
    return [numbers[id(sample.rollout.completion)] for sample in samples]


def _order(sources: Sequence[int], ordinary: int) -> list[int]:
    """Return the row of each sample in the list of all ordinary rows, then the extra rows that are used."""
    extra = iter(range(ordinary, ordinary + len(sources)))
    return [source if source < ordinary else next(extra) for source in sources]
