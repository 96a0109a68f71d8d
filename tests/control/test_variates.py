"""Control variates on a policy whose level and whose prompts' own entropies the test sets."""

import json
import math
import statistics
from dataclasses import replace

import pytest
import torch

from aepo.control.base import Measured
from aepo.control.variates import MOST, corrected
from aepo.engines import stages
from aepo.types import Metric
from tests.builders import sample, scored

PROMPTS, DRAWN, GROUP, TOKENS = 40, 16, 4, 3


def steps(count, seed=0, level=lambda step: 1.0, spread=0.4, prompts=PROMPTS, fresh=False):
    """Steps that draw prompts in shuffled epochs; yields what each measured and the policy's true level."""
    draw = torch.Generator().manual_seed(seed)
    own = spread * torch.randn(prompts, generator=draw)
    own -= own.mean()
    stream: list[int] = []
    for step in range(count):
        while len(stream) < DRAWN:
            stream += torch.randperm(prompts, generator=draw).tolist()
        chosen, stream = stream[:DRAWN], stream[DRAWN:]
        names = [f"{step}/{p}" if fresh else str(p) for p in chosen]
        rows = [sample(1.0, group=g, tokens=(1,) * TOKENS) for g in range(DRAWN) for _ in range(GROUP)]
        noise = 0.2 * torch.randn(len(rows), TOKENS, generator=draw)
        entropy = level(step) + own[torch.tensor(chosen)].repeat_interleave(GROUP)[:, None] + noise
        batch = scored(rows, entropy=entropy)
        measured = stages.measure(rows, (), batch, Metric(0.0, 0))
        yield replace(measured, prompts=dict(enumerate(names))), level(step)


def readings(found):
    memory, rows = {}, []
    for measured, level in found:
        reading, se, memory = corrected(measured, json.loads(json.dumps(memory)))
        rows.append((reading - level, measured.entropy.mean - level, se, measured.entropy_se))
    return rows


def rms(values):
    return math.sqrt(statistics.fmean(value**2 for value in values))


def test_the_noise_of_the_draw_of_prompts_goes():
    rows = readings(steps(200))[20:]
    assert rms(r[0] for r in rows) < 0.5 * rms(r[1] for r in rows)
    # What is left is the draw of completions: 0.0144 in each reading, and as much in what is remembered.
    assert rms(r[0] for r in rows) < 2 * 0.2 / math.sqrt(DRAWN * GROUP * TOKENS)


def test_its_standard_error_is_its_error():
    rows = [row for seed in range(5) for row in readings(steps(120, seed))[20:]]
    assert rms(r[2] for r in rows) == pytest.approx(rms(r[0] for r in rows), rel=0.35)
    assert rms(r[2] for r in rows) < 0.6 * rms(r[3] for r in rows)


def test_it_stays_unbiased_while_the_policy_moves():
    falling = lambda step: 1.5 - 0.008 * step
    for seed in range(4):
        rows = readings(steps(150, seed, falling))[20:]
        assert abs(statistics.fmean(r[0] for r in rows)) < 0.01
        assert abs(statistics.fmean(r[0] for r in rows[-40:])) < 0.02


def test_prompts_that_never_come_again_leave_the_reading_as_it_is():
    rows = readings(steps(30, fresh=True))
    assert all(r[0] == pytest.approx(r[1], abs=1e-12) for r in rows)
    assert rms(r[2] for r in rows) == pytest.approx(rms(r[3] for r in rows), rel=0.1)


def test_prompts_that_are_all_alike_cost_nothing():
    rows = readings(steps(200, spread=0.0))[20:]
    assert rms(r[0] for r in rows) < 1.15 * rms(r[1] for r in rows)


def test_the_memory_has_an_end():
    measured, _ = next(steps(1))
    old = {"deviations": {f"old {i}": 0.0 for i in range(MOST)}, "sums": [0.0, 0.0]}
    _, _, memory = corrected(measured, old)
    assert len(memory["deviations"]) == MOST
    assert set(measured.prompts.values()) <= set(memory["deviations"])


def test_without_names_of_prompts_there_is_nothing_to_correct():
    measured, _ = next(steps(1))
    nameless: Measured = replace(measured, prompts={})
    assert corrected(nameless, {}) == (measured.entropy.mean, measured.entropy_se, {})
