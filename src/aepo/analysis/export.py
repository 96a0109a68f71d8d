"""`export` makes a plain Hugging Face folder of a run's checkpoint, with a model card, and can push it to a hub."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from aepo import __version__
from aepo.analysis.about import about
from aepo.analysis.report.runs import CONFIG, RunRecord, read_run
from aepo.catalogue import ARXIV, plain
from aepo.config import PolicyConfig, make_config, override, read_toml
from aepo.engines.ends import find_ends
from aepo.errors import InvalidValue, require
from aepo.methods import METHODS
from aepo.model.loading import Loaded, load
from aepo.tasks.base import Task
from aepo.training.checkpoint import FOLDER, steps_saved
from aepo.training.folder import EVALUATIONS, is_number, read_rows

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}
DType = Literal["float32", "bfloat16", "bf16"]
CARD = "README.md"


@dataclass(frozen=True)
class Source:
    """`Source` is a checkpoint of a run."""

    run: Path
    """The run folder."""
    step: int
    """The number of finished steps at the checkpoint."""

    @property
    def folder(self) -> Path:
        """Return the folder of the checkpoint."""
        return self.run / FOLDER / f"step-{self.step}"

    @classmethod
    def find(cls, path: Path, step: int | None) -> Source:
        """Return the checkpoint that a run folder or a checkpoint folder stands for.

        Args:
            path: A run folder, or the folder of one of its checkpoints.
            step: The number of finished steps; None takes the newest checkpoint.

        Raises:
            InvalidValue: The path is neither, or there is no such checkpoint.
        """
        run = path
        if path.parent.name == FOLDER and path.is_dir():
            run, given = path.parent.parent, path.name.removeprefix("step-")
            require(step is None, "--step", step, "left out with the folder of a checkpoint")
            step = int(given) if given.isdigit() else None
        if not (run / CONFIG).is_file():
            raise InvalidValue("RUN", str(path), f"a run folder (it holds no {CONFIG}) or one of its checkpoints")
        saved = steps_saved(run)
        if not saved:
            raise InvalidValue("RUN", str(path), "a run with a checkpoint (there is none in it yet)")
        wanted = f"a step with a checkpoint: {', '.join(map(str, saved))}"
        require(step is None or step in saved, "--step", step, wanted)
        return cls(run, saved[-1] if step is None else step)


def export(
    run: Path, to: Path | None, step: int | None, dtype: DType | None, push: str | None, private: bool = False
) -> Path:
    """Write the folder, and push it if a name is given.

    Args:
        run: A run folder, or the folder of one of its checkpoints.
        to: The new folder; None means export-step-N in the run folder.
        step: The number of finished steps of the checkpoint; None takes the newest.
        dtype: The dtype of the weights; None takes the run's `policy.dtype`.
        push: The name of a repository on the hub, OWNER/NAME; None pushes nothing.
        private: Whether a new repository is private.

    Returns:
        The folder.

    Raises:
        InvalidValue: The run has no such checkpoint, the model cannot be loaded, the folder is not empty, or the hub
            refuses. The folder is complete in the last case, and is not written in the others.
    """
    source = Source.find(run, step)
    out = to or source.run / f"export-step-{source.step}"
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidValue("--to", str(out), "a new or an empty folder")
    if push is not None:
        _hub()
    settings = override(PolicyConfig(), read_toml(source.run / CONFIG).get("policy", {}), "policy.")
    print(f"loading {source.folder} ...", flush=True)
    loaded = load(str(source.folder), settings, seed=0)
    chosen = dtype or settings.dtype
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        merged = loaded.adapter is not None
        model = _saved(loaded, DTYPES[chosen], source, partial)
        (partial / CARD).write_text(card(source, chosen, merged), "utf-8")
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    count = sum(parameter.numel() for parameter in model.parameters())
    how = ", LoRA merged" if merged else ""
    print(f"written: {out} (step {source.step}, {count / 1e6:.3g} M parameters, {chosen}{how})", flush=True)
    if push is not None:
        print(f"pushed: {_pushed(out, push, private)}")
    return out


def _saved(loaded: Loaded, dtype: torch.dtype, source: Source, folder: Path) -> Any:
    """Write the model, its tokenizer and its generation config, and return the model."""
    model = loaded.model if loaded.adapter is None else loaded.adapter.merge_and_unload()
    model = model.to(dtype)
    ends = find_ends(loaded.tokenizer, model.generation_config, model.config, str(source.folder), _prompts(source))
    generation = model.generation_config
    generation.eos_token_id = list(ends.ids) if len(ends.ids) > 1 else ends.ids[0]
    if generation.pad_token_id is None:
        pad = loaded.tokenizer.pad_token_id
        generation.pad_token_id = ends.ids[0] if pad is None else pad
    model.save_pretrained(folder)
    generation.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    if loaded.images is not None:
        loaded.images.save(folder)
    return model


def _prompts(source: Source) -> list[str]:
    """Return the text of a prompt of the run, whose form may add ends. There is none if the data is gone."""
    try:
        task: Task = make_config(source.run / CONFIG).task
        return [task.train_problem(0, 0).text]
    except (InvalidValue, OSError):
        return []


# --- the card -----------------------------------------------------------------------------------------------


def card(source: Source, dtype: str, merged: bool) -> str:
    """Return the model card: how the model was made, and what was measured.

    Args:
        source: The checkpoint.
        dtype: The dtype of the weights.
        merged: Whether an adapter was merged into the weights.
    """
    run = read_run(source.run, source.run.resolve().name, samples=False)
    rows = [row for row in run.rows if row["step"] <= source.step]
    run = RunRecord(run.label, run.config, rows, ())
    told = about(run.config, short=True)
    model = str(run.config.get("model", ""))
    head = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [aepo, reinforcement-learning]"]
    if model.count("/") == 1 and not model.startswith((".", "/", "~")):
        head.insert(0, f"base_model: {model}")
    return "\n".join(
        [
            "---",
            *head,
            "---",
            "",
            f"# {plain(run.label)}",
            "",
            f"A language model that aepo {__version__} fine-tuned by reinforcement "
            f"with the method {_method(run)}. The weights are {dtype}"
            f"{', with the LoRA adapter merged into them' * merged}.",
            "",
            "## How it was made",
            "",
            *_rows(("", ""), _made(source, run, told)),
            "",
            "## What was measured",
            "",
            *_rows(("", "value"), list(_measured(source, run))),
            "",
            "Entropy is exact, in nats per token. Rewards are those of training, on the prompts of each step.",
            "",
            "## Use",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            'model = AutoModelForCausalLM.from_pretrained("THIS FOLDER OR REPOSITORY")',
            'tokenizer = AutoTokenizer.from_pretrained("THIS FOLDER OR REPOSITORY")',
            "```",
            "",
        ]
    )


def _method(run: RunRecord) -> str:
    """Return the method, with a link to its paper if it has one."""
    paper = METHODS[run.method].paper if run.method in METHODS else "-"
    return f"`{run.method}`" if paper == "-" else f"[`{run.method}`]({ARXIV}{paper})"


def _made(source: Source, run: RunRecord, told: Mapping[str, str]) -> list[tuple[str, str]]:
    state = _json(source.folder / "state.json")
    made_by = _json(source.run / "environment.json")
    sampling = run.config.get("sampling", {})
    digest = f" (SHA-256 of the rows {str(state['data'])[:16]})" if state.get("data") else ""
    prompts, size = (sampling.get(name, "?") for name in ("prompts", "group_size"))
    facts = {
        "base model": told.get("model", ""),
        "method": run.method,
        "entropy target": run.target,
        "data": f"{told['data']}{digest}" if "data" in told else "",
        "reward": told.get("reward", ""),
        "learning rate": told.get("learning rate", ""),
        "steps": f"{source.step} of {run.steps}, each {prompts} prompts x {size} completions",
        "sampled": f"{state['completions']:,} completions, {state['tokens']:,} tokens" if "tokens" in state else "",
        "seed": "" if run.seed is None else str(run.seed),
        "versions": ", ".join(
            [f"aepo {made_by.get('aepo', '?')}"]
            + [f"{name} {made_by['packages'][name]}" for name in ("torch", "transformers") if "packages" in made_by]
        ),
    }
    return [(name, value) for name, value in facts.items() if value]


def _measured(source: Source, run: RunRecord) -> Iterator[tuple[str, str]]:
    for key in ("reward", "entropy", "length"):
        if run.series(key)[1]:
            first = next(row[key] for row in run.rows if is_number(row.get(key)))
            yield f"{key}, first step", f"{first:.3f}"
            yield f"{key}, mean of the last third", f"{run.last_third(key):.3f}"
    for row in read_rows(source.run / EVALUATIONS, up_to=source.step)[:1]:
        if row["step"] == 0 and row.get("samples") and row.get("problems"):
            share = math.fsum(row["correct"]) / (len(row["problems"]) * row["samples"])
            yield "pass@1 before training", f"{share:.3f}"
    last = run.evaluation()
    if last is not None:
        step, scores = last
        for name, value in scores.items():
            if name.startswith("pass@") and is_number(value):
                yield f"{name} after step {step}", f"{value:.3f}"
        if is_number(scores.get("problems")):
            yield "evaluation", f"{scores['problems']:g} problems x {scores.get('samples', '?')} samples at T = 1"


def _rows(head: tuple[str, str], rows: list[tuple[str, str]]) -> list[str]:
    lines = [head, ("---", "---"), *((name, plain(value)) for name, value in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _json(file: Path) -> dict[str, Any]:
    """Return a JSON object from a file; an empty one if the file is gone or cannot be read."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# --- the hub ------------------------------------------------------------------------------------------------


def _hub() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        wanted = "left out where huggingface_hub is not installed; it needs: pip install 'aepo[train]'"
        raise InvalidValue("--push", True, wanted) from None
    return huggingface_hub


def _pushed(folder: Path, name: str, private: bool) -> str:
    """Upload the folder and return the address of the repository.

    Raises:
        InvalidValue: The hub cannot be reached or refuses.
    """
    hub = _hub()
    try:
        api = hub.HfApi()
        made = api.create_repo(name, private=private or None, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=made.repo_id, commit_message=f"aepo {__version__} export")
    # The client raises its own errors and those of two HTTP packages.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        wanted = f"OWNER/NAME of a repository that `hf auth login` may write ({reason}); {folder} is complete"
        raise InvalidValue("--push", name, wanted) from None
    return str(made)
