from dataclasses import replace

import pytest
import torch

from aepo.control.aepo import AEPO
from aepo.control.distributions import Shorter, Temperature
from aepo.control.laws import PI, Constant, Switch
from aepo.control.schedules import Target
from aepo.control.self_tuning import SelfTuning
from aepo.engines.stages import loss
from aepo.errors import InvalidValue
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Ratio
from aepo.methods import METHODS, preset
from aepo.types import BatchStatistics
from tests import builders as b

PAPER = METHODS["aepo-v6"].algorithm.control
REFERENCE = METHODS["aepo-reference"].algorithm.control


def commanded(control: AEPO, command: float, **more) -> dict:
    return {**control.initial_state(), "command": command, **more}


# --- the loop -----------------------------------------------------------------------------------------------


def test_the_first_step_measures_and_adds_nothing():
    control = AEPO()
    state = control.initial_state()
    assert control.plan(state, b.step()) == ()
    ordinary = [b.sample(1.0, 0.3), b.sample(0.0, -0.3)]
    assert control.mix(ordinary, [], state, b.step()) == ordinary
    assert control.needs(state).temperatures == ()


@pytest.mark.parametrize(
    ("entropy", "tie", "temperature"),
    [(0.4, "low", 1.2), (0.6, "low", 0.8), (0.5, "low", 0.8), (0.5, "high", 1.2)],
)
def test_golden_the_switch_chooses_the_temperature(entropy, tie, temperature):
    control = replace(PAPER, target=Target("0.5"), law=Switch(tie=tie))
    state = control.update(control.initial_state(), b.measured(entropy))
    assert {group.temperature for group in control.plan(state, b.step())} == {temperature}


def test_the_reference_starts_hot():
    groups = REFERENCE.plan(REFERENCE.initial_state(), b.step())
    assert {group.temperature for group in groups} == {1.2}


def test_the_reference_reads_the_mixed_sampled_entropy():
    state = REFERENCE.update(REFERENCE.initial_state(), b.measured(0.9, mixed=0.2))
    assert state["error"] == pytest.approx(0.5 - 0.2)
    clean = AEPO().update(AEPO().initial_state(), b.measured(0.9, mixed=0.2))
    assert clean["error"] == pytest.approx(0.6 * 0.9 - 0.9)


def test_a_relative_target_uses_the_first_measured_entropy():
    control = AEPO(target=Target("0.5x"))
    state = control.update(control.initial_state(), b.measured(1.2, step=0))
    state = control.update(state, b.measured(0.8, step=1))
    assert state["target_entropy"] == pytest.approx(0.6) and state["error"] == pytest.approx(-0.2)


def test_a_step_that_measured_nothing_changes_nothing():
    control = AEPO()
    state = control.update(control.initial_state(), b.measured(0.8))
    after = control.update(state, b.measured(float("nan"), step=1))
    assert after["command"] == state["command"] and after["law"] == state["law"]


def alarms(entropies: list[float]) -> list[int]:
    control = AEPO(target=Target("0.6"), law=Switch(), approach=0)
    state, raised = control.initial_state(), []
    for number, entropy in enumerate(entropies):
        state = control.update(state, b.measured(entropy, step=number))
        raised += [number] if state["alarm"] else []
    return raised


def test_a_control_beyond_its_authority_raises_an_alarm_also_after_a_transient():
    falling = [1.3 - 0.02 * i for i in range(45)]  # shrinking from far above, through the target
    assert alarms(falling) == []
    stuck = alarms([*falling, *[0.4] * 60])
    assert stuck and stuck[0] < 45 + 41
    assert alarms([0.55, 0.65] * 100) == []  # a switch at work
    assert alarms([0.75] * 19 + [0.45]) == []  # the count begins anew on the other side


def test_saturation_means_at_the_limit_and_asking_for_more():
    control = AEPO(target=Target("0.5"), law=Switch(), approach=0)
    assert control.update(control.initial_state(), b.measured(0.1))["saturated"] == 1.0
    steady = AEPO(target=Target("0.5"), law=Constant(1.0))
    assert steady.update(steady.initial_state(), b.measured(0.9))["saturated"] == 0.0


# --- what is drawn ------------------------------------------------------------------------------------------


def test_the_paper_draws_a_quarter_of_the_prompts_again():
    groups = PAPER.plan(commanded(PAPER, 1.0), b.step(prompts=8, group_size=4))
    assert [g.count for g in groups] == [4, 4] and len({g.prompt for g in groups}) == 2
    first = REFERENCE.plan(commanded(REFERENCE, 1.0), b.step(prompts=8, group_size=4))
    assert [g.prompt for g in first] == [0, 1]


def test_just_enough_is_drawn_for_the_running_pass_rate():
    control = AEPO(count_high=0.5, per_prompt=2)
    place = b.step(prompts=64, group_size=8)  # 512 ordinary: 256 positives at full command
    half = control.plan(commanded(control, 0.25, pass_rate={"1": 0.5}), place)
    assert sum(g.count for g in half) == 128  # 64 wanted, half of the draws usable
    capped = control.plan(commanded(control, 1.0, pass_rate={"1": 0.5}), place)
    assert sum(g.count for g in capped) == 128  # 64 prompts x 2 is all there may be
    assert control.plan(commanded(control, 0.0), place) == ()


def test_pass_rates_are_followed_for_each_direction():
    control = AEPO()
    extra = tuple(b.sample(reward, extra=True) for reward in (1.0, 0.0, 0.0, 0.0))
    state = control.update(commanded(control, 1.0), b.measured(0.5, extra=extra, reward=0.4))
    assert state["pass_rate"] == {"1": pytest.approx(0.25), "ordinary": pytest.approx(0.4)}
    state = control.update({**state, "command": -1.0}, b.measured(0.5, extra=extra[:2]))
    assert state["pass_rate"]["-1"] == pytest.approx(0.5) and state["pass_rate"]["1"] == pytest.approx(0.25)


def test_golden_a_pass_rate_keeps_four_fifths_of_what_it_was():
    control = AEPO()
    before = commanded(control, 1.0, pass_rate={"1": 0.25, "-1": 0.9})
    all_right = (b.sample(1.0, extra=True), b.sample(1.0, extra=True))
    state = control.update(before, b.measured(0.5, extra=all_right))
    assert state["pass_rate"]["1"] == pytest.approx(0.8 * 0.25 + 0.2 * 1.0)
    assert state["pass_rate"]["-1"] == 0.9
    state = control.update({**state, "command": 1.0}, b.measured(0.5, extra=(b.sample(0.0, extra=True),)))
    assert state["pass_rate"]["1"] == pytest.approx(0.8 * 0.4)


@pytest.mark.parametrize(("rate", "drawn"), [(0.0, 40), (0.01, 40), (0.05, 40), (0.1, 20), (0.4, 5), (1.0, 2)])
def test_golden_the_pass_rate_counts_as_a_twentieth_at_least(rate, drawn):
    control = AEPO(count_high=2, per_prompt=1)
    for rates in ({"1": rate, "ordinary": 0.7}, {"ordinary": rate}):
        groups = control.plan(commanded(control, 1.0, pass_rate=rates), b.step(prompts=64))
        assert sum(group.count for group in groups) == drawn  # 2 wanted / rate


def test_which_prompts_are_drawn_is_a_function_of_seed_and_step():
    control = AEPO(prompts=0.5, draw="all")
    plan = lambda **where: control.plan(commanded(control, 1.0), b.step(**where))
    assert plan(number=3) == plan(number=3)
    assert plan(number=3) != plan(number=4) and plan(number=3) != plan(number=3, seed=1)


# --- what is used -------------------------------------------------------------------------------------------


def ordinary_rows(count: int) -> list:
    return [b.sample(0.0, -0.1, number=i) for i in range(count)]


def extra_rows(*rewards_and_advantages) -> list:
    return [
        b.sample(r, a, extra=True, group=20 + i, temperature=1.2) for i, (r, a) in enumerate(rewards_and_advantages)
    ]


def test_positives_by_reward_and_by_advantage():
    # An all-correct tempered group has advantage 0: positives by reward, none by the code's threshold.
    extra = extra_rows((1.0, 0.0), (1.0, 0.0), (0.0, -0.4), (1.0, 1.7))
    used = lambda control: [s for s in control.mix([], extra, commanded(control, 1.0), b.step()) if s.extra]
    assert len(used(AEPO())) == 3
    by_advantage = used(AEPO(positive_by="advantage"))
    assert [s.rollout.completion.group for s in by_advantage] == [23]
    assert [s.advantage for s in by_advantage] == [AEPO().weight] == [2.0]


@pytest.mark.parametrize(("command", "used"), [(1.0, 2), (-1.0, 1), (0.4, 1), (0.0, 0)])
def test_how_many_positives_the_command_uses(command, used):
    control = AEPO(count_high=2, count_low=1)
    mixed = control.mix(ordinary_rows(4), extra_rows(*[(1.0, 0.0)] * 3), commanded(control, command), b.step())
    assert sum(s.extra for s in mixed) == used and sum(not s.extra for s in mixed) == 4


@pytest.mark.parametrize(("command", "weight"), [(-0.4, 2.0), (1.0, 2.0), (1.5, 4.0), (-1.95, 40.0)])
def test_golden_a_command_above_one_raises_the_weight_and_not_the_count(command, weight):
    control = AEPO(count_high=2, count_low=2)
    mixed = control.mix([], extra_rows(*[(1.0, 0.0)] * 3), commanded(control, command), b.step())
    assert [s.advantage for s in mixed] == pytest.approx([weight] * min(2, round(2 * abs(command))))


@pytest.mark.parametrize(("law", "most"), [(SelfTuning(), 1.95), (PI(), 1.95), (Switch(), 1.0)])
def test_a_law_whose_commands_have_no_size_stays_at_full_strength(law, most):
    control = AEPO(law=law, target=Target("1.0"), approach=0, variates=False)
    state = control.initial_state()
    for _ in range(20):
        state = control.update(state, b.measured(0.1))
    assert state["command"] == most and state["saturated"] == 1.0


def test_replace_keeps_the_size_of_what_is_trained_on():
    control = replace(PAPER, count_high=3)
    mixed = control.mix(ordinary_rows(8), extra_rows(*[(1.0, 0.0)] * 5), commanded(control, 1.0), b.step())
    assert sum(s.trained for s in mixed) == 8
    assert sum(s.extra and s.trained for s in mixed) == 3
    assert sum(not s.extra for s in mixed) == 8  # measured, all of them


def test_the_reference_puts_the_first_positives_in_the_place_of_the_first_rows():
    control = replace(REFERENCE, count_high=2)
    mixed = control.mix(ordinary_rows(4), extra_rows(*[(1.0, 0.5)] * 3), commanded(control, 1.0), b.step(prompts=1))
    assert [s.rollout.completion.group for s in mixed[:2]] == [20, 21]
    assert [s.trained for s in mixed[2:]] == [False, False, True, True]


@pytest.mark.parametrize("name", ["aepo", "aepo-v1", "aepo-v6", "aepo-reference"])
def test_no_positive_leaves_the_batch_as_it_was(name):
    control = METHODS[name].algorithm.control
    rows = ordinary_rows(4)
    assert control.mix(rows, extra_rows((0.0, 0.0), (0.0, -0.5)), commanded(control, 1.0), b.step()) == rows


def test_the_ablations():
    a = METHODS["aepo-no-temperature"].algorithm.control
    assert {g.temperature for g in a.plan(commanded(a, 1.0), b.step())} == {1.0}
    signed = METHODS["aepo-signed"].algorithm.control
    mixed = signed.mix([], extra_rows((1.0, 1.3), (0.0, -0.6), (1.0, 0.0)), commanded(signed, 1.0), b.step())
    assert [s.advantage for s in mixed] == [1.3, -0.6]


def test_gumbel_choice_follows_the_target_distribution():
    # Shorter with scale 1: of two positives of 2 and 3 tokens, the shorter is chosen with chance e / (1 + e).
    control = AEPO(distribution=Shorter(scale=1.0), count_high=1, law=Constant())
    pair = [b.sample(1.0, extra=True, tokens=(1,) * n) for n in (2, 3)]
    lengths = [
        len(control.mix([], pair, commanded(control, 1.0), b.step(number=i))[0].rollout.completion.tokens)
        for i in range(2000)
    ]
    assert lengths.count(2) / 2000 == pytest.approx(0.7311, abs=0.03)


# --- the gradient -------------------------------------------------------------------------------------------


def test_the_loss_is_the_base_algorithms_plus_alpha_times_reinforce():
    """A tabular policy: append k positives to N rows; gradient = (N g_base + k weight g_reinforce) / (N + k)."""
    torch.manual_seed(0)
    logits = torch.randn(4, requires_grad=True)
    control = AEPO(weight=0.7, count_high=2)
    rows = [b.sample(r, a, tokens=(t,)) for r, a, t in ((1.0, 0.9, 0), (0.0, -0.3, 1), (0.0, -0.3, 2))]
    extra = [b.sample(1.0, extra=True, tokens=(t,), temperature=1.5) for t in (3, 0)]
    mixed = control.mix(rows, extra, commanded(control, 1.0), b.step())

    def gradient(samples, advantages):
        tokens = torch.tensor([s.rollout.completion.tokens for s in samples])
        logprobs = logits.log_softmax(-1)[tokens]  # at temperature 1, also for the tempered rows
        weights = token_mean(torch.ones_like(logprobs))
        a = torch.tensor(advantages)[:, None]
        loss = policy_loss(logprobs, logprobs.detach(), a, weights, Ratio()).loss
        return torch.autograd.grad(loss, logits)[0]

    total = gradient(mixed, [s.advantage for s in mixed])
    base = gradient(rows, [s.advantage for s in rows])
    reinforce = gradient(extra, [1.0, 1.0])
    torch.testing.assert_close(total, (3 * base + 2 * 0.7 * reinforce) / 5)


def test_reweighted_positives_have_the_tempered_expectation():
    """E over pi of R rho A' grad log pi = E over pi^T of R grad log pi, exactly, for one token."""
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    logprobs, hot = logits.log_softmax(-1), (logits / 1.5).log_softmax(-1)
    correct = torch.tensor([1.0, 1.0, 0.0, 0.0])
    control = AEPO(positives="reweighted", distribution=Temperature(high=1.5), weight=1.0)
    batch = b.scored(
        [b.sample(r, tokens=(a,)) for a, r in enumerate(correct.tolist())],
        logprobs=logprobs[:, None],
        tempered={1.5: hot[:, None]},
    )
    assert control.needs(commanded(control, 1.0)).temperatures == (1.5,)
    shaped = control.shape(torch.zeros(4, 1), batch, commanded(control, 1.0))[:, 0]
    jacobian = torch.eye(4) - logits.softmax(-1)
    torch.testing.assert_close((logprobs.exp() * shaped) @ jacobian, (hot.exp() * correct) @ jacobian)


@pytest.mark.parametrize(("join", "kept"), [("append", 1.0), ("replace", 0.6)])
def test_reweighted_strength_and_join(join, kept):
    control = AEPO(positives="reweighted", join=join, weight=0.8, reach=1.0)
    batch = b.scored([b.sample(1.0), b.sample(0.0)], logprobs=-1.0, tempered={0.67: torch.tensor(-0.5)})
    shaped = control.shape(torch.full((2, 2), -0.3), batch, commanded(control, -0.5))
    rho = torch.tensor(0.5).exp().item()
    assert shaped[0].tolist() == pytest.approx([kept * -0.3 + 0.4 * rho] * 2)
    assert shaped[1].tolist() == pytest.approx([kept * -0.3] * 2)


def test_reweighted_shorter_prefers_short_correct_completions():
    control = AEPO(positives="reweighted", distribution=Shorter(scale=1.0), weight=1.0, law=Constant())
    rows = [b.sample(1.0, tokens=(1,) * n) for n in (1, 2)] + [b.sample(0.0, tokens=(1,))]
    shaped = control.shape(torch.zeros(3, 2), b.scored(rows), commanded(control, 1.0))
    weights = torch.tensor([-1.0, -2.0]).softmax(0) * 2  # mean 1 over the group's correct completions
    assert shaped[0, 0].item() == pytest.approx(weights[0].item())
    assert shaped[1].tolist() == pytest.approx([weights[1].item()] * 2)
    assert shaped[2].tolist() == [0.0, 0.0] and shaped[0, 1] == 0


# --- bad values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("control.count_high", lambda: AEPO(count_high=-1)),
        ("control.count_low", lambda: AEPO(count_low=1.5)),
        ("control.weight", lambda: AEPO(weight=0.0)),
        ("control.prompts", lambda: AEPO(prompts=0.0)),
        ("control.per_prompt", lambda: AEPO(per_prompt=0)),
        ("control.per_prompt", lambda: AEPO(per_prompt=1, positive_only=False)),
        ("control.per_prompt", lambda: AEPO(per_prompt=1, positive_by="advantage")),
        ("distribution.low", lambda: Temperature(low=-0.8)),
        ("distribution.high", lambda: Temperature(high=0.8, low=1.2)),
        ("distribution.scale", lambda: Shorter(scale=0.0)),
        ("control.weight", lambda: AEPO(positives="reweighted", join="replace", weight=2.0)),
        ("control.reach", lambda: AEPO(positives="reweighted", join="replace", weight=1.0)),
        ("control.reach", lambda: AEPO(reach=2.0)),
        ("control.reach", lambda: AEPO(reach=0.0)),
        ("control.law", lambda: AEPO(distribution=Shorter())),
        ("control.temperature_adjust", lambda: AEPO(distribution=Shorter(), law=Constant(), temperature_adjust=False)),
    ],
)
def test_bad_values_are_refused_by_name(field, make):
    with pytest.raises(InvalidValue, match=f"^{field}: got"):
        make()


def test_reweighted_positives_cannot_be_trained_by_reinforce():
    with pytest.raises(InvalidValue, match=r"^control\.positive_loss: got 'reinforce'"):
        AEPO(positives="reweighted", weight=1.0, positive_loss="reinforce")


# --- on other surrogates ------------------------------------------------------------------------------------

SURROGATES = ("grpo", "gspo", "cispo", "gmpo", "sapo", "dppo", "vespo", "kl-cov")
LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)


def positives(method: str, logits, old_logprobs, weights=0.25, **settings):
    """The loss of four positives of one token each, one for every action, as stages.loss makes it."""
    samples = [b.sample(1.0, 2.0, tokens=(action,), extra=True) for action in range(4)]
    part = b.scored(samples)
    part = replace(part, old=BatchStatistics(old_logprobs[:, None]))
    algorithm = replace(preset(method), control=AEPO(**settings))
    new = BatchStatistics(logits.log_softmax(0)[:, None])
    weighted = torch.as_tensor(weights, dtype=torch.float64).expand(4)[:, None]
    return loss(algorithm, part, new, weighted, algorithm.control.initial_state())


@pytest.mark.parametrize("temperature", [0.67, 1.2])
@pytest.mark.parametrize("method", SURROGATES)
def test_on_every_surrogate_the_term_is_the_papers_until_the_weights_move(method, temperature):
    """E_{y ~ pi^T}[R A d log pi(y) / d theta_a] = A (R(a) p_T(a) - p(a) Z_T) with all actions right: A (p_T - p)."""
    logits = LOGITS.clone().requires_grad_()
    tempered = (LOGITS / temperature).softmax(0)
    positives(method, logits, LOGITS.log_softmax(0), tempered).loss.backward()
    torch.testing.assert_close(-logits.grad, 2.0 * (tempered - LOGITS.softmax(0)))


@pytest.mark.parametrize(
    ("method", "left"),
    [("gspo", 0), ("luspo", 0), ("cispo", 1.098234), ("vespo", 0.898261), ("gmpo", 1.098234), ("sapo", 1.095589)],
)
def test_golden_why_the_ratio_is_not_taken_against_the_tempered_policy(method, left):
    """At T = 1.2 the top action has log pi - log pi^T = -.440190 + .533893 = .093703, a ratio of 1.098234. With it the
    first minibatch would already drop the row (GSPO), or weigh it by T: VESPO 1.098234^2 exp(-3 * .098234) = .898261,
    SAPO 4 p (1 - p) 1.098234 with p = sigmoid(.098234).
    """
    tempered = (LOGITS / 1.2).log_softmax(0)
    logprobs = LOGITS.log_softmax(0)
    assert (logprobs - tempered)[0].item() == pytest.approx(0.093703, abs=1e-6)
    leaf = logprobs[:1, None].clone().requires_grad_()
    policy_loss(leaf, tempered[:1, None], torch.ones(1, 1), torch.ones(1, 1), preset(method).surrogate).loss.backward()
    assert -leaf.grad.item() == pytest.approx(left, abs=1e-6)


def test_the_samplers_tempered_logprobs_never_enter_the_loss():
    old = LOGITS.log_softmax(0)
    for method in SURROGATES:
        found = positives(method, LOGITS + torch.tensor([0.05, 0.0, 0.0, 0.0]), old)
        assert found.ratio.mean == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize(
    ("method", "share"),
    [("gspo", 0.25), ("luspo", 0.25), ("grpo", 0.0), ("cispo", 0.0), ("gmpo", 0.0), ("sapo", 0.0), ("dppo", 0.0)],
)
def test_golden_what_a_small_move_leaves_of_the_positives(method, share):
    """The top action's log pi rises by .05 - log(1 + p (e^.05 - 1)) = .0177; the others fall, which clips no positive.
    GSPO's bound is .0004 (LUSPO .0025), so that row is gone; no other surrogate has dropped it.
    """
    new = LOGITS + torch.tensor([0.05, 0.0, 0.0, 0.0])
    assert positives(method, new, LOGITS.log_softmax(0)).clipped.mean == share
    assert positives(method, new, LOGITS.log_softmax(0), positive_loss="reinforce").clipped.mean == 0


@pytest.mark.parametrize("method", SURROGATES)
def test_by_reinforce_all_surrogates_are_one_also_after_the_move(method):
    logits = (LOGITS + torch.tensor([1.0, 0.0, 0.0, 0.0])).requires_grad_()
    tempered = (LOGITS / 1.2).softmax(0)
    positives(method, logits, LOGITS.log_softmax(0), tempered, positive_loss="reinforce").loss.backward()
    torch.testing.assert_close(-logits.grad, 2.0 * (tempered - logits.detach().softmax(0)))
