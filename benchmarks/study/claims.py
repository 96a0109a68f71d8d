"""The papers' claims against the study's runs: figure and verdict for each, by criteria fixed as its first seed ran.

aepo compare benchmarks/study/study.toml --out runs/study
aepo compare benchmarks/study/rivals.toml --out runs/rivals
python benchmarks/study/claims.py runs/study runs/rivals [--report claims.md]

A verdict is `holds` or `does not hold` where every seed (or the whole 95 % interval over seeds and problems, see
docs/compare.md) says so, else `not decidable here`. Entropy in nats per token; the end is the mean of the last ten
steps. Seeds whose runs are not all finished are left out.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runs import Runs, each, end, spread, table

from aepo.analysis.compare.results import Result
from aepo.analysis.tracking import SETTLED, tracking
from aepo.evaluation.statistics import Interval, crossed_interval

HOLDS, FAILS, OPEN = "holds", "does not hold", "not decidable here"
HERE = Path(__file__).parent
TARGETS = ("0.2", "0.4", "0.6", "0.8", "1.0", "1.2")
# Nats: what counts as held over the last third. pass@1: what counts as no difference.
HELD, SAME = 0.05, 0.03
# Steps of the target in the arm `aepo steps`: down at the first, up at the second.
DOWN, UP = 45, 75


@dataclass(frozen=True)
class Finding:
    claim: str
    figure: str
    verdict: str


# --- figures ------------------------------------------------------------------------------------------------


def first(result: Result) -> float:
    return float(result.rows[0]["entropy"])


def overshoot(result: Result) -> float:
    """How far the entropy went beyond the target after it first reached it from above, nats."""
    target = result.target()
    assert target is not None
    entropies = [row["entropy"] for row in result.rows]
    reached = next((i for i, entropy in enumerate(entropies) if entropy <= target), None)
    return float("nan") if reached is None else target - min(entropies[reached : reached + 30])


def steps_to(result: Result, change: int, target: float) -> int:
    """Steps after `change` until the entropy is within `SETTLED` of the target; to the run's end if never."""
    after = [row["entropy"] for row in result.rows[change:]]
    return next((i for i, entropy in enumerate(after) if abs(entropy - target) <= SETTLED), len(after))


# --- verdicts -----------------------------------------------------------------------------------------------


def all_or_none(facts: Sequence[bool]) -> str:
    return HOLDS if all(facts) else FAILS if not any(facts) else OPEN


def above_zero(found: Interval) -> str:
    assert found.low is not None and found.high is not None
    return HOLDS if found.low > 0 else FAILS if found.high < 0 else OPEN


def together(*verdicts: str) -> str:
    """Holds if each does; fails if one fails."""
    return HOLDS if set(verdicts) == {HOLDS} else FAILS if FAILS in verdicts else OPEN


def from_to(results: Sequence[Result]) -> str:
    firsts, ends = [first(r) for r in results], [end(r) for r in results]
    return f"entropy {each(firsts)} in the first step, {each(ends)} at the end"


def collapses(runs: Runs, label: str, claim: str) -> Finding:
    """The end lies below half of the first measurement."""
    results = runs.of(label)
    verdict = all_or_none([end(r) < first(r) / 2 for r in results])
    return Finding(claim, from_to(results), verdict)


def explodes(runs: Runs, label: str, claim: str) -> Finding:
    """The end lies above twice the first measurement."""
    results = runs.of(label)
    return Finding(claim, from_to(results), all_or_none([end(r) > 2 * first(r) for r in results]))


def holds_target(runs: Runs, label: str) -> Finding:
    """RMSE over the last third of at most `HELD`."""
    errors = [r.tracking_error(None) for r in runs.of(label)]
    figure = f"RMSE over the last third {each(errors, '.3f')} nats"
    return Finding(f"{label}: held", figure, all_or_none([error <= HELD for error in errors]))


def asymmetry(runs: Runs) -> Finding:
    (label,) = (label for label in runs.labels if label.startswith("aepo steps"))
    down = [steps_to(r, DOWN, 0.4) for r in runs.of(label)]
    up = [steps_to(r, UP, 0.8) for r in runs.of(label)]
    figure = f"0.4 nats down in {each(down, '.0f')} steps, up in {each(up, '.0f')}"
    return Finding(
        "Entropy rises more slowly than it falls", figure, all_or_none([u > d for u, d in zip(up, down, strict=True)])
    )


def ahead(runs: Runs, label: str, other: str, ks: Sequence[int]) -> Finding:
    found = [runs.difference(label, other, k) for k in ks]
    figure = "; ".join(f"pass@{k} {spread(f)}" for k, f in zip(ks, found, strict=True))
    return Finding(f"{label} is ahead of {other}", figure, together(*map(above_zero, found)))


def beyond_base(runs: Runs, label: str, k: int) -> Finding:
    below, above = runs.difference("base model", "grpo", k), runs.difference(label, "base model", k)
    figure = f"at k = {k}: base - GRPO {spread(below)}; {label} - base {spread(above)}"
    return Finding(
        f"{label} is beyond the base model where GRPO is below it",
        figure,
        together(above_zero(below), above_zero(above)),
    )


def rises_then_falls(runs: Runs, k: int) -> Finding:
    """The best target is neither the lowest nor the highest, and both of these are below it."""
    labels = [f"aepo {target}" for target in TARGETS]
    means = {label: float(runs.passes(label, k).mean()) for label in labels}
    best = max(labels, key=means.__getitem__)
    figure = ", ".join(f"{label[5:]}: {mean:.3f}" for label, mean in means.items())
    claim = f"pass@{k} rises and then falls with entropy"
    if best in (labels[0], labels[-1]):
        return Finding(claim, f"{figure}; best at an end", FAILS)
    rise, fall = (runs.difference(best, label, k) for label in (labels[0], labels[-1]))
    figure += f"; best {best[5:]}, above the lowest by {spread(rise)}, above the highest by {spread(fall)}"
    return Finding(claim, figure, together(above_zero(rise), above_zero(fall)))


def insensitive(runs: Runs, labels: Sequence[str], k: int) -> Finding:
    """The interval of each difference to the default lies within `SAME`."""
    found = [runs.difference(label, "aepo 0.8", k) for label in labels]
    inside = [f.low is not None and f.high is not None and f.low >= -SAME and f.high <= SAME for f in found]
    apart = [above_zero(f) != OPEN for f in found]
    verdict = HOLDS if all(inside) else FAILS if any(apart) else OPEN
    figure = "; ".join(f"{label} - default: {spread(f)}" for label, f in zip(labels, found, strict=True))
    return Finding(f"pass@{k} does not depend on alpha", figure, verdict)


def law(runs: Runs, label: str) -> str:
    """A row of the laws' table."""
    results = runs.of(label)
    held = [tracking(r.rows) for r in results]
    settled = ", ".join("never" if h.settling_step is None else str(h.settling_step) for h in held)
    cells = [
        label,
        settled,
        each([h.last_third_rmse for h in held], ".3f"),
        each([overshoot(r) for r in results], ".3f"),
        each([h.extra_share for h in held], ".0%"),
        each([float(len(r.rows)) for r in results], ".0f"),
        f"{runs.passes(label, 1).mean():.3f}",
        f"{runs.passes(label, runs.base().samples).mean():.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def findings(runs: Runs, named: Mapping[str, Runs]) -> Iterator[Finding]:
    """runs: the study's. named: of each label, with the rivals' where there are any."""
    k = runs.base().samples
    yield collapses(runs, "grpo", "GRPO collapses")
    yield collapses(runs, "entropy-reg 0.05", "Entropy-Reg collapses with a small coefficient (0.05)")
    if "entropy-reg 0.1" in named:
        yield explodes(named["entropy-reg 0.1"], "entropy-reg 0.1", "Entropy-Reg explodes at 0.1")
    yield explodes(runs, "entropy-reg 0.3", "Entropy-Reg explodes with a large coefficient (0.3)")
    yield collapses(runs, "entropy-adv", "Entropy-Adv collapses")
    for target in TARGETS:
        yield holds_target(runs, f"aepo {target}")
    for label in ("aepo weight 4 1.0", "aepo weight 8 1.2", "aepo-reweighted 0.8", "aepo-reweighted 1.0"):
        if label in named:
            yield holds_target(named[label], label)
    yield holds_target(runs, next(label for label in runs.labels if label.startswith("aepo sine")))
    yield asymmetry(runs)
    yield collapses(runs, "aepo-no-temperature 0.8", "Ablation A (T = 1) collapses")
    yield collapses(runs, "aepo-signed 0.8", "Ablation B (signed advantages) collapses")
    for target in ("0.8", "1.0"):
        yield ahead(runs, f"aepo {target}", "grpo", (1, k))
    yield beyond_base(runs, "aepo 1.0", k)
    for at in (1, k):
        yield rises_then_falls(runs, at)
    for at in (1, k):
        yield insensitive(runs, ("aepo weight 1 0.8", "aepo weight 4 0.8"), at)
    yield ahead(runs, "aepo replace 0.8", "aepo 0.8", (1, k))
    yield ahead(runs, "aepo 0.8", "dcpo 0.8", (1, k))
    yield ahead(runs, "aepo 0.8", "dcpo tuned 0.8", (1, k))


BEST = "aepo-reweighted 1.0"
# What the best arm is beside; not among the claims, and chosen after its figures were seen.
BESIDE = ("base model", "grpo", "aepo 1.0", "aepo-reweighted 0.8", "entropy-reg 0.1")


def beside(named: Mapping[str, Runs], ks: Sequence[int]) -> Iterator[str]:
    """The best arm less each of `BESIDE`, at each k."""
    runs = named[BEST]
    for other in BESIDE:
        theirs = named.get(other, runs)
        found = [crossed_interval(runs.passes(BEST, k) - theirs.passes(other, k)) for k in ks]
        yield f"| {other} | {' | '.join(map(spread, found))} |"


LAWS = (
    *("aepo switch 0.8", "aepo proportional 0.8", "aepo 0.8", "aepo replace 0.8", "aepo weight 1 0.8"),
    *("aepo weight 4 0.8", "aepo half, weight 4 0.8", "aepo-reweighted 0.8", "dcpo 0.8", "dcpo tuned 0.8"),
    *("aepo 1.0", "aepo weight 4 1.0", "aepo-reweighted 1.0", "aepo 1.2", "aepo weight 8 1.2"),
    *("trl-adaptive tuned 0.8", "skywork-or1 tuned 0.8", "aer tuned 0.8", "sac-dual tuned 0.8"),
    *("entropic tuned 0.8", "pos-adv-reweight tuned 0.8", "moving-bound tuned 0.8"),
)


def rivals(named: Mapping[str, Runs]) -> Iterator[str]:
    """Every arm against AEPO at 0.8 of the same comparison, best pass@1 first."""
    for label, runs in sorted(named.items(), key=lambda pair: -pair[1].passes(pair[0], 1).mean()):
        cells = [label, f"{statistics.fmean(end(r) for r in runs.of(label)):.2f}"]
        for at in (1, runs.base().samples):
            cells.append(f"{runs.passes(label, at).mean():.3f} ({spread(runs.difference(label, 'aepo 0.8', at))})")
        yield f"| {' | '.join(cells)} | {statistics.fmean(r.numbers()['seconds_cpu'] for r in runs.of(label)):.0f} |"


def report(studies: Sequence[Runs]) -> str:
    runs, k = studies[0], studies[0].base().samples
    base = f"{runs.passes('base model', 1).mean():.3f} and pass@{k} {runs.passes('base model', k).mean():.3f}"
    seeds = "; ".join(f"{r.folder.name}: seeds {', '.join(map(str, r.seeds))}" for r in studies)
    named = {label: found for found in reversed(studies) for label in found.labels}
    claims = (f"| {f.claim} | {f.figure} | **{f.verdict}** |" for f in findings(runs, named))
    laws = (law(named[label], label) for label in LAWS if label in named)
    held = "| run | settled at step | RMSE, last third (nats) | overshoot (nats) | extra over ordinary | steps "
    apart = f"| run | entropy at the end | pass@1 (less AEPO's at 0.8) | pass@{k} (likewise) | CPU s |"
    parts = [
        [f"{seeds}. The base model has pass@1 {base}.", ""],
        table("| claim | what came out | verdict |", claims),
        table(f"{held}| pass@1 | pass@{k} |", laws),
        table(apart, rivals(named)),
    ]
    if BEST in named:
        ks = (1, 16, 64, k)
        parts.append(table(f"| {BEST} less | {' | '.join(f'pass@{at}' for at in ks)} |", beside(named, ks)))
    return "\n".join(line for part in parts for line in part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of study.toml, and perhaps of rivals.toml")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    files = (HERE / "study.toml", HERE / "rivals.toml")
    text = report([Runs(file, folder) for file, folder in zip(files, options.folders, strict=False)])
    print(text)
    if options.report:
        options.report.write_text(text)


if __name__ == "__main__":
    main()
