"""Run folders written by hand, quicker than by training."""

from __future__ import annotations

import json
from pathlib import Path

CONFIG = """method = "{method}"
model = "builtin"
seed = {seed}
steps = {steps}

[control]
name = "{method}"
{target}
[task]
name = "paths"
"""


def row(step: int, entropy: float, target: float | None = 0.5, **changes) -> dict:
    return {
        "step": step,
        "entropy": entropy,
        "entropy_by_position": [2 * entropy, entropy, entropy / 2],
        "target_entropy": target,
        "error": None if target is None else target - entropy,
        "command": None if target is None or step == 0 else -0.5,
        "saturated": None if step == 0 else 0.0,
        "alarm": False,
        "reward": 0.25 + 0.01 * step,
        "dead_groups": 0.125,
        "mismatch": 4e-7,
        "completions": 40,
        "extra_completions": 8,
        "extra_used": 6,
        "extra_temperature": 0.67,
        "seconds": 2.0,
        **changes,
    }


def scores(first: float, last: float) -> dict:
    return {"pass@1": first, "pass@2": (first + last) / 2, "pass@4": last, "problems": 8, "samples": 4}


def sample(step: int, completion: str, **changes) -> dict:
    plain = {"step": step, "prompt": f"p{step}", "completion": completion, "reward": 1.0, "advantage": 0.5}
    return {**plain, "temperature": 1.0, "extra": False, "truncated": False, **changes}


def folder(
    path: Path,
    rows: list[dict],
    samples=(),
    *,
    method="aepo",
    target: str | None = "0.5",
    seed=0,
    steps: int | None = None,
) -> Path:
    path.mkdir(parents=True)
    wanted = f'target = "{target}"\n' if target else ""
    planned = len(rows) if steps is None else steps
    (path / "config.toml").write_text(CONFIG.format(method=method, seed=seed, steps=planned, target=wanted))
    (path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (path / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    return path


def held(path: Path, entropy: float, score: tuple[float, float] = (0.4, 0.8), seed=0, target="0.5", **settings) -> Path:
    """Nine steps at one entropy, evaluated at the end, two samples a step."""
    value = None if target is None else float(target)
    rows = [row(step, entropy, value) for step in range(9)]
    rows[-1]["evaluation"] = scores(*score)
    samples = [sample(step, f"answer {step}{letter}") for step in range(9) for letter in "ab"]
    return folder(path, rows, samples, seed=seed, target=target, **settings)
