"""benchmarks/gpu.py on the CPU: one small part, an interrupted one, and what is written of both."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


def ran(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--device=cpu", f"--out={out}", "--parts", *options]
    return subprocess.run(command, cwd=out, capture_output=True, text=True)


def test_a_part_writes_its_measurements_and_names_what_is_missing(tmp_path):
    done = ran(tmp_path, "statistics", "--variants", "ours eager", "plain eager", "Liger")
    assert done.returncode == 0, done.stdout + done.stderr
    part = json.loads((tmp_path / "gpu_cpu.json").read_text())["parts"]["statistics"]
    assert part == json.loads((tmp_path / "statistics.json").read_text()) and part["complete"]
    rows = {(row["variant"], row["temperatures"]): row for row in part["results"]}
    for count in (1, 2, 3):
        ours, plain = rows["ours eager", count], rows["plain eager", count]
        assert plain["same_loss"] and ours["loss"] == pytest.approx(plain["loss"], abs=1e-4)
        assert ours["of_floor"] == pytest.approx(ours["ms"] / part["facts"]["floor_ms"])
    page = (tmp_path / "gpu_cpu.md").read_text()
    assert "No GPU" in page and "| plain | 3 |" in page
    if ("Liger", 1) not in rows:
        assert "left out: Liger: not installed" in page


def test_a_part_that_is_cut_off_leaves_what_it_has(tmp_path):
    done = ran(tmp_path, "statistics", "--variants", "plain eager", "--limit=0.2")
    assert done.returncode == 1
    part = json.loads((tmp_path / "gpu_cpu.json").read_text())["parts"]["statistics"]
    assert not part["complete"] and part["ended"] == "cut off after 0.2 s"
    assert "cut off after 0.2 s" in (tmp_path / "gpu_cpu.md").read_text()


def test_results_of_a_failed_part_stay(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import gpu_parts

    def fails(given, record):
        record.add(value=1)
        raise RuntimeError("no more")

    monkeypatch.setitem(gpu_parts.PARTS, "hold", fails)
    with pytest.raises(RuntimeError):
        gpu_parts.work("hold", gpu_parts.Given("cpu", None, tmp_path, []), tmp_path / "hold.json", 10.0)
    kept = json.loads((tmp_path / "hold.json").read_text())
    assert kept["results"] == [{"value": 1}] and not kept["complete"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_one_line(tmp_path):
    done = ran(tmp_path, "hold", "--device=cuda")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith("torch sees no GPU here")
