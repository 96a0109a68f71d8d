import math

import pytest

from aepo.training.vitals import ENTROPIES, GRADIENTS, REWARDS, death

ALIVE = {"entropy": 0.8, "reward": 0.5, "dead_groups": 0.2, "updates": 4, "updates_skipped": 0}
DEAD = {
    "gradients": (GRADIENTS, {"updates_skipped": 4}, "no update had a finite gradient"),
    "rewards": (REWARDS, {"reward": None, "entropy": None, "updates": None}, "no completion got a reward"),
    "no choice": (ENTROPIES, {"entropy": 0.0, "dead_groups": 1.0}, "the entropy is 0"),
    "uniform": (ENTROPIES, {"entropy": math.log(50)}, "the entropy is ln V = 3.912 nats"),
}


def rows(count, changes, before=30):
    made = [ALIVE] * before + [{**ALIVE, **changes}] * count
    return [{"step": step, **row} for step, row in enumerate(made)]


@pytest.mark.parametrize("kind", DEAD)
def test_a_run_is_dead_after_so_many_steps_and_not_before(kind):
    steps, changes, words = DEAD[kind]
    assert death(rows(steps - 1, changes), 50) is None
    first, why = death(rows(steps, changes), 50)
    assert first == 30 and words in why


@pytest.mark.parametrize(
    "changes",
    [
        {"updates_skipped": 3},  # one update of four was sound
        {"entropy": 0.0, "dead_groups": 0.9},  # a sharp policy that still learns
        {"entropy": math.log(50) - 0.01},  # random weights of a tiny model
        {"reward": 0.0},
    ],
)
def test_a_weak_run_is_not_dead(changes):
    assert death(rows(40, changes), 50) is None


def test_too_few_rows_say_nothing():
    assert death([], 50) is None and death(rows(2, {"updates_skipped": 4}, before=0), 50) is None
