"""The example runs, and so does the plain TRL script that it differs from in at most ten lines."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from statistics import fmean

import pytest

from .job import ROOT

SCRIPT = ROOT / "examples" / "trl_aepo.py"
MARK = re.compile(r"^(?P<indent>\s*)\S.*  # was:(?P<old>.*)$")


def plain(script: str) -> str:
    """The script with the lines that are marked as they were."""
    lines = []
    for line in script.splitlines():
        marked = MARK.match(line)
        lines.append(line if marked is None else f"{marked['indent']}{marked['old'].strip()}")
    return "\n".join(lines)


def run(tmp_path, script: str) -> list[dict[str, float]]:
    file = tmp_path / "script.py"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, file],
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [ast.literal_eval(line) for line in done.stdout.splitlines() if line.startswith("{'loss'")]
    return [{key: float(value) for key, value in row.items()} for row in rows]


def test_it_holds_what_plain_grpo_loses(tmp_path):
    script = SCRIPT.read_text()
    assert sum(MARK.match(line) is not None for line in script.splitlines()) <= 10
    held, lost = run(tmp_path, script), run(tmp_path, plain(script))
    assert fmean(row["aepo/entropy"] for row in held[-4:]) == pytest.approx(2.0, abs=0.2)
    assert fmean(row["entropy"] for row in lost[-4:]) < 1.5 and "aepo/entropy" not in lost[-1]
