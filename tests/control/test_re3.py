import math

import pytest
import torch

from aepo.control import re3
from aepo.control.re3 import RE3
from aepo.errors import InvalidValue
from tests import builders as b


def bonus(control, *answers, rewards=None, groups=None, step=0):
    rewards = rewards or [1.0] * len(answers)
    groups = groups or [0] * len(answers)
    rollouts = [
        b.sample(r, tokens=tokens, group=g, number=i).rollout
        for i, (tokens, r, g) in enumerate(zip(answers, rewards, groups, strict=True))
    ]
    shaped = control.reward(rollouts, {}, b.place(step))
    return [s - r for s, r in zip(shaped, rewards, strict=True)]


@pytest.fixture
def line(monkeypatch):
    """Token n stands at n on a line."""
    vector = lambda seed, token, dimension: torch.tensor([float(token)], dtype=torch.float64)
    monkeypatch.setattr(re3, "_vector", vector)


def test_golden_the_distance_to_the_kth_neighbour(line):
    """Answers at 0, 1, 3, 7: the second neighbours are at 3, 2, 3, 6 of them; the third at 7, 6, 4, 7."""
    answers = [(0,), (1,), (3,), (7,)]
    second, third = [3, 2, 3, 6], [7, 6, 4, 7]
    assert bonus(RE3(k=2, beta_0=1.0), *answers) == pytest.approx([math.log(1 + d) for d in second])
    assert bonus(RE3(k=3, beta_0=1.0), *answers) == pytest.approx([math.log(1 + d) for d in third])
    assert bonus(RE3(k=9, beta_0=1.0), *answers) == pytest.approx([math.log(1 + d) for d in third])  # the farthest


def test_golden_an_answer_is_the_mean_of_its_tokens(line):
    assert bonus(RE3(k=1, beta_0=1.0), (1, 3), (5,)) == pytest.approx([math.log(4)] * 2)


def test_golden_only_right_answers_are_paid_and_wrong_ones_are_neighbours(line):
    paid = bonus(RE3(k=1, beta_0=1.0), (0,), (2,), (9,), rewards=[1.0, 0.0, 0.0])
    assert paid == pytest.approx([math.log(3), 0.0, 0.0])


def test_golden_the_weight_decays(line):
    at = lambda step: bonus(RE3(k=1, beta_0=0.5, rho=0.1), (0,), (1,), step=step)[0]
    assert [at(0), at(1), at(3)] == pytest.approx([0.5 * math.log(2) * w for w in (1.0, 0.9, 0.729)])


def test_neighbours_are_of_the_same_group(line):
    paid = bonus(RE3(k=3, beta_0=1.0), (0,), (50,), (1,), (53,), groups=[0, 1, 0, 1])
    assert paid == pytest.approx([math.log(2), math.log(4), math.log(2), math.log(4)])


def test_equal_completions_get_nothing():
    assert bonus(RE3(), *[(4, 9, 2)] * 5) == [0.0] * 5
    assert bonus(RE3(), (4, 9, 2)) == [0.0]


def test_permuting_a_group_permutes_the_rewards():
    answers = [(1, 2), (3,), (4, 5, 6), (1, 7), (2,)]
    order = [3, 0, 4, 2, 1]
    straight = bonus(RE3(), *answers)
    assert bonus(RE3(), *[answers[i] for i in order]) == pytest.approx([straight[i] for i in order])
    assert all(value > 0 for value in straight)


def test_token_vectors_are_a_function_of_seed_and_token():
    first = bonus(RE3(seed=1), (1,), (2,))
    re3._vector.cache_clear()
    assert bonus(RE3(seed=1), (9,), (8,)) and bonus(RE3(seed=1), (1,), (2,)) == first != bonus(RE3(seed=2), (1,), (2,))
    lengths = torch.stack([re3._vector(0, token, 50) for token in range(200)]).norm(dim=-1)
    assert lengths.mean().item() == pytest.approx(1.0, abs=0.05)


def test_a_completion_without_tokens_does_no_harm():
    assert all(math.isfinite(value) for value in bonus(RE3(), (), (1,)))


@pytest.mark.parametrize(
    ("field", "value"), [("k", 0), ("beta_0", 0.0), ("rho", 1.0), ("rho", -0.1), ("dimension", 0), ("seed", -1)]
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        RE3(**{field: value})
