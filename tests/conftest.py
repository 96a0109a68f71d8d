from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import settings

from aepo.model.builtin import QUICK, base_model
from tests.tiny_models import CLASSES, make_model

# A busy machine may take longer for an example than the 200 ms that hypothesis allows.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors: more threads only wait for each other, and bit-equal results need a fixed number."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def quick_model(tmp_path_factory) -> Path:
    """A base model for the paths task that knows almost nothing, in Hugging Face format."""
    return base_model("paths", pretraining=QUICK, cache=tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> dict[str, Path]:
    """A random model of each architecture in `tiny_models.CLASSES`."""
    return {kind: make_model(tmp_path_factory.mktemp(kind), kind) for kind in CLASSES}


@pytest.fixture(scope="session")
def llama(models) -> Path:
    return models["llama"]
