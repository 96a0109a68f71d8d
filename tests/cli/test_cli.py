"""The command line as a whole: help, version, what it imports, and how it refuses. Each command has its own tests."""

import dataclasses
import errno
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from aepo import __version__, catalogue, cli
from aepo.convert import make_algorithm, parse_setting
from aepo.errors import InvalidValue
from aepo.methods import METHODS
from aepo.reference import meanings

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
    files = {path.stem.replace("_", "-") for path in (ROOT / "src" / "aepo" / "cli").glob("[a-z]*.py")}
    assert files == set(cli.COMMANDS)
    assert all(command.__module__ == f"aepo.cli.{name.replace('-', '_')}" for name, command in cli.COMMANDS.items())


def test_the_command_line_imports_nothing_heavy():
    script = "import sys, aepo.cli; sys.argv[1:] = ['train', '--help']\ntry: aepo.cli.main()\nexcept SystemExit: pass\n"
    heavy = ("torch", "transformers", "numpy", "matplotlib", "aepo.config", "aepo.training", "aepo.control")
    script += f"print([name for name in {heavy!r} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    assert shown.stdout.splitlines()[-1] == "[]"


def said_before_torch(*arguments: str, terminal: bool = False) -> tuple[list[str], list[str]]:
    """Return the lines on standard output and standard error up to the moment at which torch would be imported."""
    script = f"""
import os, sys
class Stop:
    def find_spec(self, name, *_):
        if name == "torch":
            print("torch", flush=True)
            os._exit(0)
sys.meta_path.insert(0, Stop())
sys.stderr.isatty = lambda: {terminal}
sys.argv[1:] = {arguments!r}
import aepo.cli
aepo.cli.main()
"""
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    return shown.stdout.splitlines(), shown.stderr.splitlines()


LOGGING = {
    "train": ["--method", "grpo", "--set", "model=a b"],
    "evaluate": ["builtin"],
    "export": ["runs/one"],
    "demo": ["--model", "nowhere"],
    "compare": ["study.toml", "--dry-run"],
}
PRINTING = {
    "calibrate": ["builtin", "paths"],
    "methods": ["--markdown"],
    "settings": [],
    "check-entropy": ["module:function"],
    "report": ["runs/one"],
    "fit-law": ["runs/one"],
    "watch": ["runs/one", "--once"],
}


@pytest.mark.parametrize("command", LOGGING)
def test_a_command_that_logs_says_what_it_loads_before_it_imports_torch(command):
    out, error = said_before_torch(command, *LOGGING[command])
    given = shlex.join([command, *LOGGING[command]])
    assert out == [f"aepo {__version__} {given}: loading ...", "torch"] and error == []


def test_a_dry_run_says_so_too():
    assert said_before_torch("train", "--dry-run")[0] == [f"aepo {__version__} train --dry-run: loading ...", "torch"]


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("command", PRINTING)
def test_a_command_whose_output_is_a_result_says_it_to_people_alone(command, terminal):
    out, error = said_before_torch(command, *PRINTING[command], terminal=terminal)
    given = shlex.join([command, *PRINTING[command]])
    assert out == ["torch"] and error == [f"aepo {__version__} {given}: loading ..."] * terminal


def test_every_command_that_imports_torch_is_in_one_of_the_lists():
    assert {cli.COMMANDS[name] for name in LOGGING} == set(cli.LOGGING)
    assert {cli.COMMANDS[name] for name in PRINTING} == set(cli.PRINTING)
    assert set(cli.COMMANDS) - {*LOGGING, *PRINTING} == {"grade", "doctor"}


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_the_help_says_what_happens_where_an_option_is_left_out(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    run(monkeypatch, command, "--help")
    shown = capsys.readouterr().out
    assert "None" not in shown and "(default: )" not in shown and "(repeatable)" not in shown
    silent = [
        field.name
        for field in dataclasses.fields(cli.COMMANDS[command])
        if (field.default in (None, ()) or field.default_factory is not dataclasses.MISSING)
        and "default: " not in meanings(cli.COMMANDS[command])[field.name]
    ]
    assert silent == []


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
        "  law       self-tuning",
        "  actuator  positives drawn at T_high / T_low",
        "  cost      extra completions",
        "  engines   loop, trl, verl",
        "  page      docs/methods/aepo.md",
        "  control.target = 0.6x",
        "  control.law.gain = 0.5",
        "  control.per_prompt = none",
        "  control.shuffle = true",
    ):
        assert line in shown
    assert run(monkeypatch, "methods", "aepo", "--json") == 0
    row = json.loads(capsys.readouterr().out)
    assert (row["method"], row["settings"]["control.law.name"]) == ("aepo", "self-tuning")


@pytest.mark.parametrize("name", METHODS)
def test_the_settings_that_are_shown_make_the_method(name):
    lines = catalogue.as_lines(name)
    start = next(number for number, line in enumerate(lines) if line.startswith("settings"))
    settings = [line.strip().replace(" = ", "=") for line in lines[start + 1 :] if re.match(r"  \S+ = ", line)]
    assert make_algorithm("grpo", dict(map(parse_setting, settings))) == METHODS[name].algorithm
    assert (ROOT / next(line.split()[1] for line in lines if line.startswith("  page"))).exists()
    page = (ROOT / "docs" / "methods" / f"{METHODS[name].page}.md").read_text().rstrip()
    assert page in "\n".join(lines)
    meant = [line for line in lines[start + 1 :] if line.startswith("      ")]
    assert meant and all(len(line) <= 80 for line in meant)


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


def test_the_list_of_methods_fits_80_columns_and_is_filtered(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert run(monkeypatch, "methods") == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert all(re.search(rf"^ {re.escape(name)} ", shown, re.MULTILINE) for name in METHODS)
    assert run(monkeypatch, "methods", "--engine", "trl", "--word", "Clip", "--word", "covariance", "--json") == 0
    assert [row["method"] for row in json.loads(capsys.readouterr().out)] == ["clip-cov"]
    assert run(monkeypatch, "methods", "--engine", "trl") == 0
    assert "hapo" not in capsys.readouterr().out
    assert run(monkeypatch, "methods", "--word", "zzz") == 2
    assert capsys.readouterr().err == "aepo: --word: got 'zzz'; must be a word of a method's row in `aepo methods`\n"
    assert run(monkeypatch, "methods", "aepo", "--engine", "trl") == 2
    assert "--engine: got 'trl'; must be left out with the name of one method (aepo)" in capsys.readouterr().err


# --- aepo settings --------------------------------------------------------------------------------------------


def test_every_setting_is_listed_with_type_default_and_meaning(monkeypatch, capsys):
    assert run(monkeypatch, "settings") == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= 80 for line in shown.splitlines())
    page = (ROOT / "docs" / "settings.md").read_text()
    for name in re.findall(r"^\| `([\w.]+)` \|", page.partition("## aggregate")[0], re.MULTILINE):
        assert re.search(rf"^  {re.escape(name)} = ", shown, re.MULTILINE), name
    assert "  sampling.group_size = 8  (integer)\n      Completions that are drawn of each prompt." in shown


def test_settings_by_prefix_by_part_and_of_a_method(monkeypatch, capsys):
    def names(*arguments):
        assert run(monkeypatch, "settings", *arguments) == 0
        return re.findall(r"^  (\S+) = (\S+)", capsys.readouterr().out, re.MULTILINE)

    assert {name.split(".")[0] for name, _ in names("optimizer")} == {"optimizer"}
    assert [name for name, _ in names("grad_norm")] == ["optimizer.max_grad_norm"]
    assert ("control.law.gain", "0.5") in names("control", "--method", "aepo")
    assert ("control.law.gain", "0.5") not in names("control", "--method", "entropic")
    assert ("control.first.target", "0.6x") in names("control", "--method", "aepo+dynamic-sampling")


@pytest.mark.parametrize(("name", "nearest"), [("learning_rate", "optimizer.lr"), ("optimiser.lr", "optimizer.lr")])
def test_an_unknown_setting_is_refused_with_the_nearest_name(name, nearest, monkeypatch, capsys):
    assert run(monkeypatch, "settings", name) == 2
    assert capsys.readouterr().err.endswith(f"such as optimizer or control.law; did you mean {nearest}?\n")


def test_the_shell_completion_knows_the_commands(monkeypatch, capsys):
    assert run(monkeypatch, "--tyro-print-completion", "bash") == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in cli.COMMANDS)


def test_a_reader_that_ends_early_is_no_error():
    script = f"{sys.executable} -m aepo settings | true; echo ${{PIPESTATUS[0]}}"
    shown = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=120)
    assert shown.stderr == "" and shown.stdout.split() == ["1"]
