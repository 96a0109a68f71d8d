"""`load` finds a model by its folder or name, adds a LoRA adapter if there is one, and refuses what cannot be trained.

Models are in Hugging Face format. Weights are float32 whatever the file holds, so that a step of 1e-6 is not rounded
away; `policy.dtype` is the dtype of the forward pass. Weights are read only from safetensors: nothing is unpickled.
"""

from __future__ import annotations

import json
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
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
)
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from aepo.config import PolicyConfig
from aepo.errors import InvalidValue, require
from aepo.model.images import TOWER, WANTED, ImageEncoding, check_interface, tower, tower_layer
from aepo.model.names import check_name
from aepo.model.packaged import local_folder

# transformers shows a progress bar for each file that it reads. These bars would hide the bar of the run. The
# same switch turns off the bars of downloads from the hub, which a person in a terminal needs.
transformers_logging.disable_progress_bar()
if sys.stderr.isatty():
    enable_progress_bars()

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREPROCESSOR, TEMPLATE = "preprocessor_config.json", "chat_template.json"
# What other programs want beside the image processor.
FURTHER_FILES = ("video_preprocessor_config.json", TEMPLATE)
# Settings that make a forward pass random. The update would then see other probabilities than sampling and scoring.
_NOISE = re.compile(r"drop(out)?(_|$)|pdrop$|layerdrop$|jitter")
_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, TypeError, AssertionError, SafetensorError)


@dataclass(frozen=True)
class Loaded:
    """`Loaded` holds a causal language model on the CPU with what belongs to it."""

    model: Any
    """The causal language model, with the adapter's layers inside."""
    tokenizer: Any
    """The tokenizer of the model."""
    adapter: Any = None
    """peft's view of the same model; None without an adapter. It saves the adapter, switches it off and merges it."""
    images: ImageEncoding | None = None
    """What turns images into tokens and patches; None for a model of text."""


@dataclass(frozen=True)
class Language:
    """`Language` holds what the files of a model say about texts: how they become tokens, and where they end."""

    tokenizer: Any
    """The tokenizer."""
    generation: Any
    """The generation config."""
    config: Any
    """The configuration."""
    images: ImageEncoding | None = None
    """What turns images into tokens; None for a model of text."""


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
    images = _load_images(name, settings, settings.revision, model.config, tokenizer)
    if settings.lora_rank is not None:
        return Loaded(model, tokenizer, _new_adapter(model, settings, seed), images)
    if images is not None and settings.freezes_tower:
        tower(model).requires_grad_(False)
    return Loaded(model, tokenizer, images=images)


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
    has_own = base == name or (Path(name) / PREPROCESSOR).is_file()
    images = _load_images(name if has_own else base, settings, revision, config, tokenizer)
    return Language(tokenizer, generation, config, images)


def model_class(config: Any) -> Any:
    """Return the class of transformers that loads the model: that of images only where no other knows the kind."""
    kind = type(config)
    images = kind in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and kind not in MODEL_FOR_CAUSAL_LM_MAPPING
    return AutoModelForImageTextToText if images else AutoModelForCausalLM


def _load_images(
    name: str, settings: PolicyConfig, revision: str | None, config: Any, tokenizer: Any
) -> ImageEncoding | None:
    """Return what turns images into tokens, or None for a model of text.

    The image processor is the one on Pillow, so that a machine with torchvision computes the same patches as one
    without. transformers' `AutoProcessor` is not used: it needs torchvision, for videos.
    """
    given = {"policy.min_pixels": settings.min_pixels, "policy.max_pixels": settings.max_pixels}
    if model_class(config) is not AutoModelForImageTextToText:
        for setting, value in given.items():
            require(value is None, setting, value, "left out with a model of text")
        wanted = "auto with a model of text, which has none"
        require(settings.vision_tower == "auto", "policy.vision_tower", settings.vision_tower, wanted)
        return None
    sizes = {setting.removeprefix("policy."): value for setting, value in given.items() if value is not None}
    where = {"revision": revision or "main", "trust_remote_code": settings.trust_remote_code}
    try:
        import PIL  # noqa: F401
        from transformers import AutoImageProcessor

        processor: Any = AutoImageProcessor.from_pretrained(name, backend="pil", **where, **sizes)
    except ImportError:
        raise InvalidValue("model", name, "a model of text, or pip install 'aepo[vision]' for images") from None
    except _UNREADABLE as error:
        raise _not_a_model(name, error) from None
    fits = hasattr(processor, "merge_size") and hasattr(processor, "get_number_of_image_patches")
    require(fits, "model", f"{name}, whose images go through {type(processor).__name__}", WANTED)
    least, most = processor.size["shortest_edge"], processor.size["longest_edge"]
    require(least <= most, "policy.min_pixels", least, f"at most policy.max_pixels ({most})")
    found = {file: _file(name, file, revision) for file in FURTHER_FILES}
    template = found[TEMPLATE]
    if not tokenizer.chat_template and template is not None:
        tokenizer.chat_template = json.loads(Path(template).read_text())["chat_template"]
    return ImageEncoding(processor, tokenizer, config, tuple(file for file in found.values() if file is not None))


def _file(name: str, file: str, revision: str | None) -> str | None:
    """Return the path of a file of the model, or None if the model does not have it."""
    quiet = dict.fromkeys(("gated_repo", "missing_entries", "connection_errors"), False)
    silent = {f"_raise_exceptions_for_{kind}": value for kind, value in quiet.items()}
    found: str | None = cached_file(name, file, revision=revision or "main", **silent)
    return found


def _load_model(name: str, settings: PolicyConfig, revision: str | None) -> Any:
    where = {"revision": revision or "main", "trust_remote_code": settings.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **where)
        _silence(config)
        loaded: Any = model_class(config).from_pretrained(
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
    if model_class(config) is AutoModelForImageTextToText:
        check_interface(model)
    # An adapter saves this path to find its base model again. It must hold in every working directory.
    model.name_or_path = str(Path(name).resolve()) if Path(name).is_dir() else name
    return model


def _silence(config: Any) -> None:
    """Set the rates of dropout and jitter to zero, also in the configurations of text and vision inside this one.

    The layers read these rates from the configuration when they are created.
    """
    for key, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _silence(value)
        elif _NOISE.search(key) and isinstance(value, float):
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
    _check_targets(model, settings)
    # A name of a layer, such as q_proj, may stand in the text model and in the vision tower.
    left_out = rf"(.*\.)?{TOWER}\..*" if tower(model) is not None and settings.freezes_tower else None
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules=targets if isinstance(targets, str) else list(targets),
        exclude_modules=left_out,
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


def linear_layers(model: Any, settings: PolicyConfig) -> list[tuple[str, nn.Linear]]:
    """Return the layers that may get an adapter, by name: not the head, and not those of a frozen vision tower."""
    head = model.get_output_embeddings()
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    frozen = settings.freezes_tower and tower(model) is not None
    return [(name, m) for name, m in layers if m is not head and not (frozen and tower_layer(name))]


def _check_targets(model: Any, settings: PolicyConfig) -> None:
    targets = settings.lora_targets
    if isinstance(targets, str):
        return
    layers = [name for name, _ in linear_layers(model, settings)]
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
    has_own = (Path(folder) / PREPROCESSOR).is_file()
    base = folder if has_own else lora.base_model_name_or_path
    images = _load_images(base, settings, None if has_own else lora.revision, model.config, tokenizer)
    try:
        with _peft_reads_old_names():
            adapter = peft.PeftModel.from_pretrained(model, folder, is_trainable=True)
    except _UNREADABLE as error:
        raise _not_a_model(folder, error) from None
    return Loaded(model, tokenizer, adapter, images)


def _not_a_model(name: str, error: Exception) -> InvalidValue:
    reason = _first_line(error)
    if "trust_remote_code" in str(error):
        reason = "it brings its own code, which runs only with policy.trust_remote_code=true"
    wanted = f"a folder or the name of a model on the hub, in Hugging Face format ({reason})"
    return InvalidValue("model", name, wanted)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
