"""The configuration of a run: frozen dataclasses that are read from TOML and written to it.

Bad input is refused in one line. docs/settings.md lists every field, made from the docstrings of the fields.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import tomli_w

from aepo.algorithm import Algorithm
from aepo.control.base import Control, hooks
from aepo.control.closed_loop import ClosedLoop
from aepo.control.quantities import Entropy
from aepo.convert import SETTINGS, Settings, parse_setting, tree
from aepo.defaults import by_model
from aepo.doctor.live import DoctorConfig
from aepo.engines.mismatch import MismatchConfig
from aepo.engines.positions import OverLength
from aepo.errors import InvalidValue, require
from aepo.grading.base import Grader
from aepo.grading.table import GRADERS
from aepo.loss.advantages import Advantage
from aepo.loss.surrogates import Surrogate
from aepo.methods import preset
from aepo.plugins import absolute
from aepo.tasks import TASKS, Task
from aepo.tasks.functions import VERIFIERS
from aepo.tasks.rewards import Verifier

RUN_SETTINGS = Settings({**SETTINGS.tables, Task: TASKS, Verifier: VERIFIERS, Grader: GRADERS})
override, to_dict = RUN_SETTINGS.override, RUN_SETTINGS.to_dict


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """`SamplingConfig` says how a step draws its ordinary completions: by default from the whole distribution at T = 1.

    Entropy, ratios and old log-probabilities are always those of the whole distribution at T = 1 (docs/sampling.md).
    """

    prompts: int = 64
    """Number of prompts in a step. Each prompt has one group of completions."""
    group_size: int = 8
    """Completions that are drawn of each prompt. They are compared with each other, so there are at least 2."""
    engine: Literal["hf", "vllm"] = "hf"
    """`hf` samples with transformers, on the policy's own weights. `vllm` samples with vLLM, which gets the weights
    before every step, in this process or, with `server`, at that address.
    """
    server: str | None = None
    """Address of a running vLLM server, such as http://host:8000; none runs vLLM in this process."""
    scratch: str | None = None
    """Folder that this process and the vLLM server can both read. The weights are handed over in it."""
    weights: Literal["files", "ipc", "nccl", "auto"] = "files"
    """How vLLM gets the weights before every step. `files` writes them into a folder, in memory where they fit. `ipc`
    lets vLLM copy them from the policy's memory on the same GPU. `nccl` sends them from the policy's GPU to those of
    `server`, without `scratch`. `auto` tries `ipc` where this process starts vLLM on a GPU, and else takes `files`.
    """
    temperature: float = 1.0
    """Temperature of the ordinary completions of training. A control chooses that of extra completions by itself."""
    top_p: float = 1.0
    """Probability of the nucleus to which the completions of training are cut. 1 is the whole vocabulary."""
    top_k: int | None = None
    """Number of most probable tokens to which the completions of training are cut; none is the whole vocabulary."""
    min_p: float = 0.0
    """Share of the largest probability below which tokens are cut off in training; 0 is the whole vocabulary."""
    stop: str | tuple[str, ...] = ()
    """Text, or list of texts, that ends a completion in training and evaluation. It stays in the completion."""
    max_rows: int | None = None
    """Completions that are decoded at once; fewer need less memory. None decodes all of them at once."""
    decode: Literal["auto", "dynamic", "static"] = "auto"
    """How `hf` decodes. `dynamic` grows its tensors with each token. `static` keeps them, and a GPU replays a step as a
    graph without the host; a model with sliding windows or recurrent layers is decoded as with `dynamic`. `auto` is
    `static` on a GPU, where the model can, and `dynamic` on a CPU.
    """

    def __post_init__(self) -> None:
        require(self.prompts >= 1, "sampling.prompts", self.prompts, "at least 1")
        require(self.group_size >= 2, "sampling.group_size", self.group_size, "at least 2, to compare within a group")
        heat, vllm = self.temperature, self.engine == "vllm"
        wanted = "a number from 0.01 to 2 with vLLM" if vllm else "a positive number"
        require(0.01 <= heat <= 2 if vllm else heat > 0, "sampling.temperature", heat, wanted)
        require(0 < self.top_p <= 1, "sampling.top_p", self.top_p, "a probability in (0, 1]")
        require(self.top_k is None or self.top_k >= 1, "sampling.top_k", self.top_k, "at least 1, or none for no cut")
        require(0 <= self.min_p < 1, "sampling.min_p", self.min_p, "a share in [0, 1)")
        require(all(self.stops) and self.stop != "", "sampling.stop", self.stop, "texts that are not empty")
        wanted = "given together with sampling.engine=vllm and sampling.scratch, a folder that both can read"
        ready = self.engine == "vllm" and (self.scratch is not None or self.weights == "nccl")
        require(self.server is None or ready, "sampling.server", self.server, wanted)
        require(vllm or self.weights == "files", "sampling.weights", self.weights, "files with sampling.engine=hf")
        alone, way = self.server is None, self.weights
        wanted = "files or nccl with sampling.server: ipc needs a vLLM that this process starts, on the same GPU"
        require(alone or way != "ipc", "sampling.weights", way, wanted)
        wanted = "files or ipc without sampling.server: nccl sends to another GPU than the policy's"
        require(not alone or way != "nccl", "sampling.weights", way, wanted)
        require(not vllm or self.max_rows is None, "sampling.max_rows", self.max_rows, "none with sampling.engine=vllm")
        require(not vllm or self.decode == "auto", "sampling.decode", self.decode, "auto with sampling.engine=vllm")

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the texts that end a completion."""
        return (self.stop,) if isinstance(self.stop, str) else self.stop

    @property
    def changes(self) -> dict[str, float]:
        """Return the settings, by name, that make the distribution of ordinary completions another one than pi's."""
        settings = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": None, "min_p": 0.0}
        return {f"sampling.{name}": value for name, value in settings.items() if value != neutral[name]}


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """`OptimizerConfig` sets AdamW and how many updates a step has: `epochs` x `minibatches`."""

    lr: float = 3e-4
    """Largest learning rate. Another model than `builtin` has 1e-6, or 1e-5 with LoRA (docs/models.md)."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate after the warm-up: it stays, or falls to 0 at the end of the run, in a line or in half a cosine
    wave. The end of the run is `steps`.
    """
    warmup: int = 0
    """Steps in which the learning rate rises in a line: it is lr / warmup in the first of them. Another model than
    `builtin` has 10, or a tenth of `steps` if that is less.
    """
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's decay rates of the running means of the gradient and of its square."""
    eps: float = 1e-8
    """AdamW's epsilon: a small number in the denominator that prevents a division by 0."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    max_grad_norm: float = 1.0
    """Largest norm of the gradient of an update. A longer gradient is scaled down to it."""
    minibatches: int = 4
    """Parts into which the batch of a step is split. Each part makes one update."""
    epochs: int = 1
    """Passes over the batch of a step."""
    microbatch: int | Literal["auto"] | None = None
    """Rows in one forward and backward pass; fewer need less memory. None takes all rows of the minibatch at once.
    `auto` takes as many as the memory of the device holds; it is the default of another model than `builtin`.
    """

    def __post_init__(self) -> None:
        require(self.lr > 0, "optimizer.lr", self.lr, "a positive number")
        require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "two numbers in [0, 1)")
        require(self.eps > 0, "optimizer.eps", self.eps, "a positive number")
        require(self.weight_decay >= 0, "optimizer.weight_decay", self.weight_decay, "a number, 0 or more")
        require(self.max_grad_norm > 0, "optimizer.max_grad_norm", self.max_grad_norm, "a positive number")
        require(self.minibatches >= 1, "optimizer.minibatches", self.minibatches, "at least 1")
        require(self.epochs >= 1, "optimizer.epochs", self.epochs, "at least 1")
        require(self.warmup >= 0, "optimizer.warmup", self.warmup, "a number of steps, 0 or more")
        good = self.microbatch in (None, "auto") or (isinstance(self.microbatch, int) and self.microbatch >= 1)
        require(good, "optimizer.microbatch", self.microbatch, "at least 1, auto, or none")

    def rate(self, step: int, steps: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: The number of steps before it.
            steps: The number of steps of the run.
        """
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        passed = (step - self.warmup) / max(1, steps - self.warmup)
        falls = {"constant": 1.0, "linear": 1 - passed, "cosine": (1 + math.cos(math.pi * passed)) / 2}
        return self.lr * falls[self.schedule]


def _require_interval(table: str, every: int | str, minutes: float, zero: str) -> None:
    good = every == "auto" or (isinstance(every, int) and every >= 0)
    require(good, f"{table}.every", every, f"a number of steps, auto, or 0 for {zero}")
    require(minutes > 0, f"{table}.minutes", minutes, "a positive number of minutes")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """`EvaluationConfig` says when a run evaluates its policy, and on how many completions, drawn at temperature 1."""

    every: int | Literal["auto"] = 50
    """Steps between two evaluations. The last step is evaluated too. 0 means that there is no evaluation. `auto` goes
    by time; it is the default of another model than `builtin`.
    """
    minutes: float = 30.0
    """With `every=auto`: minutes of training between two evaluations."""
    first: bool = True
    """Whether the base model is evaluated before the first step, as step 0 of evaluations.jsonl."""
    prompts: int = 100
    """Number of problems, from the start of the task's evaluation set."""
    samples: int = 16
    """Completions that are drawn of each problem."""

    def __post_init__(self) -> None:
        _require_interval("evaluation", self.every, self.minutes, "never")
        require(self.prompts >= 1, "evaluation.prompts", self.prompts, "at least 1")
        require(self.samples >= 1, "evaluation.samples", self.samples, "at least 1")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """`CheckpointConfig` says when a run writes checkpoints, and how many stay."""

    every: int | Literal["auto"] = 50
    """Steps between two checkpoints. The last step writes one too. 0 means only that one. `auto` goes by time; it is
    the default of another model than `builtin`.
    """
    minutes: float = 15.0
    """With `every=auto`: minutes between two checkpoints."""
    keep: int = 2
    """Number of newest checkpoints that stay. A checkpoint of the step with the best evaluation stays as well."""

    def __post_init__(self) -> None:
        _require_interval("checkpoint", self.every, self.minutes, "the end only")
        require(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """`PolicyConfig` says how the model is loaded and run (docs/models.md)."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the forward pass. The weights are float32 in both cases. Another model than `builtin` has
    bfloat16 on a GPU that computes with it.
    """
    attention: Literal["auto", "sdpa", "eager", "flash_attention_2"] = "auto"
    """transformers' implementation of attention. `auto` takes `sdpa` where the model has it, else `eager`.
    `flash_attention_2` needs bfloat16.
    """
    over_length: OverLength = "refuse"
    """What happens where a prompt and the longest completion have more tokens than the model has positions: `refuse`
    ends before the work starts, `cut` ends such a completion at the last position.
    """
    gradient_checkpointing: bool | Literal["auto"] = False
    """Compute activations a second time in the backward pass: less memory for one more forward pass. `auto` does so if
    the activations of 8 rows do not fit into the memory of the device; it is the default of another model than
    `builtin`.
    """
    share_prompts: bool | Literal["auto"] = False
    """Compute a prompt once for all completions of it, in scoring and update: the same numbers up to rounding. All
    completions of a prompt are then in one minibatch. `auto` does so if it saves a tenth of the operations or more and
    the model's attention allows it; it is the default of another model than `builtin`.
    """
    trust_remote_code: bool = False
    """Run Python code that the model's repository contains."""
    revision: str | None = None
    """Branch, tag or commit of a model on the Hugging Face hub; none takes the hub's default."""
    lora_rank: int | None = None
    """Rank of a LoRA adapter that is trained instead of the weights; none trains all weights."""
    lora_alpha: int = 32
    """The adapter's output is multiplied by lora_alpha / lora_rank."""
    lora_targets: str | tuple[str, ...] = "all-linear"
    """Names of the linear layers that get an adapter, or `all-linear`."""
    vision_tower: Literal["auto", "frozen", "trained"] = "auto"
    """Whether the vision tower of a model of images is trained. `auto` trains it with all weights, and gives it no
    adapter with LoRA.
    """
    min_pixels: int | None = None
    """Least number of pixels of an image; a smaller one is enlarged. None takes the model's own."""
    max_pixels: int | None = None
    """Largest number of pixels of an image; a larger one is made smaller. None takes the model's own."""

    @property
    def freezes_tower(self) -> bool:
        """Return whether the vision tower stays as it is."""
        return self.vision_tower == "frozen" or (self.vision_tower == "auto" and self.lora_rank is not None)

    def __post_init__(self) -> None:
        for name in ("min_pixels", "max_pixels"):
            pixels = getattr(self, name)
            require(pixels is None or pixels >= 1, f"policy.{name}", pixels, "at least 1, or none")
        flash = self.attention == "flash_attention_2"
        require(not flash or self.dtype == "bfloat16", "policy.dtype", self.dtype, "bfloat16 with flash_attention_2")
        require(self.lora_rank is None or self.lora_rank >= 1, "policy.lora_rank", self.lora_rank, "1 or more, or none")
        require(self.lora_alpha >= 1, "policy.lora_alpha", self.lora_alpha, "at least 1")
        listed = self.lora_targets == "all-linear" if isinstance(self.lora_targets, str) else bool(self.lora_targets)
        require(listed, "policy.lora_targets", self.lora_targets, "all-linear, or a list of names of linear layers")


@dataclass(frozen=True, kw_only=True)
class Config:
    """`Config` holds everything that determines a run."""

    method: str = "aepo"
    """Name of the preset (`aepo methods`) from which advantage, surrogate, aggregate and control start; `a+b` joins
    two.
    """
    advantage: Advantage
    """How the reward of a completion compares with its group's rewards."""
    surrogate: Surrogate
    """The objective that is maximised at each token."""
    aggregate: str = "token-mean"
    """How the tokens of a minibatch are averaged: token-mean, sequence-mean-token-mean, sequence-mean-token-sum or
    fixed-length.
    """
    control: Control
    """The entropy control: what measures the entropy, and how it acts on it."""
    task: Task
    """Where problems come from, and what checks the answers."""
    model: str = "builtin"
    """`builtin`, a folder in Hugging Face format, a model's name on the Hugging Face hub, or `smollm2`, a pretrained
    model from a Python package (docs/models.md).
    """
    seed: int = 0
    """Seed of everything random in the run."""
    steps: int = 200
    """Number of steps. A budget may end the run earlier."""
    threads: int | None = None
    """CPU threads of torch; none takes torch's choice. Bit-equal results need the same number of threads."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs. `auto` takes a GPU if there is one."""
    sampling: SamplingConfig = SamplingConfig()
    """How ordinary completions are drawn."""
    mismatch: MismatchConfig = MismatchConfig()
    """How the loss is corrected for a sampler that is not exactly the policy."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How the weights are updated."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """When and on what the policy is evaluated."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When checkpoints are written, and how many stay."""
    policy: PolicyConfig = PolicyConfig()
    """How the model is loaded and run."""
    doctor: DoctorConfig = DoctorConfig()
    """How the doctor watches the run (docs/doctor.md)."""
    kl_coefficient: float = 0.0
    """Coefficient of a penalty k3(pi, pi_ref) on every trained token. pi_ref is the model that the run starts from;
    with LoRA it is the model under the adapter. 0 means that there is no penalty.
    """
    budget_completions: int | None = None
    """Number of sampled completions, ordinary and extra, that ends the run: the step that reaches it is the last one.
    None means that only `steps` ends the run.
    """
    budget_tokens: int | None = None
    """Number of sampled tokens, of ordinary and extra completions, that ends the run: the step that reaches it is the
    last one. None means that only `steps` ends the run.
    """
    tracker: Literal["none", "tensorboard", "wandb", "trackio", "mlflow", "swanlab"] = "none"
    """Where each row of metrics, and a table of samples, goes besides the files of the run folder."""

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
        by_token = "token_temperature" in hooks(self.control)
        wanted = f"hf: the control {self.control.name} heats single tokens"
        require(not by_token or self.sampling.engine == "hf", "sampling.engine", self.sampling.engine, wanted)
        self._check_correction(by_token)
        _ = self.algorithm

    def _check_correction(self, by_token: bool) -> None:
        name, given = "mismatch.correction", self.mismatch.correction
        wanted = f"none: the control {self.control.name} draws each token at its own temperature"
        require(given == "none" or not by_token, name, given, wanted)
        cuts = {cut: value for cut, value in self.sampling.changes.items() if cut != "sampling.temperature"}
        listed = " and ".join(f"{cut} = {value}" for cut, value in cuts.items())
        wanted = f"none with {listed}: the sampler's log-probabilities are then those of the cut distribution"
        require(given == "none" or not cuts, name, given, wanted)

    @property
    def algorithm(self) -> Algorithm:
        """Return the four choices of the algorithm: advantage, surrogate, aggregate and control."""
        return Algorithm(
            advantage=self.advantage,
            surrogate=self.surrogate,
            aggregate=self.aggregate,
            control=self.control,
        )


def default_config(method: str = "aepo") -> Config:
    """Return the configuration of the built-in job with this method."""
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
    """Make a configuration from a preset, a TOML file and single settings; later ones win over earlier ones.

    Args:
        file: A TOML file.
        method: The preset; without it, the file's `method`, or else `aepo`.
        overrides: Values by dotted name. They win over the file.
        settings: Texts `a.b=c`. They win over `overrides`.

    Raises:
        InvalidValue: A setting cannot work; the message is one line about the first one.
    """
    data = read_toml(file) if file else {}
    config = default_config(method or data.pop("method", "aepo"))
    data.pop("method", None)
    given = tree({**(overrides or {}), **dict(map(parse_setting, settings))})
    asked = _merged(data, given)
    config = override(override(override(config, tree(by_model(asked))), data), given)
    config = _kept_up(config, asked.get("control", {}))
    config = replace(config, task=config.task.located(), model=absolute(config.model))
    if config.evaluation.every:
        config.task.eval_problems(config.evaluation.prompts)
    return config


def _kept_up(config: Config, asked: Any) -> Config:
    """Return the configuration with a target that only keeps the entropy up, where nobody asked for a target.

    The default target of another model than `builtin` lies below its first entropy. Who gives none wants the entropy to
    stay up, and no cold completions.

    Args:
        config: The configuration.
        asked: What the user set of the control: a table, or its name.
    """
    control = config.control
    own = isinstance(asked, Mapping) and not {"target", "hold", "quantity", "law"}.isdisjoint(asked)
    if config.model == "builtin" or own or not isinstance(control, ClosedLoop):
        return config
    if control.quantity != Entropy() or not control.target.spec.endswith("x"):
        return config
    return replace(config, control=replace(control, hold="at-least"))


def read_toml(file: Path, depth: int = 0) -> dict[str, Any]:
    """Return the tables of a file, laid over those of the file that it `extends`.

    Args:
        file: The TOML file.
        depth: The number of files that led here by `extends`; at most 5.

    Raises:
        InvalidValue: A file cannot be read.
    """
    data = _read_one(file)
    base = data.pop("extends", None)
    if base is None:
        return data
    if not isinstance(base, str) or depth == 5:
        raise InvalidValue("extends", base, f"the name of a file beside {file}, at most 5 deep")
    return _merged(read_toml(file.parent / base, depth + 1), data)


def _merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `over` laid on it, table by table."""
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
    """Return the whole configuration as TOML, with every default filled in."""
    return tomli_w.dumps(to_dict(config))
