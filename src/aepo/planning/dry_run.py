"""`aepo train RECIPE --dry-run` shows the model, the data, the memory and the cost of a run without running it.

The numbers hold for one optimizer over all weights (or over the adapter), on one device:

    memory   = 4 P weights + (4 + 8) P_trained gradients and AdamW + 2 P bfloat16 copies + 4 P again for a reference
               + KV cache of `sampling.max_rows` completions + activations (not counted: they follow the microbatch)

P is the number of parameters of the model, and P_trained is the number of trained parameters. Operations and seconds
come from `aepo.planning.cost`, for the control at full command. If no mean length is given, the number of tokens is an
upper bound: all completions are as long as the limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from aepo.config import Config
from aepo.control.base import ExtraGroup, Needs, State, Step
from aepo.engines.ends import find_ends
from aepo.engines.positions import Room, positions
from aepo.errors import InvalidValue, require
from aepo.model.encoding import Encoding
from aepo.model.memory import Fit, Sizes, memory_of, sizes
from aepo.model.policy import SCORING_TOKENS
from aepo.model.shared import fit_update
from aepo.planning.cost import H100, Lengths, Model, Work, operations, seconds, table
from aepo.sampling.prompts import Checked, checked_prompts, ends_line
from aepo.training.header import optimizer_lines
from aepo.training.preflight import preflight
from aepo.types import Completion, Prompt, Rollout, Sample

GIB = 2**30
# Assumed length of a prompt, tokens, if the task does not give one.
PROMPT = 64


@dataclass(frozen=True)
class Paper:
    """`Paper` holds upper bounds for one step, computed without running it."""

    completions: int
    """Number of sampled completions, ordinary and extra."""
    extra: int
    """Number of extra completions among them."""
    sampled_tokens: int
    """Number of sampled completion tokens."""
    memory: dict[str, float]
    """Bytes of each part of the memory. Activations are not counted."""
    step_flops: dict[str, float]
    """Floating-point operations of each part of the step."""
    hours: float
    """Hours of one GPU for the whole run."""


@dataclass(frozen=True)
class Assumed:
    """`Assumed` holds values that only a run can show and that a dry run must assume."""

    length: float | None = None
    """Mean length of a completion, tokens; None means the limit."""
    prompt: float | None = None
    """Mean length of a prompt, tokens; None means the largest allowed length."""
    accuracy: float = 1.0
    """Share of ordinary completions that are right."""
    extra_accuracy: float = 1.0
    """Share of extra completions that are right."""
    command: float = 1.0
    """Command of the control. At 1 the control does as much as it may."""

    def __post_init__(self) -> None:
        for name in ("accuracy", "extra_accuracy"):
            value = getattr(self, name)
            require(0 < value <= 1, name, value, "a share in (0, 1]")


def dry_run(config: Config, gpus: Sequence[int] = (), length: float | None = None) -> None:
    """Print what is known about a run before it starts.

    Args:
        config: The settings of the run.
        gpus: Numbers of H100 GPUs. For each, a table shows the seconds of a step.
        length: Mean length of a completion, tokens; None means the limit.

    Raises:
        InvalidValue: A setting, the model or the data cannot be used.
    """
    for sentence in preflight(config):
        print(f"preflight: {sentence}")
    model = architecture(config)
    checked, said = texts(config)
    print(*said, sep="\n")
    fit = _fit(config, model, checked.longest, checked.mean)
    if checked.first.images:  # such rows do not share their prompt
        fit = replace(fit, saved=None)
    config = fit.applied(config)
    print(f"model: {config.model}, {model.kind}, {model.parameters:,} parameters, {model.trained:,} of them trained")
    print(f"  {config.policy.dtype} on {_device(config)}")
    print(*optimizer_lines(config, fit), *(f"preflight: {problem}" for problem in fit.problems()), sep="\n")
    assumed = Assumed(length)
    for line in lines(config, on_paper(config, model, assumed)):
        print(line)
    if gpus:
        print("a step on H100s, by the model of docs/scale.md, not measured:")
        print(*table(work_of(config, model, assumed), H100, gpus), sep="\n")


def _device(config: Config) -> torch.device:
    """Return the device that a run on this machine would have."""
    cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
    return torch.device("cuda" if cuda else "cpu")


def _fit(config: Config, model: Model, longest: int, mean: float) -> Fit:
    """Return how an update would fit into the memory of this machine."""
    found = Sizes(
        parameters=model.parameters,
        trained=model.trained,
        layers=model.layers,
        hidden=model.hidden,
        queries=model.attention,
        keys=model.kv_bytes // (2 * model.width * model.layers),
        feed_forward=model.feed_forward,
        looks_back=model.looks_back,
    )
    return fit_update(config, found, longest, mean, memory_of(_device(config)))


def _concrete(config: Config, model: Model) -> Config:
    """Return the settings with a choice in place of each `auto`, for the longest prompt that the task allows."""
    longest = getattr(config.task, "max_prompt", PROMPT)
    return _fit(config, model, longest, longest).applied(config)


def texts(config: Config) -> tuple[Checked, list[str]]:
    """Return the checked prompts, and lines: the first prompt as the model sees it, and where answers end.

    Every prompt of the data is checked as a run checks it. The weights are not loaded.

    Raises:
        InvalidValue: A prompt cannot be shown to this model, or it is too long.
    """
    from aepo.model.loading import load_language
    from aepo.training.runner import model_folder

    name = model_folder(config)
    language = load_language(name, config.policy, config.task.template())
    encoding = Encoding(language.tokenizer, name, language.images)
    room = Room(positions(language.config), config.policy.over_length)
    checked = checked_prompts(config.task, encoding, config.seed, room)
    tokens = encoding.prompt(checked.first)
    images = checked.first.images
    among = f", {sum(map(language.images.count, images))} of them of images" if language.images and images else ""
    shown: str = language.tokenizer.decode(language.images.collapsed(tokens) if language.images else list(tokens))
    ends = find_ends(language.tokenizer, language.generation, language.config, name, [checked.first.text])
    return checked, [
        f"data: the first prompt has {len(tokens)} tokens{among}: {_short(shown)!r}",
        ends_line(ends, config.sampling.stops),
    ]


def _short(text: str, most: int = 160) -> str:
    """Return the start and the end of a long text: a special token may stand at either."""
    return text if len(text) <= most else f"{text[: most // 2]} ... {text[-most // 2 :]}"


def architecture(config: Config) -> Model:
    """Return the sizes of the run's model, from its configuration alone. The weights are not loaded.

    Raises:
        InvalidValue: The model cannot be reached, or it has no layers that `policy.lora_targets` names.
    """
    from transformers import AutoConfig

    from aepo.model.loading import model_class
    from aepo.model.names import check_name
    from aepo.model.packaged import local_folder
    from aepo.training.runner import model_folder

    name = str(model_folder(config) if config.model == "builtin" else local_folder(config.model))
    check_name(name)
    settings = {"trust_remote_code": config.policy.trust_remote_code, "revision": config.policy.revision}
    try:
        known: Any = AutoConfig.from_pretrained(name, **{k: v for k, v in settings.items() if v is not None})
        with torch.device("meta"):
            model: Any = model_class(known).from_config(known)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InvalidValue("model", name, f"a model in Hugging Face format that can be reached ({reason})") from None
    parameters = sum(p.numel() for p in model.parameters())
    found = replace(sizes(model), trained=_trained(model, config))
    half = config.policy.dtype == "bfloat16"
    head = model.get_output_embeddings().weight
    tied = head is model.get_input_embeddings().weight
    return Model(
        kind=type(model).__name__,
        parameters=parameters,
        trained=found.trained,
        body=parameters - head.numel() * (1 if tied else 2),
        head=head.numel(),
        layers=found.layers,
        hidden=found.hidden,
        feed_forward=found.feed_forward,
        attention=found.queries,
        vocabulary=known.get_text_config().vocab_size,
        kv_bytes=2 * (2 if half else 4) * found.layers * found.keys,
        width=2 if half else 4,
        looks_back=found.looks_back,
    )


def _trained(model: Any, config: Config) -> int:
    """Return the number of trained parameters.

    These are all parameters, or those of the adapter: rank * (inputs + outputs) of every linear layer that gets one.
    """
    from aepo.model.images import tower
    from aepo.model.loading import linear_layers

    rank, targets = config.policy.lora_rank, config.policy.lora_targets
    if rank is None:
        frozen = tower(model) if config.policy.freezes_tower else None
        left_out = 0 if frozen is None else sum(p.numel() for p in frozen.parameters())
        return int(sum(p.numel() for p in model.parameters()) - left_out)
    layers = linear_layers(model, config.policy)
    chosen = [m for name, m in layers if targets == "all-linear" or name.split(".")[-1] in targets]
    if not chosen:
        raise InvalidValue("policy.lora_targets", targets, "names of linear layers of this model")
    return sum(rank * (m.in_features + m.out_features) for m in chosen)


def work_of(config: Config, model: Model, assumed: Assumed = Assumed()) -> Work:
    """Return the work of one step of the run: what is sampled, scored and trained on.

    The step is the second one, so the control has a state from the first. Follow-up rounds are not counted.
    """
    config = _concrete(config, model)
    control, optimizer = config.control, config.optimizer
    step, state, planned = _planned(config, assumed)
    ordinary = [s for group in range(step.prompts) for s in _made_up(group, step.group_size, assumed.accuracy)]
    extra = [
        replace(sample, extra=True)
        for number, group in enumerate(planned)
        for sample in _made_up(step.prompts + number, group.count, assumed.extra_accuracy)
    ]
    mixed = control.mix(ordinary, extra, state, step)
    heats = config.mismatch.temperatures([config.sampling.temperature, *(group.temperature for group in planned)])
    needs = control.needs(state) | Needs(temperatures=heats)
    prompt = assumed.prompt or float(getattr(config.task, "max_prompt", PROMPT))
    length = assumed.length or float(step.max_tokens)
    return Work(
        model=model,
        lengths=Lengths(length, step.max_tokens),
        prompts=step.prompts,
        prompt_tokens=prompt,
        ordinary=step.prompts * step.group_size,
        extra=len(extra),
        scored=len(mixed),
        trained=sum(sample.trained for sample in mixed),
        minibatches=optimizer.minibatches,
        epochs=optimizer.epochs,
        microbatch=None if optimizer.microbatch is None else int(optimizer.microbatch),
        scored_at_once=max(1, int(SCORING_TOKENS / (prompt + length))),
        checkpointing=bool(config.policy.gradient_checkpointing),
        passes=1 + (config.kl_coefficient > 0 or needs.reference),
        temperatures=len(needs.temperatures),
        kept=int(needs.entropy_gradient) + (needs.kept is not None),
    )


def most_extra(config: Config) -> int:
    """Return the largest number of extra completions that the control plans in one step.

    It is computed at full command in both directions, with almost no extra completion right. Follow-up rounds are not
    counted.
    """
    hopeless = (Assumed(extra_accuracy=1e-9, command=command) for command in (-1.0, 1.0))
    return max(sum(group.count for group in _planned(config, assumed)[2]) for assumed in hopeless)


def _planned(config: Config, assumed: Assumed) -> tuple[Step, State, tuple[ExtraGroup, ...]]:
    """Return the second step of a run, the control's state in it, and the extra groups that the control plans."""
    sampling = config.sampling
    step = Step(1, config.steps, sampling.prompts, sampling.group_size, config.task.max_tokens, config.seed)
    state = config.control.state_at(assumed.command, assumed.extra_accuracy)
    return step, state, tuple(config.control.plan(state, step))


def _made_up(group: int, count: int, accuracy: float) -> list[Sample]:
    """Return an artificial group with this share of right samples, to ask a control what it would train on."""
    prompt = Prompt(str(group), (0,), {})
    # The rounding makes the share exact over all groups together.
    right = round((group + 1) * count * accuracy) - round(group * count * accuracy)
    rewards = [1.0] * right + [0.0] * (count - right)
    answer = Completion(prompt, group, 1.0, tokens=(0,), logprobs=(0.0,), truncated=False)
    return [Sample(Rollout(answer, reward, right=reward > 0.5), 2 * reward - 1) for reward in rewards]


def on_paper(config: Config, model: Model, assumed: Assumed = Assumed()) -> Paper:
    """Compute the upper bounds from the settings and the sizes of the model."""
    work = work_of(config, model, assumed)
    drawn = work.ordinary + work.extra
    half = config.policy.dtype == "bfloat16"
    # The memory of the cache is computed for its largest length.
    longest = getattr(config.task, "max_prompt", PROMPT) + config.task.max_tokens
    memory = {
        "weights": 4.0 * model.parameters,
        "gradients and AdamW": 12.0 * model.trained,
        "bfloat16 copies": 2.0 * model.parameters * half,
        "reference": 4.0 * model.parameters * (work.passes - 1) * (config.policy.lora_rank is None),
        "KV cache": float(model.kv_bytes * longest * (config.sampling.max_rows or drawn)),
    }
    hours = config.steps * seconds(work, H100).total / 3600
    return Paper(drawn, work.extra, round(drawn * work.lengths.mean), memory, operations(work), hours)


def lines(config: Config, paper: Paper) -> list[str]:
    """Return the upper bounds as lines of text, with the formula and its inputs."""
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in paper.memory.items() if size)
    sampling = config.sampling
    work = ", ".join(f"{name} {flops:.2e}" for name, flops in paper.step_flops.items())
    return [
        f"step: {sampling.prompts} prompts x {sampling.group_size} completions, up to {paper.extra} extra, "
        f"{paper.sampled_tokens:,} sampled tokens of at most {paper.completions} x {config.task.max_tokens}",
        f"memory: at least {sum(paper.memory.values()) / GIB:.1f} GiB ({parts}), and activations",
        f"work: {sum(paper.step_flops.values()):.2e} operations a step ({work})",
        f"GPU time: about {paper.hours:.1f} hours of one H100 for {config.steps} steps, "
        "at the rates of aepo.planning.cost.H100",
    ]
