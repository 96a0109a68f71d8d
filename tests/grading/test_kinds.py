"""The kinds of answers that the grader reads besides formulas: each rule with spellings and with near misses."""

import pytest

from aepo.grading.boxes import boxed_answer
from aepo.grading.math import MathGrader

# kind: [(known answer, content of the box)]
SAME = {
    "percent": [
        (r"25\%", "25"),
        ("25", r"25\%"),
        ("25", "25 percent"),
        ("25", r"25\text{ percent}"),
        (r"33\frac{1}{3}\%", r"33\frac13"),
        (r"12.5\%", r"12.5\%"),
        ("0.25", r"25\%"),
        ("1/4", r"25\%"),
        (r"25\%", "0.25"),
        ("25%", r"25\%"),
        (r"25\%", r"\frac{1}{4}"),
        (r"-5\%", "-5"),
        (r"1,200\%", "1200"),
        (r"x=25\%", "25"),
    ],
    "choice": [
        ("C", "C"),
        ("C", "(C)"),
        ("C", r"\text{(C) } 7"),
        ("C", "C: 7"),
        ("C", r"\textbf{C}"),
        ("(C)", "C) 12"),
        ("C", "Option C"),
        ("C", r"\mathrm{(C)}\ 7"),
        ("C", r"\boxed{C}"),
        ("C) 7", "C"),
        ("(C) 7", "7"),
        ("C", r"\text{C. It is the largest}"),
        ("D", r"(D) \frac{1}{2}"),
        ("B", r"\textbf{(B) } 12"),
        ("B", r"\textbf{(B)} 12"),
        ("B", r"\textbf{(B)}\ -12"),
        ("B", "B) -12"),
    ],
    "yes or no": [
        ("Yes", "yes."),
        ("No", "No, because f is not onto."),
        ("Yes", r"\text{Yes, } u \text{ is constant}"),
        ("True", r"\text{True}"),
        ("False", "False. The series diverges."),
        ("No", r"\text{No}"),
        ("Yes, it converges", "Yes"),
        ("True", "The statement is true"),
        ("yes", "Yes, it is."),
        ("No", "No - it is not"),
    ],
    "plain text": [
        (r"\frac{\sqrt{3}}{2}", "sqrt(3)/2"),
        (r"2\sin(x)", "2*sin(x)"),
        (r"\frac{1}{x^2}", "x**-2"),
        (r"\frac{1}{x^2}", "x^-2"),
        ("x^{n+1}", "x**(n+1)"),
        (r"\infty", "oo"),
        (r"\alpha+\beta", "alpha + beta"),
        (r"\arctan(2)", "atan(2)"),
        ("|x|", "abs(x)"),
        ("e^{-x}", "exp(-x)"),
        (r"\ln 2", "ln(2)"),
        (r"\ln 2", "ln 2"),
        (r"\sqrt[3]{5}", "cbrt(5)"),
        (r"\frac{2\pi}{3}", "2pi/3"),
        (r"2\sqrt{3}", "2sqrt3"),
        (r"\sin^2 x", "sin(x)^2"),
        (r"\sin^2 x", "sin^2(x)"),
        (r"\sqrt{x+\sqrt{2}}", "sqrt(x + sqrt(2))"),
        (r"\frac{3\pi^2}{4}", "(3*pi**2)/4"),
    ],
    "tuple with names": [
        ("(3,2)", "(x, y) = (3, 2)"),
        ("(3,2)", r"x = 3 \text{ and } y = 2"),
        ("(3,2)", "y = 2, x = 3"),
        ("(1,2,3)", "(a,b,c)=(1,2,3)"),
        ("(1,2,3)", r"x=1,\ y=2,\ z=3"),
        ("(1, 2), (2, 1)", r"(x,y) = (1,2) \text{ or } (2,1)"),
        ("(5,2)", "(n,k)=(5,2)"),
        ("(x,y)=(3,2)", "x=3,y=2"),
        ("(x,y)=(3,2)", "(y,x)=(2,3)"),
        (r"(r,\theta)=(3,\pi/2)", r"(3,\frac{\pi}{2})"),
        ("x=3,y=2", "(3,2)"),
    ],
    "words before =": [
        ("539", r"\text{Total profit} = 539"),
        ("539", r"\textbf{Answer: } 539"),
        ("539", "Profit = 539"),
        ("5", r"\text{Area} = 5 \text{ cm}^2"),
        ("5", r"\vec{v} = 5"),
        ("45", r"\angle ABC = 45^\circ"),
        ("5", "|AB| = 5"),
        (r"\frac12", "P(A) = 1/2"),
        ("5", "a+b = 5"),
        ("25", "x^2+y^2=25"),
        ("7", "f(3) = 7"),
        ("2x", "f'(x) = 2x"),
        ("5", r"\overline{AB} = 5"),
        ("539", r"\text{Profit} = 500 + 39 = 539"),
        ("6", "xy=6"),
        (r"\text{Profit} = 539", "539"),
        ("5.2", r"\text{Area} \approx 5.2"),
        ("5", "Answer: 5"),
        ("5", "The final answer is 5"),
        (r"\begin{bmatrix}1&2\end{bmatrix}", r"\mathbf{A} = \begin{bmatrix}1&2\end{bmatrix}"),
    ],
    "currency": [
        ("77", "€77"),
        ("77", "77 €"),
        ("77", r"\text{€}77"),
        ("5", r"\pounds 5"),
        ("5", "¥5"),
        ("1000", "€1,000"),
        ("-5", "-€5"),
        ("77", r"\text{£}77.00"),
        ("5", r"5\text{ euros}"),
        ("5", "£ 5"),
        ("€5", "€5"),
        ("77", "77 EUR"),
        ("77", "USD 77"),
    ],
    "inequality or interval": [
        (r"[2,\infty)", r"x \geq 2"),
        (r"[2,\infty)", "2 <= x"),
        ("(1,2]", r"1 < x \le 2"),
        (r"(-\infty,-1]\cup[3,\infty)", r"x \le -1 \text{ or } x \ge 3"),
        (r"x \ge 2", r"x \in [2, \infty)"),
        ("x>2", "2<x"),
        ("-793<a<10", r"a \in (-793,10)"),
        ("(1,3)", "x>1 and x<3"),
        (r"(-\infty,2)\cup(2,\infty)", r"x \ne 2"),
        (r"(-\infty,\infty)", r"\mathbb{R}"),
        (r"(-\infty,\infty)", r"\text{all real numbers}"),
        ("x<2", r"(-\infty,2)"),
        (r"[0,\pi]", r"0 \le \theta \le \pi"),
        (r"[2,\infty)", r"\{x \mid x \ge 2\}"),
        ("(-2,2)", "2 > x > -2"),
        (r"x\leq 3", "x ≤ 3"),
        (r"(-\infty, -3) \cup (3, \infty)", "x < -3 or x > 3"),
    ],
    "residue": [
        ("5", r"n \equiv 5 \pmod{17}"),
        ("5", r"5 \pmod{17}"),
        ("5", r"x \equiv 5 \ (\text{mod } 17)"),
        ("5", r"5 \mod 17"),
        (r"5 \pmod{17}", "5"),
        (r"n\equiv 5 \pmod{17}", r"n \equiv 22 \pmod{17}"),
        ("1, 5", r"n \equiv 1, 5 \pmod 6"),
    ],
    "markdown": [
        ("73", "**73**"),
        ("73", "`73`"),
        ("73", "__73__"),
        ("73", "*73*"),
        ("73", "**Answer:** 73"),
        ("73", r"\mathbf{73}"),
        (r"\frac12", r"\mathbf{\frac{1}{2}}"),
        ("73", "**73.**"),
    ],
    "list in square brackets": [
        ("[2, 3]", "2, 3"),
        ("[1, 2, 3]", "1, 2, 3"),
        ("1, 2, 3", "[1, 2, 3]"),
        ("[2, 3]", r"2 \text{ and } 3"),
    ],
    "power before =": [
        ("-1", "z^3=-1"),
        ("5", "x=5"),
    ],
}

DIFFERENT = {
    "percent": [
        ("12", r"1200\%"),
        (r"25\%", "2500"),
        (r"25\%", "2.5"),
        (r"25\%", r"2500\%"),
        (r"25\%", r"0.25\%"),
        ("3", r"300\%"),
        (r"25\%", "26"),
        ("25", r"26\%"),
        ("0.5", r"5\%"),
        (r"25\%", r"\frac{1}{5}"),
        ("1", r"100\%"),
    ],
    "choice": [
        ("C", "D) 7"),
        ("C", "C) 7 or D) 8"),
        ("C", "C and D"),
        ("C", "(C), (D)"),
        ("C) 7", "C) 8"),
        ("C) 7", "D) 7"),
        ("C", "C^2"),
        ("(C)", "(C)^2"),
        ("C", "c) 7"),
        ("C", "C + 7"),
        ("A", r"A \cup B"),
        ("C", "(C) + 7"),
        ("C", r"\text{(C)} + 7"),
        (r"\text{(C)}", r"\text{(C)} + 1"),
        ("C", r"\textbf{(C)} - 7"),
        ("A", "A or B"),
        ("B", "A. B"),
    ],
    "yes or no": [
        ("Yes", "No, it is not"),
        ("Yes", "Yes or no"),
        ("Yes", "Yes and no"),
        ("No", "No solution"),
        ("No", "Not always"),
        ("True", "Not true"),
        ("True", "The statement is false"),
        ("Yes", "Yes, no"),
        ("No", "Yes, there is no limit"),
        ("True", "Yes"),
        ("Yes, 5", "Yes, 6"),
        ("Yes, 5", "Yes"),
        ("No", "Not sure, yes"),
    ],
    "plain text": [
        (r"\frac{\pi}{2}", "pi/3"),
        ("e^{16}-1", "exp(15)-1"),
        ("x^2+1", "x**3+1"),
        (r"\frac{1}{x^2}", "x**2"),
        ("x*y", "x**y"),
        (r"\theta^2", "theta"),
        (r"\sqrt{29}", "sqrt(28)"),
        ("x^{n+1}", "x**n+1"),
    ],
    "tuple with names": [
        ("(3,2)", "(x,y)=(2,3)"),
        ("(3,2)", "x=2,y=3"),
        ("(3,2)", "y=3,x=2"),
        ("(x,y)=(3,2)", "(y,x)=(3,2)"),
        ("(x,y)=(3,2)", "(a,b)=(3,2)"),
        ("(3,2)", "x=3,x=2"),
        ("(3,2)", "(x,y)=(3,2),(2,3)"),
        ("(3,2)", "x=3"),
        ("(3,2)", "[x,y]=(3,2)"),
        ("(3,2,1)", "(x,y)=(3,2)"),
    ],
    "words before =": [
        ("539", r"\text{Profit} = 540"),
        ("5", "2x=10"),
        ("10", "2x=10"),
        ("5", "-x=5"),
        ("5", "x+1=5"),
        ("x^2+y^2=25", "25"),
        ("5", "1=5"),
        ("5", "Profit = 4 = 5"),
        (r"\text{Profit}=539", r"\text{Loss}=539"),
        ("5", "x=4, 5"),
        ("5", "5 = 6 - 2"),
        ("3", r"\sqrt{x}=3"),
        ("5", r"\text{not } 5"),
    ],
    "currency": [
        ("77", "€78"),
        ("€5", "£5"),
        (r"\$5", "€5"),
        ("5", "-€5"),
        ("5", "€5 million"),
        ("7.7", "€77"),
        ("5", "5€, 6€"),
    ],
    "inequality or interval": [
        (r"[2,\infty)", "x > 2"),
        (r"(2,\infty)", r"x \ge 2"),
        (r"[2,\infty)", r"x \le 2"),
        ("(1,2)", r"1 < x \le 2"),
        ("(1,2)", "1<x<3"),
        ("x>2", "y>2"),
        ("x>2", r"y \in (2,\infty)"),
        (r"(-\infty,-1)\cup(1,\infty)", "-1<x<1"),
        (r"(-\infty,-1)\cup(1,\infty)", "x>1"),
        ("(1,2)", "x>1 or x<2"),
        (r"(-\infty,2)", r"x \ne 2"),
        ("-793<a<10", "[-793,10]"),
        ("(2,1)", "1<x<2"),
        ("2", r"x \ge 2"),
        ("x>2", "2"),
        ("[2,3]", "2<x<3"),
    ],
    "residue": [
        ("5", r"n \equiv 6 \pmod{17}"),
        ("22", r"n \equiv 22 \pmod{17}"),
        ("5", r"n \equiv 22 \pmod{17}"),
        (r"5 \pmod{17}", r"5 \pmod{16}"),
        ("17", r"n \equiv 5 \pmod{17}"),
        (r"n\equiv 5 \pmod{17}", "22"),
        ("5", r"5 \pmod 3"),
    ],
    "markdown": [
        ("73", "**74**"),
        ("73", "7**3"),
        ("8", "2**4"),
        ("73", "**7** **3**"),
        ("[2, 3]", "2, 4"),
        ("[2, 3]", "3, 2"),
        ("[2, 3]", "(2, 3)"),
        ("2, 3", "[2, 3]"),
        ("[1,2,3]", "1,2"),
        ("[2,3]", "2"),
        ("-1", "z^3=1"),
        ("1", "z^3=-1"),
    ],
}

# (known answer, completion, right?)
BOXES = [
    ("0.5", r"\boxed{\frac{1}{2}} or \boxed{0.5}", True),
    ("0.5", r"\boxed{\frac{1}{2}} or \boxed{0.6}", False),
    ("3, 5, 7", r"The primes are $\boxed{3}$, $\boxed{5}$, and $\boxed{7}$.", True),
    ("(2,5)", r"So $x=\boxed{2}$ and $y=\boxed{5}$.", True),
    ("3, 5", r"$x = \boxed{3}$ or $x = \boxed{5}$", True),
    ("5", r"$\boxed{5}$. (in \boxed{})", True),
    ("5", r"$\boxed{5}$ \boxed{\text{answer}}", True),
    ("5", r"\boxed{5}, \boxed{5}", True),
    ("5", r"\boxed{4}, \boxed{5}", False),
    ("5", r"\boxed{4} or \boxed{5}", False),
    ("5", r"\boxed{4}. So wrong; \boxed{5}", True),
    ("3,5,7", r"\boxed{3}, \boxed{5}", False),
    ("3,5", r"\boxed{3}, \boxed{5}, \boxed{7}", False),
    ("3,5", r"\boxed{3} \boxed{5}", False),
    ("3,5", r"\[\boxed{3}\] and \[\boxed{5}\]", True),
    ("5", r"\\boxed{5}", True),
    ("5", r"\\boxed{4}", False),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\\boxed{\\begin{pmatrix}1\\\\2\\end{pmatrix}}", True),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\\boxed{\begin{pmatrix}1\\2\end{pmatrix}}", True),
    (r"\frac{1}{4}", r"\boxed{\\frac{1}{4}}", True),
    (r"\{1,2\}", r"\\boxed{\\{1,2\\}}", True),
    ("5", r"\boxed{}", False),
    ("5", r"x \\ \boxed{5}", True),
    ("5", r"**Answer:** $\boxed{5}$", True),
    ("6", r"\\boxed{\\text{6}}", True),
]


def pairs(kinds):
    return [pytest.param(*pair, id=f"{kind}: {pair}") for kind, found in kinds.items() for pair in found]


@pytest.mark.parametrize(("answer", "given"), pairs(SAME))
def test_the_same_answer_is_right(answer, given):
    grade = MathGrader().grade(f"so \\boxed{{{given}}}.", answer)
    assert grade.correct and not grade.failed, grade


@pytest.mark.parametrize(("answer", "given"), pairs(DIFFERENT))
def test_another_answer_of_the_same_kind_is_wrong(answer, given):
    grade = MathGrader().grade(f"so \\boxed{{{given}}}.", answer)
    assert not grade.correct and not grade.failed, grade


@pytest.mark.parametrize(("answer", "completion", "right"), BOXES)
def test_several_boxes_empty_boxes_and_doubled_backslashes(answer, completion, right):
    assert MathGrader().grade(completion, answer).correct is right


def test_boxes_of_one_list_are_one_answer():
    assert boxed_answer(r"so $x = \boxed{3}$ or $x = \boxed{5}$.") == "x =3, x =5"
    assert boxed_answer(r"\boxed{3}, \boxed{4} \boxed{5} and \boxed{6}") == "5, 6"
    assert boxed_answer(r"\boxed{3} (see \boxed{\ldots})") == "3" and boxed_answer(r"\boxed{}") == ""
    assert boxed_answer("none") is None and boxed_answer(r"\boxed{3}" + " or " * 99 + r"\boxed{4}") == "4"
    assert boxed_answer(r"\\boxed{" * 50_000) is None and boxed_answer("\\" * 100_000 + "boxed{7}") == "7"


def test_a_rounded_known_answer_accepts_the_unrounded_value_only_by_an_option():
    strict, rounded = MathGrader(), MathGrader(rounded=True)
    same = [("0.33", r"\frac{1}{3}"), ("1.41", r"\sqrt{2}"), ("4.50e33", r"4.4953 \times 10^{33}"), ("-0.5", "-0.45")]
    for answer, given in same:
        assert rounded.grade(f"\\boxed{{{given}}}", answer).correct, (answer, given)
        assert not strict.grade(f"\\boxed{{{given}}}", answer).correct, (answer, given)
    for answer, given in [("0.33", "0.336"), ("0.33", "1/4"), ("25", "24.9"), ("1.41", r"-\sqrt{2}"), ("0.5", "x")]:
        assert not rounded.grade(f"\\boxed{{{given}}}", answer).correct, (answer, given)
