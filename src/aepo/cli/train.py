"""`aepo train`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from aepo.errors import InvalidValue


@dataclass(frozen=True)
class Train:
    """Fine-tune a language model at the entropy that you set. Without arguments: the built-in model and task."""

    recipe: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]")] = None
    """A TOML file of settings. Its keys are those of config.toml in a run folder, and `aepo settings` lists them
    (default: the settings' own defaults)."""
    method: str | None = None
    """A method, or two joined by +: grpo, aepo, aepo+dynamic-sampling. `aepo methods` lists them (default: aepo)."""
    target: str | None = None
    """Entropy target, nats per token: 0.5, 0.6x, linear(a,b,n), cosine(a,b,n), sine(mean,amplitude,period), ...
    (default: 0.6x, the recipe's, or the method's own)"""
    hold: Literal["at", "at-least", "at-most"] | None = None
    """Hold the entropy at the target, or only keep it from falling below (at-least) or rising above (at-most) it
    (default: at; at-least for another model than builtin without --target)."""
    steps: int | None = None
    """Number of steps; a step samples and updates once (default: 200, or the recipe's)."""
    seed: int | None = None
    """Seed of the order of the prompts and of every random draw (default: 0, or the recipe's)."""
    out: Path | None = None
    """The run folder (default: runs/MODEL-METHOD-TARGET-SEED)."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """Any other setting; may be repeated: --set optimizer.lr=1e-4 --set control.law=switch
    (default: the recipe's settings, else those of `aepo settings`)."""
    strict: bool = False
    """Refuse to start where the preflight check reports something."""
    dry_run: bool = False
    """Check model and data, print memory and cost on paper, and stop."""
    gpus: Annotated[tuple[int, ...], tyro.conf.UseAppendAction] = field(default=())
    """With --dry-run: the seconds of a step on this number of H100s; may be repeated (docs/scale.md;
    default: memory and costs alone)."""
    length: float | None = None
    """With --dry-run: mean tokens of a completion (default: every completion is as long as the limit)."""
    resume: Path | None = None
    """Continue the run of this folder from its newest checkpoint, with its settings; --steps N prolongs it
    (default: a new run)."""

    def run(self) -> None:
        """Start a run, continue one, or print what a run would cost."""
        from aepo.config import make_config
        from aepo.training import runner

        if self.resume is not None:
            changes = [f"steps={self.steps}"] if self.steps is not None else []
            if self != Train(resume=self.resume, steps=self.steps, set=self.set):
                wanted = "alone, or with --steps and --set: a resumed run keeps its other settings"
                raise InvalidValue("--resume", str(self.resume), wanted)
            runner.resume(self.resume, settings=[*changes, *self.set])
            return
        for option, value in {"--gpus": self.gpus, "--length": self.length}.items():
            if value and not self.dry_run:
                raise InvalidValue(option, value, "together with --dry-run: a run uses the devices that there are")
        given = {"control.target": self.target, "control.hold": self.hold, "steps": self.steps, "seed": self.seed}
        overrides = {name: value for name, value in given.items() if value is not None}
        config = make_config(self.recipe, self.method, overrides, self.set)
        target = getattr(config.control, "target", None)
        if self.dry_run:
            from aepo.planning.dry_run import dry_run

            dry_run(config, self.gpus, self.length)
            return
        model = re.sub(r"[^\w.-]+", "-", Path(config.model).name)
        name = "-".join(map(str, filter(None, (model, config.method, target, f"seed{config.seed}"))))
        runner.start(config, self.out or Path("runs") / name, strict=self.strict)
