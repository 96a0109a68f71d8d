"""This module finds and loads the model that is evaluated.

It is a folder, a name on the hub, a run, a checkpoint of a run, or the built-in model.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from aepo.config import Config, PolicyConfig, SamplingConfig, make_config, override, read_toml
from aepo.engines.positions import OverLength
from aepo.errors import InvalidValue
from aepo.model.names import check_name
from aepo.model.packaged import PACKAGED
from aepo.model.policy import Policy
from aepo.training.checkpoint import FOLDER, steps_saved
from aepo.training.runner import model_folder

CONFIG = "config.toml"


@dataclass(frozen=True)
class EvaluatedModel:
    """`EvaluatedModel` says which model is evaluated and where it is."""

    name: str
    """The name as the user gave it."""
    folder: str | None
    """The folder or the name on the hub that `Policy.load` takes; None for the built-in model."""
    run: Path | None = None
    """The run folder that the model is from; None if it is from no run."""

    @classmethod
    def find(cls, name: str) -> EvaluatedModel:
        """Return the model of this name. A run stands for its newest checkpoint.

        Raises:
            InvalidValue: The name is a run without a checkpoint, or no model can have it.
        """
        path = Path(name)
        if name == "builtin":
            return cls(name, None)
        if name not in PACKAGED:
            check_name(name)
        if (path / CONFIG).is_file():
            saved = steps_saved(path)
            if not saved:
                raise InvalidValue("model", name, "a run with a checkpoint (there is none in it yet)")
            return cls(name, str(path / FOLDER / f"step-{saved[-1]}"), path)
        run = path.resolve().parent.parent
        if path.is_dir() and path.resolve().parent.name == FOLDER and (run / CONFIG).is_file():
            return cls(name, name, run)
        return cls(name, name)

    def config(self, task: str | None, settings: tuple[str, ...], problems: int | None) -> Config:
        """Return the configuration that holds the task: that of `task`, else the run's, else the default one.

        Args:
            task: The name of a task, or None.
            settings: Settings of `task`.
            problems: The number of problems that are evaluated; None takes the number of the configuration.

        Raises:
            InvalidValue: A setting or the number of problems cannot work.
        """
        changes = {} if problems is None else {"evaluation.prompts": problems}
        try:
            if task is not None:
                return make_config(overrides={**changes, "task": task}, settings=settings)
            return make_config(self.run / CONFIG if self.run else None, overrides=changes)
        except InvalidValue as error:
            if error.field == "evaluation.prompts" and problems is not None:
                raise InvalidValue("--limit", error.got, error.wanted) from None
            raise

    def with_stops(self, config: Config, stop: tuple[str, ...]) -> Config:
        """Return the configuration with these stop strings, or else with those of the run that the model is from."""
        if not stop and self.run is not None:
            stop = override(SamplingConfig(), read_toml(self.run / CONFIG).get("sampling", {}), "sampling.").stops
        return replace(config, sampling=replace(config.sampling, stop=stop)) if stop else config

    def load(
        self, config: Config, device: str, template: str | None = None, over_length: OverLength | None = None
    ) -> Policy:
        """Load the policy, with the policy settings of the run.

        Args:
            config: The configuration that names the built-in model.
            device: auto, cpu or cuda.
            template: The text of a chat template that replaces the model's own; None keeps it.
            over_length: What replaces the run's `policy.over_length`; None keeps it.

        Raises:
            InvalidValue: There is no GPU for `cuda`, or the model cannot be loaded.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cuda" and not torch.cuda.is_available():
            raise InvalidValue("--device", device, "cpu or auto: torch sees no GPU here")
        settings = PolicyConfig()
        if self.run is not None:
            settings = override(settings, read_toml(self.run / CONFIG).get("policy", {}), "policy.")
        if over_length is not None:
            settings = replace(settings, over_length=over_length)
        return Policy.load(self.folder or model_folder(config), device, settings, template=template)


def weights_digest(policy: Policy) -> str:
    """Return a digest of the first 16 numbers of every tensor. It tells one set of weights from another."""
    digest = hashlib.sha256()
    for name, tensor in policy.model.state_dict().items():
        digest.update(name.encode())
        digest.update(repr(tensor.flatten()[:16].tolist()).encode())
    return digest.hexdigest()[:16]
