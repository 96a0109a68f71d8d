"""A fork server: Python processes that have torch and transformers imported when they begin.

A run of verl starts a dozen processes, and the imports of each cost more than all that it does in a test. `ForkServer`
imports once, and every process is a fork of it. Ray starts its workers by the client below (`py_executable` of a
runtime environment), which stands for python on the command line.
"""

from __future__ import annotations

import array
import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

SOCKET = "AEPO_TEST_FORKS"
# What verl imports, but not Ray, which reads its environment when it is imported, and not verl. None starts a thread.
MODULES = (
    *("torch", "torch.distributed.fsdp", "torch.utils.tensorboard", "transformers", "peft", "accelerate", "wandb"),
    *("transformers.models.qwen2.modeling_qwen2", "tensordict", "torchdata.stateful_dataloader", "hydra", "omegaconf"),
    *("fastapi", "uvicorn", "aiohttp", "zmq"),
)
# Run by `python -S`: it sends its own command line, environment, folder and streams, and ends as the fork does.
CLIENT = """
import array, json, os, signal, socket, sys
me = socket.socket(socket.AF_UNIX)
me.connect(os.environ["AEPO_TEST_FORKS"])
told = json.dumps({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}).encode()
me.sendmsg([len(told).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
me.sendall(told)
pid = int(me.recv(32))
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
status = me.recv(32)
os._exit(int(status) % 256 if status else 1)
"""


class ForkServer:
    """Starts the server; `executable` is the command that stands for python."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.path = folder / "forks.socket"
        client = folder / "client.py"
        client.write_text(CLIENT)
        self.executable = f"{sys.executable} -S -E {client}"
        command = [sys.executable, "-m", "tests_verl.support.forks", str(self.path)]
        self._process = subprocess.Popen(command, env={**environment, SOCKET: str(self.path)})
        while not self.path.exists():
            assert self._process.poll() is None, "the fork server ended"
            time.sleep(0.1)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


def serve(path: str) -> None:
    """Fork for each client until SIGTERM; what a fork started ends when its client is gone."""
    for name in MODULES:
        importlib.import_module(name)
    assert "ray" not in sys.modules and len(list(Path("/proc/self/task").iterdir())) == 1
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(64)
    Path(path + ".new").rename(path)
    clients: dict[int, socket.socket] = {}
    while True:
        ready, _, _ = select.select([listener, *clients.values()], [], [], 0.05)
        for pid, client in list(clients.items()):
            if client in ready and not client.recv(1):  # its client was killed
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        while clients:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            client = clients.pop(pid)
            with contextlib.suppress(OSError):
                client.sendall(str(os.waitstatus_to_exitcode(status)).encode())
            client.close()
        if listener in ready:
            client, _ = listener.accept()
            asked, streams = _asked(client)
            pid = os.fork()
            if pid == 0:
                listener.close()
                for other in clients.values():
                    other.close()
                client.close()
                _become(asked, streams)
            for stream in streams:
                os.close(stream)
            clients[pid] = client
            client.sendall(str(pid).encode())


def _asked(client: socket.socket) -> tuple[dict, list[int]]:
    head, passed, _, _ = client.recvmsg(4, socket.CMSG_SPACE(3 * array.array("i").itemsize))
    streams = array.array("i")
    streams.frombytes(passed[0][2])
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += client.recv(size - len(text))
    return json.loads(text), list(streams)


def _become(asked: dict, streams: list[int]) -> None:
    """Be the process that the client's command line asks for; does not return."""
    code = 1
    try:
        os.setsid()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        os.environ.clear()
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        words = [word for word in asked["argv"] if word != "-u"]
        sys.argv = words[1:] if words[0] == "-m" else words
        run = runpy.run_module if words[0] == "-m" else runpy.run_path
        run(sys.argv[0], run_name="__main__", **({"alter_sys": True} if words[0] == "-m" else {}))
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            import atexit

            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(sys.argv[1])
