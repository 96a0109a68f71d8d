"""A vLLM engine behind HTTP (`vllm serve`), on any machine with the same file system; see docs/sampling.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request as HTTPRequest
from urllib.request import urlopen

from aepo.sampling.vllm import Answer, Engine, Job


class ServerEngine(Engine):
    """Asks a running `vllm serve`, started as docs/sampling.md says.

    url: such as http://host:8000. scratch: a folder that the server sees under the same path; `refresh` writes weights
    there. timeout: seconds that one request or one reload may take. parallel: HTTP requests at the same time.

    A server that cannot be reached or refuses is a `RuntimeError` with its reason: it is not ours to start again.
    """

    def __init__(self, url: str, *, scratch: Path, timeout: float = 600.0, parallel: int = 64) -> None:
        super().__init__(scratch)
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._parallel = parallel
        self._limit: int | None = None

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its completion together."""
        if self._limit is None:
            self._limit = int(self._ask("/v1/models")["data"][0]["max_model_len"])
        return self._limit

    def generate(self, jobs: Sequence[Job]) -> list[list[Answer]]:
        """The answers of each job, in the jobs' order; one HTTP request per job."""
        with ThreadPoolExecutor(self._parallel) as pool:
            return list(pool.map(self._complete, jobs))

    def update(self, folder: Path) -> None:
        """Take the weights of this folder (safetensors), which the server must see under the same path."""
        self._ask("/collective_rpc", {"method": "aepo_load", "args": [str(folder.absolute())]})
        # Keys and values of the old weights, which a prompt seen before would find.
        self._ask("/reset_prefix_cache", {})

    def close(self) -> None:
        """Nothing: the server is not ours. Once it has sampled from diverged weights, start it again."""

    def _complete(self, job: Job) -> list[Answer]:
        body = {
            "prompt": list(job.prompt),
            "n": job.count,
            "temperature": job.temperature,
            "top_p": job.top_p,
            "top_k": 0,
            "max_tokens": job.max_tokens,
            "stop_token_ids": list(job.end),
            "seed": job.seed,
            "ignore_eos": True,  # or the model's own end tokens would count beside ours
            "logprobs": 0,
            "return_token_ids": True,
            "add_special_tokens": False,
        }
        choices = sorted(self._ask("/v1/completions", body)["choices"], key=lambda choice: int(choice["index"]))
        return [
            Answer(tuple(c["token_ids"]), tuple(c["logprobs"]["token_logprobs"]), c["finish_reason"] == "stop")
            for c in choices
        ]

    def _ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = HTTPRequest(self._url + path, data, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self._timeout) as response:
                text = response.read()
        except HTTPError as error:
            reason = " ".join(error.read().decode(errors="replace").split())[:300]
            raise RuntimeError(f"the vLLM server refused {path}: {error.code} {reason}") from None
        except (URLError, OSError) as error:
            raise RuntimeError(f"the vLLM server at {self._url} cannot be reached: {error}") from None
        return json.loads(text) if text else None
