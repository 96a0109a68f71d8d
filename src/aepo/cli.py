"""The command line."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from aepo.errors import InvalidValue
from aepo.evaluation.options import Options


@dataclass(frozen=True)
class Train:
    """Fine-tune a language model at the entropy you set. Without arguments: the built-in model and task."""

    recipe: Annotated[Path | None, tyro.conf.Positional] = None
    """A TOML file of settings (its keys are those of config.toml in a run folder)."""
    method: str | None = None
    """A method, or two joined by +: grpo, aepo, aepo+dynamic-sampling; `aepo methods` lists them (default: aepo)."""
    target: str | None = None
    """Entropy target, nats per token: 0.5, 0.6x, linear(a,b,n), cosine(a,b,n), sine(mean,amplitude,period), ..."""
    steps: int | None = None
    """Rounds of sampling and updating."""
    seed: int | None = None
    """Decides the order of prompts and every random draw."""
    out: Path | None = None
    """The run folder (default: runs/METHOD-TARGET-SEED)."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """Any other setting, as often as needed: --set optimizer.lr=1e-4 --set control.law=switch."""
    strict: bool = False
    """Refuse to start where preflight has something to say."""
    dry_run: bool = False
    """Check model and data, print memory and cost on paper, and stop."""
    gpus: Annotated[tuple[int, ...], tyro.conf.UseAppendAction] = field(default=())
    """With --dry-run: a step's seconds on as many H100s, as often as needed (docs/scale.md)."""
    length: float | None = None
    """With --dry-run: mean tokens of a completion (default: all as long as the limit)."""
    resume: Path | None = None
    """Go on with a run folder instead; its own settings hold."""

    def run(self) -> None:
        """Start or resume."""
        from aepo.config import make_config
        from aepo.training import runner

        if self.resume is not None:
            if self != Train(resume=self.resume):
                raise InvalidValue("--resume", str(self.resume), "alone: a resumed run keeps its own settings")
            runner.resume(self.resume)
            return
        for option, value in {"--gpus": self.gpus, "--length": self.length}.items():
            if value and not self.dry_run:
                raise InvalidValue(option, value, "together with --dry-run: a run takes the devices that there are")
        given = {"control.target": self.target, "steps": self.steps, "seed": self.seed}
        overrides = {name: value for name, value in given.items() if value is not None}
        config = make_config(self.recipe, self.method, overrides, self.set)
        target = getattr(config.control, "target", None)
        if self.dry_run:
            from aepo.planning.dry_run import dry_run

            dry_run(config, self.gpus, self.length)
            return
        name = "-".join(map(str, filter(None, (config.method, target, f"seed{config.seed}"))))
        runner.start(config, self.out or Path("runs") / name, strict=self.strict)


@dataclass(frozen=True)
class Demo:
    """The picture of the README: from one base model, GRPO, and AEPO at three targets."""

    out: Path = Path("runs/demo")
    """Where the runs, the figure and the table go."""
    steps: int = 200
    """Steps of each run."""
    seed: int = 0
    """Seed of each run."""

    def run(self) -> None:
        """All runs, side by side on the machine's cores."""
        from aepo.analysis.demo import demo

        demo(self.out, self.steps, self.seed)


@dataclass(frozen=True)
class Methods:
    """Every method: its paper, what it senses, commands and moves, what it costs, where it runs."""

    json: bool = False
    """A JSON list instead of a table."""
    markdown: bool = False
    """The table of docs/methods/README.md."""

    def run(self) -> None:
        """Print."""
        from aepo.catalogue import as_json, as_markdown, print_table

        if self.json:
            print(as_json())
        elif self.markdown:
            print(as_markdown(), end="")
        else:
            print_table()


@dataclass(frozen=True)
class Evaluate(Options):
    """pass@k, maj@k and their intervals of a model or a run, on benchmarks, a file or a task (docs/evaluation.md)."""

    model: Annotated[str, tyro.conf.Positional]
    """A folder in Hugging Face format, a name on the hub, a run folder or one of its checkpoints, or `builtin`."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """Settings of --task, as often as needed: --set task.dataset=chain_sum."""

    def run(self) -> None:
        """Sample, write, print one table."""
        from aepo.evaluation.run import run

        run(self)


@dataclass(frozen=True)
class Grade:
    """Grade a JSONL file of {"completion", "answer", ...}: each line with `correct`, `reason` and `failed` added."""

    file: Annotated[Path, tyro.conf.Positional]
    """One JSON object a line; the answer is a text, a number or a list of accepted ones."""
    out: Path | None = None
    """Where the graded lines go (default: beside FILE, as NAME.graded.jsonl)."""
    grader: Literal["math", "exact", "qwen"] = "math"
    """math: equal values; exact: the same text; qwen: the lenient rules of Qwen2.5-Math's evaluation."""
    seconds: float = 5.0
    """Wall-clock limit of one grading; what reaches it is wrong, and counted as a failure."""
    processes: int = 2
    """Gradings at the same time."""

    def run(self) -> None:
        """Grade, write, print one line."""
        from aepo.grading.files import grade_file
        from aepo.grading.table import GRADERS

        out = self.out or self.file.with_name(f"{self.file.stem}.graded.jsonl")
        print(grade_file(self.file, out, GRADERS[self.grader](), self.processes, self.seconds).line())


@dataclass(frozen=True)
class Report:
    """One HTML page of one or more runs, with its figures and a Markdown twin (docs/report.md)."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; those that differ in their seed alone get intervals. Of several paths, others are left out."""
    out: Path | None = None
    """Where report.html, report.md and figures/ go (default: report/ in the run's folder, or beside several)."""
    base: Path | None = None
    """The base model's pass@k: the folder of an `aepo evaluate` on the runs' task, or an `aepo compare`'s base.json
    (default: base.json beside the runs, if it is theirs)."""
    step: Annotated[tuple[int, ...], tyro.conf.UseAppendAction] = field(default=())
    """Show the samples of this step, as often as needed (default: the first, the middle and the last)."""

    def run(self) -> None:
        """Read, write, say where."""
        from aepo.analysis.report.build import report
        from aepo.analysis.report.runs import readable

        print(f"written: {readable(str(report(self.runs, self.out, self.base, self.step)))}")


@dataclass(frozen=True)
class Watch:
    """A run in the terminal, in progress or finished: entropy and target as a line, and the latest numbers."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    once: bool = False
    """Print one picture and stop."""
    every: float = 2.0
    """Seconds between two looks at the folder."""

    def run(self) -> None:
        """Until the run is finished, or q."""
        from aepo.analysis.watch import watch

        watch(self.folder, self.once, self.every)


@dataclass(frozen=True)
class CheckEntropy:
    """Run our fixtures through a trainer's own log-prob and entropy function (docs/conformance.md)."""

    function: Annotated[str, tyro.conf.Positional]
    """module:function or file.py:function, f(logits, labels, mask, temperature) -> (logprobs, entropy[, mean])."""
    combine: str | None = None
    """How the trainer joins the third results of its ranks, a list, to one number: module:function."""
    causal: bool = False
    """logits and labels are the model's output and input; the function shifts them itself."""
    tolerance: float = 1e-4
    """Largest accepted difference, nats."""

    def run(self) -> None:
        """Print a line for each property; exit code 1 if one fails, 2 if there was nothing to check."""
        from aepo.conformance import check_function, load_function

        joined = None if self.combine is None else load_function(self.combine, "--combine")
        function = load_function(self.function, "function")
        findings = check_function(function, combine=joined, causal=self.causal, tolerance=self.tolerance)
        for finding in findings:
            print(f"{finding.status:<12} {finding.name}{f': {finding.text}' * bool(finding.text)}")
        if all(finding.status == "not checked" for finding in findings):
            wanted = "a function that returns log-probabilities or entropies: nothing was checked"
            raise InvalidValue("function", self.function, wanted)
        if any(finding.status == "FAILED" for finding in findings):
            sys.exit(1)


@dataclass(frozen=True)
class Compare:
    """Methods x targets x seeds from one file, at equal cost, with paired differences (docs/compare.md)."""

    file: Annotated[Path, tyro.conf.Positional]
    """TOML: cost, budget, methods, targets, seeds, baseline, [base], [evaluation]."""
    out: Path | None = None
    """Where the runs and the table go; one that was cut short is gone on with (default: runs/NAME of the file)."""
    dry_run: bool = False
    """List the runs and their cost, and stop."""
    at_once: int | None = None
    """Runs at the same time (default: what memory and cores hold)."""

    def run(self) -> None:
        """Run what is missing, write, print the table."""
        from aepo.analysis.compare.run import compare

        compare(self.file, self.out or Path("runs") / self.file.stem, dry_run=self.dry_run, at_once=self.at_once)


@dataclass(frozen=True)
class FitLaw:
    """Fit R = -a exp(H) + b to one or several runs, with intervals and a held-out error (docs/compare.md)."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; one law is fitted to all of them together. Of several paths, others are left out."""
    reward: Literal["reward", "pass@1"] = "reward"
    """R: each step's mean reward, or each evaluation's pass@1."""
    held_out: float = 0.3
    """The share of each run, at its end, that the fit to the rest predicts."""
    seed: int = 0
    """Decides the bootstrap."""

    def run(self) -> None:
        """Fit, print."""
        from aepo.analysis.law_fit import Points, fit_law
        from aepo.analysis.report.runs import read_runs, run_folders

        runs = read_runs(run_folders(self.runs), samples=False)
        points = [Points.of_rows(run.rows, self.reward) for run in runs]
        print(*fit_law(points, held_out=self.held_out, seed=self.seed).lines(), sep="\n")


@dataclass(frozen=True)
class Calibrate:
    """Measure a base model on data, and propose targets and settings, each with its reason (docs/calibrate.md)."""

    model: Annotated[str, tyro.conf.Positional]
    """A folder in Hugging Face format, a name on the hub, or `builtin`."""
    data: Annotated[str, tyro.conf.Positional]
    """A file of problems and answers, a data set, or a task: paths, countdown, gym."""
    prompts: int = 64
    """Prompts; standard errors are over them."""
    samples: int = 16
    """Completions of each."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """Any setting of a run that matters here: --set task.max_response=4096 --set policy.dtype=bfloat16."""
    out: Path | None = None
    """Write the proposals as a recipe for `aepo train`."""

    def run(self) -> None:
        """Measure, print, write."""
        from aepo.planning.calibrate import calibration_config, measure, proposals, recipe
        from aepo.training.folder import write_atomically

        config = calibration_config(self.model, self.data, self.set)
        found = measure(config, self.prompts, self.samples)
        proposed = proposals(found, config.task)
        print(*found.lines(), *(proposal.line() for proposal in proposed), sep="\n")
        if self.out is not None:
            write_atomically(self.out, recipe(config, self.set, found, proposed))


@dataclass(frozen=True)
class Doctor:
    """What is wrong with a run, from its log: ours, TRL, verl, OpenRLHF, W&B, TensorBoard, ... (docs/doctor.md)."""

    logs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Log files, or folders with logs in them."""
    resumed_at: Annotated[tuple[int, ...], tyro.conf.UseAppendAction] = field(default=())
    """A step at which the run was resumed, where the log does not show it; as often as needed."""
    json: bool = False
    """JSON instead of a table."""

    def run(self) -> None:
        """Print; exit code 1 if something serious is sure or likely."""
        from aepo.doctor.report import doctor

        sys.exit(doctor(self.logs, self.resumed_at, self.json))


COMMANDS: dict[str, Callable[..., Any]] = {
    "train": Train,
    "evaluate": Evaluate,
    "demo": Demo,
    "methods": Methods,
    "grade": Grade,
    "doctor": Doctor,
    "compare": Compare,
    "fit-law": FitLaw,
    "calibrate": Calibrate,
    "check-entropy": CheckEntropy,
    "report": Report,
    "watch": Watch,
}
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


def main() -> None:
    """Parse, run; bad input is one line on standard error and exit code 2."""
    # The hub's retries say nothing that our one line at the end does not.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    try:
        tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="aepo").run()
    except InvalidValue as error:
        sys.exit(_refuse(str(error)))
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        where = error.filename or "disk"
        sys.exit(_refuse(f"{where}: cannot be written ({error.strerror}); what was written before is whole"))
    except KeyboardInterrupt:
        sys.exit(130)


def _refuse(line: str) -> int:
    print(f"aepo: {line}", file=sys.stderr)
    return 2
