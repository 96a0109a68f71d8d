"""Token statistics: plain autograd, other projects' kernels and `aepo.token_statistics`, time and memory, in one run.

    python benchmarks/token_statistics.py --json token_statistics.json
    python benchmarks/token_statistics.py --device cuda --dtype bfloat16 --tokens 16384 --width 3584 --vocabulary 152064

Log-prob, exact entropy and log-probs at 0, 1 or 2 further temperatures, all with gradients, forward and backward;
`kept` variants add the gradient of a kept entropy. Every measurement is a fresh process; the processes of all variants
take turns, so that a busy machine is busy for all of them. Time is the best of the rounds; memory is the peak above the
inputs. What is not installed, or does not run on the device, is named with the reason.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aepo.entropy.partial import Clamped, Kept, Nucleus
from aepo.entropy.statistics import token_statistics

FURTHER_TEMPERATURES = (0.8, 1.2)
Inputs = tuple[Tensor, Tensor, Tensor, tuple[float, ...]]


def plain(hidden: Tensor, weight: Tensor, labels: Tensor, temperatures: tuple[float, ...]) -> Tensor:
    """What one writes without this library: [N, V] logits and autograd."""
    logits = (hidden @ weight.t()).float()
    log_p = torch.log_softmax(logits, -1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    index = labels.unsqueeze(-1)
    loss = log_p.gather(-1, index).mean() + entropy.mean()
    for temperature in temperatures:
        loss = loss + torch.log_softmax(logits / temperature, -1).gather(-1, index).mean()
    return loss


def ours(compile: bool | None, kept: Kept | None = None) -> Callable[..., Tensor]:
    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, temperatures: tuple[float, ...]) -> Tensor:
        s = token_statistics(hidden, weight, labels, temperatures=temperatures, compile=compile, kept=kept)
        total = s.logprobs.mean() + s.entropy.mean()
        total = total + s.tempered.mean(-1).sum() if temperatures else total
        return total if kept is None else total + s.kept_entropy.mean()

    return loss


def one_by_one(statistics: Callable[..., tuple[Tensor, Tensor | None]]) -> Callable[..., Tensor]:
    """For kernels of one temperature: (hidden, weight, labels, temperature, entropy) -> log-probs, entropy."""

    def loss(hidden: Tensor, weight: Tensor, labels: Tensor, temperatures: tuple[float, ...]) -> Tensor:
        logprobs, entropy = statistics(hidden, weight, labels, 1.0, True)
        total = logprobs.mean() + entropy.mean()
        for temperature in temperatures:
            total = total + statistics(hidden, weight, labels, temperature, False)[0].mean()
        return total

    return loss


def trl() -> Callable[..., Tensor]:
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

    def statistics(h: Tensor, w: Tensor, y: Tensor, t: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
        outputs = ("entropy",) if entropy else ()
        return ChunkedLogProbFunction.apply(h, w, None, y, t, CHUNK, None, 1.0, outputs)[:2]

    return one_by_one(statistics)


def verl() -> Callable[..., Tensor]:
    """Its file alone: the package imports a cluster."""
    package = importlib.util.find_spec("verl")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("No module named 'verl'")
    path = Path(package.origin).parent / "utils" / "experimental" / "torch_functional.py"
    spec = importlib.util.spec_from_file_location("verl_torch_functional", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fused = module.FusedLinearForPPO(impl_backend="torch")
    return one_by_one(lambda h, w, y, t, entropy: fused(h, w, y, t))


def liger() -> Callable[..., Tensor]:
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import LigerFusedLinearScaledCrossEntropyFunction as Fused

    def statistics(h: Tensor, w: Tensor, y: Tensor, t: float, entropy: bool) -> tuple[Tensor, Tensor | None]:
        found = Fused.apply(h, w, y, temperature=t, return_entropy=entropy)
        return (-found[0], found[1]) if entropy else (-(found[0] if isinstance(found, tuple) else found), None)

    return one_by_one(statistics)


def cut_cross_entropy() -> Callable[..., Tensor]:
    """Log-probs only, so its loss is another; one temperature."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda hidden, weight, labels, temperatures: -linear_cross_entropy(hidden, weight, labels, impl="cce")


VARIANTS: dict[str, Callable[[], Callable[..., Tensor]]] = {
    "plain eager": lambda: plain,
    "plain compiled": lambda: torch.compile(plain),
    "ours eager": lambda: ours(False),
    "ours compiled": lambda: ours(True),
    "ours default": lambda: ours(None),
    "ours, clamped 0.3 kept": lambda: ours(True, Clamped(0.3)),
    "ours, nucleus 0.8 kept": lambda: ours(True, Nucleus(0.8)),
    "TRL chunked": trl,
    "verl torch": verl,
    "Liger": liger,
    "cut-cross-entropy": cut_cross_entropy,
}
SAME_LOSS = {name for name in VARIANTS if "kept" not in name and name != "cut-cross-entropy"}


def measure(options: argparse.Namespace) -> dict[str, float]:
    """One variant in this process: runs to warm up, one timed, one whose memory is watched."""
    torch.set_num_threads(options.threads)
    hidden, weight, labels = inputs(options)
    loss = VARIANTS[options.worker]()
    device = torch.device(options.device)

    def step() -> float:
        hidden.grad = weight.grad = None
        value = loss(hidden, weight, labels, FURTHER_TEMPERATURES[: options.further[0]])
        value.backward()
        return value.item()

    for _ in range(2 if "eager" not in options.worker or device.type == "cuda" else 1):
        value = step()
    found = {"loss": value}
    if not options.memory_only:
        synchronize(device)
        cpu, wall = time.process_time(), time.perf_counter()
        step()
        synchronize(device)
        found |= {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    hidden.grad = weight.grad = None
    return found | {"megabytes": peak_of(step, device)}


def inputs(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Logits are normal with the deviation `spread`."""
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    hidden = torch.randn(options.tokens[0], options.width).to(options.device, dtype)
    weight = options.spread * torch.randn(options.vocabulary, options.width) / options.width**0.5
    labels = torch.randint(options.vocabulary, (options.tokens[0],), device=options.device)
    return hidden.requires_grad_(), weight.to(options.device, dtype).requires_grad_(), labels


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_of(step: Callable[[], Any], device: torch.device) -> float:
    """Megabytes above what is there before the step."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)
    resident = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step()
    return _resident("VmHWM") - resident


def _resident(which: str) -> float:
    """Megabytes, from Linux's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


SIZES = ("width", "vocabulary", "spread", "threads", "device", "dtype")


def spawn(name: str, tokens: int, further: int, options: argparse.Namespace) -> dict[str, Any]:
    sizes = [f"--{key}={getattr(options, key)}" for key in SIZES]
    command = [sys.executable, __file__, f"--worker={name}", f"--tokens={tokens}", f"--further={further}", *sizes]
    done = subprocess.run(command + ["--memory-only"] * options.memory_only, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    return {"failed": done.stderr.strip().splitlines()[-1]}


def rounds(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The best of all rounds for each number of tokens and temperatures and each variant, in turns."""
    found: dict[tuple[int, int, str], dict[str, Any]] = {}
    for _ in range(options.rounds):
        for case in cases(options):
            tokens, further, name = case
            new = spawn(name, tokens, further, options)
            print(*case, new, file=sys.stderr, flush=True)
            first = options.variants[0]
            if {name, first} <= SAME_LOSS and "failed" not in new:
                off = abs(new["loss"] - found.get((tokens, further, first), new)["loss"])
                if off > (1e-4 if options.dtype == "float32" else 0.05):
                    raise SystemExit(f"{name} computes another loss than {first}: {new['loss']}")
            old = found.get(case, new)
            found[case] = new if "failed" in new else {key: min(old[key], new[key]) for key in new}
    return [{"tokens": n, "temperatures": 1 + k, "variant": name, **best} for (n, k, name), best in found.items()]


def cases(options: argparse.Namespace) -> Iterable[tuple[int, int, str]]:
    return ((n, k, name) for n in options.tokens for k in options.further for name in options.variants)


def table(rows: list[dict[str, Any]], clock: str) -> str:
    """Ratios are to the first variant with as many tokens and temperatures; speeds by this clock."""
    lines = [
        "| tokens | temperatures | variant | CPU s | wall s | peak MB | times as fast | memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    first: dict[tuple[int, int], dict[str, Any]] = {}
    for row in rows:
        base = first.setdefault((row["tokens"], row["temperatures"]), row)
        line = f"| {row['tokens']} | {row['temperatures']} | {row['variant']} |"
        if "failed" in row:
            lines.append(f"{line} does not run here: {row['failed']} | | | | |")
            continue
        times = [f"{row[key]:.2f}" if key in row else "" for key in ("cpu", "wall")]
        speed = f"{base[clock] / row[clock]:.2f}" if clock in row else ""
        lines.append(
            f"{line} {times[0]} | {times[1]} | {row['megabytes']:.0f} | {speed} "
            f"| {row['megabytes'] / base['megabytes']:.3f} |"
        )
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the measurements here")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", help="of the hidden states and the head")
    parser.add_argument("--tokens", type=int, nargs="+", default=[2048])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocabulary", type=int, default=32_000)
    parser.add_argument("--spread", type=float, default=2.0, help="standard deviation of the logits")
    parser.add_argument("--further", type=int, nargs="+", default=[0, 1, 2], help="numbers of further temperatures")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--memory-only", action="store_true", help="no timed step")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.worker:
        print(json.dumps(measure(options)))
        return
    rows = rounds(options)
    print(table(rows, "wall" if options.device == "cuda" else "cpu"))
    if options.json:
        sizes = {key: getattr(options, key) for key in (*SIZES, "rounds")}
        options.json.write_text(json.dumps({"torch": torch.__version__, **sizes, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
