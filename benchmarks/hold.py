"""The study behind docs/results.md: what holds the entropy on the built-in job, and what does not. Three seeds each.

python benchmarks/hold.py [--out runs/hold] [--steps 200] [--report docs/results-hold.md] [--only NAME ...]

Every run starts from the same base model and, at the same seed, sees the same prompts in the same order. Finished runs
are not repeated, so a stopped study goes on where it was. The table and the figures are made from the run folders.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from aepo.analysis.demo import PROBLEMS, SAMPLES, evaluated_job
from aepo.analysis.tracking import tracking
from aepo.config import default_config
from aepo.model.builtin import base_model
from aepo.model.policy import Policy
from aepo.training.evaluate import evaluate
from aepo.training.folder import METRICS, read_rows
from aepo.training.plot import figure, save
from aepo.training.processes import Job, launch
from aepo.training.runner import make_sampler

SEEDS = (0, 1, 2)


def aepo(target: str, *settings: str, method: str = "aepo") -> tuple[str, ...]:
    return ("--method", method, "--target", target, *[part for s in settings for part in ("--set", s)])


STUDY: dict[str, tuple[str, ...]] = {
    "GRPO": ("--method", "grpo"),
    **{f"AEPO, PI, {t}": aepo(t) for t in ("0.2", "0.4", "0.6", "0.8")},
    **{f"AEPO, switch, {t}": aepo(t, "control.law=switch") for t in ("0.4", "0.6", "0.8")},
    "AEPO, PI, sine(0.6,0.15,80)": aepo("sine(0.6,0.15,80)"),
    "AEPO reweighted, PI, 0.6": aepo("0.6", method="aepo-reweighted"),
    "ablation A: T = 1, 0.6": aepo("0.6", method="aepo-no-temperature"),
    "ablation B: signed, 0.6": aepo("0.6", method="aepo-signed"),
    "AEPO v6 preset, 0.6": aepo("0.6", method="aepo-v6"),
    "Entropy-Reg 0.03": ("--method", "entropy-reg"),
    "Entropy-Adv": ("--method", "entropy-adv"),
}


def slug(name: str) -> str:
    return "".join(c if c.isalnum() or c == "." else "-" for c in name).strip("-").lower()


def jobs(out: Path, steps: int, names: list[str]) -> dict[str, list[Job]]:
    return {
        name: [evaluated_job(out / f"{slug(name)}-seed{s}-{steps}", STUDY[name], steps, s) for s in SEEDS]
        for name in names
    }


def cells(values: list[float], form: str) -> str:
    """The mean, and every seed's value."""
    return f"{statistics.fmean(values):{form}} ({', '.join(f'{v:{form}}' for v in values)})"


def row(name: str, runs: list[Job]) -> str:
    rows = [read_rows(job.out / METRICS) for job in runs]
    held = [tracking(r) for r in rows]
    scores = [r[-1]["evaluation"] for r in rows]
    controlled = rows[0][-1]["target_entropy"] is not None
    settled = ", ".join("never" if h.settling_step is None else str(h.settling_step) for h in held)
    return " | ".join(
        [
            name,
            cells([h.last_third_entropy for h in held], ".3f"),
            cells([h.last_third_rmse for h in held], ".3f") if controlled else "",
            settled if controlled else "",
            cells([h.extra_share for h in held], ".0%") if controlled else "",
            cells([h.saturated for h in held], ".0%") if controlled else "",
            cells([s["pass@1"] for s in scores], ".3f"),
            cells([s[f"pass@{SAMPLES}"] for s in scores], ".3f"),
        ]
    )


HEADER = (
    "run",
    "entropy, last third (nats)",
    "RMSE to target, last third (nats)",
    "settled at step",
    "extra completions",
    "steps saturated",
    "pass@1",
    f"pass@{SAMPLES}",
)


def base_row() -> str:
    config = default_config()
    policy = Policy.load(base_model(config.task))
    scores = evaluate(policy, make_sampler(policy, config), config.task, problems=PROBLEMS, samples=SAMPLES)
    return f"base model | | | | | | {scores.pass_at(1):.3f} | {scores.pass_at(SAMPLES):.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/hold"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--report", type=Path, default=None)
    parser.add_argument("--only", nargs="*", default=list(STUDY))
    options = parser.parse_args()
    study = jobs(options.out, options.steps, options.only)
    launch([job for runs in zip(*study.values(), strict=True) for job in runs])
    table = [HEADER_LINE, "|".join(["---"] * len(HEADER)), base_row(), *(row(n, r) for n, r in study.items())]
    text = "".join(f"| {line} |\n" for line in table)
    print(text)
    if options.report:
        options.report.write_text(text)
    for name, runs in study.items():
        if "sine" in name:
            seeds = {f"seed {s}": read_rows(job.out / METRICS) for s, job in zip(SEEDS, runs, strict=True)}
            save(figure(seeds, name), options.out / "sine")


HEADER_LINE = " | ".join(HEADER)

if __name__ == "__main__":
    main()
