"""Control variates: what is known of each prompt is taken out of the step's reading.

A step reads the entropy (or another quantity) on a few prompts. Some prompts leave more open than others, so the
reading depends on which prompts were drawn, and this is most of its noise. Prompts come again. Each keeps its
*deviation*: how far it moved the step's reading from the policy's level when it came last. With e_i the deviation of
prompt i in this step, y the mean over the step and z_i the remembered deviation (0 for a prompt that is new),

    reading = y - slope * mean_i z_i            slope = sum e z / sum z^2 of the earlier steps, from 0 to 1

The remembered deviations have the mean 0 over all remembered prompts, and the slope is not taken from this step, so the
correction is 0 on average over the draw of prompts: the reading stays unbiased (Lavenberg and Welch, Management Science
27, 1981). Without prompts that come again it is the plain reading.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from aepo.control.base import Measured
from aepo.control.quantities import Entropy, Quantity
from aepo.entropy.standard_error import cluster_sums, standard_error
from aepo.types import Metric

# How much of an earlier deviation stays when a prompt comes again, and of the sums of the slope after a step.
KEPT, SLOPE_KEPT = 0.5, 0.9
# The number of prompts that are remembered; those that came last stay.
MOST = 20_000


def corrected(
    measured: Measured, memory: Mapping[str, Any], quantity: Quantity = Entropy()
) -> tuple[float, float, dict[str, Any]]:
    """Return the reading of the ordinary rows, its standard error, and the next memory.

    Args:
        measured: What the step measured.
        memory: What the last call returned; empty at first. `deviations` by prompt; `sums` of the slope.
        quantity: What is read; the result is in its unit.
    """
    values, mask = quantity.values(measured.scored)
    clusters = measured.scored.batch.groups
    plain = Metric.of(values, mask).mean
    groups, sums, counts = cluster_sums(values, mask, clusters)
    number = len(groups)
    if number < 2 or not measured.prompts:
        return plain, standard_error(values, mask, clusters), dict(memory)
    prompts = [measured.prompts[group] for group in groups.tolist()]
    deviations: dict[str, float] = dict(memory.get("deviations", {}))
    level = math.fsum(deviations.values()) / max(len(deviations), 1)
    known = [deviations[p] - level if p in deviations else 0.0 for p in prompts]
    each = (number * (sums - plain * counts) / counts.sum()).tolist()

    top, bottom = memory.get("sums", (0.0, 0.0))
    slope = min(max(top / bottom, 0.0), 1.0) if bottom > 0 else 0.0
    centre = math.fsum(known) / number
    reading = plain - slope * centre
    left = math.fsum((e - slope * (z - centre)) ** 2 for e, z in zip(each, known, strict=True))

    moved = [p in deviations for p in prompts]
    top = SLOPE_KEPT * top + math.fsum(e * (z - centre) for e, z, old in zip(each, known, moved, strict=True) if old)
    bottom = SLOPE_KEPT * bottom + math.fsum((z - centre) ** 2 for z, old in zip(known, moved, strict=True) if old)
    shares = (number * (sums - reading * counts) / counts.sum()).tolist()
    for prompt, share in zip(prompts, shares, strict=True):
        before = deviations.pop(prompt, None)
        deviations[prompt] = share if before is None else KEPT * before + (1 - KEPT) * share
    newest = dict(list(deviations.items())[-MOST:])
    se = math.sqrt(left / (number - 1) / number)
    return reading, se, {"deviations": newest, "sums": [top, bottom]}
