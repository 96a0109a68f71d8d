"""`load` finds a model by its folder or name, adds a LoRA adapter if there is one, and refuses what cannot be trained.

Models are in Hugging Face format. Weights are float32 whatever the file holds, so that a step of 1e-6 is not rounded
away; `policy.dtype` is the dtype of the forward pass. Weights are read only from safetensors: nothing is unpickled.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.utils.tqdm import enable_progress_bars
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from aepo.config import PolicyConfig
from aepo.errors import InvalidValue, require
from aepo.model.names import check_name
from aepo.model.packaged import local_folder

# transformers shows a progress bar for each file that it reads. These bars would hide the bar of the run. The
# same switch turns off the bars of downloads from the hub, which a person in a terminal needs.
transformers_logging.disable_progress_bar()
if sys.stderr.isatty():
    enable_progress_bars()

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Settings that make a forward pass random. The update would then see other probabilities than sampling and scoring.
_NOISE = re.compile(r"drop(out)?(_|$)|pdrop$|layerdrop$|jitter")
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AssertionError, SafetensorError)


@dataclass(frozen=True)
class Loaded:
    """`Loaded` holds a causal language model on the CPU, its tokenizer, and its LoRA adapter if there is one."""

    model: Any
    """The causal language model, with the adapter's layers inside."""
    tokenizer: Any
    """The tokenizer of the model."""
    adapter: Any = None
    """peft's view of the same model; None without an adapter. It saves the adapter, switches it off and merges it."""


@dataclass(frozen=True)
class Language:
    """`Language` holds what the files of a model say about texts: how they become tokens, and where they end."""

    tokenizer: Any
    """The tokenizer."""
    generation: Any
    """The generation config."""
    config: Any
    """The configuration."""


def load(name: str, settings: PolicyConfig, seed: int) -> Loaded:
    """Load a model and its tokenizer, with the adapter that the folder holds or that `settings` ask for.

    Args:
        name: A folder, the name of a model on the hub, or that of a packaged one (`aepo.model.packaged`).
        settings: The settings of the policy.
        seed: Seed of the weights of a new adapter.

    Raises:
        InvalidValue: The model, the tokenizer or the adapter cannot be used. The message is one line.
    """
    name = local_folder(name)
    check_name(name)
    if (Path(name) / ADAPTER_CONFIG).is_file():
        return _with_saved_adapter(name, settings)
    model = _load_model(name, settings, settings.revision)
    tokenizer = _load_tokenizer(name, settings, settings.revision)
    _check_vocabulary(model, tokenizer)
    if settings.lora_rank is None:
        return Loaded(model, tokenizer)
    return Loaded(model, tokenizer, _new_adapter(model, settings, seed))


def load_language(name: str, settings: PolicyConfig, template: str | None = None) -> Language:
    """Load what a model says about texts, without its weights.

    Args:
        name: A folder, with an adapter or not, the name of a model on the hub, or that of a packaged one.
        settings: The settings of the policy.
        template: The text of a chat template that replaces the tokenizer's own; None keeps it.

    Raises:
        InvalidValue: The files cannot be read.
    """
    name = local_folder(name)
    check_name(name)
    base, revision = name, settings.revision
    if (Path(name) / ADAPTER_CONFIG).is_file():
        lora = _adapter_config(name, settings)
        base, revision = lora.base_model_name_or_path, lora.revision
    tokenizer = _load_tokenizer(name, settings, None if base != name else revision)
    if template is not None:
        tokenizer.chat_template = template
    where = {"revision": revision or "main", "trust_remote_code": settings.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(base, **where)
    except (*_UNREADABLE, ImportError) as error:
        raise _not_a_model(name, error) from None
    try:
        generation = GenerationConfig.from_pretrained(base, revision=revision or "main")
    except OSError:  # a model need not have the file
        generation = GenerationConfig.from_model_config(config)
    return Language(tokenizer, generation, config)


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
            attn_implementation=None if settings.attention == "auto" else settings.attention,
            output_loading_info=True,
            **where,
        )
    except ImportError as error:
        wanted = f"a kind of attention that is installed ({_first_line(error)})"
        raise InvalidValue("policy.attention", settings.attention, wanted) from None
    except _UNREADABLE as error:
        if "does not support an attention implementation" in str(error):
            wanted = f"auto or eager ({config.model_type} has no {settings.attention})"
            raise InvalidValue("policy.attention", settings.attention, wanted) from None
        raise _not_a_model(name, error) from None
    model, report = loaded
    missing = sorted(map(str, report["missing_keys"]))
    require(not missing, "model", name, f"a causal language model with all its weights (missing: {missing[:1]})")
    if getattr(model, "_hf_peft_config_loaded", False):
        raise InvalidValue("model", name, "a whole model, or a local folder with an adapter (it is an adapter)")
    # An adapter saves this path to find its base model again. It must hold in every working directory.
    model.name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
    return model


def _silence(config: Any) -> None:
    """Set the rates of dropout and jitter to zero.

    The layers read these rates from the configuration when they are created.
    """
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
    """Check that the embedding has a row for every id that the tokenizer can give. Further rows are allowed.

    Raises:
        InvalidValue: The embedding has too few rows.
    """
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
    """Add a new adapter: A is random from `seed` and B = 0, so the policy starts as the base model."""
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
    with torch.random.fork_rng(devices=[]), _peft_reads_old_names():
        torch.manual_seed(seed)
        return peft.get_peft_model(model, lora)


@contextmanager
def _peft_reads_old_names() -> Iterator[None]:
    """Silence one warning, of which only peft can remove the cause.

    peft 0.21 reads the model's `is_gradient_checkpointing`, which transformers 5.24 renamed.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        yield


def _check_targets(model: Any, targets: str | tuple[str, ...]) -> None:
    if isinstance(targets, str):
        return
    head = model.get_output_embeddings()
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head]
    known = sorted({name.rpartition(".")[2] for name in layers})
    for target in targets:
        found = any(name == target or name.endswith(f".{target}") for name in layers)
        require(found, "policy.lora_targets", target, f"all-linear, or linear layers of the model: {', '.join(known)}")


def _adapter_config(folder: str, settings: PolicyConfig) -> Any:
    try:
        return _peft(settings).PeftConfig.from_pretrained(folder)
    except _UNREADABLE as error:
        raise _not_a_model(folder, error) from None


def _with_saved_adapter(folder: str, settings: PolicyConfig) -> Loaded:
    """Load the base model that the adapter names, and the adapter on it, ready for further training."""
    peft, lora = _peft(settings), _adapter_config(folder, settings)
    rank = settings.lora_rank
    require(rank in (None, lora.r), "policy.lora_rank", rank, f"{lora.r}, the rank of the adapter in {folder}, or none")
    weights = Path(folder) / ADAPTER_WEIGHTS
    require(weights.is_file(), "model", folder, f"an adapter with its weights ({ADAPTER_WEIGHTS} is not there)")
    model = _load_model(lora.base_model_name_or_path, settings, lora.revision)
    tokenizer = _load_tokenizer(folder, settings, None)
    _check_vocabulary(model, tokenizer)
    try:
        with _peft_reads_old_names():
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
