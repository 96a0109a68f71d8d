"""The bar: a bar with time left on a terminal, a line every few seconds elsewhere."""

import io
import re
import sys

import pytest

from aepo import bars
from aepo.bars import Bar, counted, duration, print_wrapped


class Clock:
    def __init__(self, monkeypatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(bars.time, "monotonic", lambda: self.now)


def test_elsewhere_a_line_says_how_much_is_done_and_left(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Bar(1000, "completions", done=400) as bar:
        bar.add(0, "math500")
        clock.now += 4
        bar.add(50, "math500")
        clock.now += 4
        bar.add(50, "math500")
        clock.now += 2
        bar.add(100, "math500")
    # 100 of the 600 that were left took 8 seconds.
    assert capsys.readouterr().out == "math500: 500 of 1000 completions, 40 s left\n"


def test_long_work_says_less_often_where_it_is(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with Bar(10_000, "%", error=True) as bar:
        for done in range(1, 1001):
            clock.now += 6
            bar.reach(done)
    said = capsys.readouterr()
    assert said.out == "" and 40 < len(said.err.splitlines()) < 120


def test_on_a_terminal_a_bar_fits_80_columns(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    for name, value in {"COLUMNS": "80", "TERM": "xterm-256color"}.items():
        monkeypatch.setenv(name, value)
    with Bar(100_000, "completions") as bar:
        bar.add(50_000, "a long name of a benchmark [red] and of a pass, T=1, top-p=1")
        bar._progress.refresh()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).replace("\r", "\n")
    lines = [line for line in shown.splitlines() if "50000/100000" in line]
    assert lines and all("completions" in line and "left" in line and len(line) <= 80 for line in lines)


def test_a_counted_bar_begins_with_the_first_count(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    with counted("steps", "base model") as show:
        clock.now += 60
        show(0, 40)
        clock.now += 6
        show(10, 40)
    assert capsys.readouterr().out == "base model: 10 of 40 steps, 18 s left\n"


def test_a_line_is_cut_between_words_to_the_width_of_a_terminal_and_nowhere_else(monkeypatch, capsys):
    line = "  data: 300 rows read, 121 to train on, 51 left-out"
    monkeypatch.setenv("COLUMNS", "30")
    print_wrapped(line)
    assert capsys.readouterr().out == f"{line}\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_wrapped("short", line)
    assert capsys.readouterr().out == "short\n  data: 300 rows read, 121 to\n      train on, 51 left-out\n"


@pytest.mark.parametrize(("seconds", "text"), [(9.4, "9 s"), (125, "2 min 05 s"), (3_660, "1 h 01 min")])
def test_golden_durations(seconds, text):
    assert duration(seconds) == text
