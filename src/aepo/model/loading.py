"""From a name to a model that can be trained: Hugging Face format, a LoRA adapter on top, and what is refused.

Weights are float32 whatever the file holds, so that a step of 1e-6 is not rounded away; `policy.dtype` is the dtype
of the forward pass. Weights are read from safetensors alone: nothing is unpickled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging as transformers_logging

from aepo.config import PolicyConfig
from aepo.errors import InvalidValue, require

# Its bars for reading a file of a few megabytes would drown ours.
transformers_logging.disable_progress_bar()

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Randomness of a forward pass: the update would then move away from what was sampled and scored.
_NOISE = re.compile(r"drop(out)?(_|$)|pdrop$|layerdrop$|jitter")
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AssertionError, SafetensorError)


@dataclass(frozen=True)
class Loaded:
    """A causal language model on the CPU, its tokenizer, and the LoRA adapter inside it, if there is one.

    adapter: peft's view of the same model; it saves the adapter, turns it off and merges it.
    """

    model: Any
    tokenizer: Any
    adapter: Any = None


def load(name: str, settings: PolicyConfig, seed: int) -> Loaded:
    """The model of a folder or of a name on the hub, with the adapter that the folder holds or `settings` ask for.

    seed: of a new adapter's weights. Raises `InvalidValue` in one line.
    """
    if (Path(name) / ADAPTER_CONFIG).is_file():
        return _with_saved_adapter(name, settings)
    model = _load_model(name, settings, settings.revision)
    tokenizer = _load_tokenizer(name, settings, settings.revision)
    _check_vocabulary(model, tokenizer)
    if settings.lora_rank is None:
        return Loaded(model, tokenizer)
    return Loaded(model, tokenizer, _new_adapter(model, settings, seed))


def _load_model(name: str, settings: PolicyConfig, revision: str | None) -> Any:
    where = {"revision": revision or "main", "trust_remote_code": settings.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **where)
        _silence(config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            attn_implementation=settings.attention,
            output_loading_info=True,
            **where,
        )
    except ImportError as error:
        wanted = f"a kind of attention that is installed ({_first_line(error)})"
        raise InvalidValue("policy.attention", settings.attention, wanted) from None
    except _UNREADABLE as error:
        raise _not_a_model(name, error) from None
    model, report = loaded
    missing = sorted(map(str, report["missing_keys"]))
    require(not missing, "model", name, f"a causal language model with all its weights (missing: {missing[:1]})")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InvalidValue("model", name, "a whole model, or a local folder with an adapter (it is an adapter)")
    # Where an adapter finds its base again, from whatever folder it is resumed.
    model.name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
    return model


def _silence(config: Any) -> None:
    """No dropout and no jitter: layers read these rates from the configuration when they are made."""
    for key, value in vars(config).items():
        if _NOISE.search(key) and isinstance(value, float):
            setattr(config, key, 0.0)


def _load_tokenizer(name: str, settings: PolicyConfig, revision: str | None) -> Any:
    try:
        return AutoTokenizer.from_pretrained(
            name, revision=revision or "main", trust_remote_code=settings.trust_remote_code
        )
    except (*_UNREADABLE, ImportError) as error:
        raise _not_a_model(name, error) from None


def _check_vocabulary(model: Any, tokenizer: Any) -> None:
    """Every id that the tokenizer can give has a row in the embedding; spare rows do no harm."""
    known, last = model.get_input_embeddings().num_embeddings, max(tokenizer.get_vocab().values())
    wanted = f"one whose embedding has a row for each token (it has {known}, the tokenizer's last id is {last})"
    require(last < known, "model", model.name_or_path, wanted)


# --- LoRA ---------------------------------------------------------------------------------------------------


def _peft(settings: PolicyConfig) -> Any:
    try:
        import peft
    except ImportError:
        wanted = "none where peft is not installed; adapters need: pip install 'aepo[lora]'"
        raise InvalidValue("policy.lora_rank", settings.lora_rank, wanted) from None
    return peft


def _new_adapter(model: Any, settings: PolicyConfig, seed: int) -> Any:
    """Random A from `seed`, B = 0: the policy starts as the base model."""
    peft = _peft(settings)
    targets = settings.lora_targets
    _check_targets(model, targets)
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        revision=settings.revision,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(model, lora)


def _check_targets(model: Any, targets: str | tuple[str, ...]) -> None:
    if isinstance(targets, str):
        return
    head = model.get_output_embeddings()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    known = sorted({name.rpartition(".")[2] for name in layers})
    for target in targets:
        found = any(name == target or name.endswith(f".{target}") for name in layers)
        require(found, "policy.lora_targets", target, f"all-linear, or linear layers of the model: {', '.join(known)}")


def _with_saved_adapter(folder: str, settings: PolicyConfig) -> Loaded:
    """The base model that the adapter names, and the adapter on it, to be trained on."""
    peft = _peft(settings)
    try:
        lora = peft.PeftConfig.from_pretrained(folder)
    except _UNREADABLE as error:
        raise _not_a_model(folder, error) from None
    rank = settings.lora_rank
    require(rank in (None, lora.r), "policy.lora_rank", rank, f"{lora.r}, the rank of the adapter in {folder}, or none")
    weights = Path(folder) / ADAPTER_WEIGHTS
    require(weights.is_file(), "model", folder, f"an adapter with its weights ({ADAPTER_WEIGHTS} is not there)")
    model = _load_model(lora.base_model_name_or_path, settings, lora.revision)
    tokenizer = _load_tokenizer(folder, settings, None)
    _check_vocabulary(model, tokenizer)
    try:
        adapter = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
    except _UNREADABLE as error:
        raise _not_a_model(folder, error) from None
    return Loaded(model, tokenizer, adapter)


def _not_a_model(name: str, error: Exception) -> InvalidValue:
    reason = _first_line(error)
    if "trust_remote_code" in str(error):
        reason = "it brings its own code, which runs only with policy.trust_remote_code=true"
    wanted = f"a folder or the name of a model on the hub, in Hugging Face format ({reason})"
    return InvalidValue("model", name, wanted)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
