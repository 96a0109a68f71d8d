"""The grader `qwen` against the original program, Qwen2.5-Math's evaluation.

python benchmarks/qwen_original.py DATA [--every 1] [--write FILE]

AEPO_QWEN_ORIGINAL names a folder that holds the original's folder `evaluation` and an environment `venv` with its
requirements: pip install sympy==1.12 antlr4-python3-runtime==4.11.1 word2number pebble timeout-decorator regex numpy
tqdm python-dateutil, and evaluation/latex2sympy. Without the variable, the verdicts in tests/grading/qwen_verdicts.json
are compared, which --write made. Prints every difference.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections import Counter
from pathlib import Path

from qwen_rows import Case, cases, digest

from aepo.grading.pool import GradingPool
from aepo.grading.qwen import QwenGrader

HERE = Path(__file__).parent
KEPT = HERE.parent / "tests" / "grading" / "qwen_verdicts.json"


def original(folder: Path, found: list[Case]) -> list[bool | None]:
    """The original's verdicts; None where it came to its limit."""
    lines = [json.dumps({"name": c.name, "completion": c.completion, "example": c.example}) for c in found]
    command = [folder / "venv/bin/python", HERE / "qwen_driver.py", folder / "evaluation"]
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True)
    verdicts = [json.loads(line) for line in done.stdout.splitlines()]
    if len(verdicts) != len(found):
        raise SystemExit(f"the original ended after {len(verdicts)} of {len(found)} rows: {done.stderr[-500:]}")
    return verdicts


def kept(found: list[Case]) -> list[bool | None]:
    """The verdicts that were kept: 1 right, 0 wrong, - at the limit."""
    facts = json.loads(KEPT.read_text())
    if facts["digest"] != digest(found):
        raise SystemExit(f"{KEPT.name} is of other rows; make it again with AEPO_QWEN_ORIGINAL and --write")
    return [{"1": True, "0": False, "-": None}[letter] for letter in "".join(facts["verdicts"])]


def ours(found: list[Case], processes: int = 2) -> list[bool | None]:
    """The grader's verdicts; None where it failed."""
    verdicts: dict[int, bool | None] = {}
    for name in sorted({case.name for case in found}):
        grader = QwenGrader(units=name == "minerva_math", from_solution=name == "math")
        mine = [i for i, case in enumerate(found) if case.name == name]
        with GradingPool(grader, processes, seconds=10) as pool:
            grades = pool.grade([(found[i].completion, found[i].answer) for i in mine])
        verdicts |= {i: None if grade.failed else grade.correct for i, grade in zip(mine, grades, strict=True)}
    return [verdicts[i] for i in range(len(found))]


def write(path: Path, found: list[Case], verdicts: list[bool | None]) -> None:
    letters = "".join({True: "1", False: "0", None: "-"}[verdict] for verdict in verdicts)
    lines = [letters[i : i + 100] for i in range(0, len(letters), 100)]
    path.write_text(json.dumps({"digest": digest(found), "verdicts": lines}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=1, help="take every k-th row")
    parser.add_argument("--write", type=Path, help="keep the original's verdicts in this file")
    arguments = parser.parse_args()
    found = cases(arguments.data)
    folder = os.environ.get("AEPO_QWEN_ORIGINAL")
    chosen = found[:: arguments.every]
    if folder:
        theirs = original(Path(folder), chosen)
        if arguments.write and arguments.every == 1:
            write(arguments.write, found, theirs)
    else:
        theirs = kept(found)[:: arguments.every]
    mine = ours(chosen)
    counts, different = Counter(case.kind for case in chosen), Counter()
    for case, verdict, own in zip(chosen, theirs, mine, strict=True):
        if verdict is not own:
            different[case.kind] += 1
            print(f"- {case.name}: {case.completion[-90:]!r} for {case.answer[:60]!r}: original {verdict}, ours {own}")
    print("\n| kind | rows | the original's verdict |\n|---|---|---|")
    for kind in counts:
        print(f"| {kind} | {counts[kind]} | {counts[kind] - different[kind]} |")


if __name__ == "__main__":
    main()
