"""The core's loss on the rows that verl trained on, with the weights it had, and an optimizer of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from aepo.algorithm import Algorithm
from aepo.control.base import Scored
from aepo.engines import stages
from aepo.entropy.statistics import logits_statistics
from aepo.integrations.verl import rows
from aepo.loss.aggregates import AGGREGATES
from aepo.loss.policy_loss import k3
from aepo.types import BatchStatistics, Completion, Prompt, Rollout
from tests_verl.support import toy


class Minibatch:
    """What both ranks were sent for one optimizer step, or for several: FOLDER/loss-STEP-RANK-NUMBER.pt.

    numbers: those of the microbatches in it.
    """

    def __init__(self, folder: Path, step: int, *numbers: int) -> None:
        files = [folder / f"loss-{step}-{rank}-{number}.pt" for number in numbers for rank in (0, 1)]
        sent = [torch.load(file, weights_only=False) for file in files]
        self.fields = {name: joined([kept["fields"][name] for kept in sent]) for name in sent[0]["fields"]}
        self.loss = sum(kept["loss"] / kept["ranks"] for kept in sent)
        self.state = json.loads(sent[0]["state"])
        self.part: Scored = rows.microbatch(self.fields, rows.step_from_json(sent[0]["step"]))

    @property
    def weights(self) -> Tensor:
        return self.fields["aepo_weights"]

    def check_weights(self, aggregate: str) -> None:
        """The aggregate of the rows that are trained on, and of nothing else."""
        mask = self.part.trained
        expected = AGGREGATES[aggregate](mask)
        torch.testing.assert_close(self.weights, expected, rtol=1e-6, atol=1e-9)

    def statistics(self, model, temperature: float | None = None) -> BatchStatistics:
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
        return BatchStatistics(*(value[:, :width] * batch.mask for value in made))

    def core_loss(self, algorithm: Algorithm, model, kl_coefficient: float = 0.0) -> Tensor:
        new = self.statistics(model)
        penalty = kl_coefficient * k3(new.logprobs, self.part.ref_logprobs) if kl_coefficient else None
        return stages.loss(algorithm, self.part, new, self.weights, self.state, penalty).loss

    def check_fields(self, algorithm: Algorithm, model, base) -> Mapping[str, Tensor]:
        """All that the driver made of a whole step, against the core on plain transformers; what it should have sent.

        model, base: the policy that sampled the step, and the reference, if there is one. Without extra rows.
        """
        control, batch = algorithm.control, self.part.batch
        with torch.no_grad():
            old, reference = self.statistics(model), self.statistics(base).logprobs if base else None
            tempered = {t: self.statistics(model, t).logprobs for t in control.needs(self.state).temperatures}
        samples, extra = stages.with_advantages(algorithm, self._rollouts(), set(), self.state, self.part.step)
        assert not extra
        real = batch.mask.any(1)
        advantages = torch.zeros(len(batch))
        advantages[real] = torch.tensor([sample.advantage for sample in samples])
        plain = replace(batch, advantages=advantages[:, None] * batch.mask)
        scored = Scored(plain, replace(old, tempered=tempered), self.part.step, ref_logprobs=reference)
        marks = control.mark(scored, self.state)
        shaped = control.shape(plain.advantages, replace(scored, marks=marks), self.state)
        made = {"old_log_probs": old.logprobs, "entropy": old.entropy, "advantages": shaped}
        made |= {} if reference is None else {"ref_log_prob": reference}
        made |= {rows.MARK + name: values for name, values in marks.items()}
        trained = self.part.trained.bool()
        for name, values in made.items():
            sent = self.fields[name][trained].float()
            torch.testing.assert_close(sent, values[trained].float(), rtol=1e-4, atol=2e-5)
        assert set(marks) == {name.removeprefix(rows.MARK) for name in self.fields if name.startswith(rows.MARK)}
        return made

    def _rollouts(self) -> list[Rollout]:
        batch, made = self.part.batch, []
        for place in batch.mask.any(1).nonzero()[:, 0].tolist():
            tokens = tuple(self.fields["responses"][place][batch.mask[place].bool()].tolist())
            cut = len(tokens) >= self.part.step.max_tokens and tokens[-1] != toy.END_ID
            prompt = Prompt(str(int(batch.groups[place])), (), {})
            completion = Completion(prompt, int(batch.groups[place]), 1.0, tokens, (0.0,) * len(tokens), truncated=cut)
            made.append(Rollout(completion, float(batch.rewards[place])))
        return made


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
