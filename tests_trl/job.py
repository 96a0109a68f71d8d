"""A training run in processes of its own: `python -m torch.distributed.run ... -m tests_trl.job FILE`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from aepo.integrations.trl import EntropyControlTrainer

ROOT = Path(__file__).parent.parent


@dataclass
class Job:
    """folder: of the run. lora: its rank. parity: take the core's loss beside TRL's. resume: a checkpoint."""

    folder: str
    changes: dict[str, Any] = field(default_factory=dict)
    lora: int | None = None
    parity: bool = False
    resume: str | None = None
    kind: str = "qwen2"


def run(job: Job) -> dict[str, Any]:
    """What the log, the control and, with parity, each update say; in this process."""
    from .parity import ParityTrainer
    from .tiny import lora, model, series, trainer

    adapter = {} if job.lora is None else {"peft_config": lora(job.lora)}
    cls = ParityTrainer if job.parity else EntropyControlTrainer
    done = trainer(Path(job.folder), policy=model(kind=job.kind), cls=cls, **adapter, **job.changes)
    done.train(resume_from_checkpoint=job.resume)
    updates = getattr(done, "updates", [])
    gaps = [(u.gradient - u.core_gradient).abs().max().item() for u in updates]
    return {
        **{name: series(done, f"aepo/{name}") for name in ("entropy", "extra_used", "extra_completions")},
        **{name: series(done, name) for name in ("reward", "loss")},
        "state": done.entropy_state,
        "rounds": done.rounds,
        "weights": float(sum(p.detach().double().abs().sum() for p in done.model.parameters())),
        "updates": [{"losses": u.losses, "core": u.core, "gap": gap} for u, gap in zip(updates, gaps, strict=True)],
        "processes": done.accelerator.num_processes,
    }


def spread(jobs: Sequence[Job], folder: Path, processes: int = 2) -> list[list[dict[str, Any]]]:
    """The same, one after the other, in several processes; for each job the answer of each process."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "jobs.json").write_text(json.dumps([asdict(job) for job in jobs]))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command += ["-m", "tests_trl.job", str(folder / "jobs.json")]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=500
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    ranks = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]
    return [list(answers) for answers in zip(*ranks, strict=True)]


if __name__ == "__main__":
    given = Path(sys.argv[1])
    all_answers = [run(Job(**job)) for job in json.loads(given.read_text())]
    (given.parent / f"rank{os.environ['RANK']}.json").write_text(json.dumps(all_answers))
