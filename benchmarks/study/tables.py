"""Every arm of a study against its baseline and against its pair, best pass@1 first.

aepo compare benchmarks/study/surrogates.toml --out runs/surrogates
python benchmarks/study/tables.py benchmarks/study/surrogates.toml runs/surrogates [--report tables.md]

The pair of `aepo on X` is X, and that of `X, a variant` is X. Entropy in nats per token, at the end (the mean of the
last ten steps); RMSE to the target over the last third of the steps, and as a multiple of the readings' standard error.
Differences are paired by problem and seed, with 95 % intervals over both (docs/compare.md). Seeds whose runs are not
all finished are left out.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from runs import Runs, end, spread, table

from aepo.analysis.tracking import tracking


def pair(label: str) -> str | None:
    """Return the label of the arm that this one is a variant of; None if it is none."""
    on = re.fullmatch(r"aepo on (\S+?)(,.*)?( [\d.]+)?", label)
    if on:
        return on[1]
    variant = re.fullmatch(r"([^,]+), .*?( [\d.]+)?", label)
    return variant[1] + (variant[2] or "") if variant else None


def arms(runs: Runs, baseline: str) -> Iterator[str]:
    """The rows of all arms."""
    for label in sorted(runs.labels, key=lambda label: -runs.passes(label, 1).mean()):
        results = runs.of(label)
        held = [tracking(result.rows) for result in results]
        cells = [label, f"{statistics.fmean(map(end, results)):.2f}"]
        rmse = statistics.fmean(one.last_third_rmse for one in held)
        of_floor = statistics.fmean(one.of_floor for one in held)
        cells += ["", ""] if math.isnan(rmse) else [f"{rmse:.3f}", f"{of_floor:.2f}"]
        cells.append(f"{statistics.fmean(len(result.rows) for result in results):.0f}")
        for k in (1, runs.base().samples):
            apart = "" if label == baseline else f" ({spread(runs.difference(label, baseline, k))})"
            cells.append(f"{runs.passes(label, k).mean():.3f}{apart}")
        cells.append(f"{statistics.fmean(result.numbers()['seconds_cpu'] for result in results):.0f}")
        yield f"| {' | '.join(cells)} |"


def pairs(runs: Runs) -> Iterator[str]:
    """The rows of the arms that have a pair."""
    for label in runs.labels:
        other = pair(label)
        if other in runs.labels:
            apart = [spread(runs.difference(label, other, k)) for k in (1, runs.base().samples)]
            yield f"| {label} | {other} | {' | '.join(apart)} |"


def report(runs: Runs) -> str:
    """Return both tables."""
    k, baseline = runs.base().samples, runs.study.baseline
    base = ", ".join(f"pass@{at} {runs.passes('base model', at).mean():.3f}" for at in (1, k))
    less = f"(less {baseline}'s)"
    head = f"| run | entropy at the end | RMSE | of floor | steps | pass@1 {less} | pass@{k} {less} | CPU s |"
    lines = [
        f"Seeds {', '.join(map(str, runs.seeds))}. The base model: {base}.",
        "",
        *table(head, arms(runs, baseline)),
    ]
    found = list(pairs(runs))
    if found:
        lines += table(f"| run | less | pass@1 | pass@{k} |", found)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the study, such as surrogates.toml")
    parser.add_argument("folder", type=Path, help="the folder of its runs")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    text = report(Runs(options.study, options.folder))
    print(text)
    if options.report:
        options.report.write_text(text)


if __name__ == "__main__":
    main()
