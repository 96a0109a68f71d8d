import math
from dataclasses import replace

import pytest
import torch

from aepo.algorithm import Algorithm
from aepo.config import make_config
from aepo.control.aepo import AEPO
from aepo.control.base import NoControl
from aepo.control.entropy_reg import EntropyReg
from aepo.control.schedules import Schedule
from aepo.engines.mismatch import MismatchConfig
from aepo.engines.stages import loss
from aepo.entropy.statistics import logits_statistics
from aepo.errors import InvalidValue
from aepo.types import BatchStatistics
from tests import builders as b

# l of two rows, and exp(l); the sums of the rows are 0.8 and -1.2. The last place of row 2 is padding.
LOG_RATIO = torch.tensor([[0.9, -0.2, 0.1], [-1.0, -0.2, 0.0]])
RATIO = [[2.459603, 0.818731, 1.105171], [0.367879, 0.818731]]


def shifted(log_ratio=LOG_RATIO, temperature: float = 1.0, extra: bool = False):
    """Two rows whose trainer and sampler differ by this log ratio at the temperature of the rows, and samples."""
    samples = []
    for number, row in enumerate(log_ratio.tolist()):
        sample = b.sample(1.0, 1.0, tokens=(1, 2, 3)[: 3 - number], temperature=temperature, extra=extra, number=number)
        logprobs = tuple(-1.0 - value for value in row[: 3 - number])
        samples.append(
            replace(
                sample,
                rollout=replace(sample.rollout, completion=replace(sample.rollout.completion, logprobs=logprobs)),
            )
        )
    # At another temperature than 1, log pi is far from what the sampler drew from, and log pi^T is the partner.
    tempered = {} if temperature == 1 else {temperature: -1.0}
    return samples, b.scored(samples, logprobs=-1.0 if temperature == 1 else -9.0, tempered=tempered)


def factors(settings: MismatchConfig, temperature: float = 1.0) -> list[list[float]]:
    correction = settings.of(*shifted(temperature=temperature))
    assert correction is not None
    return [row[: 3 - number] for number, row in enumerate(correction.weights.tolist())]


GOLDEN = {
    # verl 0.9.1, rollout_is=token, threshold 2.0
    "token_truncate": ({}, [[2.0, 0.818731, 1.105171], [0.367879, 0.818731]]),
    # IcePop [0.5, 5]
    "token_mask": ({}, [[2.459603, 0.818731, 1.105171], [0.0, 0.818731]]),
    # TRL 1.16.0, clip_min 0.5, clip_max 2
    "token_mask, narrow": ({"clip_min": 0.5, "clip_max": 2.0}, [[0.0, 0.818731, 1.105171], [0.0, 0.818731]]),
    # verl 0.9.1, rollout_is=sequence, threshold 2.0
    "sequence_truncate": ({}, [[2.0] * 3, [0.301194] * 2]),
    # TRL 1.16.0, its defaults
    "sequence_mask": ({}, [[2.225541] * 3, [0.301194] * 2]),
    "sequence_mask, narrow": ({"clip_max": 2.0}, [[0.0] * 3, [0.301194] * 2]),
    # No bound: plain importance weights.
    "token_truncate, open": ({"clip_max": None}, RATIO),
    "token_mask, open": ({"clip_max": None, "clip_min": None}, RATIO),
    # Bounds on the lower side of a truncation.
    "token_truncate, low": ({"clip_min": 0.5}, [[2.0, 0.818731, 1.105171], [0.5, 0.818731]]),
}


@pytest.mark.parametrize("temperature", [1.0, 1.5])
@pytest.mark.parametrize("name", GOLDEN)
def test_golden_factors_of_trl_verl_and_icepop(name, temperature):
    """The values come from running verl 0.9.1 and TRL 1.16.0; IcePop's by its formula. T changes nothing."""
    settings, wanted = GOLDEN[name]
    made = factors(MismatchConfig(correction=name.split(",")[0], **settings), temperature)
    assert made == [pytest.approx(row, abs=1e-6) for row in wanted]


def test_no_correction_is_nothing():
    assert MismatchConfig().of(*shifted()) is None
    assert MismatchConfig().temperatures([1.0, 1.5]) == ()


def test_a_ratio_beyond_every_float_is_cut_to_20_nats():
    settings = MismatchConfig(correction="sequence_truncate", clip_max=None)
    weights, _ = settings.weights(torch.full((1, 400), -1.0))
    assert torch.equal(weights, torch.full((1, 400), -20.0).exp())
    weights, _ = settings.weights(torch.full((1, 400), 1.0))
    assert weights.isfinite().all()


def test_golden_shares_of_cut_rows_and_tokens():
    """Of five tokens the first of each row is cut: both rows have one. The mean factor is (0 + .818731 + 1.105171 + 0
    + .818731) / 5.
    """
    narrow = MismatchConfig(correction="token_mask", clip_max=2.0)
    row = narrow.of(*shifted(temperature=1.5, extra=True)).row()
    assert row == {
        "mismatch_extra": pytest.approx((0.9 + 0.2 + 0.1 + 1.0 + 0.2) / 5),
        "mismatch_weight": pytest.approx(0.5485266),
        "mismatch_cut_tokens": pytest.approx(2 / 5),
        "mismatch_cut_rows": 1.0,
        "mismatch_cut_extra_rows": 1.0,
    }
    row = MismatchConfig(correction="sequence_mask", clip_max=2.0).of(*shifted()).row()
    assert row["mismatch_cut_tokens"] == pytest.approx(3 / 5) and row["mismatch_cut_rows"] == 0.5
    assert row["mismatch_extra"] is None and row["mismatch_cut_extra_rows"] is None


def test_rows_that_are_not_trained_on_are_not_counted():
    samples, scored = shifted()
    untrained = replace(scored, batch=replace(scored.batch, trained=torch.tensor([False, True])))
    row = MismatchConfig(correction="token_truncate").of(samples, untrained).row()
    assert row["mismatch_cut_tokens"] == 0.0 and row["mismatch_weight"] == pytest.approx((0.367879 + 0.818731) / 2)


# --- each row at its own temperature ------------------------------------------------------------------------


def tempered_rows(heats: list[float], wrong: float = 0.0):
    """A row for each temperature from logits (2, 1, 0, -1), and how far its sampler is off on the first token."""
    labels = torch.tensor([[0, 3]] * len(heats))
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(len(heats), 2, 4)
    stats = logits_statistics(logits, labels, temperatures=[0.8, 1.2])
    own = {1.0: stats.logprobs, 0.8: stats.tempered[0], 1.2: stats.tempered[1]}
    samples = []
    for number, heat in enumerate(heats):
        sample = b.sample(1.0, 1.0, extra=heat != 1, temperature=heat, number=number)
        first, second = own[heat][number].tolist()
        completion = replace(sample.rollout.completion, logprobs=(first + wrong, second))
        samples.append(replace(sample, rollout=replace(sample.rollout, completion=completion)))
    scored = b.scored(samples, logprobs=stats.logprobs, tempered={0.8: stats.tempered[0], 1.2: stats.tempered[1]})
    return samples, scored


CORRECTIONS = ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_rows_of_a_right_sampler_have_factor_1_exactly_at_every_temperature(correction):
    made = MismatchConfig(correction=correction).of(*tempered_rows([1.0, 0.8, 1.2]))
    assert torch.equal(made.weights, torch.ones(3, 2)) and not made.cut.any()


def test_golden_the_top_token_would_weigh_more_against_log_pi():
    """log pi - log pi^1.2 of the top token of (2, 1, 0, -1) is 0.0937: factor 1.098234 for a sampler that is right."""
    samples, scored = tempered_rows([1.2])
    naive = scored.old.logprobs - scored.batch.sampling_logprobs
    assert naive[0, 0].exp().item() == pytest.approx(1.098234, abs=1e-5)
    made = MismatchConfig(correction="token_truncate").of(samples, scored)
    assert made.weights[0, 0] == 1.0


@pytest.mark.parametrize("heat", [1.0, 0.8, 1.2])
def test_a_sampler_off_by_a_tenth_has_the_same_factor_at_every_temperature(heat):
    made = MismatchConfig(correction="token_truncate").of(*tempered_rows([heat], wrong=0.1))
    assert made.weights[0].tolist() == [pytest.approx(math.exp(-0.1), abs=1e-6), 1.0]


def test_a_row_that_nobody_drew_has_factor_1():
    samples, scored = shifted()
    unknown = scored.batch.sampling_logprobs.clone()
    unknown[0] = math.nan
    made = MismatchConfig(correction="sequence_mask", clip_max=2.0).of(
        samples, replace(scored, batch=replace(scored.batch, sampling_logprobs=unknown))
    )
    assert torch.equal(made.weights[0], torch.ones(3)) and made.weights[1, 0] == pytest.approx(0.301194, abs=1e-6)


# --- the loss -----------------------------------------------------------------------------------------------


def gradient(part, control=NoControl()) -> list[list[float]]:
    """d loss / d log pi at ratio 1, A = 1, token-mean over five tokens."""
    logprobs = part.old.logprobs.clone().requires_grad_()
    new = BatchStatistics(logprobs, logprobs * -1.0)
    weights = part.batch.mask / part.batch.mask.sum()
    loss(Algorithm(control=control), part, new, weights, control.initial_state()).loss.backward()
    return logprobs.grad.tolist()


def test_golden_the_gradient_is_multiplied_and_the_denominator_stays():
    """-A w / 5, with w of IcePop: the masked token is still one of the five."""
    samples, scored = shifted()
    made = MismatchConfig(correction="token_mask").of(samples, scored)
    wanted = [[-2.459603 / 5, -0.818731 / 5, -1.105171 / 5], [0.0, -0.818731 / 5, 0.0]]
    got = gradient(replace(scored, correction=made.weights))
    assert got == [pytest.approx(row, abs=1e-6) for row in wanted]
    assert gradient(scored) == [pytest.approx([-0.2] * 3), pytest.approx([-0.2, -0.2, 0.0])]


def test_a_penalty_is_not_multiplied():
    """The bonus of this test has d penalty / d log pi = coefficient on each token, masked tokens included."""
    _, scored = shifted()
    off = replace(scored, correction=torch.zeros(2, 3))
    assert gradient(off, EntropyReg(coefficient=Schedule("0.5"))) == [
        pytest.approx([0.5 / 5] * 3),
        pytest.approx([0.5 / 5, 0.5 / 5, 0.0]),
    ]


def test_positives_that_are_reinforced_are_multiplied_too():
    samples, scored = shifted(temperature=1.5, extra=True)
    made = MismatchConfig(correction="token_truncate").of(samples, scored)
    part = replace(scored, correction=made.weights)
    assert gradient(part, AEPO(positive_loss="reinforce"))[0] == pytest.approx([-2.0 / 5, -0.818731 / 5, -1.105171 / 5])


def test_the_correction_follows_its_rows_into_a_microbatch():
    _, scored = shifted()
    chosen = replace(scored, correction=LOG_RATIO).select(torch.tensor([1]))
    assert torch.equal(chosen.correction, LOG_RATIO[1:])


# --- refused ------------------------------------------------------------------------------------------------

REFUSED = {
    "mismatch.clip_max": ["0.5", "-1", "inf", "'big'"],
    "mismatch.clip_min": ["0", "1.5", "'low'"],
    "mismatch.correction": ["tis", "token"],
}


@pytest.mark.parametrize(("field", "value"), [(name, value) for name, values in REFUSED.items() for value in values])
def test_refused(field, value):
    with pytest.raises(InvalidValue) as refusal:
        make_config(settings=[f"{field}={value}"])
    line = str(refusal.value)
    assert line.startswith(field) and value.strip("'") in line and "\n" not in line


@pytest.mark.parametrize("cut", ["sampling.top_p=0.9", "sampling.top_k=5", "sampling.min_p=0.1"])
def test_a_cut_distribution_is_refused(cut):
    with pytest.raises(InvalidValue, match=r"^mismatch\.correction: .*token_mask.*none with " + cut.split("=")[0]):
        make_config(settings=[cut, "mismatch.correction=token_mask"])
    assert make_config(settings=[cut]).mismatch == MismatchConfig()


def test_token_temperatures_are_refused():
    with pytest.raises(InvalidValue, match="none: the control hapo draws each token at its own temperature"):
        make_config(method="hapo", settings=["mismatch.correction=token_mask"])


def test_names_of_other_trainers_are_led_to_ours():
    for name, ours in {
        "vllm_importance_sampling_mode": "mismatch.correction",
        "rollout_is": "mismatch.correction",
    }.items():
        with pytest.raises(InvalidValue, match=ours):
            make_config(settings=[f"{name}=token_mask"])
