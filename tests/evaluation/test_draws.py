"""No two calls of an evaluation draw with the same seed."""

import json
from dataclasses import dataclass, field

import torch

from aepo.evaluation import samples
from aepo.evaluation.options import Options
from aepo.evaluation.run import run
from aepo.sampling.hf import HFSampler
from aepo.tasks import Paths
from aepo.training.evaluate import evaluate


def test_every_unit_of_every_pass_and_benchmark_draws_with_its_own_seed(quick_model, tmp_path, monkeypatch):
    """The same problem twice in a file and the same file under two names: no part repeats the draws of another one."""
    seeds: list[int] = []
    sample = HFSampler.sample

    def spy(self, requests, *, max_tokens, generator):
        seeds.append(generator.initial_seed())
        return sample(self, requests, max_tokens=max_tokens, generator=generator)

    monkeypatch.setattr(HFSampler, "sample", spy)
    monkeypatch.setattr("aepo.training.runner.check_sampler", lambda *_: None)  # it draws, too
    monkeypatch.setattr(samples, "UNIT_ROWS", 4)
    row = json.dumps({"problem": "17 42 :", "answer": "none"}) + "\n"
    made = {}
    for name in ("amc23", "aime24"):
        (tmp_path / f"{name}.jsonl").write_text(row * 2)
    for seed in (0, 1):
        out = tmp_path / str(seed)
        options = Options(
            str(quick_model), benchmark=("amc23", "aime24"), data=tmp_path, prompt="plain", grader="exact", n=8,
            max_tokens=6, seed=seed, out=out,
        )  # fmt: skip
        run(options)
        made[seed] = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    # For each seed: 2 benchmarks x 2 problems x (the samples of the pass at T = 0.1, 8 of that at T = 1) / 4 a unit.
    assert len(seeds) == sum(len(rows) for rows in made.values()) / 4 >= 2 * 2 * 2 * 2
    assert len(set(seeds)) == len(seeds)
    warm = [r for rows in made.values() for r in rows if r["pass"] == "T=1, top-p=1"]
    texts = [tuple(r["text"] for r in warm[first : first + 4]) for first in range(0, len(warm), 4)]
    assert len(texts) == len(set(texts)) == 16


@dataclass
class Recorder:
    """A policy and a sampler that draw nothing and keep the seeds."""

    seeds: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    images = None

    @property
    def encoding(self):
        return self

    def prompt(self, problem) -> tuple[int, ...]:
        return (1,)

    def decode(self, completions: list, special_tokens: bool = True) -> list[str]:
        return []

    def sample(self, requests, *, max_tokens: int, generator: torch.Generator) -> list:
        self.seeds.append(generator.initial_seed())
        self.rows.append(sum(request.count for request in requests))
        return []


def test_every_call_of_an_evaluation_in_training_draws_with_its_own_seed():
    calls = Recorder()
    for seed in (0, 1):
        evaluate(calls, calls, Paths(), problems=5, samples=2048, seed=seed)
    assert calls.rows == [4096, 4096, 2048] * 2
    assert len(set(calls.seeds)) == len(calls.seeds) == 6
