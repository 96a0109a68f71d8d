"""Console forms, tables and stores of other trainers, made up here in the forms that docs/doctor.md names."""

import gzip
import json
import math
import sqlite3
import struct

import pytest

from aepo.doctor import read
from aepo.errors import InvalidValue

TRL = {"loss": 0.01, "grad_norm": 0.5, "reward": 0.5, "reward_std": 0.2, "frac_reward_zero_std": 0.1, "entropy": 0.4}


def written(path, text):
    path.write_text(text)
    return path


def bar(step, total=100):
    return f"\r {step}%|##   | {step}/{total} [04:51<8:00:57, 9.49s/it]"


def dictionary(entropy, quoted=False, **more):
    row = {**TRL, "entropy": entropy, **more, "epoch": 0.06}
    return str({key: str(value) for key, value in row.items()} if quoted else row) + "\n"


@pytest.mark.parametrize("quoted", [False, True])
@pytest.mark.parametrize("between", ["", "\n", "\r" + " " * 60 + "\r"])
def test_trl_console_takes_the_step_of_the_bar(tmp_path, quoted, between):
    text = "Map: 100%|####| 7473/7473 [00:01<00:00, 5000/s]\n" + bar(0)
    text += "".join(bar(step) + between + dictionary(step / 10, quoted) for step in (5, 10, 15))
    (log,) = read(written(tmp_path / "out.log", text))
    assert log.framework == "TRL" and log.get("entropy") == ((5, 0.5), (10, 1.0), (15, 1.5)) and log.resumes == ()


def test_trl_console_without_a_bar_takes_the_rows_number(tmp_path):
    rows = [dictionary("nan", True), dictionary(math.inf), dictionary(0.3).replace("0.3", "np.float64(0.3)")]
    (log,) = read(written(tmp_path / "out.log", "".join(rows)))
    assert [step for step, _ in log.get("entropy")] == [1, 2, 3]
    assert math.isnan(log.get("entropy")[0][1]) and log.get("entropy")[1:] == ((2, math.inf), (3, 0.3))


def test_trl_console_counts_on_where_the_bar_was_not_drawn_anew(tmp_path):
    text = bar(2) + "\n" + dictionary(0.1) + bar(4) + "\n" + dictionary(0.2) + dictionary(0.3)
    (log,) = read(written(tmp_path / "out.log", text))
    assert log.get("entropy") == ((2, 0.1), (4, 0.2), (6, 0.3))


def test_old_trl_console_with_few_keys(tmp_path):
    row = {"loss": 0.0, "grad_norm": 0.9, "rewards/format": 0.2, "reward": 0.8, "reward_std": 0.0}
    row |= {"completion_length": 849.6, "kl": 8e-5, "epoch": 0.0}
    (log,) = read(written(tmp_path / "out.txt", f"{row}\n{row}\n"))
    assert log.get("length") == ((1, 849.6), (2, 849.6)) and log.get("reference_kl")[0] == (1, 8e-5)
    assert log.get("no_advantage") == ((1, 1.0), (2, 1.0))


def test_a_train_runtime_ends_a_run_and_two_runs_are_two(tmp_path):
    end = "{'train_runtime': 10.5, 'train_samples_per_second': 3.0, 'epoch': 1.0}\n"
    one = "".join(bar(step) + dictionary(0.5) for step in (1, 2, 3)) + end
    other = "".join(bar(step) + dictionary(0.7) for step in (1, 2)) + end
    first, second = read(written(tmp_path / "out.log", one + other))
    assert first.steps == (1, 3) and second.steps == (1, 2) and first.resumes == second.resumes == ()
    assert first.source.endswith("(run 1)") and second.source.endswith("(run 2)")
    numbered = 3 * dictionary(0.5) + end + 2 * dictionary(0.7) + end
    assert [log.steps for log in read(written(tmp_path / "out.log", numbered))] == [(1, 3), (1, 2)]


def verl(step, entropy=0.5, rate=1e-6):
    return f"(TaskRunner pid=7) step:{step} - actor/entropy:{entropy} - actor/ppo_kl:0.0 - actor/lr:{rate}\n"


def test_steps_that_go_back_to_the_start_are_another_run_and_others_a_resume(tmp_path):
    path = tmp_path / "run.log"

    def shapes(*steps):
        return [(log.steps, log.resumes) for log in read(written(path, "".join(map(verl, steps))))]

    assert shapes(1, 2, 3, 4, 3, 4, 5) == [((1, 5), (3,))]
    assert shapes(1, 2, 3, 1, 2) == [((1, 3), ()), ((1, 2), ())]
    assert shapes(10, 20, 30, 20, 30) == [((10, 30), (20,))]
    assert shapes(10, 20, 30, 10, 20) == [((10, 30), ()), ((10, 20), ())]
    assert shapes(101, 102, 103, 101, 102) == [((101, 102), (101,))], "a checkpoint is no start"
    assert shapes(101, 102, 103, 1, 2) == [((101, 103), ()), ((1, 2), ())]


def test_another_learning_rate_at_the_same_step_is_another_run(tmp_path):
    text = "".join(verl(step) for step in range(1, 7)) + "".join(verl(step, rate=1e-5) for step in range(4, 9))
    first, second = read(written(tmp_path / "run.log", text))
    assert first.steps == (1, 6) and second.steps == (4, 8) and second.get("learning_rate")[0] == (4, 1e-5)


def test_a_broken_line_in_the_middle_costs_its_row_alone(tmp_path):
    rows = [json.dumps({"step": step, **TRL}) for step in range(6)]
    rows[2] = rows[2][:20]
    rows[4] = rows[4][:20] + rows[4]
    (log,) = read(written(tmp_path / "log.jsonl", "\n".join(rows)))
    assert [step for step, _ in log.get("entropy")] == [0, 1, 3, 4, 5]
    assert log.notes == ("2 broken rows were left out; 5 rows were read",)


@pytest.mark.parametrize("whole", [{"log_history": "LIST", "epoch": 1.0}, "LIST"])
@pytest.mark.parametrize("indent", [None, 2])
def test_rows_of_trl_as_a_list_whole_and_cut_off(tmp_path, whole, indent):
    rows = [{"step": step, **TRL, "completions": [{"text": "}, {"}]} for step in range(1, 4)]
    text = json.dumps(rows if whole == "LIST" else {"log_history": rows, "epoch": 1.0}, indent=indent)
    (log,) = read(written(tmp_path / "history.json", text))
    assert log.framework == "TRL" and log.steps == (1, 3)
    cut = text[: text.rindex('"step"') + 3]
    assert [log.steps for log in read(written(tmp_path / "history.json", cut))] == [(1, 2)]


def test_ms_swift_has_the_step_in_a_text(tmp_path):
    rows = [{**TRL, "global_step/max_steps": f"{step}/960", "percentage": "25.00%"} for step in (240, 241)]
    (log,) = read(written(tmp_path / "logging.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert log.framework == "ms-swift" and log.steps == (240, 241)
    (console,) = read(written(tmp_path / "out.log", "".join(bar(9) + f"{row}\n" for row in rows)))
    assert console.framework == "ms-swift" and console.series == log.series


def test_the_last_row_of_ms_swift_repeats_the_history(tmp_path):
    rows = [{**TRL, "global_step/max_steps": f"{step}/3"} for step in (1, 2, 3)]
    rows.append({"best_metric": None, "global_step": 3, "log_history": [{"step": step, **TRL} for step in (1, 2, 3)]})
    (log,) = read(written(tmp_path / "logging.jsonl", "".join(json.dumps(row) + "\n" for row in rows)))
    assert log.framework == "ms-swift" and log.steps == (1, 3)


def test_an_evaluation_in_a_console_belongs_to_the_step_before_it(tmp_path):
    text = "".join(
        f"{bar(step)}{dictionary(0.5)}{bar(7, 7)}{{'eval_loss': 0.1, 'eval_reward': 0.{step}, 'epoch': 0.1}}\n"
        for step in (1, 2)
    )
    (log,) = read(written(tmp_path / "out.log", text))
    assert log.get("evaluation") == ((1, 0.1), (2, 0.2)) and log.get("entropy") == ((1, 0.5), (2, 0.5))


def test_slime_console_merges_its_processes(tmp_path):
    lines = []
    for step in range(3):
        lines += [
            f"(RolloutManager pid=6) [2026] rollout.py:1303 - perf {step + 1}: {{'rollout/truncated_ratio': 0.25}}",
            f"(Actor pid=7) [2026] data.py:193 - rollout {step}: {{'rollout/raw_reward': 0.5, 'rollout/rewards': 0.0}}",
            f"(Actor pid=7) [2026] model.py:847 - step {step}: {{'train/entropy_loss': 0.3, 'train/pg_clipfrac': 0.0}}",
            f"(Actor pid=7) [2026] model.py:847 - eval {step}: {{'rollout/raw_reward': 99.0}}",
        ]
    (log,) = read(written(tmp_path / "out.log", "\n".join(lines)))
    assert log.framework == "slime / miles" and log.resumes == () and log.keys["entropy"] == "train/entropy_loss"
    assert log.get("entropy") == ((0, 0.3), (1, 0.3), (2, 0.3)) and log.get("reward") == ((0, 0.5), (1, 0.5), (2, 0.5))


@pytest.mark.parametrize("form", [": ", " "])
def test_prime_rl_console_of_both_processes(tmp_path, form):
    lines = []
    for step in range(3):
        lines += [
            f"09:02 SUCCESS Step {step + 1} | Time{form}98.0s | Reward{form}0.25 | Truncation{form}12.5% ",
            f"09:02    INFO Step {step} | Time{form}9.5s | Loss{form}-0.5 | Entropy{form}1.5 | Mismatch KL{form}0.125 "
            f"| Grad. Norm{form}2.0 | LR{form}1.00e-06 | Throughput{form}0 tokens/s | Peak Mem.{form}81.1 GiB",
        ]
    (log,) = read(written(tmp_path / "out.log", "\n".join(lines)))
    assert log.framework == "prime-rl" and log.resumes == () and log.get("entropy") == ((0, 1.5), (1, 1.5), (2, 1.5))
    assert log.get("reward") == ((1, 0.25), (2, 0.25), (3, 0.25)) and log.get("truncated")[0] == (1, 0.125)
    assert log.get("mismatch_kl")[2] == (2, 0.125) and log.get("learning_rate")[0] == (0, 1e-6)


def test_skyrl_console_over_many_lines(tmp_path):
    lines = []
    for step in (1, 2):
        lines += [
            f"(entry pid=1) 2026 | INFO | Step {step}: ",
            "(entry pid=1) {'generate/avg_num_tokens': '512.0000',",
            f"(entry pid=1)  'policy/policy_entropy': '0.{step}000',",
            "(entry pid=1)  'reward/avg_raw_reward': '0.2000',",
            f"(entry pid=1)  'trainer/global_step': {step}}}",
        ]
    (log,) = read(written(tmp_path / "out.log", "\n".join(lines)))
    assert log.framework == "SkyRL" and log.get("entropy") == ((1, 0.1), (2, 0.2))
    assert log.get("length") == ((1, 512.0), (2, 512.0))


def test_nemo_rl_console_counts_steps_on_over_epochs(tmp_path):
    text = ""
    for epoch in (1, 2):
        text += f"{'=' * 25} Epoch {epoch}/2 {'=' * 25}\n"
        for step in (1, 2):
            text += f"{'=' * 25} Step {step}/2 {'=' * 25}\n📊 Training Results:\n  • Loss: 0.01\n"
            text += f"  • Generation KL Error: 0.001\n  • Avg Reward: 0.{epoch}{step}\n"
            text += "  • Mean Generation Length: 201.5\n  • Total step time: 9.50s\n"
    (log,) = read(written(tmp_path / "out.log", text))
    assert log.framework == "NeMo-RL" and log.get("reward") == ((1, 0.11), (2, 0.12), (3, 0.21), (4, 0.22))
    assert log.get("length")[3] == (4, 201.5) and log.resumes == ()


def test_areal_tables_with_several_columns(tmp_path):
    text = "".join(
        f"(AReaL) 2026 StatsLogger INFO: Epoch 1/10 Step {step}/100 Train step {step}/1000 done.\n"
        "╒═══╤═══╤═══╤═══╕\n"
        f"│ ppo_actor/update/entropy/avg │ 3.{step}000e-01 │ ppo_actor/task_reward/avg │ 5.0000e-01 │\n"
        "├───┼───┼───┼───┤\n"
        "│ ppo_actor/update/grad_norm │ 1.1000e-01 │\n╘═══╧═══╧═══╧═══╛\n"
        for step in (1, 2)
    )
    (log,) = read(written(tmp_path / "out.log", text))
    assert log.framework == "AReaL" and log.get("entropy") == ((1, 0.31), (2, 0.32))
    assert log.get("reward") == ((1, 0.5), (2, 0.5)) and log.get("gradient_norm")[1] == (2, 0.11)


def test_roll_console_has_json_behind_its_heading(tmp_path):
    row = {"actor/entropy": 0.3, "critic/score/mean": 0.2, "rollout/score/mean": 0.2, "actor/lr": 1e-6}
    text = "".join(f"[2026] [INFO] metrics_tag: {json.dumps({'step': step, 'metrics': row})}\n" for step in (1, 2))
    (log,) = read(written(tmp_path / "out.log", text))
    assert log.framework == "ROLL" and log.get("entropy") == ((1, 0.3), (2, 0.3)) and log.entropy.kind == "exact"


def test_easyr1_console_is_yaml_below_the_step(tmp_path):
    text = "".join(
        f"(Runner pid=1) Step {step}\n(Runner pid=1) actor:\n(Runner pid=1)   entropy_loss: 0.{step}\n"
        "(Runner pid=1)   pg_clipfrac_higher: 0.001\n(Runner pid=1) critic:\n(Runner pid=1)   score:\n"
        "(Runner pid=1)     mean: 0.5\n\nsome other: line\n"
        for step in (1, 2)
    )
    (log,) = read(written(tmp_path / "out.log", text))
    assert log.framework == "EasyR1" and log.get("entropy") == ((1, 0.1), (2, 0.2)) and log.get("reward")[1] == (2, 0.5)


def test_colours_of_a_terminal_are_no_trouble(tmp_path):
    text = "".join(f"\x1b[36m{verl(step)}".replace("step", "\x1b[0mstep") for step in (1, 2))
    assert read(written(tmp_path / "run.log", text))[0].steps == (1, 2)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path, encoding):
    (tmp_path / "run.log").write_bytes("".join(map(verl, (1, 2, 3))).encode(encoding))
    assert read(tmp_path / "run.log")[0].steps == (1, 3)


def test_packed_files_whole_and_cut_off(tmp_path):
    import bz2
    import lzma

    text = "".join(verl(step, entropy=1 / (step + 7)) for step in range(1, 4000)).encode()
    for ending, pack in ((".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)):
        (tmp_path / f"run.log{ending}").write_bytes(pack(text))
        assert read(tmp_path / f"run.log{ending}")[0].steps == (1, 3999)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(text)[:-2000])
    for whole, rows in ((text, 3999), (text[:6000], 60)):
        (tmp_path / "cut.gz").write_bytes(gzip.compress(whole)[: -len(whole) // 50])
        (log,) = read(tmp_path / "cut.gz")
        assert rows // 3 < log.steps[1] < rows and "cut off" in log.notes[0]


def test_a_chart_of_one_metric_and_of_groups(tmp_path):
    path = written(
        tmp_path / "chart.csv",
        '"train/global_step","Group: a - train/entropy","Group: a - train/entropy__MIN","b - train/entropy"\n'
        '"1","0.5","0.1","0.7"\n"2","0.4","0.1",""\n',
    )
    group, alone = read(path)
    assert group.framework == "TRL (W&B)" and group.source.endswith("(Group: a)")
    assert group.get("entropy") == ((1, 0.5), (2, 0.4)) and alone.get("entropy") == ((1, 0.7),)


def test_an_entropy_that_trainers_define_differently_is_of_unknown_meaning_in_a_chart(tmp_path):
    (log,) = read(written(tmp_path / "chart.csv", "Step,a - actor/entropy_loss\n1,0.5\n2,0.4\n"))
    assert log.entropy.kind == "unknown" and "EasyR1" in log.entropy.says
    (log,) = read(written(tmp_path / "chart.csv", "Step,a - actor/entropy\n1,0.5\n2,0.4\n"))
    assert log.entropy.kind == "exact"


@pytest.mark.parametrize("key", ["loss", "train/grad_norm", "learning_rate"])
def test_a_chart_of_what_every_trainer_logs_is_nobodys(tmp_path, key):
    with pytest.raises(InvalidValue, match=f"its keys: Step, {key}"):
        read(written(tmp_path / "chart.csv", f"Step,a - {key}\n1,0.5\n2,0.4\n"))


def test_a_table_from_a_notebook(tmp_path):
    text = "Step\tTraining Loss\treward\treward_std\tcompletions / mean_length\tkl\n1\t0.0\t0.5\t0.2\t99.0\t0.1\n"
    (log,) = read(written(tmp_path / "table.tsv", text))
    assert log.get("length") == ((1, 99.0),) and log.get("reference_kl") == ((1, 0.1),)


def test_a_run_of_a_chart_that_is_unknown_is_left_out_by_name(tmp_path):
    from aepo.doctor.readers import read_all

    path = written(tmp_path / "chart.csv", "Step,a - actor/entropy,b - accuracy\n1,0.5,0.1\n2,0.4,0.1\n")
    logs, left_out = read_all([path])
    assert [log.source.rpartition(" ")[2] for log in logs] == ["(a)"]
    assert "(b)" in str(left_out[0].got) and "accuracy" in left_out[0].wanted


def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number, content):
    if isinstance(content, float):
        return varint(number << 3 | 1) + struct.pack("<d", content)
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    content = content.encode() if isinstance(content, str) else content
    return varint(number << 3 | 2) + varint(len(content)) + content


def wandb_file(records, block=32768):
    """A LevelDB log: records are cut where a block ends, and each piece has a checksum, a length and a type."""
    data = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        left, is_first = record, True
        while left or is_first:
            room = block - len(data) % block
            if room < 7:
                data += bytes(room)
                continue
            piece, left = left[: room - 7], left[room - 7 :]
            kind = (1 if not left else 2) if is_first else (4 if not left else 3)
            data += struct.pack("<IHB", 0, len(piece), kind) + piece
            is_first = False
    return bytes(data)


def test_the_file_of_wandbs_client_by_hand(tmp_path):
    def history(step, **numbers):
        items = b"".join(
            field(1, field(2, key) + (field(16, value) if isinstance(value, str) else field(6, value)))
            for key, value in {"train/global_step": float(step), **numbers}.items()
        )
        return field(2, items + field(2, field(1, 3 * step)))

    rows = [
        history(step, **{"train/entropy": 1 / step, "train/reward": "0.5", "train/text": '"' + "x" * 30000 + '"'})
        for step in range(1, 9)
    ]
    folder = tmp_path / "wandb" / "run-1-abc"
    (folder / "files").mkdir(parents=True)
    (folder / "files" / "output.log").write_text(verl(1) + verl(2))
    data = wandb_file([field(17, field(1, "abc") + field(8, "my run")), *rows])
    (folder / "run-abc.wandb").write_bytes(data)
    (log,) = read(tmp_path)
    assert log.framework == "TRL (W&B)" and log.source.endswith("run-abc.wandb (my run)")
    assert log.get("entropy") == tuple((step, 1 / step) for step in range(1, 9)) and log.get("reward")[0] == (1, 0.5)
    (folder / "run-abc.wandb").write_bytes(data[:-10])
    assert read(tmp_path)[0].steps == (1, 7)


def test_a_run_on_wandbs_server_needs_a_full_name_and_the_client(monkeypatch):
    import sys
    import types

    with pytest.raises(InvalidValue, match="wandb://entity/project/run"):
        read("wandb://alone")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InvalidValue, match="pip install"):
        read("wandb://e/p/r")

    class Run:
        name = "lucky-1"

        def scan_history(self):
            return iter([{"_step": step, "actor/entropy": 0.5, "actor/ppo_kl": 0.0} for step in range(3)])

    class Api:
        def run(self, path):
            if path != "e/p/r":
                raise ValueError(f"Could not find run\n<Run {path}>")
            return Run()

        def runs(self, path):
            return [Run(), Run()]

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(Api=Api))
    (log,) = read("wandb://e/p/r")
    assert log.framework == "verl (W&B)" and log.source == "wandb://e/p/r (lucky-1)" and log.steps == (0, 2)
    assert len(read("wandb:/e/p")) == 2, "a path joins the slashes"
    with pytest.raises(InvalidValue, match="ValueError: Could not find run <Run e/p/x>"):
        read("wandb://e/p/x")


def test_mlflow_folder_and_database(tmp_path):
    run = tmp_path / "mlruns" / "0" / "abc"
    (run / "metrics" / "actor").mkdir(parents=True)
    (run / "tags").mkdir()
    (run / "meta.yaml").write_text("run_name: x\n")
    (run / "tags" / "mlflow.runName").write_text("lucky")
    (run / "metrics" / "actor" / "entropy").write_text("1700 0.5 0\n1701 nan 1\n")
    (run / "metrics" / "actor" / "ppo_kl").write_text("1700 0.0 0\n1701 0.0 1\n")
    (log,) = read(tmp_path / "mlruns")
    assert log.framework == "verl (MLflow)" and log.source.endswith("abc (lucky)") and log.steps == (0, 1)
    assert log.get("entropy")[0] == (0, 0.5) and math.isnan(log.get("entropy")[1][1])

    base = sqlite3.connect(tmp_path / "mlflow.db")
    base.execute("CREATE TABLE experiments (experiment_id INTEGER)")
    base.execute("CREATE TABLE runs (run_uuid TEXT, name TEXT, start_time INTEGER)")
    base.execute(
        "CREATE TABLE metrics (key TEXT, value REAL, timestamp INTEGER, run_uuid TEXT, step INTEGER, is_nan INTEGER)"
    )
    for uuid in ("r1", "r2"):
        base.execute("INSERT INTO runs VALUES (?, ?, 1)", (uuid, f"name-{uuid}"))
        for step in range(3):
            base.execute("INSERT INTO metrics VALUES ('actor/entropy', ?, 1, ?, ?, 0)", (0.5, uuid, step))
            base.execute("INSERT INTO metrics VALUES ('actor/grad_norm', ?, 1, ?, ?, 0)", (1.7e308, uuid, step))
    base.commit()
    first, second = read(tmp_path / "mlflow.db")
    assert first.source.endswith("(name-r1)") and second.framework == "verl (MLflow)" and first.steps == (0, 2)
    assert first.get("gradient_norm")[0] == (0, math.inf)


def test_trackio_database(tmp_path):
    base = sqlite3.connect(tmp_path / "project.db")
    base.execute(
        "CREATE TABLE metrics (id INTEGER PRIMARY KEY, timestamp TEXT, run_name TEXT, step INTEGER, metrics TEXT)"
    )
    for step in range(3):
        for name in ("one", "two"):
            row = {"train/global_step": step + 1, "train/entropy": 0.5, "train/reward": "NaN", "train/reward_std": 0.1}
            base.execute(
                "INSERT INTO metrics (timestamp, run_name, step, metrics) VALUES ('', ?, ?, ?)",
                (name, step, json.dumps(row)),
            )
    base.commit()
    first, second = read(tmp_path)
    assert first.framework == "TRL (trackio)" and first.steps == (1, 3) and second.source.endswith("(two)")
    assert math.isnan(first.get("reward")[0][1])


def test_a_database_of_another_program_is_refused(tmp_path):
    base = sqlite3.connect(tmp_path / "other.db")
    base.execute("CREATE TABLE cats (name TEXT)")
    base.commit()
    with pytest.raises(InvalidValue, match="its tables: cats"):
        read(tmp_path / "other.db")


def test_a_folder_of_runs_is_searched_and_what_is_no_run_is_named(tmp_path):
    from aepo.doctor.readers import read_all

    for name in ("a/deep/run", "b"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "train.log").write_text("".join(map(verl, (1, 2, 3))))
    (tmp_path / "b" / "notes.txt").write_text("Dear reader\n")
    (tmp_path / "b" / "config.json").write_text('{"hidden_size": 8}')
    (tmp_path / "b" / "history.json").write_text(json.dumps([{"step": 1, **TRL}]))
    for number in (5, 10):
        (tmp_path / "b" / f"checkpoint-{number}").mkdir()
        (tmp_path / "b" / f"checkpoint-{number}" / "trainer_state.json").write_text(
            json.dumps({"log_history": [{"step": step, **TRL} for step in range(1, number + 1)]})
        )
    logs, left_out = read_all([tmp_path])
    found = sorted((log.source.removeprefix(f"{tmp_path}/"), log.steps[1]) for log in logs)
    assert found == [("a/deep/run/train.log", 3), ("b/checkpoint-10/trainer_state.json", 10), ("b/history.json", 1),
                     ("b/train.log", 3)]  # fmt: skip
    assert [str(error.got) for error in left_out] == [str(tmp_path / "b" / "notes.txt")]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.zip", b"PK\x03\x04" + bytes(200), "a zip archive"),
        ("a.pt", b"\x80\x02" + bytes(200), "a Python pickle"),
        ("a.log", b"hello\nworld\n" * 3, "this is text in which no line"),
        ("a.jsonl", b'{"step": 1, "accuracy": 0.5, "val": 2}\n', "JSON lines with the keys accuracy, step, val"),
        ("a.json", b'[{"step": 1, "accuracy": 0.5}]', "a JSON list of rows with the keys accuracy, step"),
        ("a.log", b"{'loss': 2.0, 'grad_norm': 1.0, 'epoch': 0.1}\n", "text with the keys epoch, grad_norm, loss"),
    ],
)
def test_a_refusal_says_what_the_file_looks_like(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidValue) as refusal:
        read(tmp_path / name)
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_is_not_read_is_not_kept(tmp_path):
    """Texts and unknown keys of 20 MB of rows take no memory."""
    import tracemalloc

    rows = (
        {"step": step, **TRL, **{f"k{key}": 0.5 for key in range(200)}, "text": "x" * 20_000} for step in range(800)
    )
    with (tmp_path / "log.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    tracemalloc.start()
    (log,) = read(tmp_path / "log.jsonl")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert log.steps == (0, 799) and peak < 4e6
