"""Every run of verl that the tests look at, and the queue that starts them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tests_verl.support.run import OURS, SMOKE, STOCK, Finished, Runtime, finish, rows, run, settings, start

STEPS = 12
# The entropy is above the target, soon below it, and above it again.
TARGET = "piecewise(0:5.52,7:5.0)"
AEPO_RUN = [
    "aepo.method=aepo",
    "aepo.law=switch",
    "aepo.control.approach=0",
    f"aepo.target={TARGET}",
    "actor_rollout_ref.actor.optim.lr=5e-3",
]
PACKED = "actor_rollout_ref.model.use_remove_padding=True"
REFERENCE = [
    *("actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.kl_loss_coef=0.1"),
    "+actor_rollout_ref.ref.fsdp_config.mixed_precision={param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}",
]
MICROBATCHES = [
    *("actor_rollout_ref.actor.use_dynamic_bsz=false", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=2"),
    "actor_rollout_ref.rollout.log_prob_use_dynamic_bsz=false",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4",
    "actor_rollout_ref.ref.log_prob_use_dynamic_bsz=false",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
]
METHODS = {
    "kl-cov+pos-adv-reweight": [],
    "archer": [*REFERENCE, *MICROBATCHES],
    "dcpo+entropy-reg": [],
    "dapo": [],
}
BF16 = [
    f"++{config}.fsdp_config.mixed_precision={{param_dtype:bf16,reduce_dtype:fp32,buffer_dtype:fp32}}"
    for config in ("actor_rollout_ref.actor", "actor_rollout_ref.ref")
]
LORA = ["actor_rollout_ref.model.lora_rank=4", "actor_rollout_ref.model.lora.merge=True"]


@dataclass(frozen=True)
class Interrupted:
    """A run that lost a worker, the run that went on from its last checkpoint, and one that was refused there.

    saved: the step of that checkpoint. state: what was saved there.
    """

    killed: Finished
    saved: int
    state: Mapping[str, Any]
    resumed: Finished
    refused: Finished


def go(
    name: str, module: str, extra: Iterable[str], steps: int, work: Path, runtime: Runtime | None, own: bool = False
) -> Finished:
    """own: with one node and a Ray of its own, as from the command line."""
    out, runtime = work / name, None if own else runtime
    found = run(module, [*settings(work, out, steps, runtime), *extra], out, runtime)
    assert found.code == 0, found.text[-4000:]
    return found


def interrupted(work: Path, runtime: Runtime) -> Interrupted:
    """Kill a worker after five steps, and go on."""
    out = work / "killed"
    arguments = [*settings(work, out, STEPS, runtime), *AEPO_RUN, "trainer.save_freq=2"]
    process = start(OURS, arguments, out, runtime)
    deadline = time.monotonic() + 400
    while len(rows(out)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(int((out / "dump/worker.pid").read_text()), signal.SIGKILL)
    killed = finish(process, out, 120)
    saved = int((out / "save/latest_checkpointed_iteration.txt").read_text())
    state = json.loads((out / f"save/global_step_{saved}/aepo.json").read_text())
    shutil.move(out / "metrics.jsonl", out / "before.jsonl")
    resumed = run(OURS, arguments, out, runtime)
    refused = run(OURS, [*arguments, "aepo.method=entropic"], out, runtime)
    return Interrupted(killed, saved, state, resumed, refused)


def smoked(work: Path, runtime: Runtime) -> Finished:
    """The smoke test, with the model `sharp` and with what verl needs on a CPU."""
    out = work / "smoked"
    own = ("data.train_files", "data.val_files", "data.max", "actor_rollout_ref.model.path")
    given = [word for word in settings(work, out, 4, runtime) if not word.startswith(own)]
    small = ("data.max_response_length=12", "actor_rollout_ref.actor.optim.lr=1e-7")
    tested = [PACKED, *BF16, *LORA, "algorithm.rollout_correction.rollout_is=token"]
    words = ["--model", str(work / "sharp"), "--out", str(out / "smoke"), *given, *small, *tested]
    return run(SMOKE, words, out, runtime)


def two_updates(method: str) -> Callable[[Path, Runtime], Finished]:
    given = [f"aepo.method={method}", *METHODS[method], "actor_rollout_ref.actor.ppo_mini_batch_size=4"]
    return partial(go, f"two-{method}", OURS, given, 2)


NARROW = "algorithm.rollout_correction.rollout_is_threshold=0.99_1.01"
# The long ones first, so that no run is left alone at the end.
JOBS: Mapping[str, Callable[[Path, Runtime], Finished | Interrupted]] = {
    "aepo": partial(go, "aepo", OURS, AEPO_RUN, STEPS, own=True),
    "killed": interrupted,
    "smoked": smoked,
    "stock": partial(go, "stock", STOCK, [], 6),
    "grpo": partial(go, "grpo", OURS, ["aepo.method=grpo", "aepo.surrogate.dual=3"], 6),
    **{f"two-{method}": two_updates(method) for method in METHODS},
    "rounds": partial(go, "rounds", OURS, ["aepo.method=aepo+dynamic-sampling"], 4),
    "packed": partial(
        go, "packed", OURS, [*AEPO_RUN, PACKED, "algorithm.rollout_correction.rollout_is=sequence", NARROW], 4
    ),
}


class Queue:
    """Starts these jobs in the order of `JOBS`, one on each runtime: one run does not keep two cores busy."""

    def __init__(self, names: Iterable[str], work: Path, runtimes: Sequence[Runtime]) -> None:
        self._pool, self._work = ThreadPoolExecutor(len(runtimes)), work
        self._free: SimpleQueue[Runtime] = SimpleQueue()
        for runtime in runtimes:
            self._free.put(runtime)
        wanted = set(names)
        self._jobs = {name: self._pool.submit(self._do, job) for name, job in JOBS.items() if name in wanted}

    def of(self, name: str):
        """Return what a job found, once it is finished; its failure is that of the test."""
        return self._jobs[name].result()

    def _do(self, job: Callable[[Path, Runtime], Finished | Interrupted]) -> Finished | Interrupted:
        runtime = self._free.get()
        try:
            return job(self._work, runtime)
        finally:
            self._free.put(runtime)

    def close(self) -> None:
        """Start nothing more."""
        self._pool.shutdown(cancel_futures=True)
