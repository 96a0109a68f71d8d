"""Judging while the sampler goes on."""

import pytest
import torch

from aepo.sampling.base import Sampler
from aepo.sampling.prompts import Judging
from aepo.tasks import Paths
from aepo.tasks.rewards import Begun, Verdict
from aepo.training.checkpoint import TrainState
from aepo.training.step import train_step
from aepo.types import Completion, Prompt, Request
from tests.training.test_step import WALL_CLOCK, make_run, small

REQUESTS = [Request(Prompt("p", (1,), {}), 0, 4, 1.0)]


class Eager(Paths):
    """Paths whose judging begins at once; it remembers what was begun, waited for and stopped."""

    background = True

    def start(self, problems, texts, truncated, tokens=None, place=(0, 0)):
        self.events.append(("begun", len(texts), place))
        verdicts = self.judge(problems, texts, truncated, tokens, place)
        return Begun(lambda: (self.events.append("waited"), verdicts)[1], lambda: self.events.append("stopped"))

    @property
    def events(self):
        return self.__dict__.setdefault("_events", [])

    def reward(self, problem, text, truncated):
        return float(text)


class Letters:
    def decode(self, rows, special_tokens):
        return ["".join(map(str, tokens)) for tokens in rows]


class Telling(Sampler):
    """It tells of numbers 2 and 0, and then fails or ends."""

    def __init__(self, fails=False):
        self.fails = fails

    def sample(self, requests, *, max_tokens, generator):
        made = [Completion(requests[0].prompt, 0, 1.0, (number,), (0.0,), False) for number in range(4)]
        for number in (2, 0):
            if self.ended is not None:
                self.ended({number: made[number]})
        if self.fails:
            raise KeyboardInterrupt
        return made

    def with_cuts(self, cuts):
        return self


def drawn(judging, sampler):
    return judging.sample(sampler, REQUESTS, max_tokens=1, generator=torch.Generator())


def test_what_has_ended_is_judged_at_once_and_the_rest_together():
    task, sampler = Eager(), Telling()
    with Judging(task, Letters(), (3, 9)) as judging:
        found = judging.rewards(drawn(judging, sampler))
    assert [rollout.reward for rollout in found.rollouts] == [0.0, 1.0, 2.0, 3.0]
    begun = [("begun", 1, (3, 9)), ("begun", 1, (3, 9)), ("begun", 2, (3, 9))]
    assert task.events == [*begun, "waited", "waited", "waited"] and sampler.ended is None


def test_a_task_without_background_gets_all_completions_in_one_call():
    calls = []

    class Whole(Paths):
        def judge(self, problems, texts, truncated, tokens=None, place=(0, 0)):
            calls.append(texts)
            return [Verdict(float(text)) for text in texts]

    with Judging(Whole(), Letters()) as judging:
        assert [verdict.reward for verdict in judging.verdicts(drawn(judging, Telling()))] == [0.0, 1.0, 2.0, 3.0]
    assert calls == [["0", "1", "2", "3"]]


def test_a_sampler_that_fails_stops_what_runs():
    task, sampler = Eager(), Telling(fails=True)
    with pytest.raises(KeyboardInterrupt), Judging(task, Letters()) as judging:
        drawn(judging, sampler)
    assert task.events[-2:] == ["stopped", "stopped"] and sampler.ended is None


@pytest.mark.parametrize("settings", [(), ("sampling.max_rows=5",)])
def test_a_step_that_judges_while_it_samples_is_the_same_step(quick_model, monkeypatch, settings):
    def step():
        run = make_run(small(quick_model, "aepo", 1, *settings))
        state, row, samples = train_step(run, TrainState(control=run.config.control.initial_state()))
        return state, {name: value for name, value in row.items() if name not in WALL_CLOCK}, samples

    sizes = []
    judge = Paths.judge

    def counted(self, problems, *rest):
        sizes.append(len(problems))
        return judge(self, problems, *rest)

    monkeypatch.setattr(Paths, "judge", counted)
    plain = step()
    before, sizes[:] = list(sizes), []
    monkeypatch.setattr(Paths, "background", True)
    state, row, samples = step()
    assert len(sizes) > len(before) and sum(sizes) == sum(before)
    assert (state, row, samples) == plain
