import math
from dataclasses import replace

import pytest

from aepo.algorithm import Algorithm
from aepo.control.signed_reward import SignedReward
from aepo.engines.capabilities import LOOP
from aepo.engines.preflight import Setup, preflight
from aepo.errors import InvalidValue
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from aepo.methods import preset
from tests import builders as b
from tests import originals

# What the authors call each pair of weights.
WEIGHTS = {"positive": lambda _: (1.0, 0.0), "negative": lambda _: (0.0, 1.0), "weighted": lambda weight: (weight, 1.0)}


def mixed(rewards, positive, negative, extra=()):
    rows = [b.sample(reward, 7.0, number=i) for i, reward in enumerate(rewards)]
    return SignedReward(positive=positive, negative=negative).mix(rows, extra, {}, b.step())


@pytest.mark.parametrize("case", originals.cases("psr-nsr"))
def test_golden_the_authors_function(case):
    weights = WEIGHTS[case["settings"]["advantage"]](case["settings"]["positive_advantage_weight"])
    rows = mixed(case["input"]["rewards"], *weights)
    assert [row.advantage for row in rows] == pytest.approx(case["advantages"])
    # The authors' trainer takes the rows without an advantage out of the batch.
    assert [row.trained for row in rows] == [value != 0 for value in case["advantages"]]


def test_golden_a_group_of_equal_rewards_trains():
    assert [row.advantage for row in mixed([1.0, 1.0], 0.1, 1.0)] == [0.1, 0.1]
    assert [row.advantage for row in mixed([0.0, 0.0], 0.1, 1.0)] == [-1.0, -1.0]


def test_golden_the_run_says_what_is_right_and_not_the_size_of_the_reward():
    rows = [b.sample(reward, 7.0) for reward in (0.2, 0.9)]
    turned = [replace(row, rollout=replace(row.rollout, right=not row.rollout.right)) for row in rows]
    assert [row.advantage for row in SignedReward().mix(turned, (), {}, b.step())] == [0.1, -1.0]


def test_positive_samples_alone_need_a_right_answer():
    assert SignedReward(positive=1.0, negative=0.0).needs_right
    assert not SignedReward().needs_right and not SignedReward(positive=0.0).needs_right


def gradient(rewards, positive, negative):
    """Of the loss by the log-probabilities of each row's single token, over the rows that are trained on."""
    rows = [b.sample(reward, 7.0, tokens=(1,), number=i) for i, reward in enumerate(rewards)]
    batch = b.scored(SignedReward(positive=positive, negative=negative).mix(rows, (), {}, b.step()))
    trained = batch.select(batch.batch.trained)
    logprobs = trained.old.logprobs.clone().requires_grad_()
    weights = token_mean(trained.batch.mask)
    policy_loss(logprobs, trained.old.logprobs, trained.batch.advantages, weights, Clip()).loss.backward()
    return logprobs.grad.flatten().tolist()


def test_golden_the_gradient_is_the_mean_over_the_rows_that_are_trained_on():
    assert gradient([1.0, 0.0, 0.0, 0.0], 0.1, 1.0) == pytest.approx([-0.1 / 4, 1 / 4, 1 / 4, 1 / 4])
    assert gradient([1.0, 0.0, 0.0, 0.0], 0.0, 1.0) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert gradient([1.0, 0.0, 0.0, 0.0], 1.0, 0.0) == pytest.approx([-1.0])


def test_extra_rows_and_rows_that_another_control_took_out_stay_so():
    extra = (b.sample(1.0, 3.0, group=9, extra=True),)
    assert mixed([1.0], 0.1, 1.0, extra)[-1] == extra[0]
    out = replace(b.sample(1.0, 3.0), trained=False)
    assert not SignedReward().mix([out], (), {}, b.step())[0].trained


def test_preflight_does_not_say_that_equal_groups_give_no_gradient():
    control = SignedReward()

    def said(algorithm):
        sentences = preflight(Setup(engine=LOOP, algorithm=algorithm, group_size=2, updates_per_rollout=2))
        return any("all right or all wrong" in sentence for sentence in sentences)

    assert said(Algorithm()) and not said(Algorithm(control=control))


def test_preflight_says_that_another_advantage_has_no_effect():
    def said(method):
        algorithm = preset(method)
        sentences = preflight(Setup(engine=LOOP, algorithm=algorithm, group_size=8, updates_per_rollout=2))
        return any("advantage = pass-at-k has no effect" in sentence for sentence in sentences)

    assert said("w-reinforce+pass-at-k") and not said("w-reinforce") and not said("aepo+pass-at-k")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"positive": -0.1}, "positive"),
        ({"positive": math.inf}, "positive"),
        ({"negative": math.nan}, "negative"),
        ({"positive": 0.0, "negative": 0.0}, "positive"),
    ],
)
def test_bad_values_are_refused(fields, named):
    with pytest.raises(InvalidValue, match=rf"^control\.{named}: got"):
        SignedReward(**fields)
