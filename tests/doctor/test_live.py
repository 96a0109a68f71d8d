"""The doctor during a run: rows that arrive one at a time, files that grow, and what is told to whom."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from aepo.doctor.live import FILE, DoctorConfig, Watcher, follow
from aepo.errors import InvalidValue


def row(step: int, entropy: float) -> dict[str, float]:
    return {
        "reward": 0.4 + 0.01 * (step % 3),
        "entropy": entropy,
        "frac_reward_zero_std": 0.1,
        "grad_norm": 0.2,
        "completions/clipped_ratio": 0.0,
    }


def collapsing(step: int) -> dict[str, float]:
    return row(step, 1.0 + 0.01 * (step % 2) if step < 20 else 0.02 + 0.001 * (step % 2))


def test_a_fault_is_told_once_and_stops_the_run_if_asked(tmp_path):
    said = []
    watcher = Watcher(DoctorConfig(every=5, stop_on="sure"), tmp_path, said.append)
    stops = [step for step in range(60) if watcher.see(step, collapsing(step))]
    assert len(stops) == 1 and 20 < stops[0] < 45
    rows = [json.loads(line) for line in (tmp_path / FILE).read_text().splitlines()]
    assert rows[-1]["kind"] == "collapse" and rows[-1]["stop"] and rows[-1]["step"] == stops[0]
    assert 18 <= rows[-1]["first_step"] <= 22
    assert len(said) == len(rows) and said[-1].startswith("doctor: collapse (sure, from step ")
    order = [entry["confidence"] for entry in rows]
    assert order == sorted(order, key=["possible", "likely", "sure"].index), "again only if it is surer"


def test_a_run_that_is_well_is_not_talked_about(tmp_path):
    said = []
    watcher = Watcher(DoctorConfig(every=5, stop_on="likely"), tmp_path, said.append)
    assert not any(watcher.see(step, row(step, 1.0 + 0.01 * (step % 2))) for step in range(60))
    assert said == [] and not (tmp_path / FILE).exists()


def test_never_does_not_stop_and_zero_does_not_look(tmp_path):
    for options in (DoctorConfig(every=5), DoctorConfig(every=0, stop_on="sure")):
        said = []
        watcher = Watcher(options, None, said.append)
        assert not any(watcher.see(step, collapsing(step)) for step in range(60))
        assert bool(said) == (options.every > 0)


def test_a_resumed_run_does_not_tell_the_same_again(tmp_path):
    for _ in range(2):
        said = []
        watcher = Watcher(DoctorConfig(every=5, stop_on="sure"), tmp_path, said.append)
        for step in range(50):
            watcher.add(step, collapsing(step))
        stopped = watcher.look()
    assert not stopped and said == []


def test_rows_of_no_known_trainer_are_left_alone():
    watcher = Watcher(DoctorConfig(every=1), None, print)
    assert not any(watcher.see(step, {"colour": 1.0, "name": "x", "nothing": None}) for step in range(20))


def test_a_webhook_gets_the_fault_and_one_that_fails_does_no_harm(tmp_path):
    got, arrived = [], threading.Event()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()
            arrived.set()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    watcher = Watcher(DoctorConfig(every=40, webhook=f"http://127.0.0.1:{server.server_port}/"), None, print)
    for step in range(40):
        watcher.see(step, collapsing(step))
    assert arrived.wait(30)
    server.shutdown()
    server.server_close()
    assert got[0]["kind"] == "collapse" and got[0]["text"].startswith("doctor: collapse")

    before = set(threading.enumerate())
    said = []
    watcher = Watcher(DoctorConfig(every=40, webhook=f"http://127.0.0.1:{server.server_port}/"), None, said.append)
    for step in range(40):
        watcher.see(step, collapsing(step))
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert sum("webhook" in line for line in said) == 1


@pytest.mark.parametrize(
    ("setting", "value"), [("every", -1), ("stop_on", "always"), ("webhook", "example.org"), ("webhook", "file:///x")]
)
def test_bad_options_are_refused(setting, value):
    with pytest.raises(InvalidValue, match=f"doctor.{setting}"):
        DoctorConfig(**{setting: value})


def test_following_a_log_that_grows(tmp_path):
    path, said, looks = tmp_path / "trainer_state.json", [], []

    def grow(_seconds: float) -> None:
        looks.append(len(looks))
        steps = 15 * len(looks)
        path.write_text(json.dumps({"log_history": [{"step": step, **collapsing(step)} for step in range(steps)]}))
        assert len(looks) < 10, "it was to stop"

    code = follow([path], DoctorConfig(stop_on="sure"), tmp_path / "out.jsonl", said.append, sleep=grow)
    assert code == 1 and any("waits for" in line for line in said)
    assert json.loads((tmp_path / "out.jsonl").read_text().splitlines()[-1])["kind"] == "collapse"


def test_ctrl_c_ends_following_with_what_was_found(tmp_path):
    path = tmp_path / "trainer_state.json"

    def end(_seconds: float) -> None:
        raise KeyboardInterrupt

    for rows, code in ((40, 1), (15, 0)):
        path.write_text(json.dumps({"log_history": [{"step": step, **collapsing(step)} for step in range(rows)]}))
        assert follow([path], DoctorConfig(), None, lambda _line: None, sleep=end) == code


def state(path, rows: int) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"log_history": [{"step": step, **collapsing(step)} for step in range(rows)]}))


def stop(_seconds: float) -> None:
    raise KeyboardInterrupt


def test_the_same_fault_of_two_runs_is_told_of_each(tmp_path):
    for run in ("run1", "run2"):
        state(tmp_path / run / "trainer_state.json", 40)
    for expected in (2, 0):
        said = []
        follow([tmp_path], DoctorConfig(), tmp_path / "doctor.jsonl", said.append, sleep=stop)
        told = [line for line in said if line.startswith("doctor: collapse")]
        assert len(told) == expected and all(any(f"run{run}" in line for line in told) for run in range(1, expected))


def test_a_file_that_cannot_be_read_is_named_once_and_the_others_are_followed(tmp_path):
    state(tmp_path / "run" / "trainer_state.json", 40)
    (tmp_path / "notes.txt").write_text("nothing of interest")
    looks, said = [], []

    def again(_seconds: float) -> None:
        looks.append(1)
        state(tmp_path / "run" / "trainer_state.json", 40 + len(looks))
        if len(looks) == 3:
            raise KeyboardInterrupt

    follow([tmp_path], DoctorConfig(), None, said.append, sleep=again)
    assert sum("notes.txt" in line for line in said) == 1 and any("doctor: collapse" in line for line in said)


def test_a_run_on_wandb_is_read_again_at_every_look(monkeypatch):
    from aepo.doctor import live
    from aepo.doctor.readers import read_all

    asked = []

    def read(places):
        asked.append(places)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return read_all([])

    monkeypatch.setattr(live, "read_all", read)
    follow(["wandb://us/project/run"], DoctorConfig(), None, lambda _line: None, sleep=lambda _seconds: None)
    assert asked == [["wandb://us/project/run"]] * 3
