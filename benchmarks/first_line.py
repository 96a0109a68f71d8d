"""What the command line costs until its first line: processor and wall-clock seconds up to the first byte of output.

    python benchmarks/first_line.py [--repeats 3] > benchmarks/results/first_line_cpu.md

Standard output and standard error are pipes. Each command is ended after its first byte. Linux alone: /proc.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "--help",
    "train",
    "train --set model=FOLDER --set task=countdown",
    "train --dry-run",
    f"compare {ROOT}/benchmarks/study/study.toml",
    "evaluate builtin",
    "demo",
    f"doctor {ROOT}/tests/doctor/logs/aepo/aepo/metrics.jsonl",
    f"doctor {ROOT}/tests/doctor/logs",
)


def first_line(command: str, folder: str) -> tuple[float, float, str]:
    """Return the processor seconds, the wall-clock seconds and the name of the stream of the first byte."""
    begin = time.monotonic()
    given = [sys.executable, "-m", "aepo", *shlex.split(command)]
    child = subprocess.Popen(given, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert child.stdout is not None and child.stderr is not None
    with selectors.DefaultSelector() as ready:
        ready.register(child.stdout, selectors.EVENT_READ, "stdout")
        ready.register(child.stderr, selectors.EVENT_READ, "stderr")
        stream = ready.select()[0][0].data
    wall = time.monotonic() - begin
    fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
    child.kill()
    child.communicate()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK"), wall, stream


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print("# The first line of a command\n")
    print(f"`python benchmarks/first_line.py --repeats {repeats}`: seconds up to the first byte, median and range.\n")
    print("| command | processor seconds | least and most | least on the clock | stream |\n|---|---|---|---|---|")
    for command in COMMANDS:
        with tempfile.TemporaryDirectory() as folder:
            cpu, wall, stream = zip(*(first_line(command, folder) for _ in range(repeats)), strict=True)
        name = command.replace(f"{ROOT}/", "")
        print(
            f"| `aepo {name}` | {median(cpu):.2f} | {min(cpu):.2f} to {max(cpu):.2f} | {min(wall):.2f} | {stream[0]} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
