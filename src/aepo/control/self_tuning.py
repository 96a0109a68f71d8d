"""`SelfTuning` learns from the run how its commands move the entropy, and aims the next command by it.

docs/theory.md derives it. The process model, with x = (H, m, d, up, down), all as multiples of the first reading:

    m_{k+1} = r m_k + (1 - r) (d_k + up_k max(u_k, 0) + down_k min(u_k, 0))      how an update moves the entropy
    H_{k+1} = H_k + m_{k+1} + noise                                              after the command u_k, in [-1, 1]
    y_k     = H_k + noise of the standard error that the step measured           the reading, before the update

d is the drift (what the rest of the update does), `up` and `down` are the authorities (what a lasting full command
does). They move slowly, as random walks. r is the optimizer's momentum. Given the commands the model is linear, so a
Kalman filter estimates x exactly. Two numbers are not known: how far an update moves the entropy at all, which the
learning rate decides, and r. A filter runs for each pair of `SCALES` and `MOMENTA`, and Bayes' rule weighs them by how
well they predicted the readings (multiple-model estimation: Magill, IEEE Trans. Automatic Control 10, 1965).

z = H + r / (1 - r) m is where H goes if nothing acts any more. It has no momentum, z_{k+1} = z_k + d + up max(u, 0) +
down min(u, 0), so the command is aimed by it. It minimises the expected squared distance of z_{k+2} from where it
should be, over all that is not known (cautious control: Astrom and Wittenmark, Adaptive Control, 1995, chapter 7):

    u = E[b (v - z - d)] / E[b^2]        b = up for u > 0, down for u < 0
    v = t_{k+2} + (1 - gain) (z_{k+1} - t_{k+1})

t is the point of the target's band next to where H goes by itself, and leads a moving target by its momentum.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from aepo.control.laws import Law, Memory, Seen, within
from aepo.errors import require

SCALES = (0.001, 0.003, 0.01, 0.03, 0.1)
"""How far an update may move the entropy, as a share of the first reading."""
MOMENTA = (0.0, 0.65, 0.9)
"""Shares of an update's movement that go on in the next one: Adam's 0.9 with one update in a step, with four, and 0."""
SCALE, MOMENTUM = torch.tensor(list(itertools.product(SCALES, MOMENTA)), dtype=torch.float64).T
LEAD = MOMENTUM / (1 - MOMENTUM)
# In units of a filter's scale: the first guess of drift and authorities, and how far H, m, drift and authorities wander
# from step to step beside what the model says.
FIRST = torch.tensor([0.0, 0.0, 1.0, 0.5, 0.5], dtype=torch.float64)
WANDER = torch.tensor([0.5, 0.0, 0.05, 0.03, 0.03], dtype=torch.float64)
LEAST_AUTHORITY = 0.2
# How much of a filter's record counts after one more step.
REMEMBERED = 0.98
# Where the standard error of a reading is not known: the first guess, as a share of the reading, and how fast the guess
# follows the filters' surprises.
FIRST_NOISE, NOISE_RATE = 0.02, 0.05


@dataclass(frozen=True)
class SelfTuning(Law):
    """`SelfTuning` estimates drift, authority and entropy from the run, and commands what should reach the target.

    It needs no tuning to a model, a learning rate or a batch. Memory: the filters (`x` [F, 5], `P` [F, 5, 5], `weights`
    [F]) and `noise`, all in `unit`, the first reading; for the log, the estimates after the step, `entropy`, `se` (that
    of the reading), `drift`, `up` and `down`, in the unit of the reading.
    """

    name: ClassVar[str] = "self-tuning"
    graded: ClassVar[bool] = True
    gain: float = 0.5
    """Share of the expected error that one command is to remove."""

    def __post_init__(self) -> None:
        require(0 < self.gain <= 1, "law.gain", self.gain, "a share in (0, 1]")

    def __call__(self, seen: Seen, memory: Memory) -> tuple[float, Memory]:
        """Return the command, and the filters after the reading and the prediction of the next one."""
        unit = memory["unit"] if memory else abs(seen.entropy) or 1.0
        seen = _in_units(seen, unit)
        known = math.isfinite(seen.se) and seen.se > 0
        noise = seen.se if known else memory.get("noise", FIRST_NOISE * abs(seen.entropy) + 1e-4)
        if memory:
            x, P, weights, surprise = _corrected(seen.entropy, noise, memory)
            noise = noise if known else _followed(noise, surprise)
        else:
            x, P, weights = _first(seen.entropy, noise)
        entropy = float(weights @ x[:, 0])
        x, P = _predicted(x, P, seen.command)
        command = self._aimed(seen, x, P, weights)
        drift, up, down = (weights @ x[:, 2:]).tolist()
        filters = {"x": x.tolist(), "P": P.tolist(), "weights": weights.tolist(), "noise": noise, "unit": unit}
        estimates = {"entropy": entropy, "se": noise, "drift": drift, "up": up, "down": down}
        return command, {**filters, **{name: unit * value for name, value in estimates.items()}}

    def _aimed(self, seen: Seen, x: Tensor, P: Tensor, weights: Tensor) -> float:
        """Return the better of the best command upwards and the best command downwards."""
        entropy, free = (
            float(weights @ part) for part in (x[:, 0], x[:, 0] + MOMENTUM * (x[:, 1] - x[:, 2]) + x[:, 2])
        )
        soon, later = within(entropy, seen.bands[1]), within(free, seen.bands[2])
        settled = x[:, 0] + LEAD * x[:, 1]
        ahead = LEAD * (later - soon)
        missing = later + ahead - (1 - self.gain) * (soon + ahead) - self.gain * settled - x[:, 2]
        best = cost = 0.0
        for part, low, high in ((3, max(seen.low, 0.0), seen.high), (4, seen.low, min(seen.high, 0.0))):
            authority = x[:, part]
            shared = self.gain * (P[:, 0, part] + LEAD * P[:, 1, part]) + P[:, 2, part]
            wanted = float(weights @ (authority * missing - shared))
            squared = float(weights @ (authority.square() + P[:, part, part]))
            command = max(low, min(high, wanted / squared))
            if squared * command**2 - 2 * wanted * command < cost:
                best, cost = command, squared * command**2 - 2 * wanted * command
        return best


def _in_units(seen: Seen, unit: float) -> Seen:
    """Return what was seen in multiples of a unit."""
    this, soon, later = ((low / unit, high / unit) for low, high in seen.bands)
    return replace(seen, entropy=seen.entropy / unit, bands=(this, soon, later), se=seen.se / unit)


def _first(entropy: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the filters after the first reading."""
    nothing = torch.zeros_like(SCALE)
    x = torch.stack([nothing + entropy, nothing, nothing, SCALE, SCALE], 1)
    spread = FIRST * SCALE[:, None]
    spread[:, 0] = noise
    return x, torch.diag_embed(spread.square()), torch.full_like(SCALE, 1 / len(SCALE))


def _corrected(entropy: float, noise: float, memory: Memory) -> tuple[Tensor, Tensor, Tensor, float]:
    """Return the filters and their weights, given a reading, and how much of its surprise was noise, nats squared."""
    x, P, weights = (torch.tensor(memory[name], dtype=torch.float64) for name in ("x", "P", "weights"))
    variance = P[:, 0, 0] + noise**2
    surprise = entropy - x[:, 0]
    excess = float(weights @ (surprise.square() - P[:, 0, 0]))
    gains = P[:, :, 0] / variance[:, None]
    x = x + gains * surprise[:, None]
    x[:, 3:] = torch.maximum(x[:, 3:], LEAST_AUTHORITY * SCALE[:, None])
    P = P - gains[:, :, None] * P[:, None, 0, :]
    likelihood = -0.5 * (surprise.square() / variance + variance.log())
    return x, P, (REMEMBERED * weights.clamp(min=1e-30).log() + likelihood).softmax(0), excess


def _followed(noise: float, excess: float) -> float:
    """Return the guess of the noise, moved towards the part of a surprise that the filters do not explain."""
    return max(1e-4, math.sqrt(max(0.0, (1 - NOISE_RATE) * noise**2 + NOISE_RATE * excess)))


def _predicted(x: Tensor, P: Tensor, command: float) -> tuple[Tensor, Tensor]:
    """Return the filters after an update with this command."""
    F = torch.eye(5, dtype=torch.float64).repeat(len(SCALE), 1, 1)
    acts = torch.tensor([1.0, max(command, 0.0), min(command, 0.0)], dtype=torch.float64)
    F[:, 1, 1] = MOMENTUM
    F[:, 1, 2:] = (1 - MOMENTUM)[:, None] * acts
    F[:, 0, 1:] = F[:, 1, 1:]
    moved = F @ P @ F.transpose(1, 2) + torch.diag_embed((SCALE[:, None] * WANDER).square())
    return (F @ x[:, :, None])[:, :, 0], moved
