"""Token statistics on a CPU: plain autograd against `aepo.token_statistics`, time and memory, in one run.

    python benchmarks/token_statistics.py --json token_statistics.json

Log-prob, exact entropy and log-probs at 0, 1 or 2 further temperatures, all with gradients, forward and
backward. Every measurement is a fresh process; the processes of all variants take turns, so that a busy machine is busy
for all of them. Time is the best of the rounds; memory is the peak of the resident set above the inputs.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aepo.entropy import token_statistics

VARIANTS = ("plain eager", "plain compiled", "ours eager", "ours compiled")
FURTHER_TEMPERATURES = (0.8, 1.2)


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """What one writes without this library: [N, V] logits and autograd."""
    logits = hidden @ weight.t()
    log_p = torch.log_softmax(logits, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    index = labels.unsqueeze(-1)
    loss = log_p.gather(-1, index).mean() + entropy.mean()
    for temperature in temperatures:
        loss = loss + torch.log_softmax(logits / temperature, -1).gather(-1, index).mean()
    return loss


def ours(hidden: Tensor, weight: Tensor, labels: Tensor, temperatures: tuple[float, ...], compile: bool) -> Tensor:
    s = token_statistics(hidden, weight, labels, temperatures=temperatures, compile=compile)
    return s.logprobs.mean() + s.entropy.mean() + s.tempered.mean(-1).sum()


def variant(name: str) -> Callable[..., Tensor]:
    if name.startswith("plain"):
        return torch.compile(plain) if name.endswith("compiled") else plain
    return lambda *inputs: ours(*inputs, compile=name.endswith("compiled"))


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One variant in this process: two runs to warm up, one timed, one whose memory is watched."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    hidden = torch.randn(options.tokens, options.width, requires_grad=True)
    weight = (2 * torch.randn(options.vocabulary, options.width) / options.width**0.5).requires_grad_()
    labels = torch.randint(options.vocabulary, (options.tokens,))
    loss = variant(options.worker)

    def step() -> float:
        hidden.grad = weight.grad = None
        value = loss(hidden, weight, labels, FURTHER_TEMPERATURES[: options.further])
        value.backward()
        return value.item()

    step(), step()
    cpu, wall = time.process_time(), time.perf_counter()
    value = step()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    hidden.grad = weight.grad = None
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step()
    return {"cpu": cpu, "wall": wall, "megabytes": resident("VmHWM") - before, "loss": value}


def resident(which: str) -> float:
    """Megabytes, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def spawn(name: str, further: int, options: argparse.Namespace) -> dict[str, float]:
    sizes = [f"--{key}={getattr(options, key)}" for key in ("tokens", "width", "vocabulary", "threads")]
    command = [sys.executable, __file__, f"--worker={name}", f"--further={further}", *sizes]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def rounds(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The best of all rounds for each number of temperatures and each variant, in turns."""
    found: dict[tuple[int, str], dict[str, float]] = {}
    for _ in range(options.rounds):
        for further in range(len(FURTHER_TEMPERATURES) + 1):
            for name in VARIANTS:
                new = spawn(name, further, options)
                if abs(new["loss"] - found.get((further, VARIANTS[0]), new)["loss"]) > 1e-4:
                    raise SystemExit(f"{name} computes another loss than {VARIANTS[0]}: {new['loss']}")
                old = found.get((further, name), new)
                found[further, name] = {key: min(old[key], new[key]) for key in new}
    return [{"temperatures": 1 + k, "variant": name, **best} for (k, name), best in found.items()]


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| temperatures | variant | CPU s | wall s | peak MB | times as fast | memory |",
        "|---|---|---|---|---|---|---|",
    ]
    plain_eager = {row["temperatures"]: row for row in rows if row["variant"] == VARIANTS[0]}
    for row in rows:
        base = plain_eager[row["temperatures"]]
        speed, memory = base["cpu"] / row["cpu"], row["megabytes"] / base["megabytes"]
        lines.append(
            f"| {row['temperatures']} | {row['variant']} | {row['cpu']:.2f} | {row['wall']:.2f} "
            f"| {row['megabytes']:.0f} | {speed:.2f} | {memory:.3f} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--further", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    rows = rounds(options)
    print(table(rows))
    if options.json:
        sizes = {key: getattr(options, key) for key in ("tokens", "width", "vocabulary", "threads", "rounds")}
        options.json.write_text(json.dumps({"torch": torch.__version__, **sizes, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
