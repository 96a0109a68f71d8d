"""Every format is read, other files are refused. tests/doctor/logs/README.md says which logs are made by hand."""

import json
import math
from pathlib import Path

import pytest

from aepo.doctor import examine, read
from aepo.doctor.readers.rows import Rows
from aepo.doctor.types import Log
from aepo.errors import InvalidValue

LOGS = Path(__file__).parent / "logs"


def only(path: Path, *resumes: int) -> Log:
    (log,) = read(path, resumes)
    return log


def lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


TRL_ROW = {"entropy": 1.0, "frac_reward_zero_std": 0.0, "reward": 1.0}
VERL_ROW = {
    "actor/entropy": 0.32, "actor/ppo_kl": -8e-6, "actor/pg_clipfrac": 8e-4, "actor/grad_norm": 0.13,
    "critic/score/mean": 0.41, "critic/advantages/max": 1.8, "critic/advantages/min": -1.8,
    "response_length/mean": 288.7, "response_length/clip_ratio": 0.02, "training/rollout_probs_diff_mean": 0.003,
}  # fmt: skip


def test_our_run_folder_with_its_settings():
    log = only(LOGS / "aepo" / "idle")
    assert log.framework == "aepo" and log.steps == (0, 11)
    assert log.settings["control"]["name"] == "kl-cov"
    assert log.entropy.kind == "exact" and not log.entropy.then


def test_trl_trainer_state():
    log = only(LOGS / "trl" / "cut" / "trainer_state.json")
    assert log.framework == "TRL" and log.steps == (1, 16)
    assert log.get("truncated")[0] == (1, 0.625)
    assert log.keys["dead_groups"] == "frac_reward_zero_std"


def test_trl_output_folder_has_state_and_completions():
    pytest.importorskip("pyarrow")
    state, completions = read(LOGS / "trl" / "dead")
    assert (state.framework, completions.framework) == ("TRL", "TRL completions")
    assert completions.get("dead_groups") == tuple((step, 1.0) for step in range(1, 7))
    assert all(0.9 < share <= 1 for _, share in completions.get("distinct"))


def test_trl_output_folder_without_its_own_state_takes_the_last_checkpoint(tmp_path):
    state = (LOGS / "trl" / "cut" / "trainer_state.json").read_text()
    for number, text in ((9, '{"log_history": []}'), (10, state)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text(text)
    assert only(tmp_path).steps == (1, 16)


def test_trl_ppo_entropy_sum_gives_way_to_the_mean(tmp_path):
    row = {"step": 1, "objective/entropy": 99.8, "objective/kl": 10.5, "policy/entropy_avg": 0.98, "val/ratio": 0.97}
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": [row]}))
    log = only(path)
    assert log.framework == "TRL PPO" and log.get("entropy") == ((1, 0.98),) and log.get("entropy_sum") == ((1, 99.8),)
    del row["policy/entropy_avg"]
    path.write_text(json.dumps({"log_history": [row]}))
    assert only(path).entropy.kind == "sum"


def test_trainer_state_shows_a_resume_after_an_end(tmp_path):
    row = TRL_ROW
    history = [
        row | {"step": 1},
        {"step": 1, "train_runtime": 3.0},
        row | {"step": 2},
        {"step": 2, "train_runtime": 1.0},
    ]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": history}))
    assert only(path).resumes == (2,)


def test_verl_as_it_ran_console_and_file_logger_say_the_same():
    console, file = only(LOGS / "verl" / "log.txt"), only(LOGS / "verl" / "metrics.jsonl")
    assert console.framework == file.framework == "verl" and console.steps == (1, 12)
    assert console.series == file.series and console.keys == file.keys and console.resumes == file.resumes == ()
    assert console.get("entropy")[0] == (1, 5.540309906005859) and console.get("reward")[11] == (12, 0.25)
    assert console.get("mismatch_kl")[1] == (2, -2.0980834847250662e-08)


def test_verl_file_logger_by_hand(tmp_path):
    """Its JSON has no NaN and no infinity: orjson writes null for both."""
    blown = {**VERL_ROW, "actor/grad_norm": None}
    log = only(lines(tmp_path / "metrics.jsonl", [{"step": 1, "data": VERL_ROW}, {"step": 2, "data": blown}]))
    assert log.framework == "verl" and log.steps == (1, 2)
    assert log.get("entropy") == ((1, 0.32), (2, 0.32)) and log.get("no_advantage") == ((1, 0.0), (2, 0.0))
    assert log.get("gradient_norm")[0] == (1, 0.13) and math.isnan(log.get("gradient_norm")[1][1])


@pytest.mark.parametrize("where", ["verl", "trl"])
def test_what_our_plug_in_logs_counts_before_the_trainers_own(tmp_path, where):
    """Theirs has the tempered rows in it, and knows no target."""
    ours = {"aepo/entropy": 0.5, "aepo/target_entropy": 0.6, "aepo/alarm": 1.0, "aepo/mismatch": 0.01}
    if where == "verl":
        log = only(lines(tmp_path / "m.jsonl", [{"step": 1, "data": {**VERL_ROW, **ours}}]))
    else:
        path = tmp_path / "trainer_state.json"
        path.write_text(json.dumps({"log_history": [{**TRL_ROW, **ours, "step": 1}]}))
        log = only(path)
    assert log.keys["entropy"] == "aepo/entropy" and log.get("entropy") == ((1, 0.5),)
    assert log.get("target_entropy") == ((1, 0.6),) and log.get("alarm") == ((1, 1.0),)
    assert log.entropy.kind == "exact" and log.get("reward") and log.get("mismatch") == ((1, 0.01),)


def test_verl_rows_without_a_step_that_is_a_number_are_left_out(tmp_path):
    rows = [{"step": step, "data": VERL_ROW} for step in (None, "a", 1, math.inf, [2], 3)]
    assert [step for step, _ in only(lines(tmp_path / "m.jsonl", rows)).get("entropy")] == [1, 3]


@pytest.mark.parametrize("printed", ["{}", "np.float64({})", "np.float32({})"])
def test_verl_console_by_hand(tmp_path, printed):
    """NumPy from version 2 on prints its numbers with their type around them."""
    body = " - ".join(f"{key}:{printed.format(value)}" for key, value in VERL_ROW.items())
    text = (
        "(TaskRunner pid=1) Config, and so on\n"
        "step:0 - val-core/openai/gsm8k/acc/mean@1:0.508\n"
        f"(TaskRunner pid=1) step:1 - {body} - val-core/openai/gsm8k/acc/mean@1:0.5\n"
        f"(WorkerDict pid=2) UserWarning: not this\n(TaskRunner pid=1) step:2 - {body.replace('0.32', 'nan')}\n"
        f"step:{'9' * 5000} - {body}\n"
    )
    (tmp_path / "run.log").write_text(text)
    log = only(tmp_path / "run.log")
    assert log.steps == (1, 2)
    assert log.framework == "verl" and log.get("entropy")[0] == (1, 0.32) and math.isnan(log.get("entropy")[1][1])
    assert log.get("approximate_kl")[0] == (1, -8e-6)


def test_verl_old_name_is_exact_but_named_a_loss(tmp_path):
    row = {"actor/entropy_loss": 0.317, "actor/pg_clipfrac": 0.0, "actor/ppo_kl": 0.0}
    log = only(lines(tmp_path / "m.jsonl", [{"step": 83, "data": row}]))
    assert log.framework == "verl" and log.entropy.kind == "exact" and "a loss" in log.entropy.then


def easyr1(step: int, entropy: float) -> dict:
    return {
        "step": step,
        "actor": {"entropy_loss": entropy, "pg_clipfrac_higher": 0.001, "pg_clipfrac_lower": 0.0, "ppo_kl": 1e-4},
        "critic": {"score": {"mean": 0.5}, "advantages": {"max": 0.0, "min": 0.0}},
        "response_length": {"mean": 100.0, "clip_ratio": 0.0},
    }


def test_easyr1_nested_file_logger_by_hand(tmp_path):
    log = only(lines(tmp_path / "experiment_log.jsonl", [easyr1(1, 0.4), easyr1(2, 0.3)]))
    assert log.framework == "EasyR1" and log.entropy.kind == "sampled"
    assert log.get("entropy") == ((1, 0.4), (2, 0.3)) and log.get("no_advantage") == ((1, 1.0), (2, 1.0))
    assert only(tmp_path).framework == "EasyR1"


@pytest.mark.parametrize("printed", ["{}", "np.float64({})"])
def test_openrlhf_console_by_hand(tmp_path, printed):
    head = "(PPOTrainer pid=9) 2026-01-01 INFO ppo_trainer.py:547] ✨ Global step"
    status = (
        "'policy_loss': -1e-07, 'actor_lr': 5e-07, 'response_length': 40.375, 'group_reward_std': 0.0, 'v': 1.2.3, "
        "'reward': {}"
    )
    first, second = printed.format("0.25"), printed.format("nan")
    steps = [f"{head} 1: {{{status.format(first)}, 'entropy_loss': 0.6}}", f"{head} 2: {{{status.format(second)}}}"]
    steps.append(f"{head} {'9' * 5000}: {{{status.format(first)}}}")
    (tmp_path / "out.txt").write_text("some other line: {}\n" + "\n".join(steps))
    log = only(tmp_path / "out.txt")
    assert log.framework == "OpenRLHF" and log.steps == (1, 2) and log.get("length") == ((1, 40.375), (2, 40.375))
    assert log.get("reward")[0] == (1, 0.25) and math.isnan(log.get("reward")[1][1])
    assert log.get("no_advantage") == ((1, 1.0), (2, 1.0)) and log.get("learning_rate")[0] == (1, 5e-07)


def tinker(step: int) -> dict:
    return {
        "step": step, "progress/batch": step, "optim/entropy": 0.43, "optim/kl_sample_train_v1": 1e-3,
        "optim/kl_sample_train_v2": 2e-3, "env/all/reward/total": 0.6, "env/all/by_group/frac_all_good": 0.5,
        "env/all/by_group/frac_all_bad": 0.25, "env/all/by_group/frac_mixed": 0.25, "env/all/ac_tokens_per_turn": 90,
    }  # fmt: skip


def test_tinker_metrics_by_hand(tmp_path):
    log = only(lines(tmp_path / "metrics.jsonl", [tinker(0), {"step": 0, "test/env/all/correct": 0.5}, tinker(1)]))
    assert log.framework == "tinker-cookbook" and log.entropy.kind == "sampled"
    assert log.get("dead_groups") == ((0, 0.75), (1, 0.75)) and log.get("mismatch_kl") == ((0, 2e-3), (1, 2e-3))


def test_wandb_chart_csv_by_hand(tmp_path):
    columns = "Step,a - v2 - actor/entropy,a - v2 - actor/entropy__MIN,a - v2 - _step,b - actor/entropy"
    (tmp_path / "chart.csv").write_text(f"{columns}\n1,0.5,0.4,1,0.7\n2,0.25,0.2,2,\n3,NaN,NaN,3,\n")
    first, second = read(tmp_path / "chart.csv")
    assert first.framework == "verl (W&B)" and first.source.endswith("(a - v2)")
    assert first.get("entropy")[:2] == ((1, 0.5), (2, 0.25)) and second.get("entropy") == ((1, 0.7),)
    assert math.isnan(first.get("entropy")[2][1]), "a chart leaves its gaps empty: this one is no gap"


def test_wandb_history_jsonl_by_hand(tmp_path):
    row = {
        "_step": 7,
        "_runtime": 3.0,
        "train/global_step": 1,
        "train/reward": 0.5,
        "train/frac_reward_zero_std": "NaN",
    }
    log = only(lines(tmp_path / "history.jsonl", [row, row | {"_step": 8, "train/global_step": 2}]))
    assert log.framework == "TRL (W&B)" and log.get("reward") == ((1, 0.5), (2, 0.5))
    assert math.isnan(log.get("dead_groups")[0][1])


def trained(step: int, call: int, **metrics) -> dict:
    """A row of TRL's on W&B, whose own clock counts the calls of its log function."""
    own = {"entropy": 0.8, "reward": 0.5, "frac_reward_zero_std": 0.1, "grad_norm": 0.4, **metrics}
    return {"_step": call, "train/global_step": step, **{f"train/{key}": value for key, value in own.items()}}


def test_wandb_history_has_one_clock_and_side_rows_are_no_steps(tmp_path):
    """Rows of TRL's profiling have W&B's count alone, which is faster than the steps, or slower."""
    for every, side in ((1, 4), (10, 60), (10, 1)):
        rows = []
        for step in range(every, 6 * every, every):
            rows += [{"_step": len(rows) + more, "profiling/Time taken": 1.0} for more in range(side)]
            rows.append(trained(step, len(rows)))
        rows.append({"_step": len(rows), "completions": {"_type": "table-file", "nrows": 8}})
        rows.append({"_step": len(rows), "train/reward": 0.9})
        log = only(lines(tmp_path / "history.jsonl", rows))
        assert [step for step, _ in log.get("entropy")] == list(range(every, 6 * every, every))
        assert log.resumes == ()


def test_wandb_history_that_goes_back_was_resumed(tmp_path):
    rows = [trained(step, call) for call, step in enumerate((1, 2, 3, 2, 3, 4))]
    assert only(lines(tmp_path / "history.jsonl", rows)).resumes == (2,)


def test_wandb_history_without_the_trainers_step_goes_by_its_own(tmp_path):
    rows = [{"_step": 2 * call, "actor/entropy": 0.5, "actor/ppo_kl": 1e-4} for call in range(4)]
    rows.append({"_step": 9, "global_step": 3, "val-core/acc": 0.5})
    rows.append({"global_step": 3, "actor/entropy": 0.5})
    assert [step for step, _ in only(lines(tmp_path / "history.jsonl", rows)).get("entropy")] == [0, 2, 4, 6]


def table(path: Path, rows) -> Path:
    """As a data frame would write them: every cell is there, and those that were not are NaN."""
    columns = sorted({key for row in rows for key in row})
    if path.suffix == ".csv":
        path.write_text("\n".join(",".join(map(str, cells)) for cells in (
            columns, *([row.get(column, "NaN") for column in columns] for row in rows))))  # fmt: skip
        return path
    return lines(path, [{column: row.get(column, math.nan) for column in columns} for row in rows])


@pytest.mark.parametrize("name", ["history.csv", "history.jsonl"])
def test_a_gap_that_is_written_as_nan_is_no_measurement_but_a_nan_among_numbers_is(tmp_path, name):
    side = [{"_step": 0, "profiling/a - b": 1.0}, {"_step": 3, "train/global_step": 1, "eval/reward": 0.5}]
    rows = [side[0], trained(1, 1), side[1], trained(2, 4, entropy=math.nan)]
    log = only(table(tmp_path / name, rows))
    assert log.get("reward") == ((1, 0.5), (2, 0.5)) and log.get("entropy")[0] == (1, 0.8)
    assert [step for step, _ in log.get("entropy")] == [1, 2] and math.isnan(log.get("entropy")[1][1])
    own = [{"_step": call, "optim/entropy": 0.4, "env/all/reward/total": 0.5} for call in (0, 2)]
    log = only(table(tmp_path / name, [own[0], {"_step": 1, "test/correct": 1.0}, own[1]]))
    assert log.framework == "tinker-cookbook (W&B)" and log.get("entropy") == ((0, 0.4), (2, 0.4))


def test_nothing_but_nan_is_no_gap_where_nothing_else_was_exported(tmp_path):
    rows = [{"_step": step, "_runtime": 1.0, "actor/entropy": value} for step, value in ((0, 0.5), (1, math.nan))]
    assert math.isnan(only(table(tmp_path / "history.jsonl", rows)).get("entropy")[1][1])


def test_tensorboard_events():
    pytest.importorskip("tensorboard")
    log = only(LOGS / "tensorboard")
    assert log.framework == "TRL (TensorBoard)" and log.steps == (1, 12)
    assert {"entropy", "reward", "dead_groups", "truncated"} <= set(log.series)
    assert only(next((LOGS / "tensorboard").iterdir())).series == log.series


def test_tensorboard_folders_are_runs_and_files_in_one_are_sessions(tmp_path):
    pytest.importorskip("tensorboard")
    events = next((LOGS / "tensorboard").iterdir()).read_bytes()
    for name in ("a/events.out.tfevents.1", "a/events.out.tfevents.2", "b/events.out.tfevents.1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(events)
    (tmp_path / "b" / "a_tfevents_folder").mkdir()
    (tmp_path / "hparams").mkdir()
    (tmp_path / "hparams" / "events.out.tfevents.1").write_bytes(b"")
    first, second, once = read(tmp_path)
    assert first.series == second.series == once.series and first.resumes == second.resumes == once.resumes == ()
    assert "run 2" in second.source
    with pytest.raises(InvalidValue, match="its keys: none"):
        read(tmp_path / "hparams")


def test_a_broken_byte_in_a_console_is_no_trouble(tmp_path):
    body = " - ".join(f"{key}:{value}" for key, value in VERL_ROW.items())
    (tmp_path / "run.log").write_bytes(b"progress \xe2\x96\n" + f"step:1 - {body}\n".encode())
    assert only(tmp_path / "run.log").get("entropy") == ((1, 0.32),)


def test_a_step_that_goes_back_is_a_resume_and_what_was_done_again_counts(tmp_path):
    rows = [easyr1(1, 0.1), easyr1(2, 0.2), easyr1(3, 0.3), easyr1(4, 0.4), easyr1(2, 0.9), easyr1(3, 0.8)]
    log = only(lines(tmp_path / "experiment_log.jsonl", rows))
    assert log.resumes == (2,) and log.get("entropy") == ((1, 0.1), (2, 0.9), (3, 0.8))
    assert only(tmp_path, 3).resumes == (2, 3)


def test_a_last_line_that_was_cut_off_is_left_out(tmp_path):
    path = lines(tmp_path / "experiment_log.jsonl", [easyr1(1, 0.1)])
    path.write_text(path.read_text() + '{"step": 2, "act')
    assert only(path).steps == (1, 1)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("gone.jsonl", None, "exists"),
        ("empty.jsonl", "\n", "at least one step"),
        ("prose.txt", "Dear reader, nothing here\n", "no line is one that a trainer prints"),
        ("other.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n', "JSON lines with the keys loss, step"),
        (
            "trainer_state.json",
            '{"log_history": [{"step": 1, "loss": 2.0, "eval_loss": 1.0}]}',
            "the keys eval_loss, loss, step",
        ),
        ("other.csv", "Step,x - loss\n1,2.0\n", "its keys: Step, loss"),
        ("lines.csv", 'Step,"lo\nss"\n1,2.0\n', "its keys: Step, lo ss)"),
        ("trainer_state.json", '{"log_history": []}', "its rows have the keys none"),
        ("list.json", "[1, 2]", "this is text in which"),
        ("verl.jsonl", '{"step": 1, "data": {"timing_s/step": 1.0}}\n', "timing_s/step"),
        ("verl.jsonl", '{"step": null, "data": {"actor/entropy": 1.0}}\n', "verl with a number as step"),
        ("verl.jsonl", '{"step": "a", "data": {"actor/entropy": 1.0}}\n', "verl with a number as step"),
        ("easyr1.jsonl", '{"step": 1e999, "actor": {"entropy_loss": 1.0}}\n', "EasyR1 with a number as step"),
        ("deep.json", "[" * 100_000, "this is text in which"),
        (
            "deep.jsonl",
            '{"step": 1, "actor": {}}\n' + '{"a": ' * 5000 + "1" + "}" * 5000 + "\n{}\n",
            "EasyR1 with at least one",
        ),
        ("big.csv", f'Step,a - actor/entropy\n1,"{"x" * 200_000}"\n2,0.3\n', "field limit"),
        ("nested/x.tfevents", "", "a folder with a log"),
    ],
)
def test_what_is_nobodys_log_gets_a_clear_answer(tmp_path, name, text, said):
    if "/" in name:
        (tmp_path / name).mkdir(parents=True)
        name = name.partition("/")[0]
    elif text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidValue, match="LOG: got") as refusal:
        read(tmp_path / name)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", ["9" * 400, "9" * 5000, "1e999", "1e200"])
def test_a_number_that_is_too_large_is_infinite(tmp_path, value):
    """Beyond what sums of floats can hold, however it is written."""
    rows = [json.dumps(easyr1(step, 0.5)).replace("0.5", value, 1) + "\n" for step in range(12)]
    (tmp_path / "log.jsonl").write_text("".join(rows))
    log = only(tmp_path / "log.jsonl")
    assert {measured for _, measured in log.get("entropy")} == {math.inf}
    assert {finding.kind for finding in examine(log) if finding.counts} == {"not a number"}


def test_nesting_is_followed_however_deep():
    row = {"grad_norm": 1}
    for _ in range(5000):
        row = {"train": row}
    rows = Rows()
    rows.add({"train": {"grad_norm": 2}})
    rows.add(row)
    assert list(rows.columns["grad_norm"].values) == [2.0] and rows.count == 2


def test_a_state_whose_resumed_session_has_no_step_is_read(tmp_path):
    row = {"entropy": 1.0, "frac_reward_zero_std": 0.0, "reward": 1.0}
    history = [row | {"step": 1}, {"step": 1, "train_runtime": 3.0}, row | {"step": math.nan}]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": history}))
    assert only(path).resumes == () and only(path).steps == (1, 1)


def test_completions_without_a_step_are_left_out(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    def write(*steps):
        columns = {"prompt": ["p"] * len(steps), "completion": ["c"] * len(steps), "advantage": [1.0] * len(steps)}
        parquet.write_table(pyarrow.table({"step": list(steps), **columns}), tmp_path / "completions_1.parquet")
        return tmp_path / "completions_1.parquet"

    assert only(write(1.0, None, math.nan, 2.0)).get("dead_groups") == ((1, 0.0), (2, 0.0))
    with pytest.raises(InvalidValue, match="with a number as step"):
        read(write(None, math.nan))


def test_binary_files_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(bytes(range(128, 256)))
    with pytest.raises(InvalidValue, match="binary"):
        read(tmp_path / "model.bin")
    with pytest.raises(InvalidValue, match="a folder with a log"):
        read(tmp_path)


@pytest.mark.parametrize("content", ["no Parquet", "a table of another kind"])
def test_a_parquet_file_that_is_not_trls_is_refused(tmp_path, content):
    pyarrow = pytest.importorskip("pyarrow")
    path = tmp_path / "completions_00001.parquet"
    if content == "no Parquet":
        path.write_bytes(b"x")
    else:
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"step": [1]}), path)
    with pytest.raises(InvalidValue, match="Parquet|completions, with"):
        read(path)
