"""`aepo evaluate`, from options to evaluation.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from aepo.config import Config, default_config
from aepo.control.base import generator
from aepo.errors import InvalidValue, require
from aepo.evaluation.benchmarks import find
from aepo.evaluation.options import Options, Pass
from aepo.evaluation.questions import Questions, from_rows, from_task
from aepo.evaluation.report import Progress, show
from aepo.evaluation.samples import RESULT, SAMPLES, Unit, append, cut_to_whole_units, open_folder, read, units
from aepo.evaluation.scores import Tally, scores
from aepo.evaluation.target import Target, weights_digest
from aepo.model.policy import Policy
from aepo.sampling.base import Sampler
from aepo.sampling.prompts import prompt_tokens
from aepo.tasks.rewards import Verdict
from aepo.training.folder import environment, write_atomically
from aepo.training.runner import make_sampler
from aepo.types import Prompt, Request, is_right

# Qwen2.5-Math's evaluation ends a completion at these, also where a base model's own configuration does not.
CHATML, STOPS = "<|im_start|>", ("<|im_end|>", "<|endoftext|>")


@dataclass(frozen=True)
class Part:
    """One benchmark sampled in one way, with its prompts and units."""

    questions: Questions
    prompts: Sequence[Prompt]
    way: Pass
    units: Sequence[Unit]

    @property
    def key(self) -> tuple[str, str]:
        """What its lines in samples.jsonl carry."""
        return self.questions.name, self.way.label


def run(options: Options) -> dict[str, Any]:
    """Sample what is missing, sum up, write evaluation.json, print the table, and return what was written.

    Raises `InvalidValue` in one line, before any sampling, for what cannot work.
    """
    options.check()
    target = Target.find(options.model)
    questions, config, policy = _prepare(options, target)
    stops = _stop_at_chatml(policy, questions)
    parts = [_part(asked, way, policy) for asked in questions for way in options.passes()]
    settings = {
        "model": target.name,
        "folder": target.folder or "built in",
        "weights": weights_digest(policy),
        "seed": options.seed,
        "passes": [{"temperature": way.temperature, "top_p": way.top_p, "n": way.n} for way in options.passes()],
        "benchmarks": [part.questions.settings(part.prompts) for part in parts[:: len(options.passes())]],
        "stop_tokens": list(stops),
    }
    folder = options.out or _default_folder(target, questions)
    open_folder(folder, settings)
    _sample(parts, policy, _with_rows(config, options.max_rows), options.seed, folder / SAMPLES)
    result = {
        "settings": settings,
        "results": _summed_up(parts, options.seed, folder / SAMPLES),
        "notes": _notes(policy, parts),
        "environment": environment(policy.device),
    }
    write_atomically(folder / RESULT, json.dumps(result, indent=2))
    show(result)
    print(f"written: {folder / RESULT}")
    return result


# --- what is asked of which model ---------------------------------------------------------------------------


def _prepare(options: Options, target: Target) -> tuple[list[Questions], Config, Policy]:
    """The data first, then the model."""
    if options.benchmark or options.data is not None:
        found = find(options.benchmark, options.data)
        asked = [from_rows(f, options.prompt, options.grader, options.max_tokens, options.limit) for f in found]
        config = default_config()
        return asked, config, target.load(config, options.device)
    for name in ("prompt", "grader"):
        given = getattr(options, name)
        require(given is None, f"--{name}", given, "left out with a task, which has its own (or give --benchmark)")
    if options.task is None and target.run is None and target.folder is not None:
        raise InvalidValue("--benchmark", "", "given for this model; or --data FILE, or --task NAME")
    config = target.config(options.task, options.set, options.limit)
    policy = target.load(config, options.device)
    task = config.task.fitted(lambda problem: len(prompt_tokens(policy, problem)))
    name = options.task or type(task).__name__.lower()
    return [from_task(name, task, config.evaluation.prompts, options.max_tokens)], config, policy


def _stop_at_chatml(policy: Policy, questions: Sequence[Questions]) -> tuple[int, ...]:
    """The tokens that end a completion; with prompts in Qwen's chat format, those of that format too."""
    if any(CHATML in asked.problems[0].text for asked in questions):
        known = policy.tokenizer.get_vocab()
        ids = [*policy.eos_token_ids, *(known[stop] for stop in STOPS if stop in known)]
        policy.eos_token_ids = tuple(dict.fromkeys(ids))
    return policy.eos_token_ids


def _part(asked: Questions, way: Pass, policy: Policy) -> Part:
    return Part(asked, asked.prompts(policy), way, units(len(asked.problems), way.n, asked.max_tokens))


def _with_rows(config: Config, max_rows: int | None) -> Config:
    return config if max_rows is None else replace(config, sampling=replace(config.sampling, max_rows=max_rows))


def _default_folder(target: Target, questions: Sequence[Questions]) -> Path:
    names = [Path(target.folder or target.name).resolve().name, *(asked.name for asked in questions)]
    return (target.run or Path("runs")) / re.sub(r"[^\w.-]+", "-", "-".join(["evaluation", *names]))


def _notes(policy: Policy, parts: Sequence[Part]) -> list[str]:
    """What a reader of the numbers should know."""
    room = getattr(policy.model.config, "max_position_embeddings", None)
    longest = max(max(len(p.tokens) for p in part.prompts) + part.questions.max_tokens for part in parts)
    if room is None or longest <= room:
        return []
    return [f"prompt and completion may take {longest} tokens; the model is made for {room} positions"]


# --- sampling -----------------------------------------------------------------------------------------------


def _sample(parts: Sequence[Part], policy: Policy, config: Config, seed: int, file: Path) -> None:
    """Draw and write the units that are not in the file yet."""
    sizes = [len(unit) for part in parts for unit in part.units]
    done = cut_to_whole_units(file, sizes)
    progress = Progress(sum(sizes), sum(sizes[:done]))
    drawn_by = make_sampler(policy, config)
    drawn_by.refresh(policy)
    for part in parts:
        left, done = part.units[done:], max(0, done - len(part.units))
        if not left:
            continue
        sampler = drawn_by.at_top_p(part.way.top_p)
        for unit in left:
            append(file, list(_rows(part, unit, policy, sampler, seed)))
            progress.add(len(unit), f"{part.questions.name}, {part.way.label}")


def _rows(part: Part, unit: Unit, policy: Policy, sampler: Sampler, seed: int) -> Iterator[dict[str, Any]]:
    """The lines of one unit, a function of the settings and of the unit alone."""
    asked, way = part.questions, part.way
    prompts = [part.prompts[number] for number in unit.problems]
    purpose = f"evaluation/{asked.name}/{way.label}/{unit.samples.start}"
    completions = sampler.sample(
        [Request(prompt, group, len(unit.samples), way.temperature) for group, prompt in enumerate(prompts)],
        max_tokens=asked.max_tokens,
        generator=generator(seed, unit.problems.start, purpose),
    )
    texts = policy.decode([completion.tokens for completion in completions])
    truncated = [completion.truncated for completion in completions]
    tokens = [completion.tokens for completion in completions]
    verdicts = asked.judge([completion.prompt.problem for completion in completions], texts, truncated, tokens)
    for place, (completion, text, verdict) in enumerate(zip(completions, texts, verdicts, strict=True)):
        yield {
            "benchmark": asked.name,
            "pass": way.label,
            "problem": completion.prompt.id,
            "number": unit.problems[completion.group],
            "sample": unit.samples[place % len(unit.samples)],
            "text": text,
            "answer": asked.answer(text),
            **_judged(verdict),
            "tokens": len(completion.tokens),
            "truncated": completion.truncated,
        }


def _judged(verdict: Verdict) -> dict[str, Any]:
    reward = verdict.reward if math.isfinite(verdict.reward) else None
    right = reward is not None and is_right(reward)
    return {"correct": right, "reward": reward, "reason": verdict.reason, "failed": verdict.failed}


# --- summing up ---------------------------------------------------------------------------------------------


def _summed_up(parts: Sequence[Part], seed: int, file: Path) -> list[dict[str, Any]]:
    """Everything from the file, so that a resumed evaluation is summed up like any other."""
    tallies = {part.key: [Tally(prompt.id) for prompt in part.prompts] for part in parts}
    for row in read(file):
        tallies[row["benchmark"], row["pass"]][row["number"]].add(row)
    return [_summary(part, tallies[part.key], seed) for part in parts]


def _summary(part: Part, tallies: Sequence[Tally], seed: int) -> dict[str, Any]:
    completions = sum(tally.samples for tally in tallies)
    return {
        "benchmark": part.questions.name,
        "temperature": part.way.temperature,
        "top_p": part.way.top_p,
        "n": part.way.n,
        "problems": len(tallies),
        "completions": completions,
        "scores": {name: asdict(score) for name, score in scores(tallies, part.way, seed).items()},
        "mean_tokens": sum(tally.tokens for tally in tallies) / completions,
        "truncated": sum(tally.truncated for tally in tallies) / completions,
        "failures": sum(tally.failed for tally in tallies),
        "unanswered": sum(tally.silent for tally in tallies) / completions,
        "correct": [[tally.id, tally.correct] for tally in tallies],
    }
