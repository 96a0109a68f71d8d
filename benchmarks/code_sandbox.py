"""Speed of the sandbox beside a bare interpreter, verdicts, a soak, and judging while a sampler goes on.

python benchmarks/code_sandbox.py speed [--count 200] [--data FOLDER]
python benchmarks/code_sandbox.py verdicts --data FOLDER
python benchmarks/code_sandbox.py soak [--count 10000] [--data FOLDER]
python benchmarks/code_sandbox.py overlap [--count 512] --data FOLDER

FOLDER holds HumanEval.jsonl and mbpp.jsonl; without it, the programs are functions of one line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from aepo.grading.code import sandbox
from aepo.grading.code.answer import code_of
from aepo.grading.code.formats import problem_of
from aepo.grading.code.judge import CodeGrade, CodeJudge, grade
from aepo.grading.code.problem import Call, CodeProblem
from aepo.grading.code.sandbox import Limits, Sandbox
from aepo.sampling.base import Sampler
from aepo.sampling.prompts import Judging
from aepo.tasks import Data
from aepo.tasks.code import Code, code_record
from aepo.types import Completion, Prompt, Request

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.grading.programs import PROBES, WAITING, WRONG

# The sandboxes of this program are known by this text in their command line.
MARK = f"# sandboxes of process {os.getpid()}"


@dataclass(frozen=True)
class Case:
    """`Case` is a program with its tests, and the same as one script for a bare interpreter."""

    name: str
    code: str
    problem: CodeProblem
    script: str
    entry: str


def cases(folder: Path | None) -> list[Case]:
    """Return the canonical solutions of HumanEval and MBPP, or without a folder a function of one line."""
    if folder is None:
        code = "def f(values):\n    return sorted(values)\n"
        problem = CodeProblem((Call("f", "[3, 1, 2]", "[1, 2, 3]"),))
        return [Case("one line", code, problem, f"{code}assert f([3, 1, 2]) == [1, 2, 3]", "f")]
    rows = [json.loads(line) for name in ("HumanEval", "mbpp") for line in (folder / f"{name}.jsonl").open()]
    return [_case(row) for row in rows]


def _case(row: dict[str, Any]) -> Case:
    problem = problem_of(row, str(row["task_id"]))
    code = code_of(code_record(row, "row")["solution"], problem) or ""
    if "entry_point" in row:
        entry = row["entry_point"]
        script = f"{row['prompt']}{row['canonical_solution']}\n{row['test']}\ncheck({entry})"
    else:
        entry = next((test.function for test in problem.tests if isinstance(test, Call)), "")
        parts = row["code"], row["test_setup_code"], *row["test_list"], *row["challenge_test_list"]
        script = "\n".join(parts)
    return Case(str(row["task_id"]), code, problem, script, entry)


# --- speed --------------------------------------------------------------------------------------------------


def speed(count: int, folder: Path | None) -> None:
    """Time programs in turn, bare and judged, so that both see the same load."""
    isolated = Sandbox()
    isolated.check()
    for name, some in (("one line", cases(None)), ("HumanEval and MBPP", cases(folder) if folder else [])):
        if some:
            chosen = list(itertools.islice(itertools.cycle(random.Random(0).sample(some, len(some))), count))
            in_turn(name, chosen, isolated)
            at_once(name, chosen, isolated)


def in_turn(name: str, some: Sequence[Case], isolated: Sandbox) -> None:
    """Print processor time and wall-clock time of one program after the other."""
    bare, boxed = [], []
    for case in some:
        bare.append(timed(lambda case=case: run_bare(case)))
        boxed.append(timed(lambda case=case: run_judged(case, isolated)))
    for place, what in enumerate(("processor time", "wall clock, one at a time")):
        first, second = (1e3 * statistics.mean(pair[place] for pair in times) for times in (bare, boxed))
        print(f"{name}, {what}: bare {first:.1f} ms, judged {second:.1f} ms, ratio {second / first:.2f}", flush=True)


def at_once(name: str, some: Sequence[Case], isolated: Sandbox) -> None:
    """Print the wall-clock time a program with one program a processor."""
    workers = os.cpu_count() or 1
    bare, judged = 0.0, 0.0
    with ThreadPoolExecutor(workers) as threads, CodeJudge(isolated, workers) as judge:
        for first in range(0, len(some), 50):
            part = some[first : first + 50]
            began = time.perf_counter()
            list(threads.map(run_bare, part))
            middle = time.perf_counter()
            assert all(found.correct for found in judge.judge([(case.code, case.problem) for case in part]))
            bare, judged = bare + middle - began, judged + time.perf_counter() - middle
    first_ms, second_ms = 1e3 * bare / len(some), 1e3 * judged / len(some)
    shown = f"bare {first_ms:.1f} ms, judged {second_ms:.1f} ms, ratio {second_ms / first_ms:.2f}"
    print(f"{name}, wall clock a program, {workers} at a time: {shown}", flush=True)


def run_bare(case: Case) -> None:
    """Run the script of a case in a bare interpreter: the one that judged programs have.

    It has a session of its own, as a sandbox has: on a busy machine Linux divides the processors among sessions.
    """
    command = [sandbox._interpreter(), "-I", "-S", "-c", case.script]
    subprocess.run(command, capture_output=True, check=True, start_new_session=True)


def run_judged(case: Case, isolated: Sandbox) -> None:
    """Judge a case."""
    found = grade(case.code, case.problem, isolated)
    assert found.correct, (case.name, found.reason)


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Return the processor time of this process and its children, and the wall-clock time, seconds."""
    began, wall = processor(), time.perf_counter()
    work()
    return processor() - began, time.perf_counter() - wall


def processor() -> float:
    """Return the processor time of this process and of its children that have ended, seconds."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


# --- verdicts -----------------------------------------------------------------------------------------------

# What a wrong function returns in the place of the right value; each differs from it by Python's comparison.
WRONG_VALUES = {
    "None": "None if value is not None else 0",
    "one more": "_aepo_more(value)",
    "wrong at the last test": "_aepo_more(value) if asked == LAST else value",
    "inner": "[value]",
}
_WRAPPED = """

def _aepo_more(value):
    if value is None: return 0
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float, complex)): return value + 1 if value == value and value + 1 != value else 0
    if isinstance(value, str): return value + "x"
    if isinstance(value, bytes): return value + b"x"
    if isinstance(value, (list, tuple)):
        return type(value)([*value[:-1], _aepo_more(value[-1])]) if value else type(value)([None])
    if isinstance(value, dict): return {**value, "aepo": 1}
    return None

_aepo_right = NAME
def NAME(*given, **named):
    asked = repr((given, named))
    value = _aepo_right(*given, **named)
    return CHANGED
"""


def wrong(case: Case, change: str) -> str | None:
    """Return a program that computes the right values and returns other ones; None if the tests do not call it."""
    calls = [test for test in case.problem.tests if isinstance(test, Call)]
    if not calls or not case.entry.isidentifier():
        return None
    last = f"(lambda *a, **k: repr((a, k)))({calls[-1].arguments})"
    changed = WRONG_VALUES[change].replace("LAST", last)
    return case.code + _WRAPPED.replace("CHANGED", changed).replace("NAME", case.entry)


def verdicts(folder: Path) -> None:
    """Judge all canonical solutions and wrong forms of them, and print those with the wrong verdict."""
    some, began = cases(folder), time.perf_counter()
    with CodeJudge(Sandbox()) as judge:
        found = judge.judge([(case.code, case.problem) for case in some])
        print(f"{sum(g.correct for g in found)} of {len(found)} solutions pass, {time.perf_counter() - began:.0f} s")
        for case, one in zip(some, found, strict=True):
            if not one.correct:
                print("  fails:", case.name, one.reason)
        for change in WRONG_VALUES:
            pairs = [(case, code) for case in some if (code := wrong(case, change)) is not None]
            found = judge.judge([(code, case.problem) for case, code in pairs])
            print(f"{change}: {sum(g.correct for g in found)} of {len(found)} wrong programs pass", flush=True)
            for (case, _), one in zip(pairs, found, strict=True):
                if one.correct or one.failed:
                    print("  passes or has no verdict:", case.name, one.reason)


# --- soak ---------------------------------------------------------------------------------------------------


def soak(count: int, folder: Path | None) -> None:
    """Judge right, wrong and hostile programs, and print what is held before, meanwhile and after."""
    sandbox._START += MARK
    known, draws = cases(folder), random.Random(0)
    wanted = [next(candidates) for candidates in [_candidates(known, draws)] for _ in range(count)]
    Sandbox().check()
    grade("x = 1", CodeProblem((Call("f", "", "1"),)))
    before, began = held(), time.perf_counter()
    print("before", before, flush=True)
    seen: Counter[str] = Counter()
    limits = Limits(seconds=10), Limits(seconds=1, idle_seconds=2)
    with CodeJudge(Sandbox(limits=limits[0])) as patient, CodeJudge(Sandbox(limits=limits[1])) as quick:
        for first in range(0, count, 500):
            part = wanted[first : first + 500]
            for judge, kinds in ((patient, ("right", "wrong")), (quick, ("hostile", "probe"))):
                some = [(kind, code, problem) for kind, code, problem in part if kind in kinds]
                found = judge.judge([(code, problem) for _, code, problem in some])
                seen.update(f"{kind}: {verdict(one)}" for (kind, *_), one in zip(some, found, strict=True))
            print(first + len(part), held(), f"{time.perf_counter() - began:.0f} s", flush=True)
    time.sleep(2)
    print(f"{count} candidates, {time.perf_counter() - began:.0f} s", dict(sorted(seen.items())))
    print(f"before {before}\nafter  {held()}")


def _candidates(known: Sequence[Case], draws: random.Random) -> Iterator[tuple[str, str, CodeProblem]]:
    """Yield programs: of 100, 40 are right, 40 wrong, and 20 hostile or probes, which pass if they can do nothing."""
    two, nothing = CodeProblem((Call("f", "1", "2"),)), CodeProblem((Call("f", "", "[]"),))
    hostile = [("hostile", code, two) for code in (*(code for code, _ in WRONG.values()), *WAITING.values())]
    hostile += [("probe", code.replace("PORT", "9").replace("NAME", "'a'"), nothing) for code in PROBES.values()]
    for number in itertools.count():
        case = draws.choice(known)
        if number % 5 == 4:
            yield hostile[number // 5 % len(hostile)]
        elif number % 5 < 2 or (code := wrong(case, draws.choice(list(WRONG_VALUES)))) is None:
            yield "right", case.code, case.problem
        else:
            yield "wrong", code, case.problem


def verdict(found: CodeGrade) -> str:
    """Return a verdict in a word."""
    return "no verdict" if found.failed else "passes" if found.correct else "fails"


# --- judging while a sampler goes on ------------------------------------------------------------------------

# Characters of a token, seconds of a step of the stand-in, and the processor time of a heavy program, seconds.
CHARACTERS, STEP, HEAVY = 4, 0.05, 1.0


class Later(Data):
    """`Later` judges all programs after the last completion has ended."""

    background = False


@dataclass
class Replaying(Sampler):
    """`Replaying` stands in for a sampler: its completions are known, and each step ends those of that length.

    With `works` a step takes its time from the processor, as on a machine without a GPU; else it sleeps.
    """

    texts: Sequence[str]
    works: bool

    def sample(self, requests: Sequence[Request], *, max_tokens: int, generator: torch.Generator) -> list[Completion]:
        """Return the known completions."""
        rows = [tuple(text[n : n + CHARACTERS] for n in range(0, len(text), CHARACTERS)) for text in self.texts]
        pairs = zip(requests, rows, strict=True)
        made = [Completion(r.prompt, r.group, 1.0, tokens, (0.0,) * len(tokens), False) for r, tokens in pairs]
        for step in range(1, max(map(len, rows)) + 1):
            if self.works:
                busy_until = time.thread_time() + STEP
                while time.thread_time() < busy_until:
                    torch.rand(256, 256) @ torch.rand(256, 256)
            else:
                time.sleep(STEP)
            some = {number: made[number] for number, tokens in enumerate(rows) if len(tokens) == step}
            if some and self.ended is not None:
                self.ended(some)
        return made

    def with_cuts(self, cuts: object) -> Sampler:
        """Return the sampler itself."""
        return self


class Characters:
    """`Characters` is all of a policy that judging needs."""

    def decode(self, rows: Sequence[Sequence[str]], special_tokens: bool) -> list[str]:
        """Return the texts."""
        return ["".join(row) for row in rows]


def overlap(count: int, folder: Path) -> None:
    """Time the drawing and judging of one step's candidates, with and without overlap, in turns."""
    torch.set_num_threads(1)
    tasks = {name: kind(train=str(folder / "mbpp.jsonl"), verifier=Code()) for name, kind in KINDS.items()}
    problems = [tasks["after"].train_problem(0, index) for index in range(count)]
    tasks["after"].check()
    texts = []
    for number, problem in enumerate(problems):
        text = tasks["after"].solution(problem.data) or ""
        burn = f"\nimport time\nwhile time.process_time() < {HEAVY}: pass\n```"
        texts.append(text.removesuffix("\n```") + burn if number % 16 == 0 else text)
    requests = [Request(Prompt(one.id, (1,), one.data), group, 1, 1.0) for group, one in enumerate(problems)]
    for works in (False, True):
        sampler = Replaying(texts, works)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in tasks}
        found: list[list[float]] = []
        for name in [*tasks] * 2:
            times[name].append(timed(partial(judged_step, tasks[name], sampler, requests, found)))
        assert all(rewards == found[0] for rewards in found)
        for name, pairs in times.items():
            cpu, wall = (statistics.mean(pair[place] for pair in pairs) for place in (0, 1))
            kind = "works" if works else "sleeps"
            print(f"sampler {kind}, judged {name}: wall clock {wall:.1f} s, processor {cpu:.1f} s", flush=True)


def judged_step(task: Data, sampler: Sampler, requests: Sequence[Request], found: list[list[float]]) -> None:
    """Draw and judge all candidates, and append their rewards to `found`."""
    with Judging(task, Characters()) as judging:  # type: ignore[arg-type]
        made = judging.sample(sampler, requests, max_tokens=1, generator=torch.Generator())
        found.append([verdict.reward for verdict in judging.verdicts(made)])


KINDS: dict[str, type[Data]] = {"after": Later, "meanwhile": Data}


# --- what is held -------------------------------------------------------------------------------------------


def held() -> dict[str, int]:
    """Return the processes of our sandboxes, our descriptors and threads, files in /tmp, and memory (MiB)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    shared = next(line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("Shmem:"))
    return {
        "processes": sum(MARK.encode() in line for line in command_lines()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(status["Threads"]),
        "files": len(list(Path("/tmp").glob("aepo-*"))),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "resident": int(status["VmRSS"].split()[0]) // 1024,
        "shared": int(shared.split()[1]) // 1024,
    }


def command_lines() -> Iterator[bytes]:
    """Yield the command line of every process."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            yield path.read_bytes()
        except OSError:
            continue


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("speed", "verdicts", "soak", "overlap"))
    parser.add_argument("--count", type=int)
    parser.add_argument("--data", type=Path)
    arguments = parser.parse_args()
    if arguments.what == "speed":
        speed(arguments.count or 200, arguments.data)
    elif arguments.what == "verdicts":
        verdicts(arguments.data)
    elif arguments.what == "overlap":
        overlap(arguments.count or 512, arguments.data)
    else:
        soak(arguments.count or 10_000, arguments.data)
