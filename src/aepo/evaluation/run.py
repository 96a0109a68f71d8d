"""`run` carries out `aepo evaluate`, from the options to evaluation.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from aepo.bars import Bar
from aepo.config import Config, default_config, override
from aepo.control.base import generator
from aepo.engines.positions import Room
from aepo.engines.right import RightRule
from aepo.errors import InvalidValue, require
from aepo.evaluation.benchmarks import find
from aepo.evaluation.entropy import measure_entropy
from aepo.evaluation.evaluated_model import EvaluatedModel, weights_digest
from aepo.evaluation.options import Options, Pass
from aepo.evaluation.questions import CODE, Questions, from_rows, from_task
from aepo.evaluation.report import show
from aepo.evaluation.samples import RESULT, SAMPLES, Unit, append, cut_to_whole_units, open_folder, read, units
from aepo.evaluation.scores import Tally, scores
from aepo.model.policy import Policy
from aepo.sampling.base import Sampler
from aepo.sampling.draw import Cuts
from aepo.sampling.prompts import ends_line, fitted
from aepo.tasks.chat import ChatSettings
from aepo.tasks.rewards import Begun, Verdict
from aepo.training.folder import check_folder, environment, write_atomically
from aepo.training.progress import plain
from aepo.training.runner import make_sampler
from aepo.types import Completion, Prompt, Request


@dataclass(frozen=True)
class Part:
    """`Part` is one benchmark in one pass."""

    questions: Questions
    """The problems of the benchmark."""
    prompts: Sequence[Prompt]
    """The problems as tokens."""
    way: Pass
    """The pass."""
    units: Sequence[Unit]
    """The units in which the completions are drawn."""

    @property
    def key(self) -> tuple[str, str]:
        """Return the names of the benchmark and the pass, which each row of samples.jsonl holds."""
        return self.questions.name, self.way.label


def run(options: Options) -> dict[str, Any]:
    """Sample what is missing, compute the scores, write evaluation.json, and print the table.

    Returns:
        The content of evaluation.json, or of entropy.json.

    Raises:
        InvalidValue: An option cannot work. This is checked before any sampling.
    """
    options.check()
    if options.out is not None:
        check_folder("--out", options.out)
    model = EvaluatedModel.find(options.model)
    if options.entropy is not None:
        return measure_entropy(options, model)
    questions, config, policy = _prepare(options, model)
    stops = _stop_at_chatml(policy, questions)
    parts = [_part(asked, way, policy) for asked in questions for way in options.passes()]
    notes = _notes(policy, parts)
    settings = {
        "model": model.name,
        "folder": model.folder or "built in",
        "weights": weights_digest(policy),
        "seed": options.seed,
        "passes": [way.settings() for way in options.passes()],
        "benchmarks": [part.questions.settings(part.prompts) for part in parts[:: len(options.passes())]],
        "stop_tokens": list(stops),
        **({"stop": list(config.sampling.stops)} if config.sampling.stops else {}),
        **({"over_length": "cut"} if policy.room.over_length == "cut" else {}),
    }
    folder = options.out or _default_folder(model, questions)
    open_folder(folder, settings)
    print(ends_line(policy.ends, config.sampling.stops), flush=True)
    _sample(parts, policy, _with_rows(config, options.max_rows), options.seed, folder / SAMPLES)
    result = {
        "settings": settings,
        "results": _summaries(parts, options.seed, folder / SAMPLES),
        "notes": notes,
        "environment": environment(policy.device),
    }
    write_atomically(folder / RESULT, json.dumps(result, indent=2))
    show(result)
    print(f"written: {folder / RESULT}")
    return result


# --- problems and model -------------------------------------------------------------------------------------


def _prepare(options: Options, model: EvaluatedModel) -> tuple[list[Questions], Config, Policy]:
    """Read the data and load the model. The data comes first, because reading it is quicker."""
    if options.benchmark or options.data is not None:
        sources = find(options.benchmark, options.data, options.grader == CODE)
        own = (options.prompt, options.grader, options.max_tokens, options.limit)
        with _named_as_options():
            chat = _chat(options)
            questions, template = [from_rows(source, *own, chat) for source in sources], chat.template()
        config = model.with_stops(default_config(), options.stop)
        return questions, config, model.load(config, options.device, template, options.over_length)
    for name in ("prompt", "grader", "system_prompt", "chat_template", "chat_template_kwargs"):
        given = getattr(options, name)
        require(
            given is None,
            f"--{name.replace('_', '-')}",
            given,
            "left out with a task, which has its own (or give --benchmark)",
        )
    if options.task is None and model.run is None and model.folder is not None:
        raise InvalidValue("--benchmark", "", "given for this model; or --data FILE, or --task NAME")
    config = model.with_stops(model.config(options.task, options.set, options.limit), options.stop)
    # A run's checkpoint carries the template that it was trained with.
    template = None if options.task is None and model.run is not None else config.task.template()
    policy = model.load(config, options.device, template, options.over_length)
    task = fitted(config.task, policy, config.seed, Room())  # `_notes` checks what is sampled
    name = options.task or type(task).__name__.lower()
    return [from_task(name, task, config.evaluation.prompts, options.max_tokens)], config, policy


def _chat(options: Options) -> ChatSettings:
    """Return the settings of chat prompts that the options give."""
    given = {name: getattr(options, name) for name in ("system_prompt", "chat_template", "chat_template_kwargs")}
    return override(ChatSettings(), {name: value for name, value in given.items() if value is not None}, "task.")


@contextmanager
def _named_as_options() -> Iterator[None]:
    """Name a setting of a task that is refused inside the `with` block as the option that gave it."""
    try:
        yield
    except InvalidValue as error:
        if not error.field.startswith("task."):
            raise
        name = error.field.removeprefix("task.").replace("_", "-")
        raise InvalidValue(f"--{name}", error.got, error.wanted) from None


def _stop_at_chatml(policy: Policy, questions: Sequence[Questions]) -> tuple[int, ...]:
    """Return the tokens that end a completion: those of Qwen's chat format too if prompts are in it.

    Qwen2.5-Math's evaluation does the same, even if a base model's own configuration does not.
    """
    policy.end_at([asked.problems[0].text for asked in questions])
    return policy.eos_token_ids


def _part(asked: Questions, way: Pass, policy: Policy) -> Part:
    return Part(asked, asked.prompts(policy), way, units(len(asked.problems), way.n, asked.max_tokens))


def _with_rows(config: Config, max_rows: int | None) -> Config:
    return config if max_rows is None else replace(config, sampling=replace(config.sampling, max_rows=max_rows))


def _default_folder(model: EvaluatedModel, questions: Sequence[Questions]) -> Path:
    names = [Path(model.folder or model.name).resolve().name, *(asked.name for asked in questions)]
    return (model.run or Path("runs")) / re.sub(r"[^\w.-]+", "-", "-".join(["evaluation", *names]))


def _notes(policy: Policy, parts: Sequence[Part]) -> list[str]:
    """Return sentences that a reader of the numbers should know.

    Raises:
        InvalidValue: The model has too few positions, and completions are not to be cut.
    """
    notes = []
    room = replace(policy.room, advice="give --over-length cut, or fewer --max-tokens")
    for asked in {part.questions.name: part for part in parts}.values():
        longest, limit = max(len(prompt.tokens) for prompt in asked.prompts), asked.questions.max_tokens
        left = room.limit(longest, limit)
        if left < limit:
            notes.append(
                f"{asked.questions.name}: a completion ends at the model's {room.positions} positions: after the "
                f"longest prompt it has {left} tokens, not {limit}"
            )
    return notes


# --- sampling -----------------------------------------------------------------------------------------------


def _sample(parts: Sequence[Part], policy: Policy, config: Config, seed: int, file: Path) -> None:
    """Draw the units that are not in the file yet, and append them to it."""
    sizes = [len(unit) for part in parts for unit in part.units]
    done = cut_to_whole_units(file, sizes)
    total, before = sum(sizes), sum(sizes[:done])
    if 0 < before < total:
        print(f"continuing after {before} of {total} completions", flush=True)
    drawn_by = make_sampler(policy, config)
    drawn_by.refresh(policy)
    with Bar(total, "completions", before) as bar:
        for part in parts:
            left, done = part.units[done:], max(0, done - len(part.units))
            if not left:
                continue
            bar.add(0, f"{part.questions.name}, {part.way.label}")
            sampler = drawn_by.with_cuts(Cuts(part.way.top_p, part.way.top_k, part.way.min_p))
            # Programs are judged while the next unit is drawn; all else is judged at once.
            waiting: list[_Drawn] = []
            try:
                for unit in left:
                    waiting.append(_drawn(part, unit, policy, sampler, seed))
                    if part.questions.start is None or len(waiting) > 1:
                        _write(part, waiting.pop(0), file, bar)
                while waiting:
                    _write(part, waiting.pop(0), file, bar)
            except BaseException:
                for one in waiting:
                    one.begun.stop()
                raise


@dataclass(frozen=True)
class _Drawn:
    """`_Drawn` holds the completions of a unit, whose judging has begun."""

    unit: Unit
    completions: Sequence[Completion]
    texts: Sequence[str]
    begun: Begun


def _write(part: Part, drawn: _Drawn, file: Path, bar: Bar) -> None:
    append(file, _rows(part, drawn))
    bar.add(len(drawn.unit), f"{part.questions.name}, {part.way.label}")


def _drawn(part: Part, unit: Unit, policy: Policy, sampler: Sampler, seed: int) -> _Drawn:
    """Draw one unit and begin to judge it."""
    asked, way = part.questions, part.way
    prompts = [part.prompts[number] for number in unit.problems]
    purpose = f"evaluation/{asked.name}/{way.label}/{unit.samples.start}"
    completions = sampler.sample(
        [Request(prompt, group, len(unit.samples), way.temperature) for group, prompt in enumerate(prompts)],
        max_tokens=asked.max_tokens,
        generator=generator(seed, unit.problems.start, purpose),
    )
    texts = policy.decode([completion.tokens for completion in completions], special_tokens=asked.special_tokens)
    truncated = [completion.truncated for completion in completions]
    tokens = [completion.tokens for completion in completions]
    given = ([completion.prompt.problem for completion in completions], texts, truncated, tokens)
    begun = Begun(partial(asked.judge, *given)) if asked.start is None else asked.start(*given)
    return _Drawn(unit, completions, texts, begun)


def _rows(part: Part, drawn: _Drawn) -> list[dict[str, Any]]:
    """Wait for the verdicts, and return the rows. They depend only on the settings and the unit."""
    asked, way, unit = part.questions, part.way, drawn.unit
    verdicts = drawn.begun.wait()
    return [
        {
            "benchmark": asked.name,
            "pass": way.label,
            "problem": completion.prompt.id,
            "number": unit.problems[completion.group],
            "sample": unit.samples[place % len(unit.samples)],
            "text": text,
            "answer": asked.answer(text),
            # The tests of a program may be large, and the rows of a problem are many.
            "known": None if asked.grader == CODE else completion.prompt.problem.get("answer"),
            **_judged(verdict, asked.right),
            "tokens": len(completion.tokens),
            "truncated": completion.truncated,
        }
        for place, (completion, text, verdict) in enumerate(zip(drawn.completions, drawn.texts, verdicts, strict=True))
    ]


def _judged(verdict: Verdict, rule: RightRule) -> dict[str, Any]:
    reward = verdict.reward if math.isfinite(verdict.reward) else None
    right = reward is not None and rule.alone(reward, verdict.right)
    known = {"correct": right, "reward": reward, "reason": verdict.reason, "failed": verdict.failed}
    return {**known, **({"logged": plain(verdict.logged)} if verdict.logged else {})}


# --- scores -------------------------------------------------------------------------------------------------


def _summaries(parts: Sequence[Part], seed: int, file: Path) -> list[dict[str, Any]]:
    """Return the summary of each part. All counts come from the file, so a continued evaluation has the same scores."""
    tallies = {part.key: [Tally(prompt.id) for prompt in part.prompts] for part in parts}
    for row in read(file):
        tallies[row["benchmark"], row["pass"]][row["number"]].add(row)
    return [_summary(part, tallies[part.key], seed) for part in parts]


def _summary(part: Part, tallies: Sequence[Tally], seed: int) -> dict[str, Any]:
    completions = sum(tally.samples for tally in tallies)
    return {
        "benchmark": part.questions.name,
        **part.way.settings(),
        "problems": len(tallies),
        "completions": completions,
        "right": part.questions.right.describe(alone=True),
        "scores": {name: asdict(interval) for name, interval in scores(tallies, part.way, seed).items()},
        "mean_tokens": sum(tally.tokens for tally in tallies) / completions,
        "truncated": sum(tally.truncated for tally in tallies) / completions,
        "failures": sum(tally.failed for tally in tallies),
        "unanswered": sum(tally.silent for tally in tallies) / completions,
        "correct": [[tally.id, tally.correct] for tally in tallies],
    }
