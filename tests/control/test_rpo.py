from dataclasses import replace

import pytest
import torch

from aepo.control.aepo import AEPO
from aepo.control.both import Both
from aepo.control.rpo import RPO
from aepo.engines.collate import collate
from aepo.errors import InvalidValue
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from aepo.tasks import Countdown, Paths
from tests import builders as b


def solved(sample, *solution):
    completion = sample.rollout.completion
    prompt = replace(completion.prompt, solution=solution)
    return replace(sample, rollout=replace(sample.rollout, completion=replace(completion, prompt=prompt)))


ROWS = [
    solved(b.sample(1.0, 0.5, group=0), 3, 0),
    solved(b.sample(0.0, -0.5, group=0), 3, 0),
    b.sample(1.0, 0.7, group=1),
    solved(b.sample(0.0, -0.7, group=2), 1, 2, 0),
]


def mixed(control=RPO(), extra=()):
    return control.mix(ROWS, extra, control.initial_state(), b.place())


def loss(samples, logits, control):
    """The loss of these samples under softmax(logits), and what the log would call clipped."""
    batch = b.marked(control, b.scored(samples))
    labels = batch.batch.input_ids[:, batch.batch.prompt_width :]
    new = b.token_policy(logits.expand(*labels.shape, -1), labels)
    new = replace(new, logprobs=new.logprobs * batch.batch.mask)
    penalty = control.penalty(batch, new, {})
    weights = token_mean(batch.batch.mask)
    advantages = batch.batch.advantages
    return policy_loss(new.logprobs, new.logprobs.detach(), advantages, weights, Clip(), penalty).loss


def test_golden_one_row_for_each_prompt_with_a_solution():
    new = mixed()[len(ROWS) :]
    assert mixed()[: len(ROWS)] == ROWS
    assert [s.rollout.completion.tokens for s in new] == [(3, 0), (1, 2, 0)]
    assert [s.rollout.completion.prompt.tokens for s in new] == [(5, 6)] * 2
    assert all(s.extra and s.trained and s.advantage == 0 and s.rollout.completion.temperature == 1 for s in new)
    assert len({s.rollout.completion.group for s in new}) == 2
    assert {s.rollout.completion.group for s in new}.isdisjoint(range(100))


def test_the_gradient_is_supervised_fine_tunings_times_eta():
    torch.manual_seed(0)
    logits = torch.randn(5, requires_grad=True)
    solutions = mixed()[len(ROWS) :]
    gradient = torch.autograd.grad(loss(solutions, logits, RPO(eta=0.3)), logits)[0]
    tokens = torch.tensor([3, 0, 1, 2, 0])
    fine_tuning = torch.nn.functional.cross_entropy(logits.expand(5, 5), tokens)
    torch.testing.assert_close(gradient, 0.3 * torch.autograd.grad(fine_tuning, logits)[0])


def test_golden_the_penalty_is_on_the_solutions_alone():
    extra = [b.sample(1.0, 0.5, group=9, extra=True, temperature=1.0)]
    batch = b.marked(RPO(), b.scored(mixed(extra=extra), logprobs=-2.0))
    penalty = RPO(eta=0.1).penalty(batch, batch.old, {})
    expected = [[0.0] * 3] * 5 + [[0.2, 0.2, 0.0], [0.2, 0.2, 0.2]]
    torch.testing.assert_close(penalty, torch.tensor(expected))


def test_absent_solutions_contribute_nothing():
    rows = [b.sample(1.0, 0.5), b.sample(0.0, -0.5)]
    assert RPO().mix(rows, [], {}, b.place()) == rows
    logits = torch.randn(5, requires_grad=True)
    batch = b.marked(RPO(), b.scored(rows, logprobs=-2.0))
    assert RPO().penalty(batch, batch.old, {}).abs().max() == 0
    with_it = torch.autograd.grad(loss(rows, logits, RPO(eta=5.0)), logits)[0]
    torch.testing.assert_close(with_it, torch.autograd.grad(loss(rows, logits, RPO(eta=0.1)), logits)[0])


def test_solutions_never_enter_the_sensor_nor_get_an_advantage():
    scored = b.scored(mixed(), entropy=1.0)
    assert scored.ordinary.sum() == 2 * len(ROWS)
    assert (collate(mixed(), 0).advantages[len(ROWS) :] == 0).all()


@pytest.mark.parametrize("positives", ["sampled", "reweighted"])
def test_after_aepo_solutions_are_added_to_its_positives(positives):
    control = Both(first=AEPO(positives=positives, weight=1.0), second=RPO())
    state = control.initial_state()
    state = {**state, "first": {**state["first"], "command": 1.0}}
    extra = [b.sample(1.0, 0.5, group=9, extra=True, temperature=1.5)]
    rows = control.mix(ROWS, extra if positives == "sampled" else [], state, b.place())
    assert [s.rollout.completion.group < 0 for s in rows[-2:]] == [True, True]
    batch = b.marked(control, b.scored(rows, logprobs=-1.0, tempered={1.5: -1.2}), state)
    assert batch.marks["solution"].sum(1).tolist() == [0.0] * (len(rows) - 2) + [2.0, 3.0]
    shaped = control.shape(batch.batch.advantages, batch, state)
    assert (shaped[-2:] == 0).all()


@pytest.mark.parametrize("task", [Paths(), Countdown(), Countdown(count=5)])
def test_the_tasks_solutions_are_right_by_their_own_reward(task):
    problems = [*(task.train_problem(0, i) for i in range(60)), *task.eval_problems(60)]
    for problem in problems:
        text = task.solution(problem.data)
        assert task.reward(problem.data, text, truncated=False) == 1.0
        assert len(text.split()) < task.max_tokens


def test_golden_a_path_is_a_shortest_one():
    task = Paths()
    assert task.solution({"start": 17, "goal": 42}) == "12 21 42"  # -5, +9, times 2
    assert task.solution({"start": 3, "goal": 3}) == "2 3"
    distances = task.distances()
    for problem in (task.train_problem(0, i).data for i in range(60)):
        assert len(task.solution(problem).split()) == distances[problem["start"], problem["goal"]]


def test_a_goal_out_of_reach_has_no_path():
    task = Paths(max_moves=2, eval_pairs=9)
    assert task.solution({"start": 0, "goal": 99}) is None


@pytest.mark.parametrize("value", [0.0, -0.1, float("nan")])
def test_bad_values_are_refused(value):
    with pytest.raises(InvalidValue, match=r"^control\.eta: got"):
        RPO(eta=value)
