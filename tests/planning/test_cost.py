"""The cost model of a step: against numbers by hand, and against loops that count token by token."""

import math
import random
from dataclasses import replace
from itertools import pairwise

import pytest

from aepo.errors import InvalidValue
from aepo.planning import cost
from aepo.planning.cost import H100, Lengths, Machine, Model, Work, operations, seconds, table

SMALL = Model(
    kind="Small",
    parameters=100,
    trained=100,
    body=10,
    head=2,
    layers=3,
    hidden=4,
    feed_forward=5,
    attention=6,
    vocabulary=7,
    kv_bytes=8,
)
# Four rows of five tokens after prompts of three.
STEP = Work(
    model=SMALL,
    lengths=Lengths(5, 5),
    prompts=2,
    prompt_tokens=3,
    ordinary=4,
    extra=0,
    scored=4,
    trained=4,
)
BIG = replace(
    SMALL,
    parameters=7_000_000_000,
    trained=7_000_000_000,
    body=6_500_000_000,
    head=500_000_000,
    layers=28,
    kv_bytes=57_344,
)
REAL = replace(
    STEP,
    model=BIG,
    lengths=Lengths(1000, 8192),
    prompts=64,
    ordinary=512,
    scored=512,
    trained=512,
    minibatches=4,
    microbatch=16,
)
# Of one row: 2 B (p + t) + 2 H t + 2 layers A (p + t)^2, and of its prompt alone.
ROW, PROMPT = 2 * 10 * 8 + 2 * 2 * 5 + 2 * 3 * 6 * 8**2, 2 * 10 * 3 + 2 * 3 * 6 * 3**2


def test_golden_operations_by_hand():
    step = replace(STEP, epochs=2, passes=2)
    assert operations(step) == {
        "sampling": 4 * (ROW - PROMPT) + 2 * PROMPT,
        "scoring": 2 * 4 * ROW,
        "update": 3 * 2 * 4 * ROW,
    }
    assert operations(replace(step, checkpointing=True))["update"] == 4 * 2 * 4 * ROW
    adapter = replace(step, model=replace(SMALL, trained=10))
    assert operations(adapter)["update"] == pytest.approx(2.1 * 2 * 4 * ROW)


def test_golden_each_constant_by_hand_on_one_device():
    """Five iterations of four rows, whose cache grows from 12 tokens to 28 before the last."""

    def of(work=STEP, **rates):
        found = seconds(work, Machine(**rates))
        return found.sampling, found.scoring, found.update, found.sync + found.host

    assert of(decode=2) == pytest.approx((5 * 4 * 2 * 12 / 2, 0, 0, 0))
    assert of(weights=6) == pytest.approx((5 * 2 * 12 / 6, 0, 0, 0))
    assert of(decode=2, weights=6)[0] == pytest.approx(5 * 4 * 12)  # the larger of the two: these rows are many
    cached = sum(12 + 4 * (token + 0.5) for token in range(5))
    assert of(bandwidth=2) == pytest.approx((cached * 8 / 2, 0, 28 * 100 / 2, 0))
    assert of(score=2) == pytest.approx((2 * PROMPT / 2, 4 * ROW / 2, 0, 0))
    assert of(update=2) == pytest.approx((0, 0, 3 * 4 * ROW / 2, 0))
    body, head = 2 * 3 * (16 * 4 + 6 * 5), 4 * 6 * 7
    once = 4 * (8 * body + 5 * head) / 2
    assert of(elementwise=2) == pytest.approx((20 * (body + head) / 2, once, 3 * once, 0))
    assert of(iteration=2) == (5 * 3 * 2, 0, 0, 0)
    assert of(launch=2) == (0, 3 * 2, 3 * 3 * 2, 0)
    halves = replace(STEP, microbatch=2, scored_at_once=3)
    assert of(halves, launch=2) == (0, 2 * 3 * 2, 3 * 2 * 3 * 2, 0)
    assert of(row=2) == (0, 0, 0, 4 * 2) and of(fixed=2) == (0, 0, 0, 2)
    several = replace(STEP, minibatches=2, epochs=3)
    assert of(several, bandwidth=2)[2] == 6 * 28 * 100 / 2
    assert of(several, update=2)[2] == pytest.approx(3 * 3 * 4 * ROW / 2)
    assert of(replace(STEP, temperatures=2), bandwidth=2)[1] == pytest.approx(2 * 20 * head / 2)
    assert of(replace(STEP, passes=2), score=2)[1] == 4 * ROW


def token_by_token(work, machine, lengths):
    """Continuous batching as a loop over iterations."""
    waiting, active, spent = list(lengths), [], 0.0
    while waiting or active:
        while waiting and len(active) < machine.most_rows:
            active.append([work.prompt_tokens, waiting.pop(0)])
        spent += cost._iteration(work.model, machine, len(active), sum(held for held, _ in active) + len(active) / 2)
        active = [[held + 1, left - 1] for held, left in active if left > 1]
    return spent


@pytest.mark.parametrize("places", [1, 3, 50])
def test_decoding_from_end_to_end_is_decoding_token_by_token(places):
    machine = replace(H100, most_rows=places, cache=math.inf)
    lengths = [random.Random(1).choice([1, 2, 5, 30]) for _ in range(20)]
    work = replace(REAL, lengths=Lengths(10, 30))
    assert cost._decoding(work, machine, lengths) == pytest.approx(token_by_token(work, machine, lengths))


def test_the_cache_bounds_the_rows_at_once():
    # Rows of 1 003 tokens.
    assert cost._places(REAL, replace(H100, cache=10.5 * 1003 * 57_344, most_rows=None)) == 10
    assert cost._places(REAL, replace(H100, cache=1.0)) == 1
    assert cost._places(REAL, H100) == int(32e9 / (1003 * 57_344))


@pytest.mark.parametrize(
    ("mean", "limit", "spread"), [(1000, 8192, 0.8), (6000, 8192, 0.8), (5, 9, 1.5), (50, 1000, 0.0)]
)
def test_lengths_have_their_mean_after_the_cut(mean, limit, spread):
    found = Lengths(mean, limit, spread).quantiles(4096)
    assert sum(found) / 4096 == pytest.approx(mean, rel=0.02)
    assert found == sorted(found) and found[0] >= 1 and found[-1] <= limit
    assert (found[-1] == limit) == (spread > 0)


def test_a_mean_at_the_limit_is_every_length():
    assert Lengths(9, 9).quantiles(3) == [9, 9, 9]
    with pytest.raises(InvalidValue, match=r"^lengths\.mean: got 10; must be from 1 to the limit \(9\)"):
        Lengths(10, 9)


def test_decoding_few_rows_is_bound_by_reading_the_weights():
    """The rows from which on products take longer than reading the weights do not depend on the model."""
    even = H100.decode / H100.weights
    few, many = (cost._iteration(BIG, replace(H100, iteration=0.0), int(even * by), 0) for by in (0.5, 2))
    assert few == pytest.approx(2 * 7e9 / H100.weights) and many == pytest.approx(2 * few, rel=0.01)


def test_more_gpus_meet_the_longest_completion():
    """However many there are, a step does not end before its longest completion."""
    found = [seconds(REAL, H100, count) for count in (1, 8, 64, 512)]
    assert all(a.total > b.total for a, b in pairwise(found))
    longest = REAL.lengths.quantiles(512)[-1]
    floor = longest * (2 * 7e9 / H100.weights + 28 * H100.iteration)
    assert floor < found[-1].sampling < 1.05 * floor and longest > 7000
    assert found[0].waiting == 0 and found[-1].waiting > 0.5 * found[-1].sampling


def test_extra_completions_in_a_second_call_wait_for_the_longest_twice():
    plain = seconds(REAL, H100, 64)
    one, two = (seconds(replace(REAL, extra=128, one_call=together), H100, 64) for together in (True, False))
    assert one.sampling == pytest.approx(plain.sampling, rel=0.02)
    assert two.sampling > 1.6 * plain.sampling
    busy = [found.sampling - found.waiting for found in (one, two)]
    assert two.waiting > one.waiting and busy[1] > busy[0]  # smaller batches are also less efficient


def test_rows_are_dealt_and_balanced():
    lengths = Lengths(1000, 8192).quantiles(512)
    dealt = cost._dealt(lengths, 7)
    assert sorted(length for own in dealt for length in own) == lengths
    assert {len(own) for own in dealt} == {73, 74}
    most = sum(cost._balanced(lengths, 7))
    assert sum(lengths) / 7 <= most <= sum(lengths) / 7 + lengths[0]
    assert cost._balanced([5, 3], 4) == [5] and cost._balanced([5, 3], 1) == [5, 3]


def test_golden_collectives_by_hand():
    """Gathers and reductions of 100 parameters over 16 devices in two nodes, in one minibatch of one pass."""
    slow = Machine(near=8, far=4, node=8)
    shares = 15 / 16
    found = seconds(replace(STEP, scored=16, trained=16), slow, 16)
    assert found.scoring == pytest.approx(2 * 100 * shares / 4)
    assert found.update == pytest.approx((2 * 2 + 4) * 100 * shares / 4)
    assert found.sync == pytest.approx(2 * 100 * shares / 4)
    assert found.exposed == pytest.approx(found.scoring + found.update)
    # Within a node at its own rate, then each device's eighth of the gradients between the nodes, there and back.
    found = seconds(replace(STEP, scored=16, trained=16), replace(slow, shard=8), 16)
    assert found.update == pytest.approx(8 * 100 * 7 / 8 / 8 + 2 * 4 * 100 / 8 * 8 / 2 / 4)
    hops = seconds(replace(STEP, scored=16, trained=16), Machine(hop=2), 16)
    assert hops.scoring == 3 * 2 * 15 and hops.update == 3 * 3 * 2 * 15


def test_the_optimizer_is_sharded_and_every_node_has_a_host():
    assert seconds(STEP, Machine(bandwidth=2), 16).update == pytest.approx(28 * 100 / 16 / 2)
    assert seconds(STEP, Machine(bandwidth=2, shard=8), 16).update == pytest.approx(28 * 100 / 8 / 2)
    assert [seconds(STEP, Machine(row=2), count).host for count in (8, 9, 16)] == [8, 4, 4]


def test_collectives_count_where_they_outlast_the_work():
    fast, slow = (seconds(REAL, replace(H100, near=rate, far=rate, hop=0.0), 8) for rate in (1e12, 1e9))
    assert fast.exposed == 0 and slow.exposed > 0
    assert slow.scoring + slow.update == pytest.approx(fast.scoring + fast.update + slow.exposed)


def test_a_step_is_the_sum_of_its_constants():
    """What lets the benchmark fit them: without reading of weights the seconds are linear in the prices."""
    names = ("decode", "score", "update", "elementwise", "bandwidth", "iteration", "launch", "row")
    prices = {name: 0.25 * (place + 1) for place, name in enumerate(names)}
    seconds_each = {name: price if getattr(Machine(), name) == 0 else 1 / price for name, price in prices.items()}
    work = replace(STEP, lengths=Lengths(3, 9), extra=3, ordinary=9, scored=10, trained=8, minibatches=2)
    units = {name: seconds(work, replace(Machine(), **{name: 1.0})).total for name in names}
    whole = seconds(work, replace(Machine(), **seconds_each)).total
    assert whole == pytest.approx(sum(prices[name] * units[name] for name in names))


def test_the_table_has_a_line_for_each_number_of_gpus():
    more = replace(REAL, extra=128, scored=520)
    lines = table(more, H100, (1, 8), REAL)
    assert len(lines) == 4 and lines[0].endswith("| adds |") and len({line.count("|") for line in lines}) == 1
    total, plain = seconds(more, H100, 8).total, seconds(REAL, H100, 8).total
    assert lines[3].startswith(f"| 8 | {total:,.1f} |") and lines[3].endswith(f"| {total / plain - 1:+.1%} |")
    with pytest.raises(InvalidValue, match="^gpus: got 0; must be at least 1"):
        table(REAL, H100, (0,))
