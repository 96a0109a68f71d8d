"""`read` turns verl's configuration into an algorithm.

It refuses a setting that does not work with the algorithm in one line, before Ray starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from aepo.algorithm import Algorithm
from aepo.control.base import Control, hooks
from aepo.convert import make_algorithm
from aepo.doctor.live import DoctorConfig
from aepo.engines.capabilities import VERL
from aepo.engines.mismatch import MismatchConfig
from aepo.engines.preflight import Setup, preflight
from aepo.errors import InvalidValue, require

# The tested versions of verl. The trainer's interface has changed with every version so far.
TESTED = ("0.9.1",)
TRAINER, AGENT_LOOP = "aepo", "aepo_single_turn"
# verl's names of float32.
FLOAT32 = ("fp32", "float32")
# Short names under `aepo.` for settings of the control.
_SHORT = {"target": "control.target", "law": "control.law"}

_ROLLOUT, _ACTOR = "actor_rollout_ref.rollout", "actor_rollout_ref.actor"
# verl's settings that the method chooses or that would undo it: the allowed values, and the reason.
_UNTOUCHED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "trainer.use_v1": ((True,), "true: only the V1 trainer is supported"),
    "trainer.v1.trainer_mode": ((TRAINER,), f"{TRAINER}: this trainer, which is synchronous"),
    "trainer.critic_warmup": ((0,), "0: there is no critic"),
    "critic.enable": ((None, False), "false: there is no critic"),
    "distillation.enabled": ((None, False), "false"),
    "algorithm.adv_estimator": (("grpo",), "grpo; aepo.advantage chooses the advantage"),
    "algorithm.norm_adv_by_std_in_grpo": ((True,), "true; aepo.advantage=group-mean does not scale"),
    "algorithm.use_kl_in_reward": ((False,), f"false; {_ACTOR}.use_kl_loss=true is a penalty"),
    "algorithm.filter_groups.enable": ((None, False), "false; aepo.method=dynamic-sampling filters, and measures all"),
    "algorithm.rollout_correction.bypass_mode": ((None, False), "false: log-probabilities are recomputed at T = 1"),
    "algorithm.rollout_correction.rollout_rs": ((None,), "null; rollout_is_threshold=LOW_HIGH masks by the ratio"),
    "algorithm.rollout_correction.rollout_is_batch_normalize": ((None, False), "false"),
    "trainer.v1.sampler.sync_refill_failed_groups": ((None, False), "false: refilled prompts have no group here"),
    "skip.rollout_tq.enable": ((None, False), "false: what was kept has no temperatures"),
    f"{_ROLLOUT}.temperature": ((1,), "1, where entropy is measured; aepo.control.distribution tempers extra rows"),
    f"{_ACTOR}.strategy": (("fsdp", "fsdp2"), "fsdp or fsdp2"),
    f"{_ACTOR}.entropy_coeff": ((0,), "0; aepo.method=entropy-reg is that bonus"),
    f"{_ACTOR}.loss_agg_mode": (("token-mean",), "token-mean; aepo.aggregate chooses the aggregate"),
    f"{_ACTOR}.policy_loss.loss_mode": (("vanilla",), "vanilla; aepo.method chooses the loss"),
    f"{_ACTOR}.clip_ratio": ((0.2,), "0.2; aepo.surrogate.low and .high are the bounds"),
    f"{_ACTOR}.clip_ratio_low": ((0.2,), "0.2; aepo.surrogate.low is the bound"),
    f"{_ACTOR}.clip_ratio_high": ((0.2,), "0.2; aepo.surrogate.high is the bound"),
    f"{_ACTOR}.clip_ratio_c": ((3.0,), "3.0; aepo.surrogate.dual is the bound"),
    f"{_ACTOR}.kl_loss_type": (("low_var_kl", "k3"), "low_var_kl or k3"),
    f"{_ACTOR}.shuffle": ((False,), "false: rows are spread over the minibatches before they are sent"),
}
# Settings that cut the sampling distribution, each with the value that leaves it whole.
_CUTS: Mapping[str, float] = {f"{_ROLLOUT}.top_p": 1, f"{_ROLLOUT}.top_k": -1}


@dataclass(frozen=True)
class Chosen:
    """`Chosen` holds the choices of the settings `aepo.*` and of verl's own settings."""

    method: str
    """The method's name, as `aepo.method` gives it."""
    algorithm: Algorithm
    """The method with its settings."""
    seed: int
    """The seed of the control's own random choices."""
    kl_coefficient: float
    """The weight of k3(pi, pi_ref) on every trained token, from verl's `use_kl_loss` and `kl_loss_coef`."""
    new_state: bool = False
    """Whether a run that resumes begins with a new control state, so the checkpoint needs none."""
    doctor: DoctorConfig = DoctorConfig()
    """How the doctor watches the run."""
    mismatch: MismatchConfig = MismatchConfig()
    """The correction for a rollout engine that differs from the actor, from `algorithm.rollout_correction`."""
    evidence: Path | None = None
    """The folder that gets a file of every step with all that it drew and measured; None for no files."""


def read(config: Any) -> Chosen:
    """Return what verl's configuration chooses.

    Args:
        config: verl's whole configuration, as nested mappings.

    Raises:
        InvalidValue: A setting does not work; the message names the first one that was found.
    """
    given = _plain(get(config, "aepo") or {})
    method, seed = str(given.pop("method", "aepo")), given.pop("seed", 0)
    new_state = given.pop("new_state", False)
    require(type(seed) is int and seed >= 0, "aepo.seed", seed, "an integer, 0 or more")
    require(type(new_state) is bool, "aepo.new_state", new_state, "true or false")
    doctor = _doctor(given.pop("doctor", None) or {})
    evidence = given.pop("evidence", None)
    require(evidence is None or isinstance(evidence, str), "aepo.evidence", evidence, "a folder")
    algorithm = make_algorithm(method, _named(given))
    for sentence in VERL.lacks(algorithm):
        raise InvalidValue("aepo.method", method, f"one that verl can run: {sentence}")
    _check(config, algorithm)
    kl = get(config, f"{_ACTOR}.use_kl_loss")
    coefficient = float(get(config, f"{_ACTOR}.kl_loss_coef")) if kl else 0.0
    folder = Path(evidence) if evidence else None
    return Chosen(method, algorithm, seed, coefficient, new_state, doctor, _mismatch(config), folder)


def _mismatch(config: Any) -> MismatchConfig:
    """Return verl's correction; each row is compared at the temperature at which it was drawn.

    verl's `rollout_is_threshold` is an upper bound, or LOW_HIGH: outside these bounds the factor is 0.
    """
    name = "algorithm.rollout_correction"
    level, bounds = get(config, f"{name}.rollout_is"), get(config, f"{name}.rollout_is_threshold")
    if level is None:
        return MismatchConfig()
    require(level in ("token", "sequence"), f"{name}.rollout_is", level, "token, sequence or null")
    known = bool(get(config, f"{_ROLLOUT}.calculate_log_probs"))
    require(known, f"{_ROLLOUT}.calculate_log_probs", False, f"true, for {name}.rollout_is={level}")
    for cut, whole in _CUTS.items():  # The engine's log-probabilities are renormalised after a cut.
        require(get(config, cut) in (whole, None), cut, get(config, cut), f"{whole:g} with {name}.rollout_is={level}")
    try:
        *low, high = map(float, str(bounds).split("_"))
        return MismatchConfig(
            correction=f"{level}_mask" if low else f"{level}_truncate",  # type: ignore[arg-type]
            clip_max=high,
            clip_min=low[0] if low else None,
        )
    except ValueError:
        wanted = "a number, 1 or more, or LOW_HIGH such as 0.5_5.0, with LOW in (0, 1]"
        raise InvalidValue(f"{name}.rollout_is_threshold", bounds, wanted) from None


def _doctor(given: Any) -> DoctorConfig:
    names = [field.name for field in fields(DoctorConfig)]
    wanted = f"a table of {', '.join(names)}"
    require(isinstance(given, Mapping) and set(given) <= set(names), "aepo.doctor", given, wanted)
    every = given.get("every", DoctorConfig.every)
    require(type(every) is int, "aepo.doctor.every", every, "a number of logged steps")
    return DoctorConfig(**given)


def check_version(found: str | None = None) -> None:
    """Refuse a version of verl that was not tested; `found` replaces the installed version."""
    wanted = f"one of {', '.join(TESTED)}: its trainer changes with every version"
    try:
        found = found or version("verl")
    except PackageNotFoundError:
        raise InvalidValue("verl", "no package", f"installed; {wanted}") from None
    require(found in TESTED, "verl", found, wanted)


def remarks(config: Any) -> list[str]:
    """Return a sentence for each setting that verl accepts and that may not be intended."""
    updates = get(config, "data.train_batch_size") // get(config, f"{_ACTOR}.ppo_mini_batch_size")
    setup = Setup(
        engine=VERL,
        algorithm=read(config).algorithm,
        group_size=get(config, f"{_ROLLOUT}.n"),
        updates_per_rollout=updates * get(config, f"{_ACTOR}.ppo_epochs"),
        cuts={name: get(config, name) for name, whole in _CUTS.items() if get(config, name) not in (whole, None)},
        group_size_name=f"{_ROLLOUT}.n",
        updates_name=f"data.train_batch_size / {_ACTOR}.ppo_mini_batch_size x {_ACTOR}.ppo_epochs",
    )
    rounded = _entropy_is_rounded(config)
    return [*preflight(setup), *([rounded] if rounded else [])]


def _entropy_is_rounded(config: Any) -> str:
    """Return a sentence if verl rounds the measured entropy, else an empty string.

    verl computes the entropy of bfloat16 logits in bfloat16, unless it computes the entropy in chunks.
    """
    fsdp, model = f"{_ACTOR}.fsdp_config", "actor_rollout_ref.model"
    dtype = precision(config)
    needed = (f"{fsdp}.entropy_from_logits_with_chunking", f"{model}.use_remove_padding")
    missing = [name for name in needed if not get(config, name)]
    if not missing or dtype in FLOAT32 or get(config, f"{model}.use_fused_kernels"):
        return ""
    return f"without {' and '.join(missing)} verl rounds the entropy that is measured to {dtype}"


def precision(config: Any) -> Any:
    """Return verl's name of the type that the actor computes in."""
    fsdp = f"{_ACTOR}.fsdp_config"
    return get(config, f"{fsdp}.mixed_precision.param_dtype") or get(config, f"{fsdp}.dtype")


def get(config: Any, name: str) -> Any:
    """Return the value of a dotted name, config[a][b] for a.b; None where there is no such key."""
    for part in name.split("."):
        if config is None or part not in config:
            return None
        config = config[part]
    return config


def _check(config: Any, algorithm: Algorithm) -> None:
    for name, (values, wanted) in _UNTOUCHED.items():
        found = get(config, name)
        require(found in values, name, found, wanted)
    for name in (f"{_ROLLOUT}.n", "data.train_batch_size", f"{_ACTOR}.ppo_mini_batch_size", f"{_ACTOR}.ppo_epochs"):
        found = get(config, name)
        require(isinstance(found, int) and found >= 1, name, found, "an integer, 1 or more")
    size, least = get(config, f"{_ROLLOUT}.n"), algorithm.advantage.least_group
    require(size >= least, f"{_ROLLOUT}.n", size, f"at least {least} with the advantage {algorithm.advantage.name}")
    prompts, mini = get(config, "data.train_batch_size"), get(config, f"{_ACTOR}.ppo_mini_batch_size")
    require(
        prompts % mini == 0, f"{_ACTOR}.ppo_mini_batch_size", mini, f"a divisor of data.train_batch_size ({prompts})"
    )
    _check_attention(config)
    control = algorithm.control
    if "plan" in hooks(control):
        loop = get(config, f"{_ROLLOUT}.agent.default_agent_loop")
        require(
            loop == AGENT_LOOP, f"{_ROLLOUT}.agent.default_agent_loop", loop, f"{AGENT_LOOP}, which tempers extra rows"
        )
    if "follow_up" in hooks(control):
        _check_rounds(config, control)
    if control.needs(control.initial_state()).reference:
        wanted = f"true, for {control.name}'s reference model (kl_loss_coef=0 adds no penalty of verl's)"
        require(bool(get(config, f"{_ACTOR}.use_kl_loss")), f"{_ACTOR}.use_kl_loss", False, wanted)


def _check_attention(config: Any) -> None:
    """Refuse sequence parallelism without flash attention, the only one that verl 0.9.1 makes parallel.

    With another attention each rank's part of a sequence is silently treated as a sequence of its own.
    """
    sizes = [get(config, f"{_ACTOR}{part}.ulysses_sequence_parallel_size") or 1 for part in ("", ".fsdp_config")]
    name = "actor_rollout_ref.model.override_config.attn_implementation"
    found = get(config, name) or "flash_attention_2"
    parallel = max(sizes) > 1
    require(
        not parallel or "flash" in found, name, found, "flash_attention_2 with ulysses_sequence_parallel_size above 1"
    )


def _check_rounds(config: Any, control: Control) -> None:
    """Refuse settings with which a step cannot have further rounds of sampling.

    The rewards must be available while the rollout engine is awake, and verl reads prompts in fetches of a fixed size.
    """
    model = get(config, "reward.reward_model")
    streamed = not get(model, "enable") or get(model, "enable_resource_pool")
    name = "reward.reward_model.enable_resource_pool"
    require(bool(streamed), name, False, f"true: {control.name} needs the rewards while it samples")
    prompts = get(config, "data.train_batch_size")
    fetch = get(config, "data.gen_batch_size") or prompts
    for part in control.parts:
        new = part.prompts_per_round
        wanted = f"a multiple of data.gen_batch_size ({fetch}), the prompts that verl reads at once"
        require(new is None or new % fetch == 0, "aepo.control.prompts_per_round", new, wanted)


def _named(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with the full names of `target` and `law`.

    These two come last, after a table of the control's other settings.
    """
    long = {name: value for name, value in given.items() if name not in _SHORT}
    return {**long, **{_SHORT[name]: value for name, value in given.items() if name in _SHORT}}


def _plain(value: Any) -> Any:
    """Return the value with mappings of any kind as dicts and sequences as lists."""
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    if hasattr(value, "__iter__") and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
