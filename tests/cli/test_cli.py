"""The command line as a whole: help, version, what it imports, and how it refuses. Each command has its own tests."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from aepo import catalogue, cli
from aepo.convert import make_algorithm, parse_setting
from aepo.errors import InvalidValue
from aepo.methods import METHODS

ROOT = Path(__file__).parents[2]


def run(monkeypatch, *arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["aepo", *arguments])
    try:
        cli.main()
    except SystemExit as end:
        assert end.code is None or isinstance(end.code, int)
        return end.code or 0
    return 0


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_every_command_has_help(command, monkeypatch, capsys):
    assert run(monkeypatch, *([command] if command else []), "--help") == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: aepo {command}" if command else "usage: aepo ")


def test_the_help_lists_the_commands_in_their_order(monkeypatch, capsys):
    run(monkeypatch, "--help")
    shown = capsys.readouterr().out
    assert f"{{{','.join(cli.COMMANDS)}}}" in shown.splitlines()[0]
    assert "--version" in shown


def test_each_command_is_one_file():
    files = {path.stem.replace("_", "-") for path in (ROOT / "src" / "aepo" / "cli").glob("*.py")} - {"--init--"}
    assert files == set(cli.COMMANDS)
    assert all(command.__module__ == f"aepo.cli.{name.replace('-', '_')}" for name, command in cli.COMMANDS.items())


def test_the_command_line_imports_nothing_heavy():
    script = "import sys, aepo.cli; sys.argv[1:] = ['train', '--help']\ntry: aepo.cli.main()\nexcept SystemExit: pass\n"
    heavy = ("torch", "transformers", "numpy", "matplotlib", "aepo.config", "aepo.training", "aepo.control")
    script += f"print([name for name in {heavy!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert shown.stdout.splitlines()[-1] == "[]"


def test_the_version(monkeypatch, capsys):
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == "aepo 0.1.0\n"


# --- how it refuses -------------------------------------------------------------------------------------------


class Failing:
    """A command that raises what it is told to."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __call__(self) -> "Failing":
        return self

    def run(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InvalidValue("--n", 0, "at least 1"), 2, "aepo: --n: got 0; must be at least 1\n"),
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/a"),
            2,
            "aepo: runs/a: cannot be written (No space left on device); what was written before is complete\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(error, code, line, monkeypatch, capsys):
    monkeypatch.setattr(cli.tyro.extras, "subcommand_cli_from_dict", lambda *a, **k: Failing(error))
    assert run(monkeypatch, "train") == code
    assert capsys.readouterr().err == line


def test_an_error_that_is_no_refusal_passes(monkeypatch):
    monkeypatch.setattr(cli.tyro.extras, "subcommand_cli_from_dict", lambda *a, **k: Failing(OSError(errno.ENOENT, "")))
    with pytest.raises(FileNotFoundError):
        run(monkeypatch, "train")


# --- aepo methods NAME ----------------------------------------------------------------------------------------


def test_one_method_is_shown_with_its_settings(monkeypatch, capsys):
    assert run(monkeypatch, "methods", "aepo") == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"aepo: {METHODS['aepo'].title}"
    for line in (
        "  paper     https://arxiv.org/abs/2510.08141",
        "  sensor    exact entropy",
        "  law       pi",
        "  actuator  positives drawn at T_high / T_low",
        "  cost      extra completions",
        "  engines   loop, trl, verl",
        "  page      docs/methods/aepo.md",
        "  control.target = 0.6x",
        "  control.law.gain = 10.0",
        "  control.per_prompt = none",
        "  control.shuffle = true",
    ):
        assert line in shown
    assert run(monkeypatch, "methods", "aepo", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["method"], row["settings"]["control.law.name"]) == ("aepo", "pi")


@pytest.mark.parametrize("name", METHODS)
def test_the_settings_that_are_shown_make_the_method(name):
    lines = catalogue.as_lines(name)
    start = next(number for number, line in enumerate(lines) if line.startswith("settings"))
    settings = [line.strip().replace(" = ", "=") for line in lines[start + 1 :] if line]
    assert make_algorithm("grpo", dict(map(parse_setting, settings))) == METHODS[name].algorithm
    assert (ROOT / next(line.split()[1] for line in lines if line.startswith("  page"))).exists()


@pytest.mark.parametrize(("name", "nearest"), [("clipcov", "clip-cov"), ("GRPO", "grpo"), ("aep", "aepo")])
def test_an_unknown_method_is_refused_with_the_nearest_name(name, nearest, monkeypatch, capsys):
    assert run(monkeypatch, "methods", name) == 2
    wanted = f"one that `aepo methods` lists; did you mean {nearest}?"
    assert capsys.readouterr().err == f"aepo: method: got {name!r}; must be {wanted}\n"


def test_a_name_that_is_near_nothing_and_a_page_of_one_method_are_refused(monkeypatch, capsys):
    assert run(monkeypatch, "methods", "?") == 2
    assert capsys.readouterr().err == "aepo: method: got '?'; must be one that `aepo methods` lists\n"
    assert run(monkeypatch, "methods", "aepo", "--markdown") == 2
    assert capsys.readouterr().err.startswith("aepo: --markdown: got 'aepo'; must be without a name")
