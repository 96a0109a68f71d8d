"""A whole training run on vLLM: what was sampled comes from the weights of its step."""

import json
from dataclasses import replace

from aepo.config import make_config
from aepo.model.builtin import QUICK, base_model
from aepo.training import runner

SETTINGS = (
    *("steps=4", "sampling.engine=vllm", "sampling.prompts=8", "optimizer.lr=1e-2", "control.start=hot"),
    *("evaluation.every=4", "evaluation.prompts=4", "evaluation.samples=4"),
)


def test_a_run_samples_with_the_weights_of_every_step(tmp_path):
    # vLLM's attention on a CPU takes heads of 32 and more.
    folder = base_model("paths", pretraining=replace(QUICK, hidden=64, heads=2), cache=tmp_path / "models")
    runner.start(make_config(settings=[*SETTINGS, f"model='{folder}'"]), tmp_path / "run", quiet=True)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and rows[-1]["evaluation"]["samples"] == 4
    assert all(row["mismatch"] < 1e-4 for row in rows) and rows[0]["extra_temperature"] == 1.5
