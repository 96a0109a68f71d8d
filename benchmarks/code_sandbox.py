"""Speed of the sandbox beside a bare interpreter, and a soak: many candidates, good and hostile, with nothing left.

python benchmarks/code_sandbox.py [--programs 200] [--soak 10000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from aepo.grading.code import sandbox
from aepo.grading.code.judge import CodeJudge, grade
from aepo.grading.code.problem import Call, CodeProblem
from aepo.grading.code.sandbox import Limits, Sandbox

PROBLEM = CodeProblem((Call("f", "[3, 1, 2]", "[1, 2, 3]"),))
GOOD = "def f(values):\n    return sorted(values)\n"
KINDS = {
    "right": GOOD,
    "wrong": "def f(values):\n    return values\n",
    "raises": "def f(values): return values[9]",
    "syntax": "def f(",
    "exits": "import os\ndef f(values): os._exit(0)",
    "memory": "def f(values): return bytearray(2**31)",
    "output": "def f(values):\n    while True: print('x' * 10**4)",
    "daemon": "import os, time\ndef f(values):\n    if os.fork() == 0: time.sleep(600)\n    return sorted(values)",
    "files": "def f(values):\n    for n in range(40): open(f'/tmp/{n}', 'wb').write(b'x' * 10**6)",
    "forks": "import os\ndef f(values):\n    while True: os.fork()",
}


def speed(count: int) -> None:
    """Time pairs of programs in turn, so that both see the same load."""
    python = sandbox._interpreter()
    script = f"{GOOD}print(f([3, 1, 2]))"
    bare: list[float] = []
    boxed: list[float] = []
    isolated = Sandbox()
    isolated.check()
    for _ in range(count):
        began = time.perf_counter()
        subprocess.run([python, "-I", "-c", script], capture_output=True, check=True)
        bare.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert grade(GOOD, PROBLEM, isolated).correct
        boxed.append(time.perf_counter() - began)
    shown = [1e3 * statistics.median(times) for times in (bare, boxed)]
    print(f"one after the other: bare {shown[0]:.1f} ms, sandbox {shown[1]:.1f} ms, ratio {shown[1] / shown[0]:.2f}")
    workers = os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as threads, CodeJudge(isolated) as judge:
        began = time.perf_counter()
        commands = [[python, "-I", "-c", script]] * count
        list(threads.map(lambda command: subprocess.run(command, capture_output=True, check=True), commands))
        middle = time.perf_counter()
        assert all(found.correct for found in judge.judge([(GOOD, PROBLEM)] * count))
        ended = time.perf_counter()
    first, second = (1e3 * part / count for part in (middle - began, ended - middle))
    print(f"{workers} at a time: bare {first:.1f} ms a program, sandbox {second:.1f} ms, ratio {second / first:.2f}")


def soak(count: int) -> None:
    """Judge many candidates, and show what is held before and after."""
    names = [name for name, _ in zip(list(KINDS) * count, range(count), strict=False)]
    before, began = held(), time.perf_counter()
    verdicts: Counter[str] = Counter()
    with CodeJudge(Sandbox(limits=Limits(seconds=2))) as judge:
        for first in range(0, count, 500):
            part = names[first : first + 500]
            for name, found in zip(part, judge.judge([(KINDS[name], PROBLEM) for name in part]), strict=True):
                verdicts[f"{name}: {'failed' if found.failed else 'right' if found.correct else 'wrong'}"] += 1
            print(first + len(part), held(), f"{time.perf_counter() - began:.0f} s", flush=True)
    time.sleep(1)
    print(f"{count} candidates of {len(KINDS)} kinds, {time.perf_counter() - began:.0f} s")
    print(dict(sorted(verdicts.items())))
    print(f"before {before}\nafter  {held()}")


def held() -> dict[str, int]:
    """Return the processes of sandboxes, our descriptors, files in /tmp and memory (MiB)."""
    status = Path("/proc/self/status").read_text()
    memory = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    shared = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:"))
    return {
        "processes": sum(uid >= sandbox._FIRST_USER for uid in uids()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "files": len(list(Path("/tmp").glob("aepo-*"))),
        "resident": int(memory.split()[1]) // 1024,
        "shared": int(shared.split()[1]) // 1024,
    }


def uids() -> list[int]:
    """Return the user of every process."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            found.append(path.stat().st_uid)
        except OSError:
            continue
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=int, default=200)
    parser.add_argument("--soak", type=int, default=0)
    arguments = parser.parse_args()
    speed(arguments.programs)
    if arguments.soak:
        soak(arguments.soak)
