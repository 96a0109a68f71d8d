"""This module says whether the files of `aepo.evidence` agree with plain transformers; it does not import verl.

Each check is a function of the evidence and of what the policy says about the drawn tokens (`Tokens`). It holds as long
as the weights hardly move, as in the smoke test (`aepo.integrations.verl.smoke`).

A token y that was drawn at temperature T from logits z tells of T by itself: with b = 1 / T the derivative of its
log-likelihood is z_y - E[z] under softmax(b z), and its variance is Var[z]. Over many tokens

    b + sum(z_y - E[z]) / sum(Var[z])        is the b that they were drawn at, with standard error sum(Var[z])^-1/2

to first order around the b that was asked for.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from aepo.algorithm import Algorithm
from aepo.control.base import State
from aepo.entropy.statistics import logits_statistics
from aepo.integrations.verl.evidence import Evidence, EvidenceRow

# A temperature is refused if the tokens speak against it by more standard errors than this.
LIMIT = 4.0
# Comparisons of two distributions need at least this many tokens on which the two differ.
LEAST_TOKENS = 20


@dataclass(frozen=True)
class Tolerance:
    """`Tolerance` is how far verl's numbers may be from those of a float32 forward pass."""

    entropy: float
    """Of a mean entropy, nats per token."""
    entropy_share: float
    """The same, as a share of the entropy, which is added."""
    logprob: float
    """Of the median log-probability of a token, nats."""
    temperature: float
    """Of the temperature that the tokens speak for, as a share of it, beside its standard error."""


# What bf16 is expected to do to a model of any size; the tests see a hundredth of that in float32.
BF16 = Tolerance(entropy=0.01, entropy_share=0.02, logprob=0.05, temperature=0.02)
FLOAT32 = Tolerance(entropy=1e-3, entropy_share=1e-3, logprob=1e-3, temperature=0.005)


@dataclass(frozen=True)
class Finding:
    """`Finding` is the outcome of one check."""

    name: str
    """What was checked."""
    status: Literal["right", "WRONG", "not checked"]
    """The outcome."""
    text: str
    """The numbers, with their units."""

    def __str__(self) -> str:
        return f"{self.status:<11}  {self.name:<9}  {self.text}"


@dataclass(frozen=True)
class Tokens:
    """`Tokens` is what the policy says about the tokens of some rows, N tokens in all, and what verl says."""

    plain: Tensor
    """[N], log pi, nats."""
    tempered: Tensor
    """[N], log pi^T at the temperature that was asked for, nats."""
    entropy: Tensor
    """[N], exact entropy at temperature 1, nats."""
    surprise: Tensor
    """[N], z_y - E[z] under pi^T."""
    spread: Tensor
    """[N], Var[z] under pi^T."""
    sampler: Tensor
    """[N], the rollout engine's log-probability, nats; NaN if it returns none."""
    scores: Tensor
    """[N], verl's log-probability before the update, nats; NaN for a row that was not scored."""


Logits = Callable[[EvidenceRow], Tensor]
"""The logits that predict each token of a row's completion, [T, V]."""


def tokens(rows: Iterable[EvidenceRow], logits: Logits) -> Tokens:
    """Return what the policy says about the tokens of these rows that it wrote.

    Args:
        rows: The rows; all have the same temperature.
        logits: The policy.
    """
    parts = [_tokens(row, logits(row)) for row in rows]
    names = Tokens.__dataclass_fields__
    return Tokens(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


@torch.no_grad()
def _tokens(row: EvidenceRow, logits: Tensor) -> Tokens:
    z = logits.float()
    labels = torch.tensor(row.tokens, device=z.device)
    found = logits_statistics(z, labels, temperatures=[row.temperature])
    shifted = z - z.amax(-1, keepdim=True)
    pi = (shifted / row.temperature).softmax(-1)
    mean = (pi * shifted).sum(-1)
    drawn = shifted.gather(-1, labels[:, None])[:, 0]
    missing = (math.nan,) * len(labels)
    values = {
        "plain": found.logprobs,
        "tempered": found.tempered[0],
        "entropy": found.entropy,
        "surprise": drawn - mean,
        "spread": (pi * shifted.square()).sum(-1) - mean.square(),
        "sampler": torch.tensor(row.sampler or missing),
        "scores": torch.tensor(row.scores or missing),
    }
    wrote = torch.tensor(row.mask, dtype=torch.bool)
    return Tokens(**{name: value.cpu().double()[wrote] for name, value in values.items() if value is not None})


# --- the sensor ------------------------------------------------------------------------------------------------------


def sensor(evidence: Evidence, ordinary: Tokens, tolerance: Tolerance) -> Finding:
    """Compare the entropy that was logged with the entropy of the ordinary rows' tokens."""
    logged, computed = evidence.logged["entropy"], ordinary.entropy.mean().item()
    allowed = tolerance.entropy + tolerance.entropy_share * computed
    good = abs(logged - computed) <= allowed
    text = (
        f"step {evidence.step.number}: logged {logged:.4f} nats per token, computed {computed:.4f} over"
        f" {len(ordinary.entropy)} tokens; difference {logged - computed:+.4f}, allowed {allowed:.4f}"
    )
    return Finding("sensor", _status(good), text)


# --- temperatures ----------------------------------------------------------------------------------------------------


def drawn_at(evidence: Evidence, temperature: float, found: Tokens, tolerance: Tolerance) -> list[Finding]:
    """Check that the rows were drawn at the temperature that was asked for, by the tokens and by the engine's word."""
    kind = f"step {evidence.step.number}, rows at T = {temperature:g}"
    name = "ordinary" if temperature == 1 else "tempered"
    by_tokens = _by_tokens(name, kind, temperature, found, tolerance)
    return [by_tokens, _by_sampler(name, kind, temperature, found, tolerance)]


def _by_tokens(name: str, kind: str, temperature: float, found: Tokens, tolerance: Tolerance) -> Finding:
    information = found.spread.sum().item()
    asked, error = 1 / temperature, information**-0.5 if information > 0 else math.inf
    seen = asked + found.surprise.sum().item() * error**2
    wanted = max(LIMIT * error, tolerance.temperature * asked)
    if temperature != 1 and abs(asked - 1) < 1.5 * wanted:
        return Finding(name, "not checked", f"{kind}: {len(found.spread)} tokens are too few to tell T from 1")
    text = (
        f"{kind}: {len(found.spread)} tokens speak for 1/T = {seen:.3f} +- {error:.3f}; asked {asked:.3f},"
        f" allowed +- {wanted:.3f}"
    )
    return Finding(name, _status(abs(seen - asked) <= wanted), text)


def _by_sampler(name: str, kind: str, temperature: float, found: Tokens, tolerance: Tolerance) -> Finding:
    if bool(found.sampler.isnan().all()):
        return Finding(name, "not checked", f"{kind}: the rollout engine returned no log-probabilities")
    if temperature == 1:
        gap = _median(found.sampler - found.plain)
        text = f"{kind}: median |log mu - log pi| {gap:.4f} nats, allowed {tolerance.logprob:g}"
        return Finding(name, _status(gap <= tolerance.logprob), text)
    right, other = ("log pi^T", found.tempered), ("log pi", found.plain)
    return _nearer(name, f"{kind}: log mu", found.sampler, right, other, tolerance)


def scored_at_one(evidence: Evidence, temperature: float, found: Tokens, tolerance: Tolerance) -> Finding:
    """Check that verl scored these rows, drawn at another temperature, at temperature 1."""
    kind = f"step {evidence.step.number}, rows at T = {temperature:g}: old_log_probs"
    scored = ~found.scores.isnan()
    parts = (found.scores[scored], found.plain[scored], found.tempered[scored])
    return _nearer("scores", kind, parts[0], ("log pi", parts[1]), ("log pi^T", parts[2]), tolerance)


def _nearer(
    name: str, kind: str, given: Tensor, right: tuple[str, Tensor], other: tuple[str, Tensor], tolerance: Tolerance
) -> Finding:
    """Check that `given` is `right` and not `other`, on the tokens on which the two differ enough to tell."""
    telling = (right[1] - other[1]).abs() > 4 * tolerance.logprob
    count = int(telling.sum())
    if count < LEAST_TOKENS:
        text = f"{kind}: only {count} tokens tell {right[0]} from {other[0]}; {LEAST_TOKENS} are needed"
        return Finding(name, "not checked", text)
    near, far = (_median(given[telling] - values[telling]) for _, values in (right, other))
    text = (
        f"{kind}: median distance from {right[0]} {near:.4f} nats (allowed {tolerance.logprob:g}), from {other[0]}"
        f" {far:.4f}, over {count} tokens that tell them apart"
    )
    return Finding(name, _status(near <= tolerance.logprob and near < far), text)


def ordinary_scores(evidence: Evidence, ordinary: Tokens, tolerance: Tolerance) -> Finding:
    """Check verl's log-probabilities of the ordinary rows, and that the update differentiated the same ones."""
    gap = _median((ordinary.scores - ordinary.plain)[~ordinary.scores.isnan()])
    # k3 is 0 if both are the same; a mean ratio would be 1 at any temperature.
    moved, most = abs(evidence.logged["approximate_kl"]), tolerance.logprob**2
    text = (
        f"step {evidence.step.number}, ordinary rows: median |old_log_probs - log pi| {gap:.4f} nats (allowed"
        f" {tolerance.logprob:g}); k3 of the differentiated from the old ones {moved:.1e} nats (allowed {most:.1e})"
    )
    return Finding("scores", _status(gap <= tolerance.logprob and moved <= most), text)


# --- the state -------------------------------------------------------------------------------------------------------


def plans(evidence: Sequence[Evidence], algorithm: Algorithm) -> Finding:
    """Check that each step drew the extra rows that the state before it asks for, both hot and cold ones."""
    wrong, heats = [], list[float]()
    for step in evidence:
        groups = algorithm.control.plan(step.before, step.step)
        planned = [group.temperature for group in groups for _ in range(group.count)]
        drawn = [row.temperature for row in step.rows if row.extra]
        heats += drawn
        if sorted(planned) != sorted(drawn):
            wrong.append(f"step {step.step.number} drew {_listed(drawn)}, its state plans {_listed(planned)}")
    if wrong:
        return Finding("plan", "WRONG", "; ".join(wrong))
    both = min(heats, default=1.0) < 1 < max(heats, default=1.0)
    text = "; ".join(
        f"step {step.step.number}: {_listed([row.temperature for row in step.rows if row.extra])}" for step in evidence
    )
    return Finding("plan", _status(both), text if both else f"{text}; hot and cold rows were expected")


def continuity(evidence: Sequence[Evidence], saved: State, resumed: int) -> Finding:
    """Check that each step begins with the state that the one before left, also over the interruption.

    Args:
        evidence: All steps of the run, from both of its parts.
        saved: The state in the checkpoint.
        resumed: The number of the first step after the interruption.
    """
    numbers = [step.step.number for step in evidence]
    if numbers != list(range(len(numbers))) or not 0 < resumed < len(numbers):
        return Finding("state", "WRONG", f"the steps are {numbers}, with step {resumed} the first one after the stop")
    left, begun = evidence[resumed - 1].after, evidence[resumed].before
    wrong = []
    if _plain(left) != _plain(saved):
        wrong.append(f"the checkpoint holds another state than step {resumed - 1} left: {_unlike(left, saved)}")
    if _plain(saved) != _plain(begun):
        wrong.append(f"step {resumed} did not begin with the saved state: {_unlike(saved, begun)}")
    wrong += [
        f"step {after.step.number} did not begin with what step {before.step.number} left"
        for before, after in itertools.pairwise(evidence)
        if after.step.number != resumed and _plain(before.after) != _plain(after.before)
    ]
    if _prompts(evidence[resumed]) == _prompts(evidence[0]):
        wrong.append(f"step {resumed} has the prompts of step 0: the data began anew")
    shown = ", ".join(f"{name} {begun[name]:.4g}" for name in ("command", "first_entropy") if _number(begun.get(name)))
    text = f"step {resumed} goes on from the checkpoint: {shown or 'the state is empty'}; law, step and data go on, too"
    return Finding("state", _status(not wrong), "; ".join(wrong) or text)


# --- all of them -----------------------------------------------------------------------------------------------------


def verdict(
    evidence: Sequence[Evidence],
    logits: Logits,
    algorithm: Algorithm,
    *,
    saved: State,
    resumed: int,
    tolerance: Tolerance,
) -> list[Finding]:
    """Return the findings on a run that was interrupted once.

    Args:
        evidence: The steps.
        logits: The policy before the first update.
        algorithm: The algorithm of the run.
        saved: The state in the checkpoint from which the run went on.
        resumed: The number of the first step after the interruption.
        tolerance: What the precision of the run allows.
    """
    found = []
    for step in evidence:
        heats = sorted({row.temperature for row in step.rows if row.extra})
        ordinary = tokens([row for row in step.rows if not row.extra], logits)
        found += [sensor(step, ordinary, tolerance), *drawn_at(step, 1.0, ordinary, tolerance)]
        found.append(ordinary_scores(step, ordinary, tolerance))
        for heat in heats:
            hot = tokens([row for row in step.rows if row.extra and row.temperature == heat], logits)
            found += [*drawn_at(step, heat, hot, tolerance), scored_at_one(step, heat, hot, tolerance)]
    return [*found, plans(evidence, algorithm), continuity(evidence, saved, resumed)]


def missing(findings: Sequence[Finding]) -> list[str]:
    """Return the names of the checks that had too little to look at in every step."""
    return sorted(
        {found.name for found in findings} - {found.name for found in findings if found.status != "not checked"}
    )


def _status(good: bool) -> Literal["right", "WRONG"]:
    return "right" if good else "WRONG"


def _median(values: Tensor) -> float:
    return values.abs().median().item() if len(values) else math.inf


def _listed(heats: Sequence[float]) -> str:
    counted = [f"{heats.count(heat)} rows at T = {heat:g}" for heat in sorted(set(heats))]
    return " and ".join(counted) or "no extra rows"


def _prompts(step: Evidence) -> list[tuple[int, ...]]:
    return sorted({row.prompt for row in step.rows})


def _plain(state: Any) -> Any:
    """Return the state as JSON gives it back."""
    return json.loads(json.dumps(state))


def _unlike(one: State, other: State) -> str:
    names = sorted(name for name in {*one, *other} if _plain(one.get(name)) != _plain(other.get(name)))
    return ", ".join(f"{name} {one.get(name)!r} against {other.get(name)!r}"[:120] for name in names)


def _number(value: Any) -> bool:
    return isinstance(value, int | float)
