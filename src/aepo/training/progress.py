"""`RunLog` writes the rows of a run after every step and shows its progress in the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from aepo.bars import duration
from aepo.config import Config
from aepo.control.closed_loop import ALARM_AFTER
from aepo.training.evaluate import Evaluation
from aepo.training.folder import EVALUATIONS, FILES, METRICS, SAMPLES
from aepo.types import Sample

SAMPLES_PER_STEP = 4
# Seconds between two printed samples. Without a terminal it also holds between two status lines.
LINE_EVERY = 5.0
# Seconds without a line after which one says what the run does, where there is no terminal.
QUIET_SECONDS = 20.0
# Seconds after which a part of a step, or an evaluation, shows the time that it has left.
LEFT_AFTER = 2.0
# Steps with one and the same reward after which the log says so.
CONSTANT_STEPS = 5


@dataclass(frozen=True)
class Shown:
    """`Shown` is a sample with what a person needs to judge it."""

    sample: Sample
    """The sample."""
    prompt: str
    """The text of the prompt."""
    completion: str
    """The text of the completion."""
    answer: str | None
    """The known answer, or None."""

    def row(self, step: int) -> dict[str, Any]:
        """Return the line for samples.jsonl."""
        rollout, completion = self.sample.rollout, self.sample.rollout.completion
        parts = {name: value if math.isfinite(value) else None for name, value in rollout.parts.items()}
        return {
            "step": step,
            "prompt": completion.prompt.id,
            "prompt_text": self.prompt,
            "completion": self.completion,
            "answer": self.answer,
            "reward": rollout.reward,
            **({"rewards": parts} if parts else {}),
            "right": rollout.right,
            **({"logged": plain(rollout.logged)} if rollout.logged else {}),
            "advantage": self.sample.advantage if math.isfinite(self.sample.advantage) else None,
            "temperature": completion.temperature,
            "extra": self.sample.extra,
            "tokens": len(completion.tokens),
            "truncated": completion.truncated,
        }


def plain(logged: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a reward function logged as values that JSON has, or lists of these; anything else as text."""
    return {str(name): value if _is_plain(value) else str(value) for name, value in logged.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(item, str | int | float | bool | None) for item in value)
    return isinstance(value, str | int | float | bool | None)


def sample_line(sample: Mapping[str, Any], longest: int = 200) -> str:
    """Return one line of a sample for the terminal: prompt, completion, known answer, reward and temperature."""
    answer = "" if sample.get("answer") in (None, "") else f", answer {_cut(sample['answer'], 40)}"
    heat = "" if sample["temperature"] == 1 else f", T {sample['temperature']:g}"
    parts = "".join(f", {name} {value:g}" for name, value in (sample.get("rewards") or {}).items() if value is not None)
    prompt = _cut(sample.get("prompt_text") or sample["prompt"], longest)
    return f"    {prompt} -> {_cut(sample['completion'], longest)}  (reward {sample['reward']:g}{parts}{answer}{heat})"


def _cut(text: str, longest: int) -> str:
    """Return the text on one line; of a long one its beginning and its end.

    Characters that a terminal would obey, such as escape, become a replacement character.
    """
    text = "".join(sign if sign.isprintable() else "\ufffd" for sign in " ".join(text.split()))
    return text if len(text) <= longest else f"{text[: longest // 2]} ... {text[-longest // 2 :]}"


class RunLog:
    """`RunLog` appends rows to the files of the run folder and prints progress. It is a context manager."""

    def __init__(self, run: Path, config: Config, start: int, quiet: bool = False) -> None:
        self._run, self._config, self._quiet = run, config, quiet
        self._console = Console()
        self._live: Live | None = None
        if self._console.is_terminal and not quiet:
            self._progress = _progress_bar(self._console)
            self._bar = self._progress.add_task("", total=config.steps, completed=start)
            self._status = Text("")
            self._live = Live(Group(self._status, self._progress), console=self._console, refresh_per_second=5)
        self._files: dict[str, TextIO] = {}
        self._last_line = 0.0
        self._reward_error_said = False
        self._constant: tuple[float | None, int] = (None, 0)
        self._begun, self._first = time.monotonic(), start
        self._doing, self._doing_since = "", 0.0

    def __enter__(self) -> RunLog:
        self._files = {name: (self._run / name).open("a") for name in FILES}
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._progress.update(self._bar, description="")
            self._live.stop()
        for file in self._files.values():
            file.close()

    def step(self, row: Mapping[str, Any], shown: Sequence[Shown]) -> None:
        """Write one step: its row of metrics and a few of its completions."""
        samples = [one.row(row["step"]) for one in shown]
        self._append(SAMPLES, samples)
        self._append(METRICS, [row])
        if row.get("reward_error") and not self._reward_error_said:
            self._reward_error_said = True
            self.say(f"the reward failed for {row['reward_failures']} completions of step {row['step']}, first with:")
            self.say(f"    {row['reward_error']}")
        self._say_constant(row)
        if row.get("alarm"):
            self.say(
                f"alarm: the control has been at its limit for {ALARM_AFTER} steps and the error is still "
                f"{row['error']:+.2f} nats (step {row['step']}): this target is beyond its authority here"
            )
            if row.get("advice"):
                self.say(f"    what is missing: {row['advice']}")
        self._show(row, samples)

    def _say_constant(self, row: Mapping[str, Any]) -> None:
        """Say once that the reward has been the same for every completion of several steps."""
        least, most = row.get("reward_min"), row.get("reward_max")
        same = least is not None and least == most and self._constant[0] in (None, least)
        self._constant = (least, self._constant[1] + 1) if same else (None, 0)
        if self._constant[1] == CONSTANT_STEPS:
            self.say(
                f"the reward has been {least:g} for every completion of {CONSTANT_STEPS} steps (the last is step "
                f"{row['step']}): nothing is learned from rewards that do not differ"
            )

    def evaluation(self, step: int, found: Evaluation) -> None:
        """Write one evaluation, problem by problem.

        Call it before `step`, so that every row with an evaluation also has its line in evaluations.jsonl.
        """
        row = {"step": step, "problems": found.problems, "correct": found.correct, "samples": found.samples}
        self._append(EVALUATIONS, [row])

    def say(self, text: str) -> None:
        """Print one line in the terminal, unless the log is quiet."""
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=not self._console.is_terminal)

    def activity(self, what: str, done: int, rows: int) -> None:
        """Show what the run does now: in the bar's line, or, without a terminal, a line when it takes long."""
        now = time.monotonic()
        if what != self._doing or not done:
            self._doing, self._doing_since = what, now
        took = now - self._doing_since
        left = f", {duration(took / done * (rows - done))} left" if done and took >= LEFT_AFTER else ""
        if self._live:
            self._progress.update(self._bar, description=f"{what} {done}/{rows}{left}")
        elif done and now - self._last_line >= QUIET_SECONDS:
            self._last_line = now
            self.say(f"  {what}: {done} of {rows} rows{left}")

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        # All lines are written at once. If the disk is full, only the last line can be incomplete. Readers ignore it.
        self._files[name].write("".join(json.dumps(row, allow_nan=True) + "\n" for row in rows))
        self._files[name].flush()

    def _left(self, done: int) -> float:
        """Return the estimated seconds to the end of the run, from its mean speed so far."""
        return (time.monotonic() - self._begun) / (done - self._first) * (self._config.steps - done)

    def _show(self, row: Mapping[str, Any], shown: Sequence[Mapping[str, Any]]) -> None:
        line = status_line(row, self._config.steps)
        if self._live:
            self._status.plain = line
            self._progress.update(self._bar, completed=row["step"])
        if row["step"] == self._first + 1 and self._config.steps > row["step"]:
            self.say(f"expected: {duration(self._left(row['step']))} for the other steps, from the first one")
        last = row["step"] == self._config.steps
        if not last and row.get("entropy") is not None and time.monotonic() - self._last_line < LINE_EVERY:
            return
        self._last_line = time.monotonic()
        if not self._live:
            self.say(f"{line}  {duration(self._left(row['step']))} left")
        for sample in shown[:1]:
            self.say(sample_line(sample))


def data_line(facts: Mapping[str, Any]) -> str:
    """Return one line with the numbers of rows of a task's data (`Task.facts`)."""
    line = f"data: {facts['rows_read']} rows read, {facts['rows_train']} to train on, {facts['rows_evaluation']} for "
    line += "evaluation"
    left_out = {
        "rows_shared": "left out of training (their prompt is in the evaluation set)",
        "rows_long": "left out (too long)",
        "rows_repeated": "with a prompt that another training row has",
    }
    return ", ".join([line, *(f"{facts[key]} {words}" for key, words in left_out.items() if facts.get(key))])


def status_line(row: Mapping[str, Any], steps: int) -> str:
    """Return one line with the entropy, its target, the reward, the control's action and the step's seconds."""
    target = row.get("target_entropy")
    if row.get("entropy") is None:
        return f"step {row['step']}/{steps}  skipped: no completion got a reward  {row['seconds']:.2f} s"
    parts = [f"step {row['step']}/{steps}", f"entropy {row['entropy']:.3f}"]
    if target is not None:
        parts.append(f"target {target:.3f}")
    parts.append(f"reward {row['reward']:.3f}")
    if row.get("command") is not None:
        limit = " (at its limit)" if row["saturated"] else ""
        parts.append(f"command {row['command']:+.2f}{limit}")
    if row["extra_completions"]:
        parts.append(f"extra {row['extra_used']} of {row['extra_completions']} at T {row['extra_temperature']:g}")
    if row.get("evaluation"):
        found = row["evaluation"]
        parts.append(f"pass@1 {found['pass@1']:.3f}, reward {found['reward']:.3f}")
    return "  ".join([*parts, f"{row['seconds']:.2f} s"])


def _progress_bar(console: Console) -> Progress:
    columns = (
        *(BarColumn(8), MofNCompleteColumn(), TextColumn("steps,"), TimeRemainingColumn(), TextColumn("left")),
        TextColumn("{task.description}"),
    )
    return Progress(*columns, console=console)
