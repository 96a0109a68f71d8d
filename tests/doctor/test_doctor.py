"""The command: what it prints, its exit code, and that it needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from aepo import cli
from aepo.doctor import Log, examine
from aepo.doctor.page import about
from aepo.doctor.report import doctor
from aepo.doctor.types import EntropyMeaning

LOGS = Path(__file__).parent / "logs"


def test_the_doctor_imports_no_torch():
    """Nor does the command line on its way to it."""
    code = (
        "import sys, aepo.doctor.report, aepo.cli; from pathlib import Path; "
        f"aepo.doctor.report.doctor([Path({str(LOGS / 'trl' / 'cut')!r})]); "
        "assert not {'torch', 'transformers', 'tensorflow'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("names", "code"),
    [(["aepo/healthy"], 0), (["aepo/dead"], 1), (["trl/onpolicy"], 0), (["aepo/healthy", "aepo/collapse"], 1)],
)
def test_exit_code_counts_what_is_serious_and_not_just_possible(names, code, capsys):
    assert doctor([LOGS / name for name in names]) == code
    out = capsys.readouterr().out
    assert all(name.split("/")[1] in out for name in names)


def test_what_was_looked_at_is_said_where_nothing_is_found(capsys):
    doctor([LOGS / "aepo" / "healthy"])
    out = " ".join(capsys.readouterr().out.split())
    assert "aepo, steps 0 to 39" in out and "read: approximate_kl, clip_fraction, dead_groups" in out
    assert "no fault found" in out and "not in the log, so not judged: KL to the reference, loss, evaluation" in out


def test_what_was_read_and_what_is_missing_is_said_beside_findings_too(capsys):
    doctor([LOGS / "trl" / "cut"])
    out = " ".join(capsys.readouterr().out.split())
    assert "truncation" in out and "read: clip_fraction" in out and "not judged: KL to the reference" in out
    assert "fact: on-policy" in out


def test_json_has_what_was_read_and_what_is_missing(capsys):
    doctor([LOGS / "aepo" / "healthy"], as_json=True)
    (run,) = json.loads(capsys.readouterr().out)
    assert "entropy" in run["read"] and "KL to the reference" in run["missing"] and "reward" not in run["missing"]


def test_json(capsys):
    doctor([LOGS / "trl" / "resumed"], resumes=[16], as_json=True)
    (run,) = json.loads(capsys.readouterr().out)
    assert (
        run["framework"] == "TRL" and run["resumes"] == [16] and run["keys"]["truncated"] == "completions/clipped_ratio"
    )
    kinds = {finding["kind"]: finding for finding in run["findings"]}
    assert kinds["instability after resume"]["step"] == 16
    assert set(kinds["truncation"]) == {"kind", "step", "evidence", "confidence", "advice", "serious"}


def command(monkeypatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["aepo", "doctor", *words])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


def test_command_line(monkeypatch, capsys, tmp_path):
    assert command(monkeypatch, str(LOGS / "aepo" / "healthy")) == 0
    assert command(monkeypatch, str(LOGS / "trl" / "resumed"), "--resumed-at", "16", "--json") == 1
    assert "instability after resume" in capsys.readouterr().out
    assert command(monkeypatch) == 2
    assert "at least one" in capsys.readouterr().err
    (tmp_path / "x.txt").write_text("nothing of interest")
    assert command(monkeypatch, str(tmp_path / "x.txt")) == 2
    error = capsys.readouterr().err
    assert error.startswith("aepo: LOG: got") and error.count("\n") == 1


def test_one_unreadable_log_does_not_silence_the_others(monkeypatch, capsys, tmp_path):
    (tmp_path / "x.txt").write_text("nothing of interest")
    both = [str(tmp_path / "x.txt"), str(tmp_path / "gone.jsonl")]
    assert command(monkeypatch, str(LOGS / "aepo" / "dead"), *both) == 1
    out = capsys.readouterr().out
    assert "dead groups" in out and f"left out: {both[0]}" in out and f"left out: {both[1]}" in out
    assert command(monkeypatch, "--json", str(LOGS / "aepo" / "healthy"), *both) == 0
    run, *left_out = json.loads(capsys.readouterr().out)
    assert run["framework"] == "aepo" and [each["source"] for each in left_out] == both
    assert command(monkeypatch, *both) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(path in error for path in both)


def test_the_page_has_a_figure_with_every_finding(monkeypatch, capsys, tmp_path):
    page = tmp_path / "page.html"
    broken = tmp_path / "broken.jsonl"
    row = {"reward": 0.5, "reward_std": 0.2, "entropy": 0.4}
    rows = [{"step": step, **row, "grad_norm": float("nan") if step > 8 else 0.1} for step in range(1, 11)]
    broken.write_text("".join(json.dumps(row) + "\n" for row in rows) + "cut")
    assert command(monkeypatch, "--html", str(page), str(LOGS / "aepo" / "dead"), str(broken), "gone & <lost>") == 1
    text = page.read_text()
    assert text.count("<h3>") >= 2 and text.count("<svg") >= text.count("<h3>")
    assert text.count('class="mark"') == text.count("<svg") and text.count('class="broken"') == 2
    assert "gone &amp; &lt;lost&gt;" in text and "<lost>" not in text
    assert command(monkeypatch, "--html", str(tmp_path / "no" / "page.html"), str(broken)) == 2
    assert "--html" in capsys.readouterr().err


def test_what_was_left_out_and_where_the_run_was_resumed_is_said(capsys, tmp_path):
    rows = [{"step": step, "optim/entropy": 0.5, "env/all/reward/total": 0.1 * step} for step in range(12)]
    lines = [json.dumps(row) for row in rows]
    path, page = tmp_path / "metrics.jsonl", tmp_path / "page.html"
    path.write_text("\n".join([*lines[:6], lines[6][:20] + lines[4], *lines[5:]]))
    doctor([path], page=page)
    for out in (capsys.readouterr().out, page.read_text()):
        assert "1 broken row was left out; 14 rows were read" in out and "resumed at step 4" in out
    assert "not in the log, so not judged: share of groups" in page.read_text()


SERIES = (
    "entropy", "reward", "length", "gradient_norm", "reference_kl", "approximate_kl", "loss", "truncated",
    "dead_groups", "mismatch", "distinct", "mismatch_correlation", "evaluation", "learning_rate",
)  # fmt: skip
ORDINARY = {"length": 300.0, "mismatch": 0.001, "distinct": 1.0, "mismatch_correlation": 0.999}
SHOWN = {
    "collapse": {"entropy": 0.01},
    "explosion": {"gradient_norm": 90.0},
    "reward lost": {"reward": 0.0},
    "dead groups": {"dead_groups": 0.9},
    "length collapse": {"length": 2.0},
    "length growing": {"length": 3000.0},
    "KL to the reference grows": {"reference_kl": 9.0},
    "sampler mismatch": {"mismatch_correlation": 0.5},
    "not a number": {"loss": float("nan")},
}


@pytest.mark.parametrize("kind", SHOWN)
def test_the_figure_of_a_finding_is_of_the_series_that_changed(kind):
    small = {
        "truncated": 0.0,
        "reference_kl": 0.001,
        "approximate_kl": 0.001,
        "learning_rate": 1e-6,
        "dead_groups": 0.1,
    }

    def value(name: str, step: int) -> float:
        level = SHOWN[kind].get(name) if step >= 20 else None
        level = {**ORDINARY, **small}.get(name, 0.5) if level is None else level
        return level * (1 + 0.001 * (step % 3))

    series = {name: tuple((step, value(name, step)) for step in range(60)) for name in SERIES}
    keys = {name: f"the/{name}" for name in SERIES}
    log = Log("made", "made", series, keys, entropy=EntropyMeaning("exact", "the exact entropy"))
    (found,) = [found for found in examine(log) if found.kind == kind]
    assert set(SHOWN[kind]) == set(about(log, found))
