"""`seconds` and `operations` estimate what a training step costs: seconds on a number of devices, and operations.

docs/scale.md compares the model with published step times. The parts of a step:

    step     = sampling + scoring + update + sync + host

    sampling = prefill + the decoding of the slowest replica. One token for each of n rows, which hold c cached tokens
               together, takes
               max(2 M n / decode, held / weights) + c kv / bandwidth + n touched / elementwise + layers iteration
    scoring  = forward passes: (2 B (p + t) + 2 H t + 2 layers A (p + t)^2) / score + touched / elementwise + launches
    update   = (2 + trained share) times the seconds of a forward pass at the rate `update`, and one time more with
               gradient checkpointing; each optimizer step moves 28 bytes for each trained parameter of a shard;
               collectives add only the time by which they are longer than the computation
    sync     = the weights, sent once to every device
    host     = a constant for each completion, on one node

The symbols: B and H are the parameters of the transformer's body and of its head, M = B + H, and held is their size in
bytes. A is the width of the queries. p and t are the tokens of a prompt and of its completion. kv is the number of
bytes of the cache for each token, and touched is the number of bytes that elementwise work moves.

Every device holds a whole copy of the weights for sampling (no tensor parallelism) and a shard for training. The
lengths of completions are log-normal. The time to wait for the longest completion is part of sampling. This module
does not need torch.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist

from aepo.errors import require

# Numbers that elementwise work reads and writes for each token. In a layer they are counted in units of the hidden
# width and of the feed-forward width; at the head in units of the vocabulary (softmax, its sums, the draw).
HIDDEN_TOUCHED, FEED_FORWARD_TOUCHED, VOCABULARY_TOUCHED = 16, 6, 6
# Bytes that one AdamW step reads or writes for each trained parameter: weight, gradient and two moments in float32.
ADAMW_BYTES = 28
# Bytes for each parameter in the collectives of a training pass over sharded weights. Weights are gathered twice in 16
# bits, gradients are reduced in 32 bits.
GATHERED, REDUCED = 2.0, 4.0


@dataclass(frozen=True)
class Model:
    """`Model` holds the sizes of a model's architecture."""

    kind: str
    """Name of the model's class."""
    parameters: int
    """Number of all parameters."""
    trained: int
    """Number of trained parameters."""
    body: int
    """Parameters of the transformer's layers that are in matrix products. An embedding is in none."""
    head: int
    """Parameters of the output layer."""
    layers: int
    """Number of layers."""
    hidden: int
    """Width of the hidden states."""
    feed_forward: int
    """Width of the feed-forward layers."""
    attention: int
    """Width of all query heads together."""
    vocabulary: int
    """Number of tokens in the vocabulary."""
    kv_bytes: int
    """Bytes of one token in the KV cache."""
    width: int = 2
    """Bytes of one number in the weights during computation."""
    looks_back: int | None = None
    """Number of tokens that the layer with the shortest sight looks back; None if every layer sees all tokens."""

    @property
    def touched(self) -> float:
        """Bytes that elementwise work of the body reads and writes for each token."""
        per_layer = HIDDEN_TOUCHED * self.hidden + FEED_FORWARD_TOUCHED * self.feed_forward
        return float(self.width * self.layers * per_layer)

    @property
    def touched_by_head(self) -> float:
        """Bytes that one log-softmax over the vocabulary reads and writes for each token, in float32."""
        return 4.0 * VOCABULARY_TOUCHED * self.vocabulary


@dataclass(frozen=True)
class Lengths:
    """`Lengths` is the distribution of completion lengths, in tokens: log-normal, and cut at a limit."""

    mean: float
    """Mean length after the cut, tokens. If it equals the limit, all completions have this length."""
    limit: int
    """Largest length, tokens."""
    spread: float = 0.8
    """Standard deviation of the logarithm of the length before the cut."""

    def __post_init__(self) -> None:
        require(1 <= self.mean <= self.limit, "lengths.mean", self.mean, f"from 1 to the limit ({self.limit})")
        require(self.spread >= 0, "lengths.spread", self.spread, "0 or more")

    def quantiles(self, count: int) -> list[int]:
        """Return `count` lengths at evenly spaced quantiles, shortest first, tokens."""
        normal = NormalDist()
        tails = [math.exp(self.spread * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
        scale = self._scale(tails)
        return [max(1, min(self.limit, round(scale * tail))) for tail in tails]

    def _scale(self, tails: Sequence[float]) -> float:
        """Return the median before the cut that gives the right mean after the cut. It is found by bisection."""
        low, high = 0.0, self.limit / tails[0]
        for _ in range(60):
            middle = (low + high) / 2
            short = sum(min(self.limit, middle * tail) for tail in tails) < self.mean * len(tails)
            low, high = (middle, high) if short else (low, middle)
        return high


@dataclass(frozen=True)
class Work:
    """`Work` holds the amount of work in one step."""

    model: Model
    """Sizes of the model."""
    lengths: Lengths
    """Distribution of the completion lengths."""
    prompts: int
    """Number of distinct prompts."""
    prompt_tokens: float
    """Mean number of tokens in a prompt."""
    ordinary: int
    """Number of ordinary completions that are sampled."""
    extra: int
    """Number of extra completions that are sampled."""
    scored: int
    """Number of rows that are scored."""
    trained: int
    """Number of rows that are trained on."""
    minibatches: int = 1
    """Minibatches in an epoch. There is one optimizer step for each minibatch and epoch."""
    epochs: int = 1
    """Passes over the trained rows."""
    microbatch: int | None = None
    """Rows in one pass of the update on one device; None for all rows."""
    scored_at_once: int | None = None
    """Rows in one scoring pass on one device; None for all rows."""
    checkpointing: bool = False
    """Whether the backward pass recomputes activations."""
    passes: int = 1
    """Number of scoring passes: 2 with a reference model, else 1."""
    temperatures: int = 0
    """Number of further log-softmaxes in scoring, one for each temperature."""
    kept: int = 0
    """Number of further log-softmaxes in the update, with a gradient."""
    one_call: bool = True
    """Whether ordinary and extra completions are sampled together. Then the step waits only once for the longest."""


@dataclass(frozen=True)
class Machine:
    """`Machine` holds the rates that one device reaches (not its peak rates), and further times.

    A rate of math.inf means that the work costs nothing.
    """

    decode: float = math.inf
    """Operations/s of matrix products in decoding."""
    score: float = math.inf
    """Operations/s of matrix products in forward passes."""
    update: float = math.inf
    """Operations/s of matrix products in forward and backward passes."""
    weights: float = math.inf
    """Bytes/s at which decoding reads the weights; inf if the weights are in a processor cache."""
    bandwidth: float = math.inf
    """Bytes/s at which everything else is read from memory."""
    elementwise: float = math.inf
    """Bytes/s of elementwise work; inf if the rates of matrix products include it."""
    near: float = math.inf
    """Bytes/s from one device to the others of its node."""
    far: float = math.inf
    """Bytes/s into a node from other nodes."""
    cache: float = math.inf
    """Bytes on one device for the KV cache."""
    most_rows: int | None = None
    """Largest number of completions that one device decodes at once; None means no such limit."""
    node: int = 8
    """Number of devices in a node."""
    shard: int | None = None
    """Number of devices that share one copy of weights and optimizer; None means all devices."""
    iteration: float = 0.0
    """Seconds for each layer of one decoding iteration, which gives one token to each row."""
    launch: float = 0.0
    """Seconds for each layer of one pass."""
    hop: float = 0.0
    """Seconds of one step of a ring collective."""
    row: float = 0.0
    """Seconds of one completion on the host of a node."""
    fixed: float = 0.0
    """Seconds in each step to switch from training to sampling."""


# One H100 SXM. NVIDIA's data sheet gives 989 TFLOP/s in bfloat16, 3.35 TB/s, 80 GB, and 450 GB/s each way over NVLink.
# A DGX has eight network cards of 400 Gb/s. The shares of these rates that a step reaches, and the seconds, are
# assumptions. docs/scale.md compares the result with published step times.
PEAK, BANDWIDTH, NEAR, FAR, HOLDS = 989e12, 3.35e12, 450e9, 8 * 50e9, 80e9
TRAINING_SHARE, SCORING_SHARE, DECODING_SHARE = 0.35, 0.45, 0.5
MEMORY_SHARE, NETWORK_SHARE, CACHE_SHARE = 0.7, 0.6, 0.4
H100 = Machine(
    decode=PEAK * DECODING_SHARE,
    score=PEAK * SCORING_SHARE,
    update=PEAK * TRAINING_SHARE,
    weights=BANDWIDTH * MEMORY_SHARE,
    bandwidth=BANDWIDTH * MEMORY_SHARE,
    near=NEAR * NETWORK_SHARE,
    far=FAR * NETWORK_SHARE,
    cache=HOLDS * CACHE_SHARE,
    most_rows=1024,
    iteration=1e-4,
    launch=3e-4,
    hop=3e-6,
    row=1e-3,
    fixed=5.0,
)


@dataclass(frozen=True)
class Seconds:
    """`Seconds` holds the seconds of the parts of one step. The parts run one after the other."""

    sampling: float
    """Seconds of sampling, until the slowest replica has ended."""
    scoring: float
    """Seconds of scoring."""
    update: float
    """Seconds of the update."""
    sync: float
    """Seconds to send the weights to every device and to switch to sampling."""
    host: float
    """Seconds of work on the host."""
    waiting: float
    """Mean idle seconds of a replica. They are part of `sampling`."""
    exposed: float
    """Seconds by which collectives are longer than the computation beside them, a part of `scoring` and `update`."""

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return self.sampling + self.scoring + self.update + self.sync + self.host


def seconds(work: Work, machine: Machine, devices: int = 1) -> Seconds:
    """Return the time of a step on `devices` devices. All devices sample first, and then all of them train."""
    require(devices >= 1, "gpus", devices, "at least 1")
    sampling, waiting = _sampling(work, machine, devices)
    scoring, beside_scoring = _scoring(work, machine, devices)
    update, beside_update = _update(work, machine, devices)
    nodes = -(-devices // machine.node)
    return Seconds(
        sampling=sampling,
        scoring=scoring,
        update=update,
        sync=machine.fixed + _collective(GATHERED * work.model.parameters, machine, devices, work.model.layers),
        host=machine.row * (work.ordinary + work.extra) / nodes,
        waiting=waiting,
        exposed=beside_scoring + beside_update,
    )


def operations(work: Work) -> dict[str, float]:
    """Return the floating-point operations of the parts of a step, summed over all devices.

    Sampling reads each prompt only once.
    """
    model, count = work.model, work.ordinary + work.extra
    lengths = work.lengths.quantiles(count)
    read = [_forward(model, work.prompt_tokens, t) - _forward(model, work.prompt_tokens, 0) for t in lengths]
    prefill = work.prompts * _forward(model, work.prompt_tokens, 0)
    scored, trained = (
        sum(_forward(model, work.prompt_tokens, t) for t in work.lengths.quantiles(rows))
        for rows in (work.scored, work.trained)
    )
    return {
        "sampling": prefill + sum(read),
        "scoring": work.passes * scored,
        "update": _backward(work) * work.epochs * trained,
    }


def _backward(work: Work) -> float:
    """Return the operations of a forward and backward pass in units of a forward pass.

    Gradients of frozen weights are not computed.
    """
    return 2 + work.model.trained / work.model.parameters + work.checkpointing


def _forward(model: Model, prompt: float, answer: float) -> float:
    """Return the operations of one forward pass of a row.

    Only completion tokens go through the head. Attention is causal.
    """
    tokens = prompt + answer
    attended = 2.0 * model.layers * model.attention * tokens * tokens
    return 2.0 * model.body * tokens + 2.0 * model.head * answer + attended


# --- sampling -----------------------------------------------------------------------------------------------


def _sampling(work: Work, machine: Machine, devices: int) -> tuple[float, float]:
    """Return the seconds until the slowest replica has ended, and the idle seconds of the mean replica."""
    parts = [work.ordinary + work.extra] if work.one_call else [work.ordinary, work.extra]
    busy, slowest = 0.0, 0.0
    for count in filter(None, parts):
        replicas = [_decoding(work, machine, own) for own in _dealt(work.lengths.quantiles(count), devices)]
        busy += sum(replicas) / devices
        slowest += max(replicas)
    prefill = work.prompts * _forward(work.model, work.prompt_tokens, 0) / machine.score / devices
    return prefill + slowest, slowest - busy


def _dealt(lengths: list[int], devices: int) -> list[list[int]]:
    """Return the completion lengths of each device.

    The lengths are dealt at random, because a server does not know the length of an answer before it is sampled.
    """
    shuffled = random.Random(0).sample(lengths, len(lengths))
    return [shuffled[device::devices] for device in range(devices)]


def _decoding(work: Work, machine: Machine, lengths: Sequence[int]) -> float:
    """Return the decoding seconds of one replica with continuous batching: a new row replaces each row that ends."""
    prompt, places = work.prompt_tokens, _places(work, machine)
    waiting, ends = list(reversed(lengths)), list[tuple[int, int]]()
    now, cached, spent = 0, 0.0, 0.0
    while waiting or ends:
        while waiting and len(ends) < places:
            heapq.heappush(ends, (now + waiting[-1], waiting.pop()))
            cached += prompt
        rows, until = len(ends), ends[0][0] - now
        # Until the next row ends, the batch does not change and the cache grows evenly.
        spent += until * _iteration(work.model, machine, rows, cached + rows * until / 2)
        now, cached = now + until, cached + rows * until
        while ends and ends[0][0] == now:
            cached -= prompt + heapq.heappop(ends)[1]
    return spent


def _places(work: Work, machine: Machine) -> int:
    """Return the number of rows of mean length that the cache holds, at most `most_rows`."""
    each = work.model.kv_bytes * (work.prompt_tokens + work.lengths.mean)
    most = machine.most_rows or work.ordinary + work.extra
    return most if math.isinf(machine.cache) else max(1, min(most, int(machine.cache / each)))


def _iteration(model: Model, machine: Machine, rows: int, cached: float) -> float:
    """Return the seconds of one iteration, in which each of `rows` rows gets one token."""
    products = 2.0 * (model.body + model.head) * rows / machine.decode
    weights = model.width * (model.body + model.head) / machine.weights
    touched = rows * (model.touched + model.touched_by_head) / machine.elementwise
    read = cached * model.kv_bytes / machine.bandwidth
    return max(products, weights) + read + touched + model.layers * machine.iteration


# --- scoring and the update ---------------------------------------------------------------------------------


def _scoring(work: Work, machine: Machine, devices: int) -> tuple[float, float]:
    """Return the seconds of scoring on the slowest device, and the exposed part of its collectives."""
    rows = _balanced(work.lengths.quantiles(work.scored), devices)
    passes = work.passes * _microbatches(rows, work.scored_at_once)
    working = work.passes * _rows_seconds(work, machine, rows, machine.score, work.temperatures)
    working += passes * work.model.layers * machine.launch
    gather = passes * _collective(
        GATHERED * work.model.parameters, machine, _shard(machine, devices), work.model.layers
    )
    exposed = max(0.0, gather - working)
    return working + exposed, exposed


def _update(work: Work, machine: Machine, devices: int) -> tuple[float, float]:
    """Return the seconds of the update on the slowest device, and the exposed part of its collectives.

    Both cover all minibatches and epochs. The seconds include the optimizer.
    """
    model, steps = work.model, work.minibatches * work.epochs
    shard, factor = _shard(machine, devices), _backward(work)
    rows = _balanced(_every(work.lengths.quantiles(work.trained), work.minibatches), devices)
    passes = _microbatches(rows, work.microbatch)
    working = factor * _rows_seconds(work, machine, rows, machine.update, work.kept)
    working += factor * passes * model.layers * machine.launch
    moved = 2 * GATHERED * model.parameters + REDUCED * model.trained
    collectives = passes * _collective(moved, machine, shard, 3 * model.layers)
    collectives += _between_copies(model, machine, shard, devices // shard)
    exposed = max(0.0, collectives - working)
    adamw = ADAMW_BYTES * model.trained / shard / machine.bandwidth
    return steps * (working + exposed + adamw), steps * exposed


def _rows_seconds(work: Work, machine: Machine, rows: Sequence[int], rate: float, further: int) -> float:
    """Return the seconds of one forward pass over the rows.

    Args:
        work: The work of the step.
        machine: The rates of a device.
        rows: The completion length of each row, tokens.
        rate: Operations/s of matrix products.
        further: Number of further softmaxes.
    """
    model, answers = work.model, sum(rows)
    products = sum(_forward(model, work.prompt_tokens, t) for t in rows) / rate
    touched = (work.prompt_tokens * len(rows) + answers) * model.touched + answers * model.touched_by_head
    # If the rates of products include elementwise work, they include the first softmax, but not the further ones.
    beside = further * answers * model.touched_by_head / min(machine.elementwise, machine.bandwidth)
    return products + touched / machine.elementwise + beside


def _every(lengths: list[int], parts: int) -> list[int]:
    """Return the lengths of one minibatch: every `parts`-th length, so that short and long rows are mixed evenly."""
    return lengths[parts // 2 :: parts] or lengths[:1]


def _balanced(lengths: Sequence[int], devices: int) -> list[int]:
    """Return the rows of the device that gets the most tokens.

    The longest rows are assigned first, each to the device that has the fewest tokens so far.
    """
    if devices == 1:
        return list(lengths)
    laden = [(0, device) for device in range(devices)]
    rows: list[list[int]] = [[] for _ in range(devices)]
    for length in sorted(lengths, reverse=True):
        tokens, device = heapq.heappop(laden)
        rows[device].append(length)
        heapq.heappush(laden, (tokens + length, device))
    return rows[max(laden)[1]]


def _microbatches(rows: Sequence[int], size: int | None) -> int:
    return max(1, math.ceil(len(rows) / size)) if size else 1


def _shard(machine: Machine, devices: int) -> int:
    return min(machine.shard or devices, devices)


def _collective(size: float, machine: Machine, group: int, calls: int) -> float:
    """Return the seconds of a gather or a sum over a group of devices.

    Args:
        size: Bytes that are spread over the group and brought to each device, or summed.
        machine: The rates of a device.
        group: Number of devices in the group.
        calls: Number of calls into which the bytes are divided.
    """
    if group == 1:
        return 0.0
    rate = machine.near if group <= machine.node else min(machine.near, machine.far)
    return size * (group - 1) / group / rate + calls * machine.hop * (group - 1)


def _between_copies(model: Model, machine: Machine, shard: int, copies: int) -> float:
    """Return the seconds to sum the gradients of `copies` copies of the weights, once for each minibatch.

    Each device sums the gradients of its own shard.
    """
    size = 2 * REDUCED * model.trained / shard * min(shard, machine.node)
    rate = machine.near if copies * shard <= machine.node else machine.far
    return size * (copies - 1) / copies / rate + 2 * machine.hop * (copies - 1)


# --- a table ------------------------------------------------------------------------------------------------


def table(work: Work, machine: Machine, gpus: Sequence[int], without: Work | None = None) -> list[str]:
    """Return the lines of a Markdown table, with one row for each number of GPUs.

    Args:
        work: The work of the step.
        machine: The rates of a device.
        gpus: Numbers of GPUs.
        without: The step that the last column, `adds`, compares with; None means no such column.
    """
    parts = [field.name for field in fields(Seconds)][:5]
    head = ["GPUs", "step (s)", *parts, "waiting", "exposed", "GPU hours / step", "efficiency"]
    lines = ["| " + " | ".join([*head, *(["adds"] if without else [])]) + " |"]
    lines.append("|" + "---|" * (len(head) + bool(without)))
    alone = seconds(work, machine, 1).total
    for count in gpus:
        found = seconds(work, machine, count)
        cells = [str(count), f"{found.total:,.1f}", *(f"{getattr(found, part):,.1f}" for part in parts)]
        cells += [f"{found.waiting / found.total:.0%}", f"{found.exposed / found.total:.0%}"]
        cells += [f"{count * found.total / 3600:.2f}", f"{alone / found.total / count:.0%}"]
        if without:
            cells.append(f"{found.total / seconds(without, machine, count).total - 1:+.1%}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines
