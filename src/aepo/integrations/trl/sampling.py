"""`SamplingTrainer` gets rollouts and statistics from TRL's own sampling and scoring.

This module does not call a control.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from trl import GRPOTrainer

from aepo.control.base import ExtraGroup, Needs
from aepo.engines.ends import find_ends
from aepo.engines.stops import StopStrings
from aepo.errors import InvalidValue
from aepo.integrations.trl import rows as table
from aepo.integrations.trl.ranks import Ranks
from aepo.integrations.trl.rows import Rows
from aepo.integrations.trl.statistics import beyond_trl, check_model, statistics
from aepo.types import BatchStatistics, Rollout


@dataclass(frozen=True)
class SampledRows:
    """`SampledRows` holds the result of one call of TRL's sampling."""

    rows: Rows
    """The rows of this rank; for extra groups, the rows of all ranks."""
    rollouts: list[Rollout]
    """The rollouts of all ranks, in the order of their rows."""
    stats: BatchStatistics | None = None
    """The statistics of this rank's rows; None if TRL did not score the rows itself."""


class SamplingTrainer(GRPOTrainer):  # type: ignore[misc]
    """`SamplingTrainer` is TRL's `GRPOTrainer`, with a separate method for each part of a round of generation."""

    def __init__(self, *given: Any, **named: Any) -> None:
        self._metrics: dict[str, Any]
        self._logs: dict[str, Any]
        self._rewarded: tuple[list[list[int]], Tensor] | None = None
        self._scores: list[tuple[Tensor, Tensor]] | None = None
        # Whether the scoring method returns entropies. Unsloth's method returns None, and log-probabilities without
        # gradient; both then come from this package's own pass.
        self._scores_entropies = True
        super().__init__(*given, **named)
        self._ranks = Ranks(self.accelerator, self._tokenizer.pad_token_id)
        if hasattr(self, "eos_token_ids"):  # older versions of TRL know one end alone
            self._end_at_all_ends()

    def _end_at_all_ends(self) -> None:
        """Make TRL's sampler and its masks end a completion at the chat template's end of turn too."""
        model = self._inner
        ends = list(find_ends(self._tokenizer, model.generation_config, model.config, model.name_or_path).ids)
        given = self.args.generation_kwargs or {}
        self.eos_token_ids = ends
        if self.use_vllm:
            self.vllm_generation.generation_kwargs = {"stop_token_ids": ends, **given}
        elif "eos_token_id" not in given:
            self.generation_config.eos_token_id = self.generation_kwargs["eos_token_id"] = ends

    def _draw(self, inputs: list[dict[str, Any]], groups: Sequence[int], temperature: float = 1.0) -> SampledRows:
        """Sample the prompts and score the rows.

        Args:
            inputs: The prompts of this rank, one for each completion.
            groups: The numbers of the groups over all ranks, in order.
            temperature: The temperature that the sampler draws at.
        """
        self._scores = []
        try:
            drawn: Rows = super()._generate_and_score_completions(inputs)
        finally:
            scores, self._scores = self._scores, None
        table.check(drawn)
        assert self._rewarded is not None
        completions, rewards = self._rewarded
        prompts = table.token_lists(drawn["prompt_ids"], drawn["prompt_mask"])
        texts = self._ranks.objects(list(zip(prompts, completions, table.digests(drawn), strict=True)))
        numbers = [group for group in groups for _ in range(self.num_generations)]
        rollouts = table.rollouts(texts, self._total(rewards), numbers, temperature, self._ends, self._stops)
        return SampledRows(table.rowwise(drawn), rollouts, _kept(drawn, scores))

    def _draw_extra(self, inputs: list[dict[str, Any]], plan: Sequence[ExtraGroup], groups: int) -> SampledRows:
        """Sample the planned groups, and repeat some of them so that every rank has the same number of rows.

        Args:
            inputs: The prompts of this rank's ordinary rows.
            plan: The extra groups, all with the same number of completions and the same temperature.
            groups: The number of ordinary groups over all ranks.

        Returns:
            The rows and the rollouts of all ranks.

        Raises:
            InvalidValue: The groups differ in size or temperature, or their size is not the ordinary group size.
        """
        if not plan:
            return SampledRows({}, [])
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
        return SampledRows(self._ranks.rows(self._corrected(drawn.rows, temperature)), drawn.rollouts)

    def _corrected(self, rows: Rows, temperature: float) -> Rows:
        """Return this rank's extra rows with TRL's correction taken at the temperature that they were drawn at."""
        high = getattr(self, "vllm_importance_sampling_clip_max", getattr(self, "vllm_importance_sampling_cap", None))
        correction = table.Correction(
            mode=getattr(self, "vllm_importance_sampling_mode", "token_truncate"),
            low=getattr(self, "vllm_importance_sampling_clip_min", None),
            high=high,
        )
        tempered = None
        if "importance_sampling_ratio" in rows and self._own_pass_works:
            tempered = self._stats(rows, Needs(temperatures=(temperature,))).tempered[temperature]
        return table.tempered_correction(rows, correction, tempered)

    @cached_property
    def _own_pass_works(self) -> bool:
        """Return whether this package's own pass, which takes log pi^T, can read the model's output layer."""
        try:
            self._check_own_pass()
        except InvalidValue as refusal:
            warnings.warn(f"tempered rows have the importance ratio 1, without a correction: {refusal}", stacklevel=2)
            return False
        return True

    @contextmanager
    def _sampling_at(self, temperature: float) -> Iterator[None]:
        """Give the sampler another temperature inside the `with` block, and discard what TRL logs there.

        Scoring stays at T = 1.
        """
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
        if not self.use_vllm:  # TRL passes the configuration and these arguments to `generate`
            self.generation_kwargs["temperature"] = temperature

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: list[list[int]]
    ) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._rewarded = completion_ids_list, rewards
        return rewards

    def _total(self, rewards: Tensor) -> list[float]:
        """Return the weighted sum of the rewards [N, F] over the F functions; NaN where no function gave a reward."""
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        return total.masked_fill(rewards.isnan().all(1), math.nan).tolist()  # type: ignore[no-any-return]

    @property
    def _ends(self) -> frozenset[int]:
        several = getattr(self, "eos_token_ids", None) or [self._tokenizer.eos_token_id]
        return frozenset([*several, self._tokenizer.pad_token_id])

    @property
    def _stops(self) -> StopStrings | None:
        """Return the stop strings among `generation_kwargs`; None without any."""
        given = self.args.generation_kwargs or {}
        found = given.get("stop") or given.get("stop_strings") or ()
        strings = (found,) if isinstance(found, str) else tuple(found)
        return StopStrings(strings, self._tokenizer) if strings else None

    # --- statistics under the policy that sampled -----------------------------------------------------------------

    def _get_per_token_logps_and_entropies(self, model: Any, *given: Any, **named: Any) -> Any:
        """Compute the entropies too while a round is drawn, in the pass in which TRL takes the log-probabilities."""
        if self._scores is None or model is not self.model:
            return super()._get_per_token_logps_and_entropies(model, *given, **named)
        scores = super()._get_per_token_logps_and_entropies(model, *given, **{**named, "compute_entropy": True})
        if self._has_entropies(scores):
            self._scores.append(scores[:2])
        return scores

    def _trl_statistics(self, model: Any, rows: Rows, **named: Any) -> BatchStatistics | None:
        """Return the statistics from TRL's scoring method; None if the method gives no entropies."""
        if not self._scores_entropies:
            return None
        ids, attention = table.inputs(rows)
        width = rows["completion_mask"].shape[1]
        named = {**named, **table.images(rows, self._image_token)}
        scores = self._get_per_token_logps_and_entropies(model, ids, attention, width, compute_entropy=True, **named)
        return BatchStatistics(scores[0].float(), scores[1].float()) if self._has_entropies(scores) else None

    def _has_entropies(self, scores: Sequence[Tensor | None]) -> bool:
        """Return whether the scoring method gave entropies. If not, check that the own pass works with the model."""
        if scores[1] is None and self._scores_entropies:
            self._scores_entropies = False
            self._check_own_pass()
        return scores[1] is not None

    def _check_own_pass(self) -> None:
        """Refuse a model, or a way to distribute it, whose output layer this package's own pass cannot read."""
        for name in ("fsdp", "deepspeed"):
            if getattr(self, f"is_{name}_enabled", False):
                raise InvalidValue(name, "on", f"off: the method {self.args.method} reads the output layer itself")
        check_model(self._inner)

    @torch.no_grad()
    def _stats(self, rows: Rows, needs: Needs) -> BatchStatistics:
        """Return the statistics of the rows at the current weights, computed one microbatch at a time."""
        mask, size = rows["completion_mask"], self.args.per_device_train_batch_size
        stats = None if beyond_trl(needs) else self._trl_statistics(self.model, rows, batch_size=size)
        if stats is not None:
            return stats
        numbers = range(len(mask))
        chunks = [table.select(rows, numbers[first : first + size]) for first in range(0, len(mask), size)]
        return table.joined([self._own_pass(self.model, chunk, needs) for chunk in chunks], mask.shape[1])

    def _own_pass(self, model: Any, rows: Rows, needs: Needs) -> BatchStatistics:
        """Return the statistics of the rows from this package's own pass."""
        seen = table.images(rows, self._image_token)
        seen.pop("num_images", None)
        return statistics(model, self._inner, *table.inputs(rows), rows["completion_mask"], needs, seen)

    @property
    def _image_token(self) -> int | None:
        """Return the token that stands for a merged patch of an image; None for a model of text."""
        return getattr(self._inner.config, "image_token_id", None)

    def _stats_of_some(self, rows: Rows, chosen: Sequence[int], needs: Needs) -> list[BatchStatistics]:
        """Return the statistics of some rows in a list of one item; the list is empty if no row is chosen.

        Each rank scores an equal part of the chosen rows.

        Args:
            rows: Rows that every rank holds.
            chosen: The indices of the rows to score.
            needs: The statistics that the control needs.
        """
        if not chosen:
            return []
        own = self._ranks.part(chosen, -(-len(chosen) // self._ranks.number))
        stats = self._ranks.stats(self._stats(table.select(rows, own), needs))
        return [stats.select(torch.arange(len(chosen), device=stats.logprobs.device))]

    @property
    def _inner(self) -> Any:
        """Return the causal language model inside the wrappers; it keeps the layers of an adapter."""
        model = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if hasattr(model, "get_base_model") else model


def _kept(rows: Rows, scores: Sequence[tuple[Tensor, Tensor]]) -> BatchStatistics | None:
    """Return the statistics that TRL computed for these rows under the policy that sampled them.

    `scores` may also hold scores of other passes. Return None if TRL did not score the rows under the policy.
    """
    old = rows.get("old_per_token_logps")
    found = [BatchStatistics(logprobs.float(), entropy.float()) for logprobs, entropy in scores if logprobs is old]
    return found[0] if found else None
