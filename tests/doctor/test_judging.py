"""The checks judge levels against noise; what they missed, and what they called a fault and is none."""

import math
import random

import pytest

from aepo.doctor import examine
from aepo.doctor.checks import MOST, facts, length, reference, reward, spikes
from aepo.doctor.checks.base import window
from aepo.doctor.checks.noise import changed, level_above, risen, running_median, standard_error
from aepo.doctor.types import Finding, Log
from tests.doctor.test_checks import kinds, log


def draw(seed: int, steps: int, memory: float = 0.0) -> list[float]:
    """AR(1) noise with variance 1."""
    rng, value, made = random.Random(seed), 0.0, []
    for _ in range(steps):
        value = memory * value + math.sqrt(1 - memory**2) * rng.gauss(0, 1)
        made.append(value)
    return made


def points(values):
    return tuple(enumerate(map(float, values)))


def only(found: list[Finding]) -> Finding:
    (finding,) = found
    return finding


# --- noise ----------------------------------------------------------------------------------------------------------


def test_windows_grow_with_the_log():
    assert [window(length) for length in (1, 6, 30, 100, 300, 2000)] == [1, 2, 10, 10, 30, 200]


def test_the_running_median_keeps_steps_and_slopes():
    step = [1.0] * 20 + [5.0] * 20
    assert running_median(step, 5) == step
    slope = [float(at) for at in range(30)]
    assert running_median(slope, 7) == slope
    assert running_median([0.0, 0.0, 9.0, 0.0, 0.0], 1) == [0.0] * 5


@pytest.mark.parametrize(("memory", "low", "high"), [(0.0, 0.13, 0.27), (0.8, 0.35, 0.9)])
def test_the_standard_error_counts_autocorrelation(memory, low, high):
    """Means of 30 have 0.18 for independent noise, and sqrt((1 + 0.8) / (1 - 0.8) / 30) = 0.55 for AR(1) with 0.8."""
    found = [standard_error(draw(seed, 600, memory))(30) for seed in range(20)]
    assert low < sorted(found)[10] < high


def test_a_step_or_a_spike_is_no_noise():
    quiet = standard_error([0.01 * value for value in draw(1, 200)])(10)
    stepped = standard_error([0.01 * value + (at > 100) for at, value in enumerate(draw(1, 200))])(10)
    spiked = standard_error([0.01 * value + 50 * (at == 90) for at, value in enumerate(draw(1, 200))])(10)
    assert stepped < 2 * quiet and spiked < 2 * quiet


def test_a_change_that_the_noise_explains_is_none():
    limits = ((0.25, "likely"), (0.5, "possible"))
    for seed in range(40):
        loud = points([math.exp(0.5 * value) for value in draw(seed, 100, 0.9)])
        assert changed(loud, limits[:1], True) is None, seed
    calm = [math.exp(0.1 * value) for value in draw(3, 60)]
    found = changed(points([value * (0.2 if at > 30 else 1) for at, value in enumerate(calm)]), limits, True)
    assert found.confidence == "likely" and found.after < 0.3 < found.before


def test_one_huge_value_does_not_hide_the_others():
    values = [0.01 * math.exp(0.2 * value) for value in draw(7, 100)]
    values[50] = 1e6
    limits = ((0.1, "sure"), (0.03, "possible"))
    assert level_above(points(values), limits, spiky=True) is None
    assert changed(points(values[:60] + [value / 100 for value in values[60:]]), ((0.1, "sure"),), True) is not None


def test_a_rise_is_measured_in_its_noise():
    noise = draw(5, 100)
    assert abs(risen(points(noise))) < 4 < risen(points([value + 0.1 * at for at, value in enumerate(noise)]))
    assert risen(points([1.0] * 30)) == 0.0 and risen(points([0.0] * 15 + [1.0] * 15)) == math.inf


def test_a_share_just_under_a_limit_stays_under_it():
    rng = random.Random(0)
    shares = [sum(rng.random() < 0.07 for _ in range(16)) / 16 for _ in range(300)]
    assert level_above(points(shares), ((0.08, "possible"),)) is None
    assert level_above(points([share + 0.1 for share in shares]), ((0.08, "possible"),))[0] == "possible"


@pytest.mark.parametrize("memory", [0.0, 0.9])
def test_stationary_logs_have_no_faults(memory):
    for seed in range(5):
        noise = [draw(seed * 10 + at, 300, memory) for at in range(6)]
        found = examine(
            log(
                300,
                entropy=[0.5 * math.exp(0.2 * value) for value in noise[0]],
                length=[300 * math.exp(0.2 * value) for value in noise[1]],
                gradient_norm=[0.2 * math.exp(0.4 * value) for value in noise[2]],
                reference_kl=[0.01 * math.exp(0.6 * value) for value in noise[3]],
                reward=[min(1.0, max(0.0, 0.4 + 0.12 * value)) for value in noise[4]],
                dead_groups=[min(1.0, max(0.0, 0.2 + 0.1 * value)) for value in noise[5]],
            )
        )
        assert not any(finding.counts for finding in found), found


def test_one_outlier_among_the_last_ten_is_a_spike_and_no_explosion():
    noise = draw(2, 300)
    for at, size in ((295, 60.0), (150, 6e4)):
        series = [size if step == at else 0.2 * math.exp(0.3 * value) for step, value in enumerate(noise)]
        found = {finding.kind: finding for finding in examine(log(300, gradient_norm=series))}
        assert "explosion" not in found
        assert found["spike"].step == at and found["spike"].confidence == "possible"


def test_spikes_that_come_again_are_likely_and_a_level_is_no_spike():
    again = log(40, gradient_norm=lambda step: 2000.0 if step % 8 == 7 and step < 39 else 0.3 + 0.01 * (step % 3))
    finding = only(spikes.spikes(again))
    assert finding.kind == "spikes" and finding.confidence == "likely" and "4 spikes" in finding.evidence
    assert spikes.spikes(log(40, gradient_norm=lambda step: 0.3 if step < 30 else 30.0)) == []
    assert spikes.spikes(log(40, loss=lambda step: 0.01 * (-1) ** step)) == []
    assert only(spikes.spikes(log(40, loss=lambda step: 90.0 if step == 20 else 0.01 * (-1) ** step))).step == 20


# --- what was missed ------------------------------------------------------------------------------------------------


def test_an_entropy_that_dips_and_comes_back():
    dipped = log(100, entropy=lambda step: 0.001 if 21 <= step < 80 else 0.5, reward=lambda step: 0.3 + 0.004 * step)
    found = {finding.kind: finding for finding in examine(dipped)}
    assert set(found) == {"entropy dip"}
    assert found["entropy dip"].step in range(19, 23) and found["entropy dip"].confidence == "sure"
    short = log(100, entropy=lambda step: 0.001 if 40 <= step < 43 else 0.5)
    assert "entropy dip" not in kinds(short), "three steps are no level"
    follows = log(100, entropy=lambda step: 0.001 if 21 <= step < 80 else 0.5, target_entropy=0.5)
    assert "entropy dip" not in kinds(follows)


@pytest.mark.parametrize(
    ("after", "kind", "confidence"),
    [
        (1, "length collapse", "sure"), (8, "length collapse", "sure"), (60, "length collapse", "likely"),
        (120, "length collapse", "possible"), (200, None, None),
        (700, "length growing", "possible"), (2000, "length growing", "likely"),
    ],
)  # fmt: skip
def test_length(after, kind, confidence):
    steady = lambda step: 0.4 + 0.05 * (step % 2)
    found = kinds(log(40, length=lambda step: 300 if step < 20 else after, reward=steady))
    assert found.get(kind) == confidence if kind else not {"length collapse", "length growing"} & set(found)


def test_a_length_that_changes_while_the_reward_rises_is_possible_only():
    for after in (60, 2000):
        found = length.length(log(60, length=lambda step, after=after: 300 if step < 20 else after))
        assert [finding.confidence for finding in found] == ["possible"]
    found = length.length(log(60, length=lambda step: 300 if step < 20 else 2))
    assert [finding.confidence for finding in found] == ["sure"], "a reward for nothing is no excuse"


def test_a_length_at_the_limit_where_no_share_of_cut_completions_is_logged():
    def without(**series) -> Log:
        whole = log(**series)
        return Log("x", "x", {name: values for name, values in whole.series.items() if name != "truncated"})

    assert only(length.length(without(length=256))).kind == "length at the limit"
    spread = lambda step: 250 + step % 3
    assert length.length(without(length=spread)) == []
    grows = lambda step: min(256, 200 + 10 * step)
    assert only(length.length(without(length=grows, length_max=256))).step == 6
    assert length.length(log(length=256)) == [], "the share of cut completions is known and low"


@pytest.mark.parametrize(("level", "confidence"), [(25.0, "sure"), (2.0, "likely"), (0.4, "possible"), (0.1, None)])
def test_kl_to_the_reference_that_grows(level, confidence):
    grown = kinds(log(40, reference_kl=lambda step: 0.001 if step < 20 else level))
    assert grown.get("KL to the reference grows") == confidence


@pytest.mark.parametrize(("level", "confidence"), [(1.1, "sure"), (0.2, "likely"), (0.05, "possible"), (0.002, None)])
def test_kl_to_the_reference_at_the_first_step(level, confidence):
    name = "KL to the reference is not 0 at the start"
    assert kinds(log(reference_kl=level)).get(name) == confidence
    late = tuple((step + 100, level) for step in range(30))
    assert reference.reference(Log("x", "x", {"reference_kl": late})) == [], "the beginning is not in the log"


def test_kl_to_the_reference_that_is_infinite():
    found = kinds(log(40, reference_kl=lambda step: math.inf if step >= 20 else 0.001))
    assert found["not a number"] == "sure"


@pytest.mark.parametrize(("steps", "confidence"), [(400, "likely"), (40, "possible"), (12, None)])
def test_a_reward_that_is_one_number(steps, confidence):
    assert kinds(log(steps, reward=0.5)).get("reward does not move") == confidence
    assert "reward does not move" not in kinds(log(steps, reward=1.0))


def test_a_noisy_reward_that_does_not_rise_in_a_long_log_is_a_question():
    flat = [0.4 + 0.1 * value for value in draw(4, 200)]
    finding = only(reward.flat(log(200, reward=flat)))
    assert finding.confidence == "possible" and "noise explains" in finding.evidence
    assert reward.flat(log(200, reward=[value + 0.003 * at for at, value in enumerate(flat)])) == []
    assert reward.flat(log(60, reward=flat[:60])) == []


def test_rewards_without_spread_are_dead_groups():
    whole = log(40, no_advantage=1.0, reward=0.0)
    series = {name: values for name, values in whole.series.items() if name != "dead_groups"}
    assert {finding.kind: finding.confidence for finding in examine(Log("x", "x", series))}["dead groups"] == "sure"


def test_reward_and_evaluation_that_drift_apart():
    rising = [0.3 + 0.003 * step + 0.02 * value for step, value in enumerate(draw(1, 200))]
    falling = [0.5 - 0.002 * step if step % 20 == 0 else math.nan for step in range(200)]

    def with_evaluation(scores) -> Log:
        made = log(200, reward=rising)
        kept = tuple((step, value) for step, value in enumerate(scores) if math.isfinite(value))
        return Log("x", "x", {**made.series, "evaluation": kept})

    finding = only(reward.drifting_apart(with_evaluation(falling)))
    assert finding.counts and "fell from 0.46 to 0.18" in finding.evidence
    assert reward.drifting_apart(with_evaluation([1 - score for score in falling])) == []
    assert reward.drifting_apart(log(200, reward=[-value for value in rising], evaluation=falling)) == []


# --- facts that are no faults ---------------------------------------------------------------------------------------


def test_a_solved_task_is_a_fact():
    solved = log(
        40,
        reward=lambda step: min(1.0, 0.5 + 0.05 * step),
        entropy=lambda step: max(0.004, 0.4 * 0.8**step),
        dead_groups=lambda step: min(1.0, 0.05 * step),
    )
    finding = only(examine(solved))
    assert finding.kind == "solved task" and not finding.serious and "100% of the groups" in finding.evidence
    unsolved = log(40, reward=lambda step: 0.5 + 0.01 * (step % 3), entropy=lambda step: max(0.004, 0.4 * 0.8**step))
    assert kinds(unsolved)["collapse"] == "sure"
    cut = log(40, reward=1.0, truncated=1.0, entropy=lambda step: max(0.004, 0.4 * 0.8**step))
    assert kinds(cut)["collapse"] == "sure", "where everything is cut, a full reward proves nothing"


def test_a_task_whose_top_is_not_1_can_be_solved():
    top = log(60, reward=lambda step: min(3.0, 1 + 0.1 * step), dead_groups=lambda step: min(1.0, 0.05 * step))
    assert kinds(top)["solved task"] == "sure" and "dead groups" not in kinds(top)
    assert reward.solved(log(60, reward=lambda step: min(3.0, 1 + 0.1 * step))) == []


def test_distillation_is_a_fact():
    taught = log(40, reward=0.0, dead_groups=1.0, truncated=1.0, teacher_kl=lambda step: 2 / (1 + step), length=4096)
    assert not any(finding.counts for finding in examine(taught)) and kinds(taught)["distillation"] == "sure"


def test_a_rise_from_a_low_start_with_a_steady_reward_is_a_fact():
    low = {"entropy": lambda step: 0.14 if step < 15 else 0.36}
    steady = lambda step: 0.9 + 0.01 * (step % 2)
    found = {finding.kind: finding for finding in examine(log(40, reward=steady, **low))}
    assert not found["entropy rose from a low start"].serious and "explosion" not in found
    falling = lambda step: 0.9 - 0.4 * (step > 15) + 0.01 * (step % 2)
    assert kinds(log(40, reward=falling, **low))["explosion"] == "likely"
    high = kinds(log(40, reward=steady, entropy=lambda step: 0.4 if step < 15 else 2.5))
    assert high["explosion"] == "sure"


def test_a_row_or_two_say_nothing_sure():
    for rows in (1, 2, 4):
        found = kinds(log(rows, truncated=0.91, length=250, dead_groups=0.9, mismatch=0.3))
        assert found.pop("too few rows") == "sure"
        assert set(found.values()) <= {"possible"}, rows
        assert found["truncation"] == "possible"
    assert facts.few_rows(log(10)) == []


def test_a_very_long_log_is_thinned_for_levels_and_not_for_single_steps():
    steps = 2 * MOST + 1
    values = [0.5] * steps
    values[7777] = math.nan
    found = kinds(Log("x", "x", {"reward": points(values), "truncated": points([0.5] * steps)}))
    assert found["not a number"] == "sure" and found["truncation"] == "sure"
