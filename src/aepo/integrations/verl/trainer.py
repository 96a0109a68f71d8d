"""`EntropyControlTrainer` is verl's synchronous V1 trainer, with a control's hooks called in the driver.

verl's own step does not change (`PPOTrainer._step_once`). The trainer overrides parts of it: the submission for
sampling, the rows before they are scored, the advantages, the update of the actor, and the checkpoint. The driver
chooses the rows to train on, over all rows; a rank never does.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from torch import Tensor
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric import reduce_metrics
from verl.utils.py_functional import rename_dict
from verl.utils.seqlen_balancing import calculate_workload, get_seqlen_balanced_partitions
from verl.workers.utils.padding import response_from_nested, response_to_nested

from aepo.control.base import Scored, State, Step, hooks
from aepo.engines import stages
from aepo.engines.ends import find_ends
from aepo.errors import require
from aepo.integrations.verl import evidence as proof
from aepo.integrations.verl import metrics as log
from aepo.integrations.verl import rows as table
from aepo.integrations.verl import state as saved
from aepo.integrations.verl.agent import TEMPERATURE
from aepo.integrations.verl.doctor import attach
from aepo.integrations.verl.groups import Groups
from aepo.integrations.verl.loss import policy_loss
from aepo.integrations.verl.rows import RolloutRow
from aepo.integrations.verl.settings import TRAINER, get, read
from aepo.types import BatchStatistics, Metric, Rollout, Sample

SCORES = ("old_log_probs", "entropy", "response_mask")


@register_trainer(TRAINER)
class EntropyControlTrainer(PPOTrainerSync):  # type: ignore[misc]
    """`EntropyControlTrainer` trains with a method of this package; `trainer.v1.trainer_mode=aepo` selects it.

    Its settings are `aepo.*`.

    Raises:
        InvalidValue: A setting does not work with the method or with verl.
    """

    def __init__(self, config: Any) -> None:
        self._chosen = read(config)
        self._algorithm = self._chosen.algorithm
        self._control = self._algorithm.control
        self.control_state: State = self._control.initial_state()
        super().__init__(config)

    def _build_replay_buffer(self) -> Any:
        # With any other name verl treats this trainer as an asynchronous one.
        self.trainer_mode = "sync"
        buffer = super()._build_replay_buffer()
        if "follow_up" in hooks(self._control):
            buffer.sample = partial(self._sample_rounds, buffer.sample)
        return buffer

    def _init_tokenizer(self) -> None:
        super()._init_tokenizer()
        model = omega_conf_to_dataclass(self.config.actor_rollout_ref.model)
        found = find_ends(self.tokenizer, model.generation_config, model.hf_config, model.path)
        self._ends = frozenset(found.ids)

    def on_init_end(self) -> None:
        """Give the workers the core's loss instead of verl's."""
        loss = partial(policy_loss, algorithm=self._algorithm, kl_coefficient=self._chosen.kl_coefficient)
        self.actor_rollout_wg.set_loss_fn(loss)
        super().on_init_end()

    def on_train_begin(self) -> None:
        """Let the doctor watch the run."""
        super().on_train_begin()
        attach(self, self._chosen.doctor)

    # --- sampling ---------------------------------------------------------------------------------------------------

    def prepare_step(self) -> dict[str, Any]:
        """Submit the prompts of the step, and in the same round the extra groups that the control plans."""
        self._step = self._place()
        self._groups = Groups(self._submit_batch_to_rollout)
        self._groups.add(self._next_train_batch(), self._step.group_size)
        self._groups.add_extra(self._control.plan(self.control_state, self._step))
        return {}

    def _place(self) -> Step:
        config = self.config
        return Step(
            number=self.global_steps - 1,
            steps=self.total_training_steps,
            prompts=config.data.train_batch_size,
            group_size=config.actor_rollout_ref.rollout.n,
            max_tokens=config.data.max_response_length,
            seed=self._chosen.seed,
        )

    def _step_once(self, metrics: dict[str, Any], timing_raw: dict[str, float], sample_batch_size: int) -> Any:
        """Run verl's step, which waits for the extra groups too."""
        return super()._step_once(metrics, timing_raw, len(self._groups))

    def _sample_rounds(
        self, sample: Callable[..., tuple[Any, dict[str, Any]]], global_steps: int, partition_id: str, batch_size: int
    ) -> tuple[Any, dict[str, Any]]:
        """Run verl's sampling of a step, and repeat it as long as the control wants further groups."""
        place = {"global_steps": global_steps, "partition_id": partition_id}
        batch, metrics = sample(**place, batch_size=batch_size)
        newest, judged = batch, list[Rollout]()
        while partition_id == "train" and (wanted := self._follow_up(newest, judged)):
            newest, found = sample(**place, batch_size=wanted)
            keys, tags = [*batch.keys, *newest.keys], [*batch.tags, *newest.tags]
            batch, metrics = KVBatchMeta(partition_id=partition_id, keys=keys, tags=tags), {**metrics, **found}
        return batch, metrics

    def _follow_up(self, newest: Any, judged: list[Rollout]) -> int:
        """Add the rollouts of the newest round to `judged`, and submit the further groups that the control wants.

        Returns:
            The number of groups that were submitted.
        """
        before = len(self._groups)
        verdicts = stages.rewarded(self._rollouts(self._rows(newest)))
        judged += verdicts
        if verdicts:  # Without a verdict the control would ask for the same round forever.
            wanted = self._control.follow_up(judged, self.control_state, self._step)
            if wanted.prompts:
                self._groups.add(self._next_train_batch(wanted.prompts), self._step.group_size)
            self._groups.add_extra(wanted.extra)
        return len(self._groups) - before

    # --- what is trained on -----------------------------------------------------------------------------------------

    def _balance_batch(self, batch: Any, metrics: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """Make the mixed batch before the rows are scored, and free the rows that are not in it."""
        self._drawn = read_rows = self._rows(batch)
        kept = self._mixed(read_rows, self._rollouts(read_rows))
        _forget(batch, set(batch.keys) - set(kept))
        return super()._balance_batch(_select(batch, kept), metrics, *rest, **named)

    def _rollouts(self, read_rows: Sequence[RolloutRow]) -> list[Rollout]:
        return table.rollouts(read_rows, self._ends, self._step.max_tokens)

    def _rows(self, batch: Any) -> list[RolloutRow]:
        """Return all trajectories, ordered by group and by number in the group, not by the time they were finished."""
        names = ["prompts", "responses", "response_mask", "rm_scores", TEMPERATURE]
        with_logprobs = self._sampler_logprobs
        data = tq.kv_batch_get(
            keys=batch.keys,
            partition_id=batch.partition_id,
            select_fields=[*names, *(["rollout_log_probs"] if with_logprobs else [])],
        )
        columns = {name: list(data[name].unbind()) for name in set(data.keys())}
        made = []
        for place, key in enumerate(batch.keys):
            uid, session, number = key.rsplit("_", 2)
            require(number == "0", "agent loop", "several outputs of one completion", "a loop that returns one output")
            tokens = columns["responses"][place].tolist()
            logprobs = columns["rollout_log_probs"][place].tolist() if with_logprobs else [0.0] * len(tokens)
            made.append(
                RolloutRow(
                    key=key,
                    group=self._groups.numbers[uid],
                    source=self._groups.source(self._groups.numbers[uid]),
                    session=int(session),
                    prompt=tuple(columns["prompts"][place].tolist()),
                    tokens=tuple(tokens),
                    mask=tuple(columns["response_mask"][place].tolist()),
                    logprobs=tuple(logprobs),
                    reward=columns["rm_scores"][place].double().sum().item(),
                    temperature=float(columns[TEMPERATURE][place]),
                )
            )
        return sorted(made, key=lambda row: (row.group, row.session))

    @property
    def _sampler_logprobs(self) -> bool:
        """Whether the rollout engine returns its own log-probabilities."""
        return bool(get(self.config, "actor_rollout_ref.rollout.calculate_log_probs"))

    def _mixed(self, read_rows: Sequence[RolloutRow], made: Sequence[Rollout]) -> list[str]:
        """Return the keys of the mixed batch's rows, in its order; rows without a finite reward are left out."""
        finite = stages.rewarded(made)
        state, step = self.control_state, self._step
        ordinary, self._extra = stages.with_advantages(self._algorithm, finite, self._groups.extra, state, step)
        samples = self._control.mix(ordinary, self._extra, state, step)
        origin = {id(rollout.completion): row for rollout, row in zip(made, read_rows, strict=True)}
        chosen = [origin[id(sample.rollout.completion)] for sample in samples]
        self._samples: dict[str, Sample] = {row.key: sample for row, sample in zip(chosen, samples, strict=True)}
        self._masks = {row.key: row.mask for row in chosen}
        self._failures = self._groups.completions - len(finite)
        return [row.key for row in chosen]

    def _get_required_batch_multiple(self, dp_size: int) -> int:
        """Return the number of which the number of rows of a batch is a multiple.

        With it all minibatches have one size on every rank, and microbatches of a fixed size are full.
        """
        self._ranks = dp_size
        return self._minibatches * self._rank_multiple

    @property
    def _minibatches(self) -> int:
        actor = self.config.actor_rollout_ref.actor
        return int(self.config.data.train_batch_size // actor.ppo_mini_batch_size)

    @property
    def _rank_multiple(self) -> int:
        """Return the number that must divide the number of rows of a minibatch."""
        actor, rollout = self.config.actor_rollout_ref.actor, self.config.actor_rollout_ref.rollout
        update = 1 if actor.use_dynamic_bsz else actor.ppo_micro_batch_size_per_gpu or 1
        scores = [rollout, *([self.config.actor_rollout_ref.ref] if self.use_reference_policy else [])]
        sizes = [1 if s.log_prob_use_dynamic_bsz else s.log_prob_micro_batch_size_per_gpu or 1 for s in scores]
        return self._ranks * math.lcm(update, *sizes)

    # --- advantages -------------------------------------------------------------------------------------------------

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Compute what the workers need of each token, over the whole scored batch at once.

        This calls the hooks `mark` and `shape`, and gives each token its weight in its minibatch.
        """
        there = set(batch.keys)
        real = [key for key in self._samples if key in there]
        scored = self._scored(batch, real)
        self._correction = self._chosen.mismatch.of([self._samples[key] for key in real], scored)
        if self._correction:
            scored = replace(scored, correction=self._correction.weights)
        scored = replace(scored, marks=self._control.mark(scored, self.control_state))
        self._scored_batch = scored
        shaped = self._control.shape(scored.batch.advantages, scored, self.control_state)
        padding = [key for key in batch.keys if key not in self._samples]
        minibatches = self._arrange(batch, real, padding, scored)
        fields = {
            "advantages": shaped,
            "returns": shaped,
            "entropy": scored.entropy,
            "aepo_weights": table.token_weights(scored.trained, minibatches, self._algorithm.aggregate),
            **{table.MARK + name: values for name, values in scored.marks.items()},
            **({} if scored.correction is None else {table.CORRECTION: scored.correction}),
        }
        self._put(batch, real, fields, table.facts(scored.batch))
        if padding:
            empty = {name: torch.zeros(len(padding), 1) for name in fields}
            self._put(batch, padding, empty, torch.zeros(len(padding), table.FACTS, dtype=torch.float64))
        if batch.fields is not None:  # Workers get only the listed fields; the list dates from the first scoring.
            later = [*fields, "aepo_rows", *(["ref_log_prob"] if self.use_reference_policy else [])]
            batch.fields = list(dict.fromkeys([*batch.fields, *later]))
        return batch

    def _scored(self, batch: Any, keys: Sequence[str]) -> Scored:
        """Return the mixed batch with its statistics under the policy that sampled it.

        The statistics are at temperature 1, except those at the temperatures that the control needs.
        """
        drawn = self._chosen.mismatch.temperatures(self._samples[key].rollout.completion.temperature for key in keys)
        wanted_at = {*self._control.needs(self.control_state).temperatures, *drawn}
        tempered = {t: self._logprobs_at(batch, t, keys) for t in sorted(wanted_at)}
        wanted = [*SCORES, *(["ref_log_prob"] if self.use_reference_policy else [])]
        data = tq.kv_batch_get(keys=list(keys), partition_id=batch.partition_id, select_fields=wanted)
        values = {name: table.pad([row.float() for row in data[name].unbind()]) for name in wanted}
        samples = [self._samples[key] for key in keys]
        made = table.to_batch(samples, [self._masks[key] for key in keys], self.tokenizer.pad_token_id)
        old = BatchStatistics(
            logprobs=values["old_log_probs"] * made.mask, entropy=values["entropy"] * made.mask, tempered=tempered
        )
        return Scored(made, old, self._step, ref_logprobs=values.get("ref_log_prob"))

    def _logprobs_at(self, batch: Any, temperature: float, keys: Sequence[str]) -> Tensor:
        """Return log pi^T of the tokens, nats, [B, T], from one more forward pass."""
        asked = {"calculate_entropy": False, "compute_loss": False, "temperature": temperature}
        # verl leaves `no_lora_adapter` set if its reference model is the actor without its adapter.
        batch.extra_info.update({**asked, "no_lora_adapter": False})
        self.actor_rollout_wg.compute_log_prob(batch)
        batch.extra_info["temperature"] = 1.0
        data = tq.kv_batch_get(
            keys=list(keys), partition_id=batch.partition_id, select_fields=["log_probs", "response_mask"]
        )
        responses = response_from_nested(data["log_probs"], data["response_mask"])
        return table.pad([row.float() for row in responses.unbind()])

    def _arrange(self, batch: Any, real: Sequence[str], padding: Sequence[str], scored: Scored) -> list[list[int]]:
        """Return the minibatches as lists of rows of `scored`, and set `self._order`.

        `self._order` holds the keys in the order in which verl splits them: rank by rank.
        """
        trained = scored.batch.trained.nonzero()[:, 0].tolist()
        extra = (scored.batch.extra & scored.batch.trained).nonzero()[:, 0].tolist()
        shuffle = self._step.generator("minibatches 0") if self._control.shuffle else None
        minibatches = table.deal(trained, extra, self._minibatches, shuffle)
        names = [*real, *padding]
        spare = [*range(len(real), len(names)), *sorted(set(range(len(real))) - set(trained))]
        filled = table.fill(minibatches, spare, self._rank_multiple)
        lengths = dict(zip(batch.keys, (tag["seq_len"] for tag in batch.tags), strict=True))
        parts: list[list[str]] = [[] for _ in range(self._ranks)]
        for rows in filled:
            work = calculate_workload(torch.tensor([lengths[names[row]] for row in rows]))
            for rank, places in enumerate(get_seqlen_balanced_partitions(work, self._ranks, equal_size=True)):
                parts[rank] += [names[rows[place]] for place in places]
        self._order = [key for part in parts for key in part]
        return minibatches

    def _put(self, batch: Any, keys: Sequence[str], fields: dict[str, Tensor], row_facts: Tensor) -> None:
        """Write padded fields [B, T] and facts [B, 5] (`rows.facts`) of these rows to verl's store."""
        data = tq.kv_batch_get(keys=list(keys), partition_id=batch.partition_id, select_fields=["response_mask"])
        ragged = {name: response_to_nested(value, data["response_mask"]) for name, value in fields.items()}
        stored = TensorDict({**ragged, "aepo_rows": row_facts}, batch_size=len(keys))
        tq.kv_batch_put(keys=list(keys), partition_id=batch.partition_id, fields=stored)

    # --- update and measure -----------------------------------------------------------------------------------------

    def _update_actor(self, batch: Any, metrics: dict[str, Any]) -> Any:
        """Update the actor with the arranged rows, then update the control.

        At the end the extra rows are removed from verl's store.
        """
        actor = self.config.actor_rollout_ref.actor
        part = _select(batch, self._order)
        part.extra_info.update(
            {
                "calculate_entropy": self._control.needs(self.control_state).entropy_gradient,
                "distillation_use_topk": False,
                "distillation_only": False,
                "global_batch_size": len(self._order) // self._minibatches,
                "num_mini_batch": self._minibatches,
                "epochs": actor.ppo_epochs,
                "seed": actor.data_loader_seed,
                "dataloader_kwargs": {"shuffle": False},
                "temperature": 1.0,
                "aepo_state": json.dumps(self.control_state),
                "aepo_step": table.step_to_json(self._step),
            }
        )
        output = rename_dict(self.actor_rollout_wg.update_actor(part)["metrics"], "actor/")
        output["perf/mfu/actor"] = output.pop("actor/mfu")
        found = reduce_metrics(output)
        sums = log.take_sums(found)
        metrics.update(found)
        metrics.update(self._measure(sums))
        ordinary = [key for key in batch.keys if key in self._samples and not self._samples[key].extra]
        _forget(batch, set(batch.keys) - set(ordinary))
        return _select(batch, ordinary)

    def _measure(self, sums: dict[str, Metric]) -> dict[str, float]:
        """Set the control's next state, and return the numbers of the step for the log."""
        scored, samples = self._scored_batch, list(self._samples.values())
        ordinary = [sample for sample in samples if not sample.extra]
        measured = stages.measure(ordinary, self._extra, scored, sums.pop("mixed_sampled_entropy"))
        before, self.control_state = self.control_state, self._control.update(self.control_state, measured)
        row = {
            **stages.measurements(measured, samples, sampler=self._sampler_logprobs),
            **vars(self._control.report(before, self.control_state)),
            **{name: value.mean for name, value in sums.items()},
            **(self._correction.row() if self._correction else {}),
            "reward_failures": self._failures,
            "completions": self._groups.completions,
        }
        loggable = log.loggable(row)
        self._write_evidence(before, loggable)
        return loggable

    def _write_evidence(self, before: State, logged: Mapping[str, float]) -> None:
        """Write all that the step drew and measured, if `aepo.evidence` asks for it."""
        if self._chosen.evidence is None:
            return
        rows = proof.rows(self._drawn, list(self._samples), self._scored_batch, self._sampler_logprobs)
        plain = {name.removeprefix(log.PREFIX): value for name, value in logged.items()}
        found = proof.Evidence(self._step, before, self.control_state, plain, rows)
        proof.write(self._chosen.evidence, found)

    # --- checkpoint -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        """Save the control's state, then verl's checkpoint.

        verl marks a checkpoint as the latest when it is complete, so the state must be there first.
        """
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        saved.save(folder, self._chosen, self.global_steps, self.control_state)
        super()._save_checkpoint()

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        folder = saved.resumed_folder(self.config) if self.global_steps > 0 else None
        if folder is not None:
            self.control_state = saved.load(folder, self._chosen)


def _select(batch: Any, keys: Sequence[str]) -> Any:
    """Return these rows of verl's batch, in this order.

    The result has its own `extra_info`; `select_keys` alone would share it with the batch.
    """
    selected = batch.select_keys(list(keys))
    selected.extra_info = dict(batch.extra_info)
    return selected


def _forget(batch: Any, keys: set[str]) -> None:
    """Free these rows in verl's store, which otherwise keeps them forever."""
    if keys:
        tq.kv_clear(keys=sorted(keys), partition_id=batch.partition_id)
