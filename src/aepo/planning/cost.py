"""What a step costs: operations, bytes, and seconds on a number of devices (docs/scale.md).

    step     = sampling + scoring + update + sync + host

    sampling = prefill + the slowest replica's decoding. A token for each of n rows that hold c cached tokens takes
               max(2 M n / decode, held / weights) + c kv / bandwidth + n touched / elementwise + layers iteration
    scoring  = forward passes: (2 B (p + t) + 2 H t + 2 layers A (p + t)^2) / score + touched / elementwise + launches
    update   = (2 + trained share) times that, one more with gradient checkpointing, at the rate `update`; and for each
               optimizer step 28 bytes a trained parameter of a shard; collectives count where they outlast the work
    sync     = the weights, once to every device
    host     = a constant for each completion, on one node

M = B + H: parameters of the transformer's body and of its head, held: their bytes; A: width of the queries; p and t:
tokens of a prompt and of its completion; kv: bytes of the cache per token; touched: bytes that elementwise work moves.
Every device holds a whole copy for sampling (no tensor parallelism) and a shard for training. Completions have
log-normal lengths; waiting for the longest of them is part of sampling. Torch is not needed.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist

from aepo.errors import require

# Read and written by elementwise work per token: in a layer in units of the hidden and of the feed-forward width, at
# the head in units of the vocabulary (softmax, its sums, the draw).
HIDDEN_TOUCHED, FEED_FORWARD_TOUCHED, VOCABULARY_TOUCHED = 16, 6, 6
# Bytes of a trained parameter that one AdamW step reads or writes: weight, gradient and two moments in float32.
ADAMW_BYTES = 28
# Collectives of a training pass over sharded weights, bytes a parameter: gathered twice in 16 bits, reduced in 32.
GATHERED, REDUCED = 2.0, 4.0


@dataclass(frozen=True)
class Model:
    """What the architecture says. kind: its class. body, head: parameters in products; an embedding is in none.

    attention: width of all query heads together. kv_bytes: of one token in the cache.
    width: bytes of a number in the weights while they compute.
    """

    kind: str
    parameters: int
    trained: int
    body: int
    head: int
    layers: int
    hidden: int
    feed_forward: int
    attention: int
    vocabulary: int
    kv_bytes: int
    width: int = 2

    @property
    def touched(self) -> float:
        """Bytes per token that elementwise work of the body reads and writes."""
        per_layer = HIDDEN_TOUCHED * self.hidden + FEED_FORWARD_TOUCHED * self.feed_forward
        return float(self.width * self.layers * per_layer)

    @property
    def touched_by_head(self) -> float:
        """The same of one log-softmax over the vocabulary, in float32."""
        return 4.0 * VOCABULARY_TOUCHED * self.vocabulary


@dataclass(frozen=True)
class Lengths:
    """Completion lengths, tokens: log-normal with this standard deviation of the logarithm, cut at `limit`.

    mean: after the cut. A mean at the limit makes all of them equally long.
    """

    mean: float
    limit: int
    spread: float = 0.8

    def __post_init__(self) -> None:
        require(1 <= self.mean <= self.limit, "lengths.mean", self.mean, f"from 1 to the limit ({self.limit})")
        require(self.spread >= 0, "lengths.spread", self.spread, "0 or more")

    def quantiles(self, count: int) -> list[int]:
        """`count` lengths, shortest first, at evenly spaced quantiles."""
        normal = NormalDist()
        tails = [math.exp(self.spread * normal.inv_cdf((i + 0.5) / count)) for i in range(count)]
        scale = self._scale(tails)
        return [max(1, min(self.limit, round(scale * tail))) for tail in tails]

    def _scale(self, tails: Sequence[float]) -> float:
        """The median before the cut, such that the mean after it is right; by bisection."""
        low, high = 0.0, self.limit / tails[0]
        for _ in range(60):
            middle = (low + high) / 2
            short = sum(min(self.limit, middle * tail) for tail in tails) < self.mean * len(tails)
            low, high = (middle, high) if short else (low, middle)
        return high


@dataclass(frozen=True)
class Work:
    """What a step has to do.

    prompts: distinct ones, of `prompt_tokens` each. ordinary, extra: completions drawn; one_call: together, so that
    the longest is waited for once. scored, trained: rows. minibatches, epochs: optimizer steps are their product.
    microbatch, scored_at_once: rows of one pass on one device in the update and in scoring, None for all.
    passes: scoring passes, 2 with a reference.
    temperatures: further log-softmaxes in scoring. kept: further ones in the update, with a gradient.
    """

    model: Model
    lengths: Lengths
    prompts: int
    prompt_tokens: float
    ordinary: int
    extra: int
    scored: int
    trained: int
    minibatches: int = 1
    epochs: int = 1
    microbatch: int | None = None
    scored_at_once: int | None = None
    checkpointing: bool = False
    passes: int = 1
    temperatures: int = 0
    kept: int = 0
    one_call: bool = True


@dataclass(frozen=True)
class Machine:
    """Rates that one device reaches (not peaks), and what things take beside them. math.inf is "costs nothing".

    decode, score, update: operations/s of matrix products in sampling, forward passes, forward and backward passes.
    weights: bytes/s at which decoding reads the weights, inf where they lie in a cache. bandwidth: of all else.
    elementwise: bytes/s of elementwise work, inf where the rates of products contain it.
    cache: bytes of one device for the KV cache. most_rows: most completions that one device decodes at once.
    near: bytes/s of a device to the others of its node, of `node` devices. far: bytes/s into a node.
    iteration, launch: seconds per layer of one decoded token, of one pass. hop: seconds of a step of a ring.
    row: seconds of one completion on a node's host. fixed: seconds a step to switch from training to sampling.
    shard: devices that share one copy of weights and optimizer, None for all.
    """

    decode: float = math.inf
    score: float = math.inf
    update: float = math.inf
    weights: float = math.inf
    bandwidth: float = math.inf
    elementwise: float = math.inf
    near: float = math.inf
    far: float = math.inf
    cache: float = math.inf
    most_rows: int | None = None
    node: int = 8
    shard: int | None = None
    iteration: float = 0.0
    launch: float = 0.0
    hop: float = 0.0
    row: float = 0.0
    fixed: float = 0.0


# One H100 SXM. NVIDIA's data sheet: 989 TFLOP/s in bfloat16, 3.35 TB/s, 80 GB, 450 GB/s each way over NVLink; a DGX has
# eight network cards of 400 Gb/s. The shares reached and the seconds are assumptions; docs/scale.md compares with
# published step times.
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
    """Of one step, one after the other. waiting: the mean replica's idle seconds, a part of `sampling`.

    exposed: collectives that outlast the work they run beside, a part of `scoring` and `update`.
    """

    sampling: float
    scoring: float
    update: float
    sync: float
    host: float
    waiting: float
    exposed: float

    @property
    def total(self) -> float:
        """The step's."""
        return self.sampling + self.scoring + self.update + self.sync + self.host


def seconds(work: Work, machine: Machine, devices: int = 1) -> Seconds:
    """The step's time on `devices` devices that all sample, then all train."""
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
    """Floating-point operations of a step, all devices together; of sampling, prompts are read once."""
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
    """Forward and backward pass in units of a forward pass; gradients of frozen weights are not computed."""
    return 2 + work.model.trained / work.model.parameters + work.checkpointing


def _forward(model: Model, prompt: float, answer: float) -> float:
    """Operations of one forward pass of a row; only completion tokens go through the head, attention is causal."""
    tokens = prompt + answer
    attended = 2.0 * model.layers * model.attention * tokens * tokens
    return 2.0 * model.body * tokens + 2.0 * model.head * answer + attended


# --- sampling -----------------------------------------------------------------------------------------------


def _sampling(work: Work, machine: Machine, devices: int) -> tuple[float, float]:
    """Seconds until the slowest replica has ended, and how many of them the mean replica waits."""
    parts = [work.ordinary + work.extra] if work.one_call else [work.ordinary, work.extra]
    busy, slowest = 0.0, 0.0
    for count in filter(None, parts):
        replicas = [_decoding(work, machine, own) for own in _dealt(work.lengths.quantiles(count), devices)]
        busy += sum(replicas) / devices
        slowest += max(replicas)
    prefill = work.prompts * _forward(work.model, work.prompt_tokens, 0) / machine.score / devices
    return prefill + slowest, slowest - busy


def _dealt(lengths: list[int], devices: int) -> list[list[int]]:
    """As a server deals them that does not know how long an answer will be."""
    shuffled = random.Random(0).sample(lengths, len(lengths))
    return [shuffled[device::devices] for device in range(devices)]


def _decoding(work: Work, machine: Machine, lengths: Sequence[int]) -> float:
    """Seconds of one replica with continuous batching: a row that ends makes place for the next."""
    prompt, places = work.prompt_tokens, _places(work, machine)
    waiting, ends = list(reversed(lengths)), list[tuple[int, int]]()
    now, cached, spent = 0, 0.0, 0.0
    while waiting or ends:
        while waiting and len(ends) < places:
            heapq.heappush(ends, (now + waiting[-1], waiting.pop()))
            cached += prompt
        rows, until = len(ends), ends[0][0] - now
        # Between two ends the batch stays as it is and the cache grows evenly.
        spent += until * _iteration(work.model, machine, rows, cached + rows * until / 2)
        now, cached = now + until, cached + rows * until
        while ends and ends[0][0] == now:
            cached -= prompt + heapq.heappop(ends)[1]
    return spent


def _places(work: Work, machine: Machine) -> int:
    """Rows that the cache holds at their mean length."""
    each = work.model.kv_bytes * (work.prompt_tokens + work.lengths.mean)
    most = machine.most_rows or work.ordinary + work.extra
    return most if math.isinf(machine.cache) else max(1, min(most, int(machine.cache / each)))


def _iteration(model: Model, machine: Machine, rows: int, cached: float) -> float:
    """Seconds in which each of `rows` rows gets a token."""
    products = 2.0 * (model.body + model.head) * rows / machine.decode
    weights = model.width * (model.body + model.head) / machine.weights
    touched = rows * (model.touched + model.touched_by_head) / machine.elementwise
    read = cached * model.kv_bytes / machine.bandwidth
    return max(products, weights) + read + touched + model.layers * machine.iteration


# --- scoring and the update ---------------------------------------------------------------------------------


def _scoring(work: Work, machine: Machine, devices: int) -> tuple[float, float]:
    """Seconds of the slowest device, and the exposed part of its collectives."""
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
    """The same over all minibatches and epochs, with the optimizer."""
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
    """Seconds of one forward pass over these rows at this rate, with so many further softmaxes."""
    model, answers = work.model, sum(rows)
    products = sum(_forward(model, work.prompt_tokens, t) for t in rows) / rate
    touched = (work.prompt_tokens * len(rows) + answers) * model.touched + answers * model.touched_by_head
    # The first softmax is in the rates of products where elementwise work is; further ones are in none.
    beside = further * answers * model.touched_by_head / min(machine.elementwise, machine.bandwidth)
    return products + touched / machine.elementwise + beside


def _every(lengths: list[int], parts: int) -> list[int]:
    """One minibatch, as even a share of short and long rows as there is."""
    return lengths[parts // 2 :: parts] or lengths[:1]


def _balanced(lengths: Sequence[int], devices: int) -> list[int]:
    """The rows of the device that gets most tokens, when the longest are dealt first and each to the least laden."""
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
    """Seconds to bring `size` bytes, spread over a group of devices, to each of them (or to sum them), in `calls`."""
    if group == 1:
        return 0.0
    rate = machine.near if group <= machine.node else min(machine.near, machine.far)
    return size * (group - 1) / group / rate + calls * machine.hop * (group - 1)


def _between_copies(model: Model, machine: Machine, shard: int, copies: int) -> float:
    """Seconds to sum the gradients of `copies` copies, once for each minibatch: each device its shard of them."""
    size = 2 * REDUCED * model.trained / shard * min(shard, machine.node)
    rate = machine.near if copies * shard <= machine.node else machine.far
    return size * (copies - 1) / copies / rate + 2 * machine.hop * (copies - 1)


# --- a table ------------------------------------------------------------------------------------------------


def table(work: Work, machine: Machine, gpus: Sequence[int], without: Work | None = None) -> list[str]:
    """A Markdown table, one line for each number of GPUs; `without`: the step that the last column compares with."""
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
