"""Every format is read, other files are refused. Logs of trainers that were not run here are made by hand."""

import json
import math
from pathlib import Path

import pytest

from aepo.checks import InvalidValue
from aepo.doctor import read
from aepo.doctor.types import Log

LOGS = Path(__file__).parent / "logs"


def only(path: Path, *resumes: int) -> Log:
    (log,) = read(path, resumes)
    return log


def lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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
    row = {"entropy": 1.0, "frac_reward_zero_std": 0.0, "reward": 1.0}
    history = [
        row | {"step": 1},
        {"step": 1, "train_runtime": 3.0},
        row | {"step": 2},
        {"step": 2, "train_runtime": 1.0},
    ]
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": history}))
    assert only(path).resumes == (2,)


def test_verl_file_logger_by_hand(tmp_path):
    log = only(lines(tmp_path / "metrics.jsonl", [{"step": 1, "data": VERL_ROW}, {"step": 2, "data": VERL_ROW}]))
    assert log.framework == "verl" and log.steps == (1, 2)
    assert log.get("entropy") == ((1, 0.32), (2, 0.32)) and log.get("no_advantage") == ((1, 0.0), (2, 0.0))


def test_verl_console_by_hand(tmp_path):
    body = " - ".join(f"{key}:{value}" for key, value in VERL_ROW.items())
    text = (
        "(TaskRunner pid=1) Config, and so on\n"
        "step:0 - val-core/openai/gsm8k/acc/mean@1:0.508\n"
        f"(TaskRunner pid=1) step:1 - {body} - val-core/openai/gsm8k/acc/mean@1:0.5\n"
        f"(WorkerDict pid=2) UserWarning: not this\n(TaskRunner pid=1) step:2 - {body.replace('0.32', 'nan')}\n"
    )
    (tmp_path / "run.log").write_text(text)
    log = only(tmp_path / "run.log")
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


def test_openrlhf_console_by_hand(tmp_path):
    head = "(PPOTrainer pid=9) 2026-01-01 INFO ppo_trainer.py:547] ✨ Global step"
    status = (
        "'policy_loss': -1e-07, 'actor_lr': 5e-07, 'response_length': 40.375, 'group_reward_std': 0.0, 'reward': {}"
    )
    steps = [f"{head} 1: {{{status.format('0.25')}, 'entropy_loss': 0.6}}", f"{head} 2: {{{status.format('nan')}}}"]
    (tmp_path / "out.txt").write_text("some other line: {}\n" + "\n".join(steps))
    log = only(tmp_path / "out.txt")
    assert log.framework == "OpenRLHF" and log.get("length") == ((1, 40.375), (2, 40.375))
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
    columns = "Step,a - actor/entropy,a - actor/entropy__MIN,a - actor/entropy__MAX,b - actor/entropy"
    (tmp_path / "chart.csv").write_text(f"{columns}\n1,0.5,0.4,0.6,0.7\n2,0.25,0.2,0.3,\n")
    first, second = read(tmp_path / "chart.csv")
    assert first.framework == "verl (W&B)" and first.source.endswith("(a)")
    assert first.get("entropy") == ((1, 0.5), (2, 0.25)) and second.get("entropy") == ((1, 0.7),)


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
    (tmp_path / "hparams").mkdir()
    (tmp_path / "hparams" / "events.out.tfevents.1").write_bytes(b"")
    twice, once = read(tmp_path)
    assert twice.resumes == (1,) and once.resumes == () and twice.series == once.series
    with pytest.raises(InvalidValue, match="its scalars: none"):
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
        ("prose.txt", "Dear reader, nothing here\n", "one of:"),
        ("other.jsonl", '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n', "one of:"),
        ("broken.jsonl", '{"step": 1, "actor": {"entropy_loss": 1}}\nnot JSON\n{"step": 3}\n', "line 2"),
        ("trainer_state.json", '{"log_history": [{"step": 1, "loss": 2.0, "eval_loss": 1.0}]}', "GRPO or PPO"),
        ("other.csv", "Step,x - loss\n1,2.0\n", "it has Step, loss"),
        ("list.json", "[1, 2]", "one of:"),
        ("verl.jsonl", '{"step": 1, "data": {"timing_s/step": 1.0}}\n', "training metrics"),
    ],
)
def test_what_is_nobodys_log_gets_a_clear_answer(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InvalidValue, match="LOG: got") as refusal:
        read(tmp_path / name)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_binary_files_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "model.bin").write_bytes(bytes(range(128, 256)))
    with pytest.raises(InvalidValue, match="binary"):
        read(tmp_path / "model.bin")
    with pytest.raises(InvalidValue, match="a folder with one of"):
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
