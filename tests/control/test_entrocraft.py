from dataclasses import replace

import pytest
import torch

from aepo.config import make_config
from aepo.control.entrocraft import Entrocraft
from aepo.control.schedules import Target
from aepo.errors import InvalidValue
from aepo.loss.advantages import group_mean_std
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from tests import builders as b
from tests import originals

# A group of one right and three wrong answers.
GROUP = [(1.0, 1.5), (0.0, -0.5), (0.0, -0.5), (0.0, -0.5)]


def rows(pairs=GROUP, **fields):
    return [b.sample(reward, a, tokens=(1,), number=i, **fields) for i, (reward, a) in enumerate(pairs)]


def shaped(entropy, step=0, steps=100, samples=None, state=None, **fields):
    scored = b.scored(samples or rows(), entropy=entropy, step=b.place(step, steps=steps))
    control = Entrocraft(**fields)
    state = control.initial_state() if state is None else state
    return control.shape(scored.batch.advantages, scored, state).flatten().tolist()


def test_golden_too_much_entropy_keeps_the_right_answers_and_averages_over_them():
    # One row of four is kept, so it weighs 4: the mean over the group is then 1.5, as over the kept row alone.
    assert shaped(0.8) == [6.0, 0, 0, 0]


def test_golden_too_little_entropy_keeps_the_wrong_answers_and_averages_over_them():
    assert shaped(0.5) == pytest.approx([0, -2 / 3, -2 / 3, -2 / 3])  # 4 / 3 * -0.5: the mean is -0.5


def test_golden_inside_the_band_and_on_its_ends_nothing_changes():
    for entropy in (0.5, 0.625, 0.75):
        kept = shaped(entropy, low=Target("0.5"), high=Target("0.75"))
        assert kept == [1.5, -0.5, -0.5, -0.5]


def test_golden_the_band_moves_over_the_run():
    # At half of the run the band is 0.5 to 0.6: 0.65 is over it, at the start inside.
    assert shaped(0.65, step=0) == [1.5, -0.5, -0.5, -0.5]
    assert shaped(0.65, step=50) == [6.0, 0, 0, 0]
    # At a quarter it is 0.55 to 0.65 in a line, and 0.6 - 0.2 * 0.1464 = 0.5707 to 0.6707 along the cosine.
    assert shaped(0.56, step=25) == [1.5, -0.5, -0.5, -0.5]
    assert shaped(0.56, step=25, schedule="cosine")[0] == 0
    assert shaped(0.66, step=25) == [6.0, 0, 0, 0]
    assert shaped(0.66, step=25, schedule="cosine") == [1.5, -0.5, -0.5, -0.5]
    # At three quarters the lower end is 0.45 in a line and 0.6 - 0.2 * 0.8536 = 0.4293 along the cosine.
    assert shaped(0.44, step=75)[0] == 0
    assert shaped(0.44, step=75, schedule="cosine") == [1.5, -0.5, -0.5, -0.5]


def test_golden_rows_without_an_advantage_are_kept_and_count():
    # Of the group with A = (1, 0, -1), too much entropy keeps two rows: 3 / 2.
    assert shaped(0.8, samples=rows([(1.0, 1.0), (0.5, 0.0), (0.0, -1.0)])) == [1.5, 0, 0]


def test_groups_are_averaged_apart_and_untrained_rows_do_not_count():
    samples = [*rows(), *rows([(1.0, 1.0), (0.0, -1.0)], group=1)]
    assert shaped(0.8, samples=samples) == [6.0, 0, 0, 0, 2.0, 0]
    samples = [replace(sample, trained=number != 3) for number, sample in enumerate(rows())]
    assert shaped(0.8, samples=samples) == [4.5, 0, 0, 0]  # of 3 trained rows 1 is kept: 3 * 1.5


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_extra_rows_keep_their_advantage_and_do_not_enter_the_entropy(variant):
    samples = [*rows(), *rows([(0.0, -3.0)], group=9, extra=True)]
    scored = b.scored(samples, entropy=torch.tensor([[0.8]] * 4 + [[0.0]]), step=b.place(0))
    control = Entrocraft(variant=variant)
    assert control.shape(scored.batch.advantages, scored, control.initial_state())[-1].item() == -3.0
    assert control.shape(scored.batch.advantages, scored, control.initial_state())[1].item() == 0.0


@pytest.mark.parametrize("case", originals.cases("entrocraft"))
def test_golden_the_authors_functions(case):
    given, settings = case["input"], dict(case["settings"])
    fields = {name: Target(str(settings[name])) for name in ("low", "high", "low_end", "high_end")}
    advantages = group_mean_std(torch.tensor(given["rewards"]), torch.tensor(given["groups"])).tolist()
    samples = [
        b.sample(max(reward, 0.0), advantage, tokens=(1,), group=group, number=number)
        for number, (reward, advantage, group) in enumerate(
            zip(given["rewards"], advantages, given["groups"], strict=True)
        )
    ]
    found = shaped(
        given["entropy"],
        given["step"],
        given["steps"],
        samples,
        schedule=settings["schedule"],
        variant="code",
        **fields,
    )
    assert found == pytest.approx(case["advantages"], abs=1e-4)


def gradient(entropy):
    scored = b.scored(rows(), entropy=entropy, step=b.place(0))
    control = Entrocraft()
    advantages = control.shape(scored.batch.advantages, scored, control.initial_state())
    logprobs = scored.old.logprobs.clone().requires_grad_()
    policy_loss(logprobs, scored.old.logprobs, advantages, scored.batch.mask / 4, Clip()).loss.backward()
    return logprobs.grad.flatten().tolist()


def test_golden_the_gradient_is_the_mean_over_the_kept_rows():
    assert gradient(0.65) == pytest.approx([-1.5 / 4, 0.5 / 4, 0.5 / 4, 0.5 / 4])
    assert gradient(0.8) == pytest.approx([-1.5, 0, 0, 0])
    assert gradient(0.5) == pytest.approx([0, 0.5 / 3, 0.5 / 3, 0.5 / 3])


def test_golden_the_error_is_the_distance_from_the_band():
    control = Entrocraft()
    errors = []
    for entropy in (0.5, 0.65, 0.8):
        errors.append(control.update(control.initial_state(), b.measured(entropy, 0))["error"])
    assert errors == pytest.approx([0.1, 0.0, -0.1])
    assert control.report(control.initial_state(), {"first_entropy": 0.8, "error": -0.1}).error == -0.1


def test_the_band_may_be_a_multiple_of_the_first_entropy():
    fields = {"low": Target("0.9x"), "high": Target("1.1x"), "low_end": Target("0.9x"), "high_end": Target("1.1x")}
    control = Entrocraft(**fields)
    assert shaped(2.0, **fields) == [1.5, -0.5, -0.5, -0.5]  # the first step measures the first entropy itself
    state = control.update(control.initial_state(), b.measured(2.0, 0))
    assert shaped(1.5, step=1, state=state, **fields)[0] == 0.0
    assert shaped(2.5, step=1, state=state, **fields)[1] == 0.0


def test_a_step_that_measured_nothing_changes_nothing():
    control = Entrocraft()
    state = control.update(control.initial_state(), b.measured(0.5))
    assert control.update(state, b.measured(float("nan"), 1)) == state


@pytest.mark.parametrize(("field", "value"), [("low", "0.71"), ("low_end", "0.6")])
def test_a_band_upside_down_is_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        Entrocraft(**{field: Target(value)})


@pytest.mark.parametrize("setting", ["schedule='sine'", "variant='both'", "high='-1'", "low='much'"])
def test_bad_values_are_refused(setting):
    field = setting.split("=")[0]
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        make_config(method="entrocraft", settings=[f"control.{setting}"])
