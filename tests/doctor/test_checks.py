"""Each check fires on a log that is broken in its way, and is silent on healthy ones."""

import math
from pathlib import Path

import pytest

from aepo.doctor import examine, read
from aepo.doctor.checks import CHECKS, entropy, reward, sampler, signal, stability
from aepo.doctor.checks.base import onset
from aepo.doctor.names import DIALECTS
from aepo.doctor.types import EntropyMeaning, Log

LOGS = Path(__file__).parent / "logs"


def log(steps=30, *, meaning=None, settings=None, resumes=(), **series) -> Log:
    """Healthy unless `series` (lists, numbers, or functions of the step) says otherwise."""
    healthy = {
        "entropy": lambda step: 1.3 - 0.01 * step + 0.02 * (step % 3),
        "reward": lambda step: 0.4 + 0.01 * step + 0.05 * (step % 2),
        "dead_groups": lambda step: 0.1 + 0.05 * (step % 3),
        "truncated": 0.03,
        "length": 300,
        "approximate_kl": 0.002,
        "ratio": lambda step: 1 + 1e-3 * (step % 2),
        "clip_fraction": 0.01,
        "mismatch": 0.01,
        "gradient_norm": lambda step: 1 + 0.2 * (step % 4),
        "learning_rate": 1e-6,
    }
    made = {}
    for name, values in {**healthy, **series}.items():
        if callable(values):
            values = [values(step) for step in range(steps)]
        elif isinstance(values, int | float):
            values = [values] * steps
        made[name] = tuple(enumerate(map(float, values)))
    meaning = meaning or EntropyMeaning("exact", "the exact entropy")
    return Log("hand", "hand", made, entropy=meaning, settings=settings or {}, resumes=resumes)


def real(name: str, *resumes: int) -> Log:
    return read(LOGS / name, resumes)[0]


def kinds(log: Log) -> dict[str, str]:
    return {finding.kind: finding.confidence for finding in examine(log)}


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["aepo/healthy", "aepo/aepo", "trl/healthy", "hand"])
def test_silent_on_healthy_logs(check, name):
    assert check(log(resumes=(15,)) if name == "hand" else real(name, 16)) == []


def test_silent_on_healthy_completions():
    pytest.importorskip("pyarrow")
    assert kinds(read(LOGS / "trl" / "healthy" / "completions")[0]) == {"too few rows": "sure"}


# --- logs really produced, broken on purpose -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "confidence", "first"),
    [
        ("aepo/collapse", "collapse", "sure", range(5, 30)),
        ("aepo/bonus", "explosion", "sure", range(2, 12)),
        ("aepo/leap", "explosion", "sure", range(1)),
        ("aepo/leap", "reward lost", "sure", range(1, 3)),
        ("aepo/leap", "nothing is trained", "sure", range(1, 8)),
        ("aepo/dead", "dead groups", "sure", range(1)),
        ("aepo/idle", "a method that does nothing", "sure", [None]),
        ("aepo/top_p", "sampler mismatch", "likely", range(1)),
        ("trl/explode", "collapse", "likely", range(2, 5)),
        ("trl/dead", "dead groups", "sure", range(1, 2)),
        ("trl/dead", "nothing is trained", "sure", range(1, 2)),
        ("trl/cut", "truncation", "sure", range(1, 2)),
        ("trl/onpolicy", "on-policy", "likely", [None]),
        ("trl/resumed", "instability after resume", "likely", [16]),
    ],
)
def test_broken_runs(name, kind, confidence, first):
    found = {finding.kind: finding for finding in examine(real(name, *([16] if "resumed" in name else [])))}
    assert found[kind].confidence == confidence and found[kind].step in first
    assert any(character.isdigit() for character in found[kind].evidence) and found[kind].advice


def test_the_idle_control_is_named():
    (finding,) = signal.idle(real("aepo/idle"))
    assert "kl-cov does nothing" in finding.evidence


# --- made by hand, one at a time -----------------------------------------------------------------------------


@pytest.mark.parametrize(("end", "confidence"), [(0.05, "sure"), (0.2, "likely"), (0.45, "possible"), (0.6, None)])
def test_collapse_is_as_sure_as_the_fall_is_deep(end, confidence):
    falling = log(entropy=lambda step: 1.0 if step < 15 else end)
    assert kinds(falling).get("collapse") == confidence
    if confidence:
        assert entropy.collapse(falling)[0].step == 15


def test_a_collapse_to_nothing_is_sure_however_little_there_was():
    assert kinds(log(entropy=lambda step: 0.04 if step < 15 else 0.015)) == {"collapse": "sure"}


def test_collapse_of_a_sum_is_possible_only_since_the_length_moves_it():
    assert kinds(log(entropy=lambda step: 100 if step < 15 else 4, meaning=EntropyMeaning("sum", "a sum"))) == {
        "collapse": "possible"
    }


def test_an_entropy_that_follows_its_target_down_or_up_is_no_finding():
    for end in (0.1, 3.0):
        curve = lambda step, end=end: 1.0 + (end - 1.0) * step / 29
        assert kinds(log(entropy=curve, target_entropy=curve)) == {}
        assert kinds(log(entropy=curve)) != {}


@pytest.mark.parametrize(("end", "confidence"), [(4.0, "sure"), (2.5, "likely"), (1.7, "possible"), (1.3, None)])
def test_explosion(end, confidence):
    rising = log(entropy=lambda step: 1.0 if step < 10 else end)
    assert kinds(rising).get("explosion") == confidence


def test_a_small_entropy_may_double():
    assert kinds(log(entropy=lambda step: 0.05 if step < 10 else 0.12)) == {}


@pytest.mark.parametrize(("values", "kind"), [([0.9, 0.2], "sure"), ([0.9, 0.4], "likely"), ([0.9, 0.8], None)])
def test_completions_that_repeat_each_other(values, kind):
    repeated = log(distinct=lambda step: values[step > 15])
    assert [finding.confidence for finding in entropy.few_distinct(repeated)] == [kind] * (kind is not None)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda dialect: dialect.name)
def test_what_each_trainer_calls_entropy(dialect):
    """What docs/entropy.md's table says; the exact ones under their own name need no word."""
    named = {
        "actor/entropy_loss": ("sampled" if dialect.name == "EasyR1" else "exact", True),
        "entropy_loss": ("exact", True),
        "objective/entropy": ("sum", True),
        "optim/entropy": ("sampled", True),
        "approx_entropy": ("sampled", True),
    }
    for key, meaning in dialect.entropies.items():
        kind, needs_a_word = named.get(key, ("exact", False))
        assert meaning.kind == kind
        found = entropy.meaning(Log("x", "x", log().series, {"entropy": key}, meaning))
        assert bool(found) == needs_a_word and not any(finding.counts for finding in found)


def test_a_sum_is_also_given_per_token():
    (finding,) = entropy.meaning(log(entropy=150, length=300, meaning=EntropyMeaning("sum", "a sum", "divide")))
    assert "0.5 per token" in finding.evidence
    for broken in ({"entropy": math.nan}, {"length": 0}, {"length": math.inf}):
        (finding,) = entropy.meaning(
            log(**{"entropy": 150, **broken}, meaning=EntropyMeaning("sum", "a sum", "divide"))
        )
        assert "per token" not in finding.evidence


def test_impossible_entropies():
    assert "sum over tokens" in entropy.impossible(log(entropy=90.0))[0].evidence
    assert "sign" in entropy.impossible(log(entropy=-0.4))[0].evidence
    assert entropy.impossible(log(entropy=90.0, meaning=EntropyMeaning("sum", "a sum"))) == []


@pytest.mark.parametrize(("share", "confidence"), [(0.6, "sure"), (0.4, "possible"), (0.3, None)])
def test_dead_groups(share, confidence):
    assert kinds(log(dead_groups=lambda step: 0.1 if step < 10 else share)).get("dead groups") == confidence


@pytest.mark.parametrize(("reward", "serious"), [(0.9, False), (0.6, True), (0.1, True), (9.0, True)])
def test_groups_that_are_dead_since_they_are_solved_do_no_harm(reward, serious):
    (finding,) = signal.dead_groups(log(dead_groups=0.6, reward=reward))
    assert finding.serious == serious == finding.counts and ("solved: harder" in finding.advice) != serious


def test_dead_groups_from_batches_without_advantage():
    whole = log(no_advantage=lambda step: float(step > 10), groups_all_good=0.9, groups_all_bad=0.1)
    series = {name: points for name, points in whole.series.items() if name != "dead_groups"}
    (finding,) = signal.dead_groups(Log("x", "x", series))
    assert finding.step == 11 and "all right: 90%, all wrong: 10%" in finding.evidence


@pytest.mark.parametrize(("share", "confidence"), [(0.5, "sure"), (0.2, "likely"), (0.1, "possible"), (0.05, None)])
def test_truncation(share, confidence):
    assert kinds(log(truncated=lambda step: 0.02 if step < 10 else share)).get("truncation") == confidence


def test_a_learning_rate_of_zero_trains_nothing():
    assert kinds(log(learning_rate=lambda step: float(step < 12))) == {"nothing is trained": "sure"}


def test_a_ratio_of_one_alone_is_a_fact_and_no_fault():
    still = {"ratio": 1.0, "approximate_kl": 0.0, "clip_fraction": 0.0}
    (finding,) = examine(log(**still))
    assert finding.kind == "on-policy" and not finding.serious and not finding.counts
    assert kinds(log(**still | {"ratio": lambda step: 1 + 1e-3 * step})) == {}
    joined = {"control": {"name": "both", "first": {"name": "aepo"}, "second": {"name": "archer"}}}
    assert kinds(log(**still, settings=joined)) == {"a method that does nothing": "sure"}


def test_off_policy_controls_are_those_of_the_library():
    from aepo.control import CONTROLS

    names = {name for name, control in CONTROLS.items() if control.acts_off_policy and name != "both"}
    assert names == signal.OFF_POLICY_CONTROLS


def test_alarms_of_our_loop():
    alarmed = log(alarm=lambda step: float(step in (20, 25)), saturated=1.0)
    (finding,) = signal.beyond_authority(alarmed)
    assert finding.step == 20 and "2 alarms" in finding.evidence


def test_a_target_that_is_missed():
    """0.245 nats below (1.05 - 1.3 + 0.495) and no nearer; silent while it closes, around the target, with an alarm."""
    missed = {"entropy": lambda step: 1.3 - 0.01 * step, "target_entropy": 1.05, "coefficient": 0.03}
    (finding,) = signal.target_missed(log(60, **missed))
    assert finding.step == 40 and finding.confidence == "likely" and finding.serious
    assert "0.245 nats below" in finding.evidence and "coefficient is at 0.03" in finding.evidence
    assert signal.target_missed(log(60, **missed, alarm=lambda step: float(step == 40))) == []
    assert signal.target_missed(log(60, entropy=lambda step: 1.3 - 0.01 * step, target_entropy=0.6)) == []
    assert signal.target_missed(log(60, entropy=lambda step: 0.8 + 0.2 * (-1) ** step, target_entropy=0.65)) == []
    assert signal.target_missed(log(60, entropy=0.85, target_entropy=0.8)) == []
    assert signal.target_missed(log(20, **missed)) == []
    (finding,) = signal.target_missed(log(90, entropy=lambda step: 1.4 if step < 60 else 0.5, target_entropy=0.8))
    assert "0.3 nats below" in finding.evidence, "nearer, and gone past it"
    above = log(120, entropy=0.9, target_entropy=0.6)
    assert "0.3 nats above" in signal.target_missed(above)[0].evidence
    assert signal.target_missed(above)[0].confidence == "sure"


def steps_of_target(steps: int, jump: int, pace: float, after: float = 0.4) -> Log:
    """At the target of 0.8 until it jumps; the gap that the jump makes shrinks by exp(-1 / pace) a step."""

    def entropy(step):
        return 0.8 if step < jump else after + (0.8 - after) * math.exp((jump - step) / pace)

    return log(steps, entropy=entropy, target_entropy=lambda step: 0.8 if step < jump else after)


def test_a_gap_that_a_step_of_the_target_made_is_measured_since_that_step():
    """The third before had another target: on it there was no gap. Pace 30 is that of our closed loop."""
    for after in (0.4, 1.2):
        assert signal.target_missed(steps_of_target(114, 75, 30, after)) == []
        (finding,) = signal.target_missed(steps_of_target(114, 75, 1e4, after))
        assert finding.step == 76 and "0.39" in finding.evidence and finding.confidence == "sure"
    for jump in (77, 79, 100):
        assert signal.target_missed(steps_of_target(114, jump, 1e4)) == [], "too short a time to say"
    for jump in range(20):
        assert signal.target_missed(steps_of_target(30, jump + 10, 30)) == []


def test_a_gap_that_was_larger_on_another_target_has_not_closed_for_that():
    """0.5 nats above a target of 0.3, then 0.2 above one of 0.6: nothing has moved but the target."""
    (finding,) = signal.target_missed(log(90, entropy=0.8, target_entropy=lambda step: 0.3 if step < 50 else 0.6))
    assert "0.2 nats above" in finding.evidence and finding.step == 60


def test_a_gap_that_opened_and_closes_in_the_last_third_is_not_missed():
    """The gap is 0 up to step 60, then 0.4 and closing: larger than in the third before, and still coming nearer."""
    closing = lambda step: 0.8 if step < 60 else 0.8 - 0.4 * math.exp((60 - step) / 20)
    assert signal.target_missed(log(90, entropy=closing, target_entropy=0.8)) == []
    (finding,) = signal.target_missed(log(90, entropy=lambda step: 0.8 - 0.4 * (step >= 60), target_entropy=0.8))
    assert finding.step == 60


def test_a_target_that_moves_slowly_can_be_missed_and_one_that_moves_fast_is_not_judged():
    for pace, found in ((0.005, 1), (0.02, 0)):
        glide = lambda step, pace=pace: 3.0 - pace * step
        above = lambda step, pace=pace: 3.3 - pace * step
        assert len(signal.target_missed(log(90, entropy=above, target_entropy=glide))) == found


@pytest.mark.parametrize(
    ("name", "value", "confidence"),
    [
        ("mismatch", 0.2, "sure"), ("mismatch", 0.06, "likely"), ("mismatch", 0.04, "possible"),
        ("mismatch", 0.02, None),
        ("mismatch_kl", 0.1, "sure"), ("mismatch_kl", -0.02, "likely"), ("mismatch_kl", 0.001, None),
        ("mismatch_probability", 0.5, "sure"), ("mismatch_probability", 0.003, None),
        ("mismatch_correlation", 0.5, "sure"), ("mismatch_correlation", 0.999, None),
    ],
)  # fmt: skip
def test_sampler_mismatch(name, value, confidence):
    assert kinds(log(**{name: value})).get("sampler mismatch") == confidence


def test_a_mismatch_that_grows_is_taken_more_seriously():
    assert kinds(log(mismatch=lambda step: 1e-3 if step < 10 else 0.04)) == {"sampler mismatch": "likely"}
    assert len(sampler.mismatch(log(mismatch=0.2, mismatch_kl=0.02))) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_none(value):
    (finding,) = stability.not_finite(log(reward=lambda step: value if step in (7, 9) else 0.5))
    assert finding.step == 7 and "2 such values" in finding.evidence
    rising = lambda step: value if step == 7 else 0.4 + 0.01 * step
    for name in ("reward", "loss", "reference_kl", "length", "truncated", "mismatch_probability"):
        assert kinds(log(**{name: rising})).get("not a number") == "sure", name


def test_series_that_may_lack_numbers_are_not_called_broken():
    for name in stability.MAY_BE_NAN:
        assert "not a number" not in kinds(log(**{name: math.nan}))


@pytest.mark.parametrize(("worst", "confidence"), [(2.0, "sure"), (-0.5, "likely"), (0.1, None)])
def test_leaps(worst, confidence):
    """A leap after which the reward holds is one step; one that takes the reward with it is an explosion."""
    leapt = lambda step: worst if step == 12 else 1e-3
    fallen = lambda step: 0.6 + 0.01 * (step % 2) if step <= 12 else 0.2 + 0.01 * (step % 2)
    assert kinds(log(approximate_kl=leapt, reward=fallen)).get("explosion") == confidence
    assert kinds(log(approximate_kl=leapt)).get("explosion") == (confidence and "possible")
    last = log(approximate_kl=lambda step: worst if step == 29 else 1e-3)
    sized = {"sure": "likely", "likely": "possible", None: None}
    assert kinds(last).get("explosion") == sized[confidence], "the log ends too soon to say more"


@pytest.mark.parametrize(("factor", "confidence"), [(50, "likely"), (15, "possible"), (5, None)])
def test_a_gradient_that_grows(factor, confidence):
    grown = log(gradient_norm=lambda step: (1 + 0.1 * (step % 3)) * (factor if step >= 10 else 1))
    assert kinds(grown).get("explosion") == confidence


def test_reward_lost_needs_a_reward_that_was_there():
    assert kinds(log(reward=lambda step: 0.6 if step < 15 else 0.01)) == {"reward lost": "sure"}
    assert reward.reward_lost(log(reward=0.01)) == [] == reward.reward_lost(log(reward=lambda step: 0.04 * (step < 15)))


def test_a_reward_below_zero_is_measured_on_the_range_of_its_log():
    """DAPO's rewards are -1 and +1: 0.58 to -0.95 is as good as all of it, and 0 is nothing but a half right."""

    def found(*levels, noise=0.0):
        values = [level + noise * (-1) ** step for level in levels for step in range(30)]
        return [(finding.confidence, finding.step) for finding in reward.reward_lost(log(len(values), reward=values))]

    assert found(-0.2, 0.58, -0.95) == [("likely", 60)]
    assert "bottom of this log" in reward.reward_lost(log(reward=lambda step: 0.58 if step < 15 else -0.95))[0].evidence
    assert found(-0.5, -1.0) == [("likely", 30)]
    assert found(-50, -10, -60) == [("likely", 60)] and found(-40, -60) == [("possible", 30)]
    assert found(0.1, -0.1) == [("possible", 30)], "half right to nearly half right"
    for healthy in ((-0.95, -0.2, 0.58), (0.58, 0.2, 0.58), (-0.5, -0.5), (-0.5, -0.55), (-50, -55), (-0.2, 0.58, 0.3)):
        assert found(*healthy) == found(*healthy, noise=0.05) == [], healthy
    assert found(0.02, -0.02, noise=0.05) == []


def test_a_reward_a_little_below_zero_switches_nothing_off():
    fallen = lambda step: 0.45 if step < 15 else -0.01 * (step % 2)
    assert kinds(log(reward=fallen)) == {"reward lost": "sure"}
    once = lambda step: -5.0 if step == 4 else 0.45 if step < 15 else 0.0
    assert kinds(log(reward=once)) == {"reward lost": "sure"}, "one step is no level"


def test_a_jump_at_a_resume():
    jumps = {"reward": lambda step: 0.5 + 0.01 * (step % 2), "length": lambda step: 300 + 5 * (step % 2)}
    after = {name: lambda step, of=of: of(step) * (1.0 if step < 15 else 0.6) for name, of in jumps.items()}
    assert kinds(log(**after, resumes=(15,))) == {"instability after resume": "likely"}
    assert kinds(log(**after)) == {} == kinds(log(**jumps, resumes=(15,)))
    early = log(reward=lambda step: 0.9 if step < 3 else 0.1, resumes=(3,))
    assert stability.after_resume(early) == [], "too little before it to say"


def test_onset_is_the_first_value_of_the_level_that_lasts():
    series = tuple(enumerate([1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1]))
    assert onset(series, lambda value: value > 0.5) == 8


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_short_and_empty_logs_are_no_trouble(check):
    assert check(Log("x", "x", {})) == []
    for steps in (1, 2, 3, 4):
        assert check(log(steps, resumes=(1,))) == [] or check.__name__ == "few_rows"
    assert all(finding.kind == "not a number" for finding in check(log(entropy=math.nan, reward=math.nan)))
