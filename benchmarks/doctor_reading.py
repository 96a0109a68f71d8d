"""How long `aepo doctor` reads 200 MB, and how much memory it takes: rows and consoles that are made here.

python benchmarks/doctor_reading.py [MEGABYTES]
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_KEYS = """loss grad_norm learning_rate num_tokens completions/mean_length completions/min_length completions/max_length
completions/clipped_ratio completions/mean_terminated_length rewards/a/mean rewards/a/std reward reward_std
frac_reward_zero_std sampling/sampling_logp_difference/mean entropy clip_ratio/low_mean clip_ratio/high_mean
clip_ratio/region_mean kl step_time epoch"""
MEASURE = """
import resource, sys, time
from aepo.doctor import examine, read
(log,) = read(sys.argv[1])
examine(log)
memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{log.steps[1]} rows, {time.process_time():.1f} s of processor time, {memory:.0f} MB of memory")
"""


def row(step: int) -> dict[str, float]:
    """Return a row with TRL's keys."""
    return {"step": step, **{key: random.random() for key in _KEYS.split()}}


def verl(step: int) -> str:
    """Return a line of verl's console, and others around it."""
    numbers = " - ".join(
        f"{key}:{random.random()}" for key in ("actor/entropy", "actor/grad_norm", "critic/score/mean")
    )
    return f"(TaskRunner pid=1) step:{step} - {numbers}\n" + "(WorkerDict pid=2) a line of another kind\n" * 20


FORMS: dict[str, Callable[[int], str]] = {
    "rows.jsonl": lambda step: json.dumps(row(step)) + "\n",
    "texts.jsonl": lambda step: json.dumps({**row(step), "completions": ["x y z " * 800]}) + "\n",
    "trl.log": lambda step: f"\r  1%|  | {step}/1000000 [04:51<8:00:57, 9.49s/it]{row(step)}\n",
    "verl.log": verl,
    "history.json": lambda step: ("[" if step == 1 else ", ") + json.dumps(row(step)),
}


def main(megabytes: int) -> None:
    """Write each form, read it in a process of its own, and print what that took."""
    random.seed(0)
    for name, line in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            path, written, step = Path(folder) / name, 0, 0
            with path.open("w") as file:
                while written < megabytes * 1e6:
                    step += 1
                    written += file.write(line(step))
            print(name, end=": ", flush=True)
            subprocess.run([sys.executable, "-c", MEASURE, str(path)], check=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 200)
