"""Two processes decide the same and train on the batch that one would: the mean of their losses is the core's."""

from __future__ import annotations

import pytest

from .job import Job, spread

PARITY = {"max_grad_norm": 0.0, "learning_rate": 2e-2, "max_steps": 6, "num_iterations": 2}
CASES = {
    "aepo": {"target": "0.5"},
    "groups that lie on both ranks": {"target": "3.0", "num_generations": 6, "per_device_train_batch_size": 15},
    "groups that do not divide": {"target": "3.0", "num_generations": 3, "per_device_train_batch_size": 21},
    "own loss": {"method": "aepo-reference", "target": None},
    "a gradient through entropy": {"method": "entropy-reg", "target": None, "settings": {"control.coefficient": 0.1}},
    "rows that are left out": {"method": "overlong", "target": None, "settings": {"control.filter_truncated": True}},
    "accumulated": {"target": "0.5", "per_device_train_batch_size": 8, "gradient_accumulation_steps": 4},
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    given = {name: {**PARITY, "per_device_train_batch_size": 32, **changes} for name, changes in CASES.items()}
    jobs = [Job(str(folder / "run"), changes, parity=True) for changes in given.values()]
    return dict(zip(given, spread(jobs, folder), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients(answers, case):
    ranks, changes = answers[case], CASES[case]
    updates = list(zip(*(rank["updates"] for rank in ranks), strict=True))
    assert len(updates) == 6
    for each in updates:
        assert each[0]["core"] == pytest.approx(each[1]["core"], abs=1e-6)
        assert sum(sum(rank["losses"]) for rank in each) / 2 == pytest.approx(each[0]["core"], abs=1e-5)
        assert max(rank["gap"] for rank in each) < 1e-5  # of the gradient, which DDP has averaged
    if "aepo" in changes.get("method", "aepo"):
        assert any(ranks[0]["extra_used"])
        assert all(drawn % changes.get("num_generations", 8) == 0 for drawn in ranks[0]["extra_completions"])
    assert ranks[0]["processes"] == 2
    assert ranks[0]["state"] == ranks[1]["state"] and ranks[0]["weights"] == ranks[1]["weights"]
