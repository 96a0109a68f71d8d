"""The core's loss on the rows that verl trained on, with the weights it had, and an optimizer of its own."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from aepo import stages
from aepo.algorithm import Algorithm
from aepo.control.base import Scored
from aepo.entropy import logits_statistics
from aepo.integrations.verl import rows
from aepo.losses import AGGREGATES
from aepo.types import TokenStats


class Minibatch:
    """What both ranks were sent for one optimizer step: FOLDER/loss-STEP-RANK-NUMBER.pt."""

    def __init__(self, folder: Path, step: int, number: int) -> None:
        ranks = [torch.load(folder / f"loss-{step}-{rank}-{number}.pt", weights_only=False) for rank in (0, 1)]
        self.fields = {name: joined([kept["fields"][name] for kept in ranks]) for name in ranks[0]["fields"]}
        self.loss = sum(kept["loss"] / kept["ranks"] for kept in ranks)
        self.state = json.loads(ranks[0]["state"])
        self.part: Scored = rows.microbatch(self.fields, rows.step_from_json(ranks[0]["step"]))

    @property
    def weights(self) -> Tensor:
        return self.fields["aepo_weights"]

    def check_weights(self, aggregate: str) -> None:
        """The aggregate of the rows that are trained on, and of nothing else."""
        mask = self.part.trained
        expected = AGGREGATES[aggregate](mask)
        torch.testing.assert_close(self.weights, expected, rtol=1e-6, atol=1e-9)

    def statistics(self, model, temperature: float | None = None) -> TokenStats:
        """By a forward pass of plain transformers, one row at a time, without padding; logprobs at `temperature`."""
        batch, logprobs, entropies = self.part.batch, [], []
        for ids, attended in zip(batch.input_ids, batch.attention_mask.bool(), strict=True):
            length = int(attended[batch.prompt_width :].sum())
            if length == 0:  # filler
                logprobs.append(torch.zeros(1))
                entropies.append(torch.zeros(1))
                continue
            tokens = ids[attended]
            logits = model(input_ids=tokens[None], use_cache=False).logits[0, -length - 1 : -1]
            stats = logits_statistics(logits, tokens[-length:], temperatures=[temperature or 1.0])
            logprobs.append(stats.tempered[0] if temperature else stats.logprobs)
            entropies.append(stats.entropy)
        width = batch.mask.shape[1]
        made = [torch.nn.functional.pad(rows.pad(values), (0, width)) for values in (logprobs, entropies)]
        return TokenStats(*(value[:, :width] * batch.mask for value in made))

    def core_loss(self, algorithm: Algorithm, model) -> Tensor:
        return stages.loss(algorithm, self.part, self.statistics(model), self.weights, self.state).loss


def joined(parts: list[Tensor]) -> Tensor:
    """[b, T'] of each rank -> [B, T]."""
    width = max(part.shape[1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in parts])


def model_at(work: Path, folder: Path, version: int):
    """The policy that sampled step `version`."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(work / "model", dtype=torch.float32)
    model.load_state_dict(torch.load(folder / f"weights-{version}.pt"))
    return model.train()


def gradient_norm(model) -> float:
    return torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
