"""A trainer that takes the core's loss and gradient of each update beside TRL's, from the logits themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import TrainerCallback

from aepo.engines import stages
from aepo.entropy.statistics import logits_statistics
from aepo.integrations.trl import EntropyControlTrainer
from aepo.loss.aggregates import AGGREGATES
from aepo.loss.surrogates import Clip
from aepo.types import BatchStatistics


@dataclass
class Update:
    """losses: TRL's, one for each backward pass. core: the core's for the whole update. gradients: of both."""

    core: float
    core_gradient: torch.Tensor
    losses: list[float] = field(default_factory=list)
    gradient: torch.Tensor | None = None


def core_statistics(model: Any, batch: Any, needs: Any, images: Mapping[str, torch.Tensor]) -> BatchStatistics:
    """Plain autograd over all logits of the batch as it stands."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **images).logits
    labels = batch.input_ids[:, batch.prompt_width :]
    wanted = {"temperatures": needs.temperatures, "kept": needs.kept}
    stats = logits_statistics(logits[:, batch.prompt_width - 1 : -1], labels, **wanted)

    def inside(values: torch.Tensor) -> torch.Tensor:
        return torch.where(batch.mask.bool(), values, torch.zeros(()))

    return BatchStatistics(
        logprobs=inside(stats.logprobs),
        entropy=inside(stats.entropy),
        tempered={t: inside(values) for t, values in zip(needs.temperatures, stats.tempered, strict=True)},
        kept_entropy=inside(stats.kept_entropy) if needs.kept else None,
        kept_logprobs=inside(stats.kept_logprobs) if needs.kept else None,
    )


class Recorder(TrainerCallback):
    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.trainer.updates[-1].gradient = flat(p.grad for p in self.trainer.trained())
        self.trainer.open = False


class ParityTrainer(EntropyControlTrainer):
    """Needs max_grad_norm=0 (gradients as they are) and one update for each round and iteration."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.updates: list[Update] = []
        self.open = False
        self.add_callback(Recorder(self))

    def trained(self) -> list[torch.Tensor]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def images(self, batch: Any) -> dict[str, torch.Tensor]:
        """The images of a batch as arguments of the model."""
        return {}

    def core_loss(self) -> torch.Tensor:
        args, algorithm, scored = self.args, self.args.algorithm, self._round.scored
        if isinstance(algorithm.surrogate, Clip):
            high = args.epsilon if args.epsilon_high is None else args.epsilon_high
            algorithm = replace(algorithm, surrogate=Clip(args.epsilon, high, algorithm.surrogate.dual))
        part = scored.select(scored.batch.trained)
        needs = algorithm.control.needs(self._round.state)
        new = core_statistics(self.model, part.batch, needs, self.images(part.batch))
        weights = AGGREGATES[algorithm.aggregate](part.batch.mask)
        return stages.loss(algorithm, part, new, weights, self._round.state).loss

    def _compute_loss(self, model: Any, inputs: Any) -> torch.Tensor:
        if not self.open:
            core = self.core_loss()
            gradient = flat(torch.autograd.grad(core, self.trained()))
            self.updates.append(Update(core.item(), gradient))
            self.open = True
        loss = super()._compute_loss(model, inputs)
        self.updates[-1].losses.append(loss.item())
        return loss


def flat(gradients: Any) -> torch.Tensor:
    return torch.cat([gradient.detach().flatten() for gradient in gradients])
