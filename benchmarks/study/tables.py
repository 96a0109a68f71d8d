"""Every arm of a study against its baseline and against its pair, best pass@1 first.

aepo compare benchmarks/study/surrogates.toml --out runs/surrogates
python benchmarks/study/tables.py benchmarks/study/surrogates.toml runs/surrogates
                                  [--baseline "aepo 0.8"] [--report tables.md]

The pair of `aepo on X` is X, and that of `X, a variant` is X. Entropy in nats per token, at the end (the mean of the
last ten steps); RMSE to the target over the last third of the steps, that of the worst seed in brackets, and its
multiple of the readings' standard error. The last table has the share of all steps with a command above 1, and the
share of the last third with the command at its limit. A study with a control of the length has a table of the mean
lengths over the last third of the steps, and their standard deviation from step to step, as shares of the first one.
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

from runs import Runs, each, end, spread, table

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
        largest = max(one.last_third_rmse for one in held)
        cells += ["", ""] if math.isnan(rmse) else [f"{rmse:.3f} ({largest:.3f})", f"{of_floor:.2f}"]
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


def commands(runs: Runs) -> Iterator[str]:
    """The rows of the arms whose control has commands."""
    for label in runs.labels:
        above, limit = [], []
        for result in runs.of(label):
            given = [row.get("command") for row in result.rows]
            late = result.rows[2 * len(result.rows) // 3 :]
            above.append(statistics.fmean(abs(command or 0.0) > 1 for command in given))
            limit.append(statistics.fmean(row.get("saturated") or 0.0 for row in late))
        if any(command is not None for command in given):
            yield f"| {label} | {each(above, '.0%')} | {each(limit, '.0%')} |"


def lengths(runs: Runs) -> Iterator[str]:
    """The mean length of each arm over the last third of the steps, as a share of that of the first step."""
    for label in runs.labels:
        first = [result.rows[0]["length"] for result in runs.of(label)]
        late = [[row["length"] for row in result.rows[2 * len(result.rows) // 3 :]] for result in runs.of(label)]
        shares = [statistics.fmean(some) / one for some, one in zip(late, first, strict=True)]
        apart = [statistics.pstdev(some) / one for some, one in zip(late, first, strict=True)]
        mean = statistics.fmean(map(statistics.fmean, late))
        yield f"| {label} | {mean:.1f} | {each(shares)} | {each(apart, '.3f')} |"


def report(runs: Runs, baseline: str) -> str:
    """Return all tables."""
    if not runs.seeds:
        raise SystemExit(f"{runs.folder}: no seed has all of its runs finished")
    k = runs.base().samples
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
    if any("length" in label for label in runs.labels):
        lines += table(
            "| run | length, tokens | as a share of the start | its deviation in the last third |", lengths(runs)
        )
    lines += table("| run | command above 1 | at the limit, last third |", commands(runs))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the study, such as surrogates.toml")
    parser.add_argument("folder", type=Path, help="the folder of its runs")
    parser.add_argument("--baseline", help="the arm that the first table compares with (default: the study's)")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    runs = Runs(options.study, options.folder)
    text = report(runs, options.baseline or runs.study.baseline)
    print(text)
    if options.report:
        options.report.write_text(text)


if __name__ == "__main__":
    main()
