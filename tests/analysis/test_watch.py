import json
import os
import re
import select
import subprocess
import sys
import time

import pytest
from rich.console import Console

from aepo.analysis.report.runs import RunRecord
from aepo.analysis.watch import Picture, frame, look, watch
from aepo.cli import Watch
from aepo.errors import InvalidValue
from tests.run_folders import folder, row


class Terminal:
    """A file of this encoding that keeps what is written to it."""

    def __init__(self, encoding: str) -> None:
        self.encoding, self.text = encoding, ""

    def write(self, text: str) -> int:
        text.encode(self.encoding)
        self.text += text
        return len(text)

    def flush(self) -> None: ...


def picture(name: str, rows: list[dict], steps: int | None, quiet: float = 0.0, **settings) -> Picture:
    return Picture(RunRecord(name, {} if steps is None else {"steps": steps, **settings}, rows, ()), quiet)


def shown(seen: Picture, width: int = 100, height: int = 30, encoding: str = "utf-8") -> str:
    console = Console(file=Terminal(encoding), width=width, height=height, force_terminal=False)
    console.print(frame(seen, console))
    return console.file.text


def values(text: str) -> dict[str, str]:
    """The last numbers, by their label; for the one-column layout."""
    pairs = re.findall(r"^([a-z][a-z ]*?)  +(\S.*?) *$", text, flags=re.M)
    return {label: value for label, value in pairs if label not in ("r", "step")}


def test_the_numbers_with_their_units():
    text = shown(picture("r", [row(0, 0.7), row(1, 0.6, extra_temperature=1.5)], 10), width=70)
    assert values(text) == {
        "entropy": "0.600 nats per token",
        "target": "0.500 nats per token",
        "error": "-0.100 nats per token",
        "command": "-0.50",
        "reward": "0.260",
        "dead groups": "12%",
        "mismatch": "4e-07 nats",
        "step time": "2.00 s",
        "extra": "8 drawn, 6 used, T 1.5",
    }
    assert "step 2 of 10 (20%), about 16 s left" in text


@pytest.mark.parametrize("steps", [2, None])
def test_finished_and_unknown(steps):
    text = shown(picture("r", [row(0, 0.7), row(1, 0.6)], steps))
    assert ("finished" in text) == (steps == 2)
    assert ("no config.toml" in text) == (steps is None) and "left" not in text


def test_a_budget_ends_a_run_before_its_planned_steps():
    rows = [row(0, 0.7), row(1, 0.6)]  # 40 completions and 2 s each
    assert "about 4 s left" in shown(picture("r", rows, 100, budget_completions=160))
    assert "about 6 s left" in shown(picture("r", rows, 5, budget_completions=1600, budget_tokens="none"))
    assert "step 2, finished: budget reached" in shown(picture("r", rows, 100, budget_completions=80))
    assert "step 2 of 2 (100%), finished" in shown(picture("r", rows, 2, budget_completions=80))


@pytest.mark.parametrize("setting", [{"steps": 0}, {"steps": "many"}, {"steps": 5, "budget_tokens": 10**400}])
def test_an_odd_setting_is_unknown(setting):
    rows = [row(0, 0.7, completions=None, tokens=None, reward_failures=float("nan")), row(1, 0.6)]
    text = shown(Picture(RunRecord("r", setting, rows, ())))
    assert ("no steps in config.toml: the planned steps are unknown" in text) == (setting["steps"] != 5)
    assert "gradings" not in text


def test_missing_values_are_shown_as_missing():
    rows = [{"step": 0, "entropy": 0.5, "reward": None, "command": None}, {"step": 1, "entropy": float("nan")}]
    text = shown(picture("r", rows, 5), width=70)
    assert values(text) == {"entropy": "-"}
    assert values(shown(picture("r", rows[:1], 5), width=70)) == {
        "entropy": "0.500 nats per token",
        "command": "-",
        "reward": "-",
    }
    assert "no entropy in these rows" in shown(picture("r", [{"step": 0}], 5))
    assert "no finished step yet" in shown(picture("r", [], 5))


def test_an_alarm_a_limit_a_failure_and_a_silence_are_said():
    rows = [row(0, 0.7, alarm=True), row(1, 0.7, alarm=True, saturated=1.0, reward_failures=3)]
    text = shown(picture("r", rows, 10, quiet=90.0))
    for words in (
        "alarm: the control is at its limit",
        "-0.50 (at its limit)",
        "3 gradings failed",
        "no new step for 1 min 30 s",
    ):
        assert words in text
    text = shown(picture("r", [*rows, row(2, 0.5)], 3, quiet=90.0))
    assert "alarm in 2 earlier steps, last in step 1" in text and "no new step" not in text


# --- the chart ----------------------------------------------------------------------------------------------


def chart(text: str) -> list[str]:
    return [line[7:] for line in text.splitlines() if re.match(r" *\d+\.\d{3} ", line)]


def test_golden_chart_in_ascii():
    rows = [row(step, entropy, 1.0) for step, entropy in enumerate([2.0, 1.5, 1.0, 0.0])]
    text = shown(picture("r", rows, 9), width=18, height=10, encoding="ascii")
    assert chart(text) == ["**        ", "  ***     ", "-----***--", "        **"]
    assert [line[:6] for line in text.splitlines() if "." in line[:3]] == [" 2.100", " 1.400", " 0.700", " 0.000"]


def test_golden_chart_in_braille():
    rows = [row(step, float(20 - step), None) for step in range(20)]  # a falling line, two dots a column
    text = shown(picture("r", rows, 99), width=18, height=10)
    assert re.findall(r"^ ?\d+\.\d{3}", text, flags=re.M) == [
        "18.860",
        "13.287",
        " 7.713",
        " 2.140",
    ]  # middles of lines
    lines = chart(text)
    assert [len(line.rstrip()) for line in lines] == [2, 5, 8, 10]
    dots = sum(bin(ord(c) - 0x2800).count("1") for c in "".join(lines) if c != " ")
    assert dots == 20 and all(c == " " or 0x2800 < ord(c) < 0x2900 for c in "".join(lines))
    assert lines[0][0] == "⠒"  # steps 0 and 1, both in the second row of dots


def test_the_line_breaks_where_there_was_no_number():
    rows = [row(step, 0.5 if step != 5 else float("nan"), None) for step in range(10)]
    text = shown(picture("r", rows, 10), width=18, height=10, encoding="ascii")
    assert sum(line == "***** ****" for line in chart(text)) == 1


def test_many_steps_are_means_of_those_that_share_a_column():
    rows = [row(step, 1.0 + step % 2, None) for step in range(1000)]
    lines = chart(shown(picture("r", rows, 1000), width=18, height=10, encoding="ascii"))
    assert sum("*" in line for line in lines) <= 2


@pytest.mark.parametrize("width", [20, 80, 200])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_everything_fits_the_terminal(width, encoding):
    rows = [row(step, 0.5 + 0.01 * step, length=800.5, truncated=0.1, saturated=1.0) for step in range(300)]
    rows[-1] |= {"alarm": True, "reward_failures": 2}
    lines = shown(picture("r" * 15, rows, 400, quiet=999.0), width, 24, encoding).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 23 or width < 80


def test_a_name_cannot_steer_the_terminal():
    assert "\x1b" not in shown(picture("a\x1b[2J\n[red]b", [], 5))
    assert "[red]b" in shown(picture("[red]b\udcff", [], 5))
    assert "caf?" in shown(picture("café", [], 5), encoding="ascii")


# --- the folder ---------------------------------------------------------------------------------------------


def test_once(tmp_path, capsys):
    Watch(folder(tmp_path / "r", [row(0, 0.7)], steps=5), once=True).run()
    assert "step 1 of 5 (20%)" in capsys.readouterr().out


def test_without_a_terminal_it_prints_one_picture_and_ends(tmp_path, capsys):
    watch(folder(tmp_path / "r", [], steps=5), once=False, every=0.1)
    assert capsys.readouterr().out.count("no finished step yet") == 1


def test_a_half_written_row_is_not_there_yet(tmp_path):
    run = folder(tmp_path / "r", [row(0, 0.7)], steps=5)
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "entropy": 0.')
    assert len(look(run).run.rows) == 1


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InvalidValue, match="RUN"):
        watch(tmp_path, once=True, every=2.0)
    with pytest.raises(InvalidValue, match="--every"):
        watch(tmp_path, once=True, every=0.0)


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("end", ["q", "finished", "interrupt"])
def test_in_a_terminal_it_follows_the_run_until_its_end_or_q(tmp_path, end):
    import pty

    run = folder(tmp_path / "r", [row(0, 0.7)], steps=3)
    outer, inner = pty.openpty()
    # A job started in the background inherits a Ctrl-C that is ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"from pathlib import Path; from aepo.analysis.watch import watch; watch(Path({str(run)!r}), False, 0.1)"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "24", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=inner, stdout=inner, stderr=inner, env=environment)
    os.close(inner)
    try:
        wait_for(outer, "step 1 of 3")
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row(1, 0.6)) + "\n")
        wait_for(outer, "step 2 of 3")
        if end == "q":
            os.write(outer, b"q")
        elif end == "interrupt":
            process.send_signal(2)
        else:
            with (run / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(row(2, 0.5)) + "\n")
            wait_for(outer, "finished")
        read_to_the_end(outer)  # a full terminal that nobody reads would hold the process
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(outer)


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("end", ["q", "appears"])
def test_in_a_terminal_a_run_that_is_not_there_yet_is_waited_for(tmp_path, end):
    import pty

    outer, inner = pty.openpty()
    run = tmp_path / "soon"
    code = f"from pathlib import Path; from aepo.analysis.watch import watch; watch(Path({str(run)!r}), False, 0.1)"
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", "LINES": "24", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=inner, stdout=inner, stderr=inner, env=environment)
    os.close(inner)
    try:
        wait_for(outer, "waiting for a run in")
        if end == "q":
            os.write(outer, b"q")
        else:
            folder(run, [row(0, 0.7)], steps=1)
            wait_for(outer, "finished")
        read_to_the_end(outer)
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(outer)


def test_what_is_there_in_place_of_a_run_is_named(tmp_path):
    folder(tmp_path / "runs" / "a", [row(0, 0.7)], steps=1)
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for name, words in {
        "runs": "it holds runs: a",
        "file": "it is a file",
        "nowhere": "there is nothing at this path",
        "empty": "it holds neither config.toml nor metrics.jsonl",
    }.items():
        with pytest.raises(InvalidValue, match=rf"^RUN: .* must be a run folder \({words}\)$"):
            watch(tmp_path / name, True, 1.0)


def wait_for(terminal: int, words: str) -> None:
    """Read until the words are on the screen."""
    seen, end = "", time.monotonic() + 60
    while words not in seen:
        assert time.monotonic() < end, seen
        seen += os.read(terminal, 65536).decode("utf-8", "replace")


def read_to_the_end(terminal: int) -> None:
    """Read until the other side has closed, which Linux tells as an error and others as an empty read."""
    end = time.monotonic() + 60
    while time.monotonic() < end and select.select([terminal], [], [], 60)[0]:
        try:
            if not os.read(terminal, 65536):
                return
        except OSError:
            return
