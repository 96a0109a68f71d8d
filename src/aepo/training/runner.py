"""`start` and `resume` do a whole run: they prepare it, do its steps, evaluate, save checkpoints and plot."""

from __future__ import annotations

import importlib.util
import math
import signal
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from aepo.bars import counted, print_wrapped
from aepo.config import Config, make_config, to_dict
from aepo.control.base import generator
from aepo.doctor.live import Watcher
from aepo.engines.preflight import Seen, implausible_targets, unusable_rewards
from aepo.engines.stops import StopStrings
from aepo.errors import InvalidValue, RunDiedError, require
from aepo.model.builtin import PretrainingTask, base_model
from aepo.model.memory import memory_of, sizes
from aepo.model.policy import Policy
from aepo.model.shared import fit_update
from aepo.sampling.base import Sampler
from aepo.sampling.check import check_sampler
from aepo.sampling.draw import WHOLE
from aepo.sampling.hf import HFSampler
from aepo.sampling.prompts import checked_prompts
from aepo.sampling.prompts import fitted as fitted_task
from aepo.training.activity import Activity
from aepo.training.callbacks import Callback
from aepo.training.checkpoint import FOLDER, TrainState, load_checkpoint, save_checkpoint, steps_saved
from aepo.training.evaluate import Evaluation, evaluate
from aepo.training.folder import (
    METRICS,
    cut_back,
    new_folder,
    read_rows,
    sole_writer,
    write_change,
    write_config,
    write_environment,
)
from aepo.training.header import header
from aepo.training.intervals import Due
from aepo.training.plot import plot_run
from aepo.training.preflight import implausible_rate, preflight
from aepo.training.progress import SAMPLES_PER_STEP, RunLog, Shown
from aepo.training.step import Run, make_optimizer, probe, train_step
from aepo.training.stopping import StopRequest
from aepo.training.trackers import Forward, check_installed
from aepo.training.vitals import MEMORY, death, sick
from aepo.types import Sample


def start(
    config: Config, out: Path, quiet: bool = False, strict: bool = False, callbacks: Sequence[Callback] = ()
) -> None:
    """Train, evaluate, save and plot a new run. The folder exists from the first second.

    Before the first step, preflight finds problems of the settings and, from some completions of the base model,
    implausible targets and unusable rewards. They are printed, unless `quiet`, or raised with `strict`.

    Args:
        config: The settings of the run.
        out: The run folder. It must not hold a run with a finished step.
        quiet: Whether to print nothing.
        strict: Whether a problem that the preflight finds is an error.
        callbacks: What is called after every step and evaluation.

    Raises:
        InvalidValue: A setting cannot be used, the folder holds a run already, another process writes the run, or
            `strict` is set and preflight finds a problem.
        RunDiedError: The run cannot learn any more.
    """
    with new_folder(out, config), _told_how_to_begin_again(out, quiet):
        _say_preflight(preflight(config), quiet, strict)
        run, state = _prepare(config, None, quiet)
        write_config(out, run.config)
        write_environment(out, run.policy.device)
        if not quiet:
            print_wrapped(*header(run, out))
        _say_preflight(_probe(run, quiet), quiet, strict)
        _finish(run, state, out, quiet, callbacks)


def resume(out: Path, quiet: bool = False, settings: Sequence[str] = (), callbacks: Sequence[Callback] = ()) -> None:
    """Resume a run from its newest checkpoint, or from the beginning if it has no checkpoint.

    Args:
        out: The run folder.
        quiet: Whether to print nothing.
        settings: New settings, `name=value`; only those of `CHANGEABLE` may change. `steps` prolongs the run. The
            folder's config.toml is rewritten, and changes.jsonl keeps what changed after which step.
        callbacks: What is called after every step and evaluation.

    Raises:
        InvalidValue: The folder holds no run, its files cannot be read, another process writes the run, or a setting
            may not change.
        RunDiedError: The run cannot learn any more.
    """
    if not (out / "config.toml").exists():
        raise InvalidValue("resume", str(out), "a run folder (it holds no config.toml)")
    with sole_writer(out), _told_how_to_begin_again(out, quiet):
        config = _changed(out, settings)
        saved = steps_saved(out)
        run, state = _prepare(config, out / FOLDER / f"step-{saved[-1]}" if saved else None, quiet)
        cut_back(out, state.step)
        if not quiet:
            print_wrapped(*header(run, out), f"resumed after step {state.step}")
        if settings:
            write_change(out, run.config, state.step, settings)
        _finish(run, state, out, quiet, callbacks)


@contextmanager
def _told_how_to_begin_again(out: Path, quiet: bool) -> Iterator[None]:
    """Say how to go on if Ctrl-C ends the `with` block while the run still loads; later `_finish` says it."""
    try:
        yield
    except KeyboardInterrupt as stop:
        if not quiet and not stop.args:
            print(f"stopped; go on with: aepo train --resume {out}", flush=True)
        raise


# The settings, or tables of settings, that a run may change when it is resumed: none of them alters what was done.
CHANGEABLE = (
    *("steps", "budget_completions", "budget_tokens", "evaluation", "checkpoint", "tracker", "device", "threads"),
    *("optimizer.lr", "optimizer.microbatch", "sampling.max_rows", "sampling.engine", "sampling.server"),
    "sampling.decode",
    *("policy.attention", "policy.gradient_checkpointing", "task.verifier.processes", "task.verifier.seconds"),
)


def _changed(out: Path, settings: Sequence[str]) -> Config:
    """Return the configuration of the run with some settings changed."""
    for setting in settings:
        name = setting.partition("=")[0].strip()
        may = any(name == known or name.startswith(f"{known}.") for known in CHANGEABLE)
        require(may, "--resume", setting, f"a setting that may change in a run: {', '.join(CHANGEABLE)}")
    config = make_config(out / "config.toml", settings=settings)
    saved = steps_saved(out)
    done = saved[-1] if saved else 0
    require(config.steps >= done, "steps", config.steps, f"at least the {done} steps that are done")
    return config


def _probe(run: Run, quiet: bool) -> list[str]:
    """Draw some completions before the first step, and return a sentence for each problem that they show.

    Raises:
        InvalidValue: No completion got a reward.
    """
    config = run.config
    run.sampler.refresh(run.policy)
    found = probe(run)
    rewards = [rollout.reward for rollout in found.judged.rollouts]
    right = sum(rollout.right for rollout in found.judged.rollouts)
    rule = run.task.right_rule
    seen = Seen(rewards, right, rule.describe(), found.completions, tuple(found.judged.failures))
    sentences = implausible_targets(config.control, config.steps, found.entropy.mean) if rewards else []
    sentences += unusable_rewards(config.algorithm, seen)
    parameters = sum(parameter.numel() for parameter in run.policy.model.parameters())
    sentences += implausible_rate(config.optimizer.lr, parameters, run.policy.adapter is not None)
    sentences += run.fit.problems() if run.fit else []
    if not quiet:
        print_wrapped(
            f"before training: entropy {found.entropy.mean:.3f} nats, reward {math.fsum(rewards) / len(rewards):.3f} "
            f"({min(rewards):g} to {max(rewards):g}), right {right} of {len(rewards)} ({rule.describe()})"
        )
    return sentences


def _say_preflight(sentences: Sequence[str], quiet: bool, strict: bool) -> None:
    if sentences and strict:
        raise InvalidValue("preflight", "; ".join(sentences), "empty with --strict")
    if not quiet:
        print_wrapped(*(f"preflight: {sentence}" for sentence in sentences))


def model_folder(config: Config, quiet: bool = False) -> str:
    """Return the folder, or the name on the hub, of the run's base model.

    The built-in model is trained first if it is not in the cache.

    Raises:
        InvalidValue: The built-in model cannot be trained for this task.
    """
    if config.model != "builtin":
        return config.model
    if not isinstance(config.task, PretrainingTask):
        task = type(config.task).__name__.lower()
        wanted = f"a folder in Hugging Face format or a name on the hub (task {task} cannot train the built-in model)"
        raise InvalidValue("model", "builtin", wanted)
    if quiet:
        return str(base_model(config.task))
    with counted("steps", "built-in base model") as show:

        def progress(step: int, steps: int, loss: float) -> None:
            if step == 1:
                print(f"training the built-in base model, once: {steps} steps", flush=True)
            show(step, steps)

        return str(base_model(config.task, progress=progress))


def make_sampler(policy: Policy, config: Config) -> Sampler:
    """Return the sampler that the settings ask for, and refuse a model that it cannot draw from.

    The vLLM engine does not start here. It starts when the sampler first receives weights.
    """
    sampling = config.sampling
    stop = StopStrings(sampling.stops, policy.tokenizer) if sampling.stops else None
    drawn: dict[str, Any] = {"top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": sampling.min_p, "stop": stop}
    drawn["room"] = policy.room
    if sampling.engine == "hf":
        return _hf_sampler(policy, config, drawn)
    wanted = "hf with a model of images: vLLM does not get them here yet"
    require(policy.images is None, "sampling.engine", sampling.engine, wanted)
    from aepo.sampling.vllm import VLLMBackend, VLLMSampler
    from aepo.sampling.vllm_local import LocalVLLMBackend
    from aepo.sampling.vllm_server import ServerVLLMBackend

    backend: VLLMBackend
    if sampling.server is not None:
        scratch = None if sampling.scratch is None else Path(sampling.scratch)
        way: Literal["files", "nccl"] = "nccl" if sampling.weights == "nccl" else "files"
        backend = ServerVLLMBackend(sampling.server, scratch=scratch, weights=way)
    else:
        local: Literal["files", "ipc", "auto"] = "files"
        if sampling.weights == "ipc" or (sampling.weights == "auto" and policy.device.type == "cuda"):
            local = sampling.weights
        # vLLM itself finds stop strings, and needs the tokenizer for nothing else.
        backend = LocalVLLMBackend(weights=local, skip_tokenizer_init=stop is None)
    return VLLMSampler(backend, eos_token_ids=policy.eos_token_ids, **drawn)


def _hf_sampler(policy: Policy, config: Config, drawn: Mapping[str, Any]) -> HFSampler:
    """Return a sampler that decodes as the settings ask; with `auto` on a GPU, the static way if the model can."""
    asked = config.sampling.decode
    ways = ("static", "dynamic") if asked == "auto" and policy.device.type == "cuda" else (asked,)
    for way in ways:
        sampler = HFSampler(
            policy.model,
            eos_token_ids=policy.eos_token_ids,
            pad_token_id=policy.pad_token_id,
            look=policy.look,
            max_rows=config.sampling.max_rows,
            decode="static" if way == "static" else "dynamic",
            context=policy.rounded_once,
            **drawn,
        )
        try:
            check_sampler(policy, sampler.with_cuts(WHOLE))
            break
        except InvalidValue:
            if way == ways[-1]:
                raise
    return sampler


def device_name(config: Config) -> str:
    """Return the device of the policy, as torch names it."""
    if config.device != "auto":
        return config.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def check_machine(config: Config) -> None:
    """Check that this machine has the device and the sampling engine.

    Raises:
        InvalidValue: There is no GPU for `cuda` or for `sampling.weights`, or vLLM is not installed.
    """
    wanted = "auto or cpu: torch sees no GPU here"
    require(config.device != "cuda" or torch.cuda.is_available(), "device", config.device, wanted)
    sampling = config.sampling
    there = sampling.engine != "vllm" or sampling.server is not None or importlib.util.find_spec("vllm") is not None
    wanted = "hf, or vllm with `pip install 'aepo[vllm]'` or with sampling.server"
    require(there, "sampling.engine", sampling.engine, wanted)
    if sampling.weights in ("ipc", "nccl"):
        from aepo.sampling.vllm_transfer import check_device, check_version

        check_device(sampling.weights, torch.device(device_name(config)))
        check_version(sampling.weights)


def _prepare(config: Config, checkpoint: Path | None, quiet: bool) -> tuple[Run, TrainState]:
    """Load everything that the run needs, from the checkpoint if there is one. Nothing is written to the run folder."""
    check_installed(config.tracker)
    check_machine(config)
    config.task.check()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = device_name(config)
    folder = checkpoint or model_folder(config, quiet)
    template = None if checkpoint else config.task.template()  # a checkpoint carries it
    policy = Policy.load(folder, device, config.policy, config.seed, template)
    checked = checked_prompts(config.task, policy.encoding, config.seed, policy.room)
    task = checked.task
    policy.end_at([checked.first.text])
    if config.evaluation.every:
        task.eval_problems(config.evaluation.prompts)
    fit = fit_update(config, sizes(policy.model), checked.longest, checked.mean, memory_of(policy.device))
    if fit.saved is not None and not policy.share_prompts():
        wanted = "auto or false: this model reads a packed prompt in another way than plain rows"
        require(config.policy.share_prompts == "auto", "policy.share_prompts", True, wanted)
        fit = replace(fit, saved=None)
    config = fit.applied(config)
    if fit.checkpointing and not policy.checkpointing:
        policy.recompute_activations()
    optimizer = make_optimizer(policy, config.optimizer)
    if checkpoint is None:
        state = TrainState(control=config.control.initial_state(), data=task.fingerprint())
    else:
        state = load_checkpoint(checkpoint, optimizer)
        if policy.images is not None:
            policy.images.recall(checkpoint)
        wanted = "the data that the run was trained on: a row of task.train or task.eval has changed since"
        require(state.data in ("", task.fingerprint()), "resume", f"data {task.fingerprint()[:12]}", wanted)
    sampler = make_sampler(policy, config)
    reference = None
    if config.kl_coefficient > 0 or config.control.needs(config.control.initial_state()).reference:
        reference = (
            Policy.load(model_folder(config, quiet), device, config.policy).frozen()
            if policy.adapter is None
            else policy.without_adapter()
        )
        if policy.sharing is not None:
            reference.share_prompts()
    return Run(config, config.algorithm, task, policy, sampler, optimizer, reference, fit), state


def _finish(run: Run, state: TrainState, out: Path, quiet: bool, callbacks: Sequence[Callback] = ()) -> None:
    """Do the remaining steps of the run, then plot it.

    If Ctrl-C, SIGTERM or a callback asks for a stop, the run ends after its present step, with a checkpoint.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped the run.
        SystemExit: SIGTERM stopped the run; the status is 143.
    """
    config = run.config
    told = False
    with (
        closing(run.sampler),
        RunLog(out, config, state.step, quiet) as log,
        Forward(config.tracker, out, to_dict(config), state.step, log.say) as tracker,
        StopRequest(quiet) as asked,
    ):
        run.activity.show = log.activity
        run.sampler.report = run.activity.at
        if state.step == 0:
            _evaluate_first(run, log, callbacks)
        rows = read_rows(out / METRICS)
        recent, watcher = deque(rows[-MEMORY:], MEMORY), _watcher(config, out, log, rows)
        due = Due(config)
        while not _ended(config, state) and asked.signal is None and not told:
            state, row = _logged_step(run, state, out, log, tracker, due, callbacks)
            recent.append(row)
            _stop_if_dead(run, recent, out)
            told = watcher.see(row["step"], row)
            for callback in callbacks:
                told = bool(callback.on_step(row)) or told
        stopped = not _ended(config, state)
        if stopped and state.step not in steps_saved(out):
            save_checkpoint(out, run.policy, run.optimizer, state, config.checkpoint.keep)
    plot_run(out)
    if not quiet:
        why = " by the doctor" if told and not callbacks else ""
        what = f"stopped{why} after step {state.step}; go on with: aepo train --resume {out}"
        print(what if stopped else f"finished: {out}", flush=True)
    if asked.signal == signal.SIGTERM:
        sys.exit(128 + signal.SIGTERM)
    if asked.signal is not None:
        raise KeyboardInterrupt("the run has said how to go on")


def _evaluate_first(run: Run, log: RunLog, callbacks: Sequence[Callback]) -> None:
    """Evaluate the base model, if the run has evaluations: step 0 of evaluations.jsonl."""
    if run.config.evaluation.every and run.config.evaluation.first:
        evaluation = _evaluate(run)
        log.evaluation(0, evaluation)
        scores = f"pass@1 {evaluation.pass_at(1):.3f} ({evaluation.right}), reward {evaluation.reward:.3f}"
        log.say(f"evaluation before training: {scores}")
        for callback in callbacks:
            callback.on_evaluation(0, evaluation)


def _watcher(config: Config, out: Path, log: RunLog, rows: Sequence[Mapping[str, Any]]) -> Watcher:
    """Return the doctor of the run, with the rows that a resumed run has logged before."""
    watcher = Watcher(config.doctor, out, log.say, to_dict(config))
    for row in rows:
        watcher.add(row["step"], row)
    return watcher


def _ended(config: Config, state: TrainState) -> bool:
    """Return whether all steps are done or a budget is used up."""
    spent = ((config.budget_completions, state.completions), (config.budget_tokens, state.tokens))
    return state.step >= config.steps or any(budget is not None and used >= budget for budget, used in spent)


def _stop_if_dead(run: Run, recent: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Raise `RunDiedError` if the newest rows show that the run cannot learn any more."""
    found = death(list(recent), run.policy.vocabulary)
    if found is None:
        return
    first, why = found
    sound = steps_saved(out)
    folder = f"the last sound checkpoint is {out / FOLDER / f'step-{sound[-1]}'}" if sound else "there is no checkpoint"
    raise RunDiedError(f"the run is dead: {why}, from step {first} on; {folder}")


def _logged_step(
    run: Run,
    state: TrainState,
    out: Path,
    log: RunLog,
    tracker: Forward,
    due: Due,
    callbacks: Sequence[Callback] = (),
) -> tuple[TrainState, dict[str, Any]]:
    """Do one step, with its evaluation and its checkpoint if they are due, and log it.

    The checkpoint is written after the rows, so that a resumed run repeats exactly the steps after the checkpoint. A
    step that looks like one of a dead run writes none, so that the last sound checkpoint stays.
    """
    state, row, samples = train_step(run, state)
    state = replace(state, completions=state.completions + row["completions"], tokens=state.tokens + row["tokens"])
    last = _ended(run.config, state)
    if due.evaluation(state.step) or (last and run.config.evaluation.every != 0):
        evaluation = _evaluate(run)
        row["evaluation"] = evaluation.row()
        due.done("evaluation")
        log.evaluation(row["step"], evaluation)
        state = _best(state, row["evaluation"]["pass@1"])
        for callback in callbacks:
            callback.on_evaluation(row["step"], evaluation)
    shown = _shown(run, samples, generator(run.config.seed, state.step, "shown"))
    log.step(row, shown)
    tracker.step(row, [one.row(row["step"]) for one in shown])
    if last or (due.checkpoint(state.step) and not sick(row, run.policy.vocabulary)):
        save_checkpoint(out, run.policy, run.optimizer, state, run.config.checkpoint.keep)
        due.done("checkpoint")
    return state, row


def evaluate_policy(policy: Policy, config: Config, problems: int, samples: int) -> Evaluation:
    """Return an evaluation of a policy on the task of a configuration. A bar shows how far it is."""
    task, told = fitted_task(config.task, policy, config.seed), Activity()
    with closing(make_sampler(policy, config)) as sampler, _bar(told, sampler, "evaluation"):
        sampler.refresh(policy)
        whole = sampler.with_cuts(WHOLE)
        return evaluate(policy, whole, task, problems=problems, samples=samples, activity=told)


def evaluate_base(config: Config) -> Evaluation:
    """Return the evaluation of the base model, on the same problems and draws as a run with `config`.

    A bar shows how far it is.
    """
    run, _ = _prepare(config, None, quiet=False)
    with closing(run.sampler), _bar(run.activity, run.sampler, "base model"):
        return _evaluate(run)


@contextmanager
def _bar(activity: Activity, sampler: Sampler, text: str) -> Iterator[None]:
    """Show in a bar what the activity tells and the sampler reports inside the `with` block."""
    with counted("completions", text) as show:
        activity.show = lambda _, done, rows: show(done, rows)
        sampler.report = activity.at
        yield


def _shown(run: Run, samples: Sequence[Sample], draw: torch.Generator) -> list[Shown]:
    """Return a few samples at random, with their texts. One of them is an extra sample, if there is any."""
    order = [samples[i] for i in torch.randperm(len(samples), generator=draw).tolist()]
    extra = [sample for sample in order if sample.extra][:1]
    ordinary = [sample for sample in order if not sample.extra]
    chosen = [*ordinary[: SAMPLES_PER_STEP - len(extra)], *extra]
    completions = [sample.rollout.completion for sample in chosen]
    texts = run.policy.decode([completion.tokens for completion in completions])
    prompts = run.policy.decode_prompts([completion.prompt for completion in completions])
    answers = [run.task.known_answer(completion.prompt.problem) for completion in completions]
    return [Shown(*one) for one in zip(chosen, prompts, texts, answers, strict=True)]


def _evaluate(run: Run) -> Evaluation:
    settings = run.config.evaluation
    run.sampler.refresh(run.policy)
    sampler = run.sampler.with_cuts(WHOLE)
    told = run.activity
    return evaluate(run.policy, sampler, run.task, problems=settings.prompts, samples=settings.samples, activity=told)


def _best(state: TrainState, score: float) -> TrainState:
    if state.best_score is not None and score <= state.best_score:
        return state
    return replace(state, best_step=state.step, best_score=score)
