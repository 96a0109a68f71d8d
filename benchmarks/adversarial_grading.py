"""Hostile answers: none may hang or end the program, or be graded right.

python benchmarks/adversarial_grading.py [--count 10000] [--grader math] [--processes 2] [--seconds 2] [--memory 1024]

Prints how many of each kind came back, how many were ended at a limit and by which, and how long the whole took.
"""

from __future__ import annotations

import argparse
import random
import time
from collections import Counter
from collections.abc import Callable

from aepo.grading.pool import GradingPool
from aepo.grading.table import GRADERS

SYMBOLS = r"0123456789abcxyzEINS()[]{}\_^&%$#~.,;:+-*/=<>!|' " + "\x00\n\u202e\u4e2d\u0663"
COMMANDS = [
    r"\frac",
    r"\sqrt",
    r"\sum_{n=1}^{\infty}",
    r"\int_0^\infty",
    r"\prod",
    r"\lim_{x\to 0}",
    r"\begin{matrix}",
    r"\end{matrix}",
    r"\left(",
    r"\right)",
    r"\boxed{",
    r"\binom",
    r"\log",
    r"\pm",
    r"\cup",
    r"\text{",
    r"\%",
    r"\infty",
]
TRAPS = [
    "9^{9^{9^9}}",
    r"9^{9^{9^{9^{9}}}} - 9^{9^{9^{9^{9}}}}",
    r"10^{10^{10}}",
    "99999999!",
    "(10^{9})!",
    "((9!)!)!",
    r"\binom{10^{9}}{5 \cdot 10^{8}}",
    r"\sum_{n=1}^{10^{12}} \frac{1}{n^{n}}",
    r"\int_0^{1} x^{x^{x^{x}}} dx",
    r"\prod_{n=1}^{10^{9}} n",
    r"\lim_{x \to 0} \frac{\sin(\sin(\sin(x)))}{x^{x^{x}}}",
    r"(x+y+z+w+v)^{400}",
    r"(1+\sqrt{2}+\sqrt{3}+\sqrt{5}+\sqrt{7}+\sqrt{11}+\sqrt{13})^{60}",
    r"\sqrt[97]{2^{97}+1}^{9999999}",
    r"\frac{(x^{200}-1)(y^{200}-1)}{(x-1)(y-1)}",
    r"\log(\log(\log(9^{9^{9}})))",
    "1/(1-1)",
    r"0^{0^{0}}",
    r"\infty-\infty",
    r"\frac{1}{\frac{1}{\frac{1}{0}}}",
    "x" * 900,
    "__import__('os').system('true')",
    "exec('1')",
    r"\input{/etc/passwd}",
    r"\cos(\cos(\cos(\cos(\cos(10^{10^{6}})))))",
    r"e^{e^{e^{e^{e}}}}",
    r"2^{2^{2^{2^{2^{2}}}}}",
    r"\sqrt{" * 40 + "2" + "}" * 40,
]


def trap(rng: random.Random) -> str:
    return rng.choice(TRAPS).replace("9^{9", f"{rng.randint(2, 9)}^{{{rng.randint(7, 9)}") + f" + {rng.randint(1, 99)}"


def tower(rng: random.Random) -> str:
    levels = [str(rng.randint(2, 99)) for _ in range(rng.randint(3, 9))]
    return "^{".join(levels) + "}" * (len(levels) - 1)


def nested(rng: random.Random) -> str:
    opening, closing = rng.choice(
        [("(", ")"), ("[", "]"), ("{", "}"), (r"\frac{1}{1+", "}"), (r"\sqrt{1+", "}"), ("-(", ")")]
    )
    depth = int(10 ** rng.uniform(1, 4.3))
    return opening * depth + "1" + closing * depth


def digits(rng: random.Random) -> str:
    return rng.choice(["", "-", "0.", "1/"]) + rng.choice("123456789") * int(10 ** rng.uniform(2, 6))


def long_text(rng: random.Random) -> str:
    part = rng.choice(["a", "1+", "x,", "(", "\\frac", "$", "1,000", " ", "\n", r"\boxed{"])
    return part * int(10 ** rng.uniform(3, 5.5))


def no_text(rng: random.Random) -> str:
    return rng.randbytes(rng.randint(1, 400)).decode("utf-8", "surrogateescape")


def unbalanced(rng: random.Random) -> str:
    parts = ["{", "}", "(", ")", "[", "]", r"\{", r"\}", "1", "x"]
    return "".join(rng.choice(parts) for _ in range(rng.randint(1, 200)))


def soup(rng: random.Random) -> str:
    parts = [rng.choice(COMMANDS) if rng.random() < 0.3 else rng.choice(SYMBOLS) for _ in range(rng.randint(1, 60))]
    return "".join(parts)


def formula(rng: random.Random, depth: int = 4) -> str:
    """Well-formed, with numbers that grow."""
    if depth == 0:
        return rng.choice(["x", "y", "n", r"\pi", "e", "i", str(rng.randint(0, 10**6)), f"{rng.random():.9f}"])
    a, b = formula(rng, depth - 1), formula(rng, depth - 1)
    shapes = [f"({a}+{b})", f"({a}) \\cdot ({b})", f"\\frac{{{a}}}{{{b}}}", f"({a})^{{{b}}}", f"\\sqrt{{{a}}}"]
    return rng.choice([*shapes, f"\\sin({a})", f"({a})!", f"\\log({b})", f"\\lfloor {a} \\rfloor", f"|{a}|"])


KINDS: dict[str, Callable[[random.Random], str]] = {
    kind.__name__: kind for kind in (trap, tower, nested, digits, long_text, no_text, unbalanced, soup, formula)
}
GOLDS = [
    "18",
    r"\frac{3}{7}",
    r"(3,4]",
    r"1 \pm \sqrt{19}",
    "x^2+2x+3",
    "y = 2x+3",
    r"\text{Evelyn}",
    "4.5e33",
    r"\sqrt{51}",
]


def cases(count: int, seed: int = 0) -> list[tuple[str, str, str]]:
    """(kind, completion, answer), the kinds in turn."""
    rng, found = random.Random(seed), []
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        text = KINDS[kind](rng)
        box = f"\\boxed{{{text}}}" if rng.random() < 0.9 else text
        found.append((kind, box, rng.choice(GOLDS)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--grader", choices=GRADERS, default="math")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--memory", type=int, default=1024, help="MiB of a worker")
    arguments = parser.parse_args()
    given = cases(arguments.count)
    started = time.perf_counter()
    with GradingPool(
        GRADERS[arguments.grader](), arguments.processes, arguments.seconds, memory_mb=arguments.memory
    ) as pool:
        grades = pool.grade([(completion, answer) for _, completion, answer in given])
    took = time.perf_counter() - started
    sent = Counter(kind for kind, _, _ in given)
    ended = Counter(kind for (kind, _, _), grade in zip(given, grades, strict=True) if grade.failed)
    right = [(box[:80], answer) for (_, box, answer), grade in zip(given, grades, strict=True) if grade.correct]
    print("| kind | answers | ended at a limit |\n|---|---|---|")
    for kind in KINDS:
        print(f"| {kind} | {sent[kind]} | {ended[kind]} |")
    print(f"\n{len(grades)} answers in {took:.0f} s; {pool.failures} ended at a limit:")
    for reason, number in Counter(grade.reason[:60] for grade in grades if grade.failed).most_common():
        print(f"- {number}: {reason}")
    print(f"graded right: {len(right)} {right[:20]}")


if __name__ == "__main__":
    main()
