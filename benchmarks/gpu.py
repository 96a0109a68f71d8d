"""Everything that needs a GPU, in one call of under 8 minutes: tests, token statistics, a step, a held target.

    python benchmarks/gpu.py                                # all parts; `make test-gpu` does the same
    python benchmarks/gpu.py --parts statistics --out results
    python benchmarks/gpu.py --model path/to/model          # a folder in Hugging Face format

It needs no network. Without a GPU the same script runs on the CPU with small sizes: all of it runs, but its figures
then mean nothing.

    tests       every test with the mark `gpu`: CUDA and Triton
    statistics  forward and backward of the token statistics beside the measured time of their matrix products
    step        sampling beside transformers, and whole steps of `aepo train` beside TRL's trainer
    hold        AEPO at a target, for as many steps as the time allows

The model of `step` and `hold` is that of --model; else, on a GPU, the packaged `smollm2` if it is installed; else a
random Qwen3 of 0.63 B parameters. What is not installed is named with the reason.

Each part is a process with a time limit. It writes OUT/PART.json, whole, after every measurement, so an interrupted
call leaves results. OUT/gpu_DEVICE.json and OUT/gpu_DEVICE.md hold all parts and are rewritten after each of them;
copy them to benchmarks/results to keep them. The exit status is 1 if a part failed or was cut off.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from gpu_parts import PARTS, VARIANTS, Given, work, write_atomically

HERE = Path(__file__).resolve().parent
LIMITS = {"tests": 140, "statistics": 125, "step": 105, "hold": 95}
"""Seconds of each part: 465 together."""
GRACE = 10.0
"""A part stops by itself this many seconds before its limit, so that it is seldom killed."""
INTERRUPTED = "interrupted"
PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "trl", "liger-kernel", "cut-cross-entropy")


# --- the processes --------------------------------------------------------------------------------------------


def run_part(part: str, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """Run a part in a process, and return what it wrote: all of it, or what there was at its end."""
    path, limit = options.out / f"{part}.json", options.limit or LIMITS[part]
    path.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "gpu.py"), f"--worker={part}", f"--device={options.device}"]
    command += [f"--out={options.out}", f"--scratch={scratch}", f"--limit={limit}", "--variants", *options.variants]
    command += [f"--model={options.model}"] * (options.model is not None)
    log, ended = options.out / f"{part}.log", None
    with log.open("w") as text:
        process = subprocess.Popen(
            command, stdout=text, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
        )
        try:
            status = process.wait(limit)
            ended = None if status == 0 else f"failed: {last_line(log)}"
        except subprocess.TimeoutExpired:
            ended = f"cut off after {limit:g} s"
        except (KeyboardInterrupt, SystemExit):
            ended = INTERRUPTED
        finally:
            stop(process)
    found = (
        json.loads(path.read_text()) if path.exists() else {"part": part, "facts": {}, "results": [], "left_out": []}
    )
    found |= {"complete": ended is None, "ended": ended}
    write_atomically(path, json.dumps(found, indent=2) + "\n")
    return found


def environment() -> dict[str, str]:
    """The sources of this checkout, no network, and one thread on a CPU unless said otherwise."""
    path = os.pathsep.join(filter(None, (str(HERE.parent / "src"), os.environ.get("PYTHONPATH"))))
    return {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the process and those that it started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_line(log: Path) -> str:
    return ([line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["no output"])[-1]


# --- what is written ------------------------------------------------------------------------------------------


def machine(device: str) -> dict[str, Any]:
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "device": device, "python": platform.python_version()}
    found["machine"] = (
        torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPUs ({platform.machine()})"
    )
    if device == "cuda":
        found["memory_gb"] = torch.cuda.get_device_properties(0).total_memory / 2**30
        found["cuda"] = torch.version.cuda
    return found | {"packages": {name: installed(name) for name in PACKAGES}}


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else f"{value:,{form}}"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]


def tests_table(facts: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    verdict = {True: "passed", False: "**failed**"}
    lines = grid(
        ("tests", "", "ran", "skipped", "s"),
        [(r["file"], verdict[r["passed"]], str(r["ran"]), str(len(r["skipped"])), number(r["seconds"])) for r in rows],
    )
    return [*lines, "", *(f"- skipped: {skip}" for row in rows for skip in row["skipped"])]


def statistics_table(facts: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    lines = grid(
        ("variant", "temperatures", "ms", "of the floor", "peak MB", "beside the head's gradient, MB", "loss"),
        [
            (
                *(VARIANTS[r["variant"]], str(r["temperatures"]), number(r["ms"], ".1f"), number(r["of_floor"], ".2f")),
                *(
                    number(r["peak_mb"], ".0f"),
                    number(r["beside_mb"], ".0f"),
                    f"{r['loss']:.4f}{'' if r['same_loss'] else ' **(another)**'}",
                ),
            )
            for r in sorted(rows, key=lambda row: row["temperatures"])
        ],
    )
    return [*lines, "", goal(rows)] if facts["dtype"] == "bfloat16" else lines


def goal(rows: list[dict[str, Any]]) -> str:
    """The goal is for two temperatures, and for the variant that `aepo train` uses."""
    for row in rows:
        if row["variant"] == "ours default" and row["temperatures"] == 2:
            reached = row["of_floor"] <= 1.2 and row["beside_mb"] < 1024
            found = f"{row['of_floor']:.2f} of the floor, {row['beside_mb']:.0f} MB"
            verdict = "reached" if reached else "not reached"
            return f"Goal (two temperatures: at most 1.2 of the floor, under 1 GB): {found}, {verdict}."
    return "Goal: not measured."


def step_table(facts: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    sampling, steps = ([r for r in rows if r["kind"] == kind] for kind in ("sampling", "step"))
    lines = grid(
        ("sampling alone", "tokens / s", "s", "peak MB"),
        [
            (r["name"], number(r["tokens_per_second"], ".0f"), number(r["seconds"]), number(r["peak_mb"], ".0f"))
            for r in sampling
        ],
    )
    names = ("sampling", "scoring", "update")
    lines += grid(
        ("a step", "steps", "s", "completions", "sampled tokens / s of the step", "peak MB", *names),
        [
            (
                *(r["name"], str(r["steps"]), number(r["seconds"]), str(r["completions"])),
                *(number(r["tokens_per_second"], ".0f"), number(r["peak_mb"], ".0f")),
                *(part_cell(r["parts"].get(name)) for name in names),
            )
            for r in steps
        ],
    )
    return [*lines, "", "Of each part: its share of the step, sampled tokens a second of the part, peak MB."]


def part_cell(part: dict[str, Any] | None) -> str:
    if part is None:
        return ""
    speed = number(part["tokens_per_second"], ".0f")
    return f"{part['share']:.0%}, {speed}, {number(part['peak_mb'], '.0f')}"


def hold_table(facts: dict[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    every = max(1, len(rows) // 12)
    shown = [row for place, row in enumerate(rows) if place % every == 0 or row is rows[-1]]
    keys = ("entropy", "entropy_se", "target_entropy", "reward", "extra_completions", "seconds")
    return grid(("step", *keys), [(str(row["step"]), *(number(row[key]) for key in keys)) for row in shown])


TABLES = {"tests": tests_table, "statistics": statistics_table, "step": step_table, "hold": hold_table}


def page(everything: dict[str, Any]) -> str:
    about = everything["about"]
    packages = ", ".join(f"{name} {found}" for name, found in about["packages"].items() if found)
    lines = [f"# `benchmarks/gpu.py` on {about['machine']}", ""]
    lines += [f"{about['date']}, Python {about['python']}, {packages}.", f"Command: `{everything['command']}`"]
    if about["device"] == "cpu":
        lines += ["", "**No GPU: small sizes. This shows that the script runs, and nothing about speed.**"]
    for part, found in everything["parts"].items():
        lines += ["", f"## {part}", "", f"{found.get('seconds', 0):.0f} s. {found['ended'] or 'Complete'}.", ""]
        lines += [f"- {name}: {fact(value)}" for name, value in found["facts"].items()]
        lines += TABLES[part](found["facts"], found["results"]) if found["results"] else []
        lines += ["", *(f"- left out: {left['what']}: {left['why']}" for left in found["left_out"])]
    return "\n".join(lines).rstrip() + "\n"


def fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


# --- the command ----------------------------------------------------------------------------------------------


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="all, in this order")
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--model", help="a folder in Hugging Face format, for the parts step and hold")
    parser.add_argument("--out", type=Path, default=Path("build/gpu"), help="the folder of the results")
    parser.add_argument("--limit", type=float, help=f"seconds of each part, instead of {LIMITS}")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: got cuda; must be auto or cpu: torch sees no GPU here")
    options.out = options.out.resolve()
    return options


def main() -> None:
    options = arguments()
    if options.worker:
        given = Given(options.device, options.model, options.scratch, options.variants)
        path = options.out / f"{options.worker}.json"
        work(options.worker, given, path, max(options.limit - GRACE, options.limit / 2))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the part, too
    options.out.mkdir(parents=True, exist_ok=True)
    command = " ".join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
    everything: dict[str, Any] = {"about": machine(options.device), "command": command, "parts": {}}
    scratch = Path(tempfile.mkdtemp(prefix="aepo-gpu-"))
    try:
        for part in options.parts:
            print(f"{part}: at most {options.limit or LIMITS[part]:g} s", flush=True)
            found = everything["parts"][part] = run_part(part, options, scratch)
            print(f"{part}: {found['ended'] or 'complete'} ({found.get('seconds', 0):g} s)", flush=True)
            name = options.out / f"gpu_{options.device}"
            write_atomically(name.with_suffix(".json"), json.dumps(everything, indent=2) + "\n")
            write_atomically(name.with_suffix(".md"), page(everything))
            if found["ended"] == INTERRUPTED:
                break
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(page(everything))
    sys.exit(int(not all(found["complete"] for found in everything["parts"].values())))


if __name__ == "__main__":
    main()
