"""TRL's own sampling and scoring, asked for rollouts and statistics; nothing here knows of a control."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from aepo.control.base import ExtraGroup, Needs
from aepo.errors import InvalidValue
from aepo.integrations.trl import rows as table
from aepo.integrations.trl.ranks import Ranks
from aepo.integrations.trl.rows import Rows
from aepo.integrations.trl.statistics import beyond_trl, statistics
from aepo.types import BatchStatistics, Rollout


@dataclass(frozen=True)
class Drawn:
    """One call of TRL's sampling: the rank's `rows`, and the `rollouts` of all ranks in the order of their rows.

    stats: of the rank's rows, where TRL scored them for itself.
    """

    rows: Rows
    rollouts: list[Rollout]
    stats: BatchStatistics | None = None


class SamplingTrainer(GRPOTrainer):  # type: ignore[misc]
    """`GRPOTrainer`, with the parts of a round of generation callable by themselves."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self._metrics: dict[str, Any]
        self._logs: dict[str, Any]
        self._rewarded: tuple[list[list[int]], Tensor] | None = None
        self._scores: list[tuple[Tensor, Tensor]] | None = None
        super().__init__(*given, **named)
        self._ranks = Ranks(self.accelerator, self._tokenizer.pad_token_id)

    def _draw(self, inputs: list[dict[str, Any]], groups: Sequence[int], temperature: float = 1.0) -> Drawn:
        """Sample these prompts; groups: the numbers of the groups over all ranks, in order."""
        self._scores = []
        try:
            drawn: Rows = super()._generate_and_score_completions(inputs)
        finally:
            scores, self._scores = self._scores, None
        table.check(drawn)
        assert self._rewarded is not None
        completions, rewards = self._rewarded
        prompts = table.token_lists(drawn["prompt_ids"], drawn["prompt_mask"])
        texts = self._ranks.objects(list(zip(prompts, completions, strict=True)))
        numbers = [group for group in groups for _ in range(self.num_generations)]
        rollouts = table.rollouts(texts, self._total(rewards), numbers, temperature, self._ends)
        return Drawn(table.rowwise(drawn), rollouts, _kept(drawn, scores))

    def _draw_extra(self, inputs: list[dict[str, Any]], plan: Sequence[ExtraGroup], groups: int) -> Drawn:
        """The planned groups, and as many of them again as give every rank the same number of rows.

        inputs: the rank's of the ordinary rows, which are `groups` groups over all ranks. The rows are all ranks'.
        """
        if not plan:
            return Drawn({}, [])
        size, temperature, ranks = self.num_generations, plan[0].temperature, self._ranks.number
        if any((group.count, group.temperature) != (size, temperature) for group in plan):
            raise InvalidValue("control", list(plan), f"extra groups of {size} completions at one temperature")
        multiple = ranks // math.gcd(size, ranks)
        count = -(-len(plan) // multiple) * multiple
        everyone = self._ranks.objects(inputs)
        wanted = [everyone[plan[number % len(plan)].prompt * size] for number in range(count) for _ in range(size)]
        own = self._ranks.part(wanted, len(wanted) // ranks)
        with self._sampling_at(temperature):
            drawn = self._draw([dict(row) for row in own], range(groups, groups + count), temperature)
        return Drawn(table.without_correction(self._ranks.rows(drawn.rows)), drawn.rollouts)

    @contextmanager
    def _sampling_at(self, temperature: float) -> Iterator[None]:
        """Another temperature for the sampler; what is logged meanwhile is set aside. Scoring stays at T = 1."""
        sampler = self.vllm_generation if self.use_vllm else self.generation_config
        before, metrics, logs = sampler.temperature, self._metrics, self._logs
        self._metrics, self._logs = {"train": defaultdict(list), "eval": defaultdict(list)}, copy.deepcopy(logs)
        self._heat(sampler, temperature)
        try:
            yield
        finally:
            self._metrics, self._logs = metrics, logs
            self._heat(sampler, before)

    def _heat(self, sampler: Any, temperature: float) -> None:
        sampler.temperature = temperature
        if not self.use_vllm:  # TRL hands both to `generate`
            self.generation_kwargs["temperature"] = temperature

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewarded = completion_ids_list, rewards
        return rewards

    def _total(self, rewards: Tensor) -> list[float]:
        """Rewards of all functions [N, F] -> their weighted sum; NaN where no function gave one."""
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return total.masked_fill(rewards.isnan().all(1), math.nan).tolist()  # type: ignore[no-any-return]

    @property
    def _ends(self) -> frozenset[int]:
        several = getattr(self, "eos_token_ids", None) or [self._tokenizer.eos_token_id]
        return frozenset([*several, self._tokenizer.pad_token_id])

    # --- statistics under the policy that sampled -----------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, model: Any, *given: Any, **named: Any) -> Any:
        """While a round is drawn, entropies come with the log-probabilities that TRL takes, at no further pass."""
        if self._scores is None or model is not self.model:
            return super()._get_per_token_logps_and_entropies(model, *given, **named)
        scores = super()._get_per_token_logps_and_entropies(model, *given, **{**named, "compute_entropy": True})
        self._scores.append(scores[:2])
        return scores

    @torch.no_grad()
    def _stats(self, rows: Rows, needs: Needs) -> BatchStatistics:
        """These rows' statistics at the present weights, a microbatch at a time."""
        ids, attention = table.inputs(rows)
        mask, size = rows["completion_mask"], self.args.per_device_train_batch_size
        if not beyond_trl(needs):
            scores = self._get_per_token_logps_and_entropies(
                self.model, ids, attention, mask.shape[1], batch_size=size, compute_entropy=True
            )
            return BatchStatistics(scores[0].float(), scores[1].float())
        chunks = zip(ids.split(size), attention.split(size), mask.split(size), strict=True)
        return table.joined([statistics(self.model, self._inner, *chunk, needs) for chunk in chunks], mask.shape[1])

    def _stats_of_some(self, rows: Rows, chosen: Sequence[int], needs: Needs) -> list[BatchStatistics]:
        """Of these rows of `rows`, which every rank holds; each rank scores its equal part. Empty for none."""
        if not chosen:
            return []
        own = self._ranks.part(chosen, -(-len(chosen) // self._ranks.number))
        stats = self._ranks.stats(self._stats({name: values[own] for name, values in rows.items()}, needs))
        return [stats.select(torch.arange(len(chosen), device=stats.logprobs.device))]

    @property
    def _inner(self) -> Any:
        """The causal language model inside the wrappers, with an adapter's layers."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model


def _kept(rows: Rows, scores: Sequence[tuple[Tensor, Tensor]]) -> BatchStatistics | None:
    """Those that TRL took of the rows under the policy itself, not under a reference; None if it did not."""
    old = rows.get("old_per_token_logps")
    found = [BatchStatistics(logprobs.float(), entropy.float()) for logprobs, entropy in scores if logprobs is old]
    return found[0] if found else None
