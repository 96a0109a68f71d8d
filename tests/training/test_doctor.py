"""The doctor that watches a run of this package."""

import json

import pytest

from aepo.errors import InvalidValue
from aepo.training import runner
from aepo.training.folder import METRICS
from tests.training.test_step import small

BROKEN = ("optimizer.lr=1.0", "doctor.every=3", "checkpoint.every=0")


def rows(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_broken_run_is_stopped_with_a_checkpoint_and_can_be_resumed(quick_model, tmp_path, capsys):
    out = tmp_path / "run"
    runner.start(small(quick_model, "grpo", 20, *BROKEN, "doctor.stop_on=sure"), out)
    done = len(rows(out / METRICS))
    assert done < 20 and done % 3 == 0
    assert (out / "checkpoints" / f"step-{done}").is_dir()
    told = rows(out / "doctor.jsonl")
    assert any(row["stop"] and row["confidence"] == "sure" for row in told)
    assert all(row["step"] == done for row in told if row["stop"])
    printed = capsys.readouterr().out
    assert "doctor: " in printed and f"stopped by the doctor after step {done}; go on with: aepo" in printed
    runner.resume(out, quiet=True)
    assert len(rows(out / METRICS)) > done, "what was told once does not stop it again"


def test_by_default_it_only_warns(quick_model, tmp_path):
    out = tmp_path / "run"
    runner.start(small(quick_model, "grpo", 7, *BROKEN), out, quiet=True)
    assert len(rows(out / METRICS)) == 7 and rows(out / "doctor.jsonl")


def test_it_can_be_switched_off(quick_model, tmp_path):
    out = tmp_path / "run"
    runner.start(small(quick_model, "grpo", 6, *BROKEN, "doctor.every=0", "doctor.stop_on=sure"), out, quiet=True)
    assert len(rows(out / METRICS)) == 6 and not (out / "doctor.jsonl").exists()


def test_a_bad_setting_is_refused(quick_model):
    with pytest.raises(InvalidValue, match="doctor.every"):
        small(quick_model, "grpo", 2, "doctor.every=-1")
