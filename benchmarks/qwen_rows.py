"""Completions on which the grader `qwen` is compared with the original program, Qwen2.5-Math's evaluation.

Every known answer of the seven benchmarks in a box, about an eighth of them in other forms (answers of every kind that
the grader `math` reads, units, changed answers, no box), and the rows of `OWN`. They depend on the benchmark files and
a seed alone.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import answer_kinds
from gold_answers import FILES, Gold, boxed, changed, read, respelled

from aepo.grading.text import accepted

# The original's name for a file, where it is another one.
NAMES = {"math500": "math"}
ANY = "aime24"
# (known answer, completion)
OWN = [
    ("C", "The answer is (C)."),
    ("C", "A or B? C it is"),
    ("C", r"\boxed{C) 7}"),
    ("C", "choice is b, not c"),
    ("A", "a cat. The answer is b. The answer is A\n\nx"),
    ("AC", r"\boxed{A, C}"),
    ("25", "twenty-five"),
    ("25", r"\boxed{twenty-five}"),
    ("5", "The answer is 5 apples"),
    ("[1,2]", r"\boxed{x \in [1,2]}"),
    ("3i", r"\boxed{3j}"),
    ("5", r"\boxed{five}"),
    ("120", r"\boxed{one hundred twenty}"),
    ("2000000", r"\boxed{two million}"),
    ("0.5", r"\boxed{zero point five}"),
    ("12", r"\boxed{12 cm}"),
    ("12", r"\boxed{12\text{ cm}}"),
    ("Yes", r"\boxed{yes}"),
    ("True", r"\boxed{\text{True}}"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\boxed{\begin{bmatrix} 1 \\ 2.0 \end{bmatrix}}"),
    (r"\{1,2\}", r"\boxed{\begin{pmatrix}1\\2\end{pmatrix}}"),
    ("x+y=5", r"\boxed{5-x-y=0}"),
    ("y=2x", r"\boxed{2x}"),
    ("infinity", r"\boxed{\infty}"),
    ("1.50", r"\boxed{1.5}"),
    ("1.0", r"\boxed{1}"),
    (r"\frac12", r"\boxed{.5}"),
    ("no solution", r"\boxed{\text{No solution}}"),
    ("5", "答案是 5"),
    ("5", ""),
    ("5", "none"),
    (r"\emptyset", r"\boxed{\{\}}"),
    ("(1,2)", r"\boxed{[1,2]}"),
    ("(1,2)", r"\boxed{(1,2.0001)}"),
    ("[1,2]", r"\boxed{(1,2)}"),
    ("10", "x**2"),
    ("2^{10}", r"\boxed{1024}"),
    (r"\sin x", r"\boxed{sin(x)}"),
    ("x**2", r"\boxed{x^2}"),
    ("1000", r"\boxed{1000.09}"),
    ("1000", r"\boxed{1,000}"),
    ("50", r"\boxed{0.5}"),
    (r"9\pi", r"\boxed{28.2743}"),
    ("a+b", r"\boxed{b+a}"),
    ("f(x)=x", r"\boxed{x}"),
    ("1,2", r"\boxed{2,1}"),
    (r"1\pm 2", r"\boxed{3,-1}"),
    ("7", r"\boxed{007}"),
    (r"\frac{1}{2}", r"\boxed{1/2}"),
    (r"\sqrt2", r"\boxed{\sqrt{2}}"),
    ("E", "the answer is e"),
    ("B", "I pick B. C is wrong"),
    (r"5^\circ", r"\boxed{5}"),
    ("east", r"\boxed{\text{east}}"),
    ("a", r"\boxed{b}"),
    ("3 and 4", r"\boxed{3,4}"),
    (r"\$5", r"\boxed{5}"),
    ("5", r"\boxed{__import__('os').getpid()}"),
    ("6", r"\boxed{3!}"),
    (r"x\leq 3", r"\boxed{x \le 3}"),
    (r"\left(1,2\right)", r"\boxed{(1,2)}"),
    ("12", r"\boxed{12\n}"),
    ("3", r"\boxed 3 "),
    ("3", r"\boxed{3"),
]


@dataclass(frozen=True)
class Case:
    """name: the original's name of the data. example: the row of the benchmark, as the original reads it."""

    kind: str
    name: str
    completion: str
    answer: str
    example: dict[str, Any]


def cases(data: Path) -> list[Case]:
    rng, found = random.Random(5), list[Case]()
    for file in FILES:
        lines = (data / "benchmarks" / f"{file}.jsonl").read_text().splitlines()
        for gold, line in zip(read(data, file), lines, strict=True):
            found += _of_gold(gold, json.loads(line), rng)
    seen = set()
    for gold in (gold for file in FILES for gold in read(data, file)[::40]):
        for make in (answer_kinds.spelled, answer_kinds.changed):
            for kind, answer, completion in make(accepted(gold.answer)[-1]):
                if (answer, completion) in seen or rng.random() < 0.6:
                    continue
                seen.add((answer, completion))
                found.append(_plain(kind, completion, answer))
    return found + [_plain("own", completion, answer) for answer, completion in OWN]


def _plain(kind: str, completion: str, answer: str) -> Case:
    return Case(kind, ANY, completion, answer, {"answer": answer, "question": ""})


def _of_gold(gold: Gold, row: dict[str, Any], rng: random.Random) -> list[Case]:
    columns = ("answer", "solution", "final_answer", "problem", "question")
    example = {name: row[name] for name in columns if name in row}
    if gold.file in ("aime24", "amc23"):
        example["answer"] = str(example["answer"])
    answer = accepted(gold.answer)[-1]
    made = [("self", boxed(answer))]
    if rng.random() < 0.12:
        if text := respelled(gold.answer):
            made.append(("respelled", boxed(text)))
        if gold.solution and len(gold.solution) < 3000:
            made.append(("solution", gold.solution))
        made += [("changed", boxed(text)) for _, text in list(changed(gold.answer))[:3]]
        made.append(("answer is", f"So the answer is {answer}."))
        made.append(("final", f"Final Answer: The final answer is ${answer}$. I hope it is correct."))
        made.append(("none", f"It is {answer} apples"))
        dressed = [rf"{answer}\text{{ cm}}", f"x={answer}", rf"x \in {answer}", f"{answer} dollars"]
        dressed += [rf"\text{{{answer}}}", rf"{answer}\%", f"({answer})"]
        made += [("dressed", boxed(text)) for text in dressed if rng.random() < 0.5]
    name = NAMES.get(gold.file, gold.file)
    return [Case(kind, name, completion, gold.answer, example) for kind, completion in made]


def digest(found: list[Case]) -> str:
    """A digest of what the verdicts depend on."""
    text = json.dumps([[case.kind, case.name, case.completion, case.answer] for case in found])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
