import pytest

from aepo.errors import InvalidValue
from aepo.grading import symbolic
from aepo.grading.base import Grade
from aepo.grading.exact import ExactGrader
from aepo.grading.files import benchmark_answer
from aepo.grading.math import MathGrader
from aepo.grading.text import accepted, bracketed, clean, exact_number, items, last_boxed

SAME = [
    # Numbers, exactly.
    ("0.5", r"\frac12"),
    ("10.1", "10.1000"),
    ("58,500", "58500"),
    (r"11,\! 111,\! 111", "11111111"),
    ("-1./3", r"-\frac{1}{3}"),
    ("4.5e33", r"4.5\times 10^{33}"),
    ("1e-8", "10^{-8}"),
    (r"1\frac{4}{5}", "9/5"),
    (r"137 \frac{1}{2}", "137.5"),
    ("204", r"\textbf{(204)}"),
    ("50\\%", "0.5"),
    ("0", "0\\%"),
    ("+2", "2"),
    (r"\sqrt{4}", "2"),
    ("10", r"\$10"),
    # The spellings of benchmark files.
    ("work\n#### 2,125", "2125"),
    ('["1/2", "0.6"]', "0.6"),
    ('["5"]', "5"),
    (r"$\frac{3}{4}$", "0.75"),
    ("$69$,$84$", "84, 69"),
    (r"\$18.90", "18.9"),
    # Units and words.
    (r"864 \mbox{ inches}^2", "864"),
    (r"90^\circ", "90"),
    (r"5.4 \text{ cents}", "5.4"),
    ("18", "18 dollars"),
    ("25", r"25 \mathrm{~km}"),
    ("11 cm", "11"),
    (r"\text{Evelyn}", "evelyn"),
    ("No solution", r"\text{no solution}"),
    (r"\text{(C)}", "C"),
    (r"\text{(C)}", "(C)"),
    (r"\text{C}", r"\textbf{C}"),
    # Names before values.
    ("5", "x=5"),
    ("x=5", "5"),
    ("5", "2+3=5"),
    ("y = 2x + 3", "2x+3"),
    ("y = 2x + 3", "y=3+2x"),
    (r"x \in [-2,7]", "[-2,7]"),
    ("5", r"x \approx 5"),
    (r"\approx 24.33", "24.33"),
    (r"\cos(e) \approx -0.912", r"\cos e"),
    (r"\cos(e) \approx -0.912", "-0.912"),
    (r"\frac13", r"\frac13\approx 0.33"),
    # Formulas.
    ("x^5 - x^4", "x^4(x-1)"),
    ("2k+2", "2(k+1)"),
    (r"3\sqrt{13}", r"\sqrt{117}"),
    (r"\cot x", r"\frac{\cos x}{\sin x}"),
    (r"\binom{2n}{n}", r"\frac{(2n)!}{(n!)^2}"),
    ("6-5i", "6 - 5 i"),
    (r"\frac{48 i-56}{85}", r"\frac{8i}{6-7i}"),
    ("np.arcsin(10/13)", r"\arcsin(10/13)"),
    (r"\gamma^2-1", r"(\gamma-1)(\gamma+1)"),
    (r"\frac{1}{3}E_{1}+\frac{2}{3} E_{2}", r"\frac{E_1+2E_2}{3}"),
    ("2RC+R+C", "R(2C+1)+C"),
    ("x^T+1", "1+x^{T}"),
    (r"k \geqslant 2", r"k\ge 2"),
    ("5x-7y+11z+4=0", "10x-14y+22z+8=0"),
    ("SRMC=LRMC", "SRMC = LRMC"),
    (r"\frac{100!}{2^{50}}", "100!/2^{50}"),
    ("2 × 3", "6"),
    ("√2", r"\sqrt{2}"),
    # Lists, tuples, intervals, matrices.
    ("-2,1", "1, -2"),
    (r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}"),
    (r"\{1\pm\sqrt5,-2\}", r"-2,1+\sqrt5,1-\sqrt5"),
    (r"x=-\frac13, \frac23", r"x=2/3 \text{ or } x=-1/3"),
    ("(3,4]", "(3,8/2]"),
    ("(1,2),(3,4)", "(3,4), (1,2)"),
    (r"(-\infty, 2) \cup (3, \infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ -3.6 \end{pmatrix}"),
]

DIFFERENT = [
    ("50\\%", "5"),
    ("9", "900\\%"),
    ("10", "1000\\%x"),
    ("0.333", "1/3"),
    ("1e-8", "2e-8"),
    ("1e-8", "0"),
    ("4.5e33", r"4.49\times 10^{33}"),
    ("18", "18.0000001"),
    (r"3\sqrt{13}", "10.816653826391969"),
    (r"\pi", "3.14159265358979"),
    (r"\pi", "3.14159265358979323846264338327950288"),
    (r"\sqrt{2}\cdot 10^{-20}", r"\sqrt{3}\cdot 10^{-20}"),
    ("5", "1=5"),
    ("5", "5=6"),
    ("5", "2 3"),
    ("5", "5 million"),
    ("5", r"5\text{ million}"),
    ("5", ""),
    ("5", "5, 5"),
    ("5", "5, 6"),
    ("5", "-5"),
    ("5", r"\pm 5"),
    ("5", "x"),
    (r"\text{east}", "seat"),
    (r"\text{(C)}", "B"),
    ("Yes", "No"),
    ("No solution", "0"),
    ("P", "p"),
    ("P+2p", "2P+p"),
    (r"\Gamma+1", r"\Gamma+2"),
    (r"\gamma+1", r"\gamma+2"),
    (r"\Pi", r"\pi"),
    ("y'+ry", "y+ry"),
    ("E+1", "e+1"),
    ("p - q", "q-p"),
    ("f(x)=x", "f(x)=2x"),
    ("y=x+1", "z=x+1"),
    ("1+2+\\ldots+n", "1+2+n"),
    ("(3,4]", "[3,4]"),
    ("(3,4)", "(4,3)"),
    ("[1,2]", "(1,2)"),
    ("(1,2)", "1,2"),
    (r"(1,2)\cup(3,4)", "(1,2)"),
    ("-2,1", "-2"),
    ("1,2,2", "1,2"),
    ("x=1, y=2", "x=2, y=1"),
    (r"x=5", "y=5"),
    (r"k \geqslant 2", "k>2"),
    (r"k \geqslant 2", r"k\le 2"),
    ("5x-7y+4=0", "5x-7y=4"),
    ("x^2=4", "x=2"),
    (r"\frac{37}{4} m", r"\frac{37}{4}"),
    ("x", "x+10^{-20}"),
    (r"\begin{pmatrix} 1/5 \\ -18/5 \end{pmatrix}", r"\begin{pmatrix} 0.2 \\ 3.6 \end{pmatrix}"),
    (r"2^{1009}", "2^{1009}+1"),
    (r"\cos(e) \approx -0.912", r"\cos e \approx 0.912"),
]


@pytest.mark.parametrize(("answer", "given"), SAME)
def test_the_same_value_in_another_spelling_is_right(answer, given):
    grade = MathGrader().grade(f"Long talk. \\boxed{{7}} so $\\boxed{{{given}}}$.", answer)
    assert grade.correct and not grade.failed, grade


@pytest.mark.parametrize(("answer", "given"), DIFFERENT)
def test_another_value_is_wrong_however_near(answer, given):
    grade = MathGrader().grade(f"So $\\boxed{{{given}}}$.", answer)
    assert not grade.correct and not grade.failed, grade


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("The answer is 18.", "no boxed answer"),
        (r"\boxed{}", "an empty box"),
        (r"\boxed{18", "no boxed answer"),
        (r"\boxed{18} or rather \boxed{19}", "not the same: 19"),
        (r"\boxed{" + "1+" * 5000 + "1}", "an answer too long or too deeply nested to be this one"),
        (r"\boxed{" + "(" * 500 + "18" + ")" * 500 + "}", "an answer too long or too deeply nested to be this one"),
        (r"\boxed{9^{9^{9^9}}}", "an answer too long or too deeply nested to be this one"),
    ],
)
def test_wrong_says_why(completion, reason):
    assert MathGrader().grade(completion, "18") == Grade(False, reason)


def test_an_answer_that_is_itself_a_tower_or_deep_is_compared():
    assert MathGrader().grade(r"\boxed{x^{y^{z^{w}}}}", "x^{y^{z^w}}").correct
    assert MathGrader().grade(r"\boxed{x^{y^{z^{w}}}+1}", "1+x^{y^{z^w}}").correct


def test_without_boxes_math_verify_finds_the_answer():
    anywhere = MathGrader(boxed=False)
    assert anywhere.grade("The final answer is $\\frac{2}{4}$.", "0.5").correct
    assert anywhere.grade("The answer is 18", "#### 18").correct
    assert anywhere.grade("The answer is 18", "18\\%").correct
    assert not anywhere.grade("The answer is 1800%", "18").correct
    assert not anywhere.grade("The answer is 0.3333333", "1/3").correct
    assert anywhere.grade("I do not know", "18") == Grade(False, "no answer found")


def test_no_alarm_is_set(monkeypatch):
    import signal

    monkeypatch.setattr(signal, "alarm", lambda seconds: pytest.fail("math-verify's own time limit is on"))
    assert MathGrader().grade(r"\boxed{(x+1)^2}", "x^2+2x+1").correct


def test_the_last_closed_box_counts():
    assert last_boxed(r"\boxed{1} \fbox{2} \framebox{3}") == "3"
    assert last_boxed(r"\boxed{\frac{1}{2}} and \boxed{5") == r"\frac{1}{2}"
    assert last_boxed(r"} \boxed{\left\{ 1, {2} \right.}") == r"\left\{ 1, {2} \right."
    assert last_boxed(r"\boxed 7, \boxed {8}") == "8" and last_boxed(r"\boxed 7") == "7"
    assert last_boxed("nothing") is None
    assert last_boxed(r"\boxed{" * 100_000) is None  # in linear time


def test_accepted_answers():
    assert (
        accepted('["a", "b"]') == ["a", "b"] and accepted("[1, 2]") == ["[1, 2]"] and accepted("[0, 1)") == ["[0, 1)"]
    )
    assert accepted("so #### 3 \n#### 4") == [" 4"] and accepted("[" * 100_000)
    assert (
        benchmark_answer(27.0) == "27"
        and benchmark_answer(0.1) == "0.1"
        and benchmark_answer(["$5$"]) == "$5$"
        and benchmark_answer(-3) == "-3"
    )
    assert accepted(benchmark_answer(["1", 2])) == ["1", "2"]
    for bad in (None, True, "", " ", [], {}, float("nan"), [None]):
        with pytest.raises(InvalidValue, match="^answer: "):
            benchmark_answer(bad)


def test_reading_text():
    assert clean(r"$\left(\dfrac{1}{2},\! 3\;\right).$") == r"(\frac{1}{2},3 )"
    assert items(r"1, (2, 3), [4, 5), \{6, 7\}") == ["1", "(2, 3)", "[4, 5)", r"\{6, 7\}"]
    assert bracketed("(1, 2]") == ("(", "1, 2", "]") and bracketed("(1)(2)") is None and bracketed(r"\{1)") is None
    assert str(exact_number("-1,234.50")) == "-2469/2" and exact_number("12,34") is None and exact_number("1/0") is None
    assert exact_number("1e999999999") is None and exact_number("9" * 10_000) is None and exact_number("") is None


def test_exact_takes_the_box_or_else_the_whole_text():
    exact = ExactGrader()
    assert exact.grade(r"so \boxed{\dfrac{1}{2}}", r"$\frac{1}{2}$").correct and exact.grade(" 18. ", "18").correct
    assert exact.grade(r"\boxed{\text{east} }", "east").correct and exact.grade("0.6", '["3/5", "0.6"]').correct
    for completion, answer in (("0.5", "1/2"), ("East", "east"), ("18 or so", "18"), ("", ""), (r"\boxed{}", "1")):
        assert not exact.grade(completion, answer).correct


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "math_verify", None)
    symbolic.library.cache_clear()
    try:
        with pytest.raises(InvalidValue, match=r"pip install 'aepo\[math\]'"):
            MathGrader().prepare()
    finally:
        symbolic.library.cache_clear()
