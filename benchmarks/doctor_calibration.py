"""Error rates of the doctor's checks: false alarms on stationary logs, and planted faults that are found.

    python benchmarks/doctor_calibration.py [--runs 1000] [--steps 300] [--log LOG] [--live 25]

Stationary logs come from a generator of each noise shape, or, with --log, from blocks of a real log that are drawn
with replacement (circular block bootstrap). A false alarm is a serious finding with the confidence of the column. With
--live a log is examined whenever that many steps were added, as a callback does, and any of the looks counts.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from aepo.doctor import Log, examine, read
from aepo.doctor.types import EntropyMeaning, Finding

Noise = Callable[[random.Random, int], list[float]]
# Name -> level, standard deviation of its logarithm. Figures of GRPO runs with 16 completions a step.
POSITIVE = {
    "entropy": (0.5, 0.15), "length": (300.0, 0.15), "gradient_norm": (0.2, 0.3), "reference_kl": (0.01, 0.5),
    "approximate_kl": (0.001, 0.7), "mismatch": (0.01, 0.3), "loss": (0.02, 0.5),
}  # fmt: skip
# Name -> share, and of how many a step is the mean.
SHARES = {"reward": (0.4, 16), "dead_groups": (0.25, 8), "truncated": (0.05, 16)}
EXACT = EntropyMeaning("exact", "the exact entropy")


def autoregressive(memory: float, tails: float = math.inf) -> Noise:
    """Return a generator of AR(1) noise with variance 1; `tails` are the degrees of freedom of its shocks."""

    def draw(rng: random.Random, steps: int) -> list[float]:
        value, made = rng.gauss(0, 1), []
        for _ in range(steps):
            shock = rng.gauss(0, 1)
            if math.isfinite(tails):
                shock /= math.sqrt(rng.gammavariate(tails / 2, 2 / tails)) * math.sqrt(tails / (tails - 2))
            value = memory * value + math.sqrt(1 - memory**2) * shock
            made.append(value)
        return made

    return draw


SHAPES: dict[str, Noise] = {
    "independent": autoregressive(0.0),
    "AR(1), 0.5": autoregressive(0.5),
    "AR(1), 0.9": autoregressive(0.9),
    "heavy tails (t, 3)": autoregressive(0.3, 3.0),
}


def generated(rng: random.Random, steps: int, noise: Noise, loud: float = 1.0) -> dict[str, list[float]]:
    """Return stationary series with this noise, its standard deviations multiplied by `loud`."""
    series = {
        name: [level * math.exp(loud * spread * value) for value in noise(rng, steps)]
        for name, (level, spread) in POSITIVE.items()
    }
    for name, (share, of) in SHARES.items():
        series[name] = [
            sum(rng.random() < min(1.0, share * math.exp(0.2 * loud * value)) for _ in range(of)) / of
            for value in noise(rng, steps)
        ]
    return series


def resampled(rng: random.Random, log: Log, steps: int, block: int = 20) -> dict[str, list[float]]:
    """Return series made of blocks of consecutive rows of a log; all series have the same rows."""
    names = {name: [value for _, value in points] for name, points in log.series.items() if name != "learning_rate"}
    rows = min(map(len, names.values()))
    order: list[int] = []
    while len(order) < steps:
        first = rng.randrange(rows)
        order += [(first + at) % rows for at in range(block)]
    return {name: [values[at] for at in order[:steps]] for name, values in names.items()}


def as_log(series: dict[str, Sequence[float]]) -> Log:
    return Log("made", "made", {name: tuple(enumerate(values)) for name, values in series.items()}, entropy=EXACT)


def looks(series: dict[str, list[float]], every: int | None) -> Iterable[list[Finding]]:
    steps = max(map(len, series.values()))
    for end in range(every, steps + 1, every) if every else [steps]:
        yield examine(as_log({name: values[:end] for name, values in series.items()}))


def false_alarms(make: Callable[[random.Random], dict[str, list[float]]], runs: int, every: int | None) -> str:
    """Return a row: the share of logs with a likely and with a sure finding, per series, and which kinds they are."""
    counts: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    number = 0
    for seed in range(runs):
        series = make(random.Random(seed))
        number = len(series)
        found = {(f.kind, f.confidence) for one in looks(series, every) for f in one if f.counts}
        counts["sure"] += any(confidence == "sure" for _, confidence in found)
        counts["likely"] += any(confidence == "likely" for _, confidence in found)
        kinds.update(kind for kind, _ in found)
    names = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(4)) or "-"
    return (
        f"{number} | {counts['likely'] / runs:.2%} | {counts['sure'] / runs:.2%} | "
        f"{counts['likely'] / runs / number:.3%} | {counts['sure'] / runs / number:.3%} | {names}"
    )


def moved(values: list[float], at: int, factor: float, ramp: int) -> list[float]:
    """Return the values multiplied by a factor from a step on, over a ramp of so many steps."""
    return [value * factor ** min(1.0, max(0.0, (step - at + 1) / max(1, ramp))) for step, value in enumerate(values)]


def share(rng: random.Random, values: list[float], at: int, level: float, of: int = 16) -> list[float]:
    return [*values[:at], *(sum(rng.random() < level for _ in range(of)) / of for _ in values[at:])]


def spiked(values: list[float], places: Sequence[int], factor: float) -> list[float]:
    return [value * factor if step in places else value for step, value in enumerate(values)]


Plant = Callable[[random.Random, dict[str, list[float]], int], dict[str, list[float]]]
# Fault -> (what is planted from a step on, the finding, whether it has to be likely or sure).
FAULTS: dict[str, tuple[Plant, str, bool]] = {
    "entropy to 5 %, at once": (lambda r, s, t: {"entropy": moved(s["entropy"], t, 0.05, 1)}, "collapse", True),
    "entropy to 5 %, over 60 steps": (lambda r, s, t: {"entropy": moved(s["entropy"], t, 0.05, 60)}, "collapse", True),
    "entropy to 5 % for 30 steps": (
        lambda r, s, t: {"entropy": [v / 20 if t <= at < t + 30 else v for at, v in enumerate(s["entropy"])]},
        "entropy dip", True,
    ),
    "entropy 8 times, at once": (lambda r, s, t: {"entropy": moved(s["entropy"], t, 8, 1)}, "explosion", True),
    "length to 2 %": (lambda r, s, t: {"length": moved(s["length"], t, 0.02, 30)}, "length collapse", True),
    "length 8 times": (lambda r, s, t: {"length": moved(s["length"], t, 8, 60)}, "length growing", True),
    "half of completions cut": (lambda r, s, t: {"truncated": share(r, s["truncated"], t, 0.5)}, "truncation", True),
    "80 % dead groups": (lambda r, s, t: {"dead_groups": share(r, s["dead_groups"], t, 0.8, 8)}, "dead groups", True),
    "reward to 0": (lambda r, s, t: {"reward": share(r, s["reward"], t, 0.0)}, "reward lost", True),
    "gradient 100 times": (lambda r, s, t: {"gradient_norm": moved(s["gradient_norm"], t, 100, 10)}, "explosion", True),
    "KL to the reference 5 nats": (
        lambda r, s, t: {"reference_kl": moved(s["reference_kl"], t, 500, 40)}, "KL to the reference grows", True,
    ),
    "KL to the reference 0.5 from the first step": (
        lambda r, s, t: {"reference_kl": [v * 50 for v in s["reference_kl"]]},
        "KL to the reference is not 0 at the start", True,
    ),
    "mismatch 0.15 nats": (lambda r, s, t: {"mismatch": moved(s["mismatch"], t, 15, 20)}, "sampler mismatch", True),
    "one gradient 300 times": (lambda r, s, t: {"gradient_norm": spiked(s["gradient_norm"], [t], 300)}, "spike", False),
    "ten gradients 300 times": (
        lambda r, s, t: {"gradient_norm": spiked(s["gradient_norm"], r.sample(range(5, 295), 10), 300)}, "spikes", True,
    ),
    "a NaN loss": (lambda r, s, t: {"loss": [*s["loss"][:t], math.nan, *s["loss"][t + 1 :]]}, "not a number", True),
    "a constant reward": (lambda r, s, t: {"reward": [0.4] * len(s["reward"])}, "reward does not move", True),
}  # fmt: skip


def power(plant: Plant, kind: str, counts: bool, noise: Noise, runs: int, steps: int) -> float:
    hits = 0
    for seed in range(runs):
        rng = random.Random(seed)
        series = generated(rng, steps, noise)
        at = rng.randrange(steps // 10, steps - steps // 4)
        series.update(plant(rng, series, at))
        hits += any(f.kind == kind and (f.counts or not counts) for f in examine(as_log(series)))
    return hits / runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--faults", type=int, default=200, help="logs for each planted fault and shape")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--log", type=Path, action="append", default=[], help="a real log to draw blocks of")
    parser.add_argument("--live", type=int, help="examine whenever so many steps were added")
    given = parser.parse_args()
    print("| noise | series | logs with likely | with sure | likely per series | sure per series | kinds |")
    print("|---|---|---|---|---|---|---|")
    for name, noise in SHAPES.items():
        for loud in (1.0, 2.0):
            make = partial(generated, steps=given.steps, noise=noise, loud=loud)
            words = f"{name}{', twice as loud' if loud > 1 else ''}"
            print(f"| {words} | {false_alarms(make, given.runs, given.live)} |", flush=True)
    for path in given.log:
        for log in read(path):
            make = partial(resampled, log=log, steps=given.steps)
            print(f"| {path.name}, blocks of 20 | {false_alarms(make, given.runs, given.live)} |", flush=True)
    if given.live or not given.faults:
        return
    print(f"\n| planted fault | finding | {' | '.join(SHAPES)} |")
    print("|---|---|" + "---|" * len(SHAPES))
    for fault, (plant, kind, counts) in FAULTS.items():
        rates = [power(plant, kind, counts, noise, given.faults, given.steps) for noise in SHAPES.values()]
        print(f"| {fault} | {kind}{'' if counts else ' (possible)'} | " + " | ".join(f"{r:.1%}" for r in rates) + " |")


if __name__ == "__main__":
    main()
