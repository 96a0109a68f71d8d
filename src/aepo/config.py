"""The configuration of a run: plain frozen dataclasses, TOML in and out, and one-line refusals."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from aepo.algorithm import Algorithm
from aepo.control import Control
from aepo.control.base import moments
from aepo.convert import SETTINGS, Settings, parse_setting, tree
from aepo.errors import InvalidValue, require
from aepo.grading.base import Grader
from aepo.grading.table import GRADERS
from aepo.loss.advantages import Advantage
from aepo.loss.surrogates import Surrogate
from aepo.methods import preset
from aepo.tasks import TASKS, Task
from aepo.tasks.rewards import VERIFIERS, Verifier

RUN_SETTINGS = Settings({**SETTINGS.tables, Task: TASKS, Verifier: VERIFIERS, Grader: GRADERS})
override, to_dict = RUN_SETTINGS.override, RUN_SETTINGS.to_dict


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """One round of sampling. Ordinary completions are drawn at temperature 1.

    engine: `hf` samples with transformers on the policy's own weights; `vllm` with vLLM, which is given the weights
    before every step, in this process or, with `server`, at that address (`scratch`: a folder that both can read).
    top_p: completions of training are cut to the nucleus of this probability; 1 is the whole vocabulary.
    max_rows: completions decoded at once (memory), or none for all.
    """

    prompts: int = 64
    group_size: int = 8
    engine: Literal["hf", "vllm"] = "hf"
    server: str | None = None
    scratch: str | None = None
    top_p: float = 1.0
    max_rows: int | None = None

    def __post_init__(self) -> None:
        require(self.prompts >= 1, "sampling.prompts", self.prompts, "at least 1")
        require(self.group_size >= 2, "sampling.group_size", self.group_size, "at least 2, to compare within a group")
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "a probability in (0, 1]")
        wanted = "given together with sampling.engine=vllm and sampling.scratch, a folder that both can read"
        ready = self.engine == "vllm" and self.scratch is not None
        require(self.server is None or ready, "sampling.server", self.server, wanted)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW. A step has `epochs` * `minibatches` updates; a microbatch is `microbatch` rows (none: all)."""

    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    minibatches: int = 4
    epochs: int = 1
    microbatch: int | None = None

    def __post_init__(self) -> None:
        require(self.lr > 0, "optimizer.lr", self.lr, "a positive number")
        require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "two numbers in [0, 1)")
        require(self.eps > 0, "optimizer.eps", self.eps, "a positive number")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "a number, 0 or more")
        require(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "a positive number")
        require(self.minibatches >= 1, "optimizer.minibatches", self.minibatches, "at least 1")
        require(self.epochs >= 1, "optimizer.epochs", self.epochs, "at least 1")
        require(self.microbatch is None or self.microbatch >= 1, "optimizer.microbatch", self.microbatch, "at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Every `every` steps (0: never) and at the end: `samples` completions of each of `prompts` problems at T = 1."""

    every: int = 50
    prompts: int = 100
    samples: int = 16

    def __post_init__(self) -> None:
        require(self.every >= 0, "evaluation.every", self.every, "a number of steps, or 0 for never")
        require(self.prompts >= 1, "evaluation.prompts", self.prompts, "at least 1")
        require(self.samples >= 1, "evaluation.samples", self.samples, "at least 1")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Every `every` steps (0: only at the end). The newest `keep` stay, and the best evaluated one."""

    every: int = 50
    keep: int = 2

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, "a number of steps, or 0 for the end only")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """How the model is loaded and run (docs/models.md).

    dtype: of the forward pass; weights are float32 always. gradient_checkpointing: less memory, one more forward pass.
    revision: branch, tag or commit of a model on the hub. trust_remote_code: run code that a model brings along.
    lora_rank: train a LoRA adapter of this rank, scaled by lora_alpha / lora_rank, or none: train all weights.
    lora_targets: names of the linear layers that get one.
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    revision: str | None = None
    lora_rank: int | None = None
    lora_alpha: int = 32
    lora_targets: str | tuple[str, ...] = "all-linear"

    def __post_init__(self) -> None:
        flash = self.attention == "flash_attention_2"
        require(not flash or self.dtype == "bfloat16", "policy.dtype", self.dtype, "bfloat16 with flash_attention_2")
        require(self.lora_rank is None or self.lora_rank >= 1, "policy.lora_rank", self.lora_rank, "1 or more, or none")
        require(self.lora_alpha >= 1, "policy.lora_alpha", self.lora_alpha, "at least 1")
        listed = self.lora_targets == "all-linear" if isinstance(self.lora_targets, str) else bool(self.lora_targets)
        require(listed, "policy.lora_targets", self.lora_targets, "all-linear, or a list of names of linear layers")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that determines a run.

    method: the preset that advantage, surrogate, aggregate and control start from. model: `builtin`, or a folder in
    Hugging Face format, or a model's name on the hub. device: auto takes a GPU where there is one. threads: CPU
    threads, or none for torch's choice (bit-equal results need the same). kl_coefficient: of a penalty k3(pi, pi_ref)
    on every trained token, against the model that the run starts from (with LoRA: the model under the adapter).
    budget_completions, budget_tokens: the step in which the run's sampled completions (tokens), ordinary and extra,
    reach this number is the last, or step number `steps` if that comes first. tracker: where each row goes besides
    metrics.jsonl.
    """

    method: str = "aepo"
    advantage: Advantage
    surrogate: Surrogate
    aggregate: str = "token-mean"
    control: Control
    task: Task
    model: str = "builtin"
    seed: int = 0
    steps: int = 200
    threads: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    sampling: SamplingConfig = SamplingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    policy: PolicyConfig = PolicyConfig()
    kl_coefficient: float = 0.0
    budget_completions: int | None = None
    budget_tokens: int | None = None
    tracker: Literal["none", "tensorboard", "wandb", "trackio"] = "none"

    def __post_init__(self) -> None:
        require(self.steps >= 1, "steps", self.steps, "at least 1")
        require(0 <= self.seed < 2**63, "seed", self.seed, "an integer from 0 to 2^63 - 1")
        require(self.threads is None or self.threads >= 1, "threads", self.threads, "at least 1")
        require(self.kl_coefficient >= 0, "kl_coefficient", self.kl_coefficient, "a number, 0 or more")
        for name in ("budget_completions", "budget_tokens"):
            budget = getattr(self, name)
            require(budget is None or budget >= 1, name, budget, "at least 1, or none")
        least = self.advantage.least_group
        name, size = self.advantage.name, self.sampling.group_size
        require(size >= least, "sampling.group_size", size, f"at least {least} with the advantage {name}")
        by_token = "token_temperature" in moments(self.control)
        wanted = f"hf: the control {self.control.name} heats single tokens"
        require(not by_token or self.sampling.engine == "hf", "sampling.engine", self.sampling.engine, wanted)
        _ = self.algorithm

    @property
    def algorithm(self) -> Algorithm:
        """The four choices."""
        return Algorithm(
            advantage=self.advantage,
            surrogate=self.surrogate,
            aggregate=self.aggregate,
            control=self.control,
        )


def default_config(method: str = "aepo") -> Config:
    """The built-in job with this method."""
    algorithm = preset(method)
    return Config(
        method=method,
        advantage=algorithm.advantage,
        surrogate=algorithm.surrogate,
        aggregate=algorithm.aggregate,
        control=algorithm.control,
        task=TASKS["paths"](),
    )


def make_config(
    file: Path | None = None,
    method: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    settings: Sequence[str] = (),
) -> Config:
    """Preset, then the TOML file, then `overrides` (dotted names), then `a.b=c` settings.

    Raises `InvalidValue` with one line for the first thing that cannot work.
    """
    data = read_toml(file) if file else {}
    config = default_config(method or data.pop("method", "aepo"))
    data.pop("method", None)
    given = {**(overrides or {}), **dict(map(parse_setting, settings))}
    config = override(override(config, data), tree(given))
    config.task.eval_problems(config.evaluation.prompts)
    return config


def read_toml(file: Path, depth: int = 0) -> dict[str, Any]:
    """The file's tables, over those of the file that it `extends`; `InvalidValue` when one cannot be read."""
    data = _read_one(file)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str) or depth == 5:
        raise InvalidValue("extends", base, f"the name of a file beside {file}, at most 5 deep")
    return _merged(read_toml(file.parent / base, depth + 1), data)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on `base`, table by table."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _read_one(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise InvalidValue("config", str(file), f"a readable TOML file ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidValue("config", str(file), f"valid TOML ({error})") from None


def to_toml(config: Config) -> str:
    """The whole configuration, resolved."""
    return tomli_w.dumps(to_dict(config))
