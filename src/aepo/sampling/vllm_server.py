"""A backend that asks a vLLM server (`vllm serve`) over HTTP; both need the same file system; see docs/sampling.md."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.request import Request as HTTPRequest
from urllib.request import urlopen

from aepo.errors import require
from aepo.sampling.vllm import SavablePolicy, VLLMBackend, VLLMOutput, VLLMRequest, in_thread
from aepo.sampling.vllm_transfer import Transfer, check_version


class ServerVLLMBackend(VLLMBackend):
    """`ServerVLLMBackend` asks a running `vllm serve`, which was started as docs/sampling.md says.

    A server that cannot be reached, or that refuses a request, raises a RuntimeError with the reason. The backend does
    not start the server again.

    Args:
        url: The address of the server, such as http://host:8000.
        scratch: A folder that the server sees under the same path; `refresh` writes weights there.
        weights: How `refresh` hands over weights: `files` through `scratch`, `nccl` from the policy's GPU to those of
            the server, without a folder.
        timeout: The longest time for one request or one reload, seconds.
        parallel: The number of HTTP requests at the same time.

    Raises:
        InvalidValue: There is no `scratch` for `files`, or no vLLM in this environment for `nccl`.
    """

    def __init__(
        self,
        url: str,
        *,
        scratch: Path | None = None,
        weights: Literal["files", "nccl"] = "files",
        timeout: float = 600.0,
        parallel: int = 64,
    ) -> None:
        super().__init__(scratch)
        require(weights == "nccl" or scratch is not None, "scratch", scratch, "a folder with weights=files")
        if weights == "nccl":
            check_version(weights)
        self._in_place = weights == "nccl"
        self._transfer: Transfer | None = None
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._parallel = parallel
        self._limit: int | None = None

    @property
    def max_model_len(self) -> int:
        """Return the largest number of tokens of a prompt and its completion together."""
        if self._limit is None:
            self._limit = int(self._ask("/v1/models")["data"][0]["max_model_len"])
        return self._limit

    def generate(self, requests: Sequence[VLLMRequest]) -> list[list[VLLMOutput]]:
        """Return the outputs of each request, in the order of the requests; each takes one HTTP request."""
        with ThreadPoolExecutor(self._parallel) as pool:
            return list(pool.map(self._complete, requests))

    def update(self, folder: Path) -> None:
        """Take the weights of this folder (safetensors), which the server must see under the same path."""
        self._call("aepo_load", {"folder": str(folder.absolute())})
        self._forget()

    def refresh(self, policy: SavablePolicy) -> None:
        """Take the policy's weights.

        Raises:
            InvalidValue: `weights="nccl"` cannot work with this policy and this server.
            RuntimeError: The server cannot be reached, or does not take the weights in `timeout` seconds.
        """
        if not self._in_place:
            super().refresh(policy)
            return
        try:
            # A sender whose receiver fails waits for ever, so it has a thread of its own.
            in_thread(lambda: self._send(policy)).get(timeout=self._timeout).result()
        except Empty:
            self._transfer = None
            raise RuntimeError(f"the vLLM server did not take the weights in {self._timeout:g} s") from None
        self._forget()

    def _send(self, policy: SavablePolicy) -> None:
        if self._transfer is None:
            self._transfer = Transfer("nccl", self._call, policy)
        self._transfer.send(policy)

    def _call(self, method: str, arguments: Mapping[str, Any]) -> list[Any]:
        results: list[Any] = self._ask("/collective_rpc", {"method": method, "kwargs": arguments})["results"]
        return results

    def _forget(self) -> None:
        # The cache holds keys and values of the old weights, which a repeated prompt would use.
        self._ask("/reset_prefix_cache", {})

    def close(self) -> None:
        """Disconnect from the server, which this backend did not start.

        Start the server again after it has sampled from diverged weights: it may keep keys and values that are NaN.
        """
        transfer, self._transfer = self._transfer, None
        if transfer is not None:
            with suppress(RuntimeError):
                self._call("shutdown_weight_transfer_engine", {})
            transfer.close()

    def _complete(self, request: VLLMRequest) -> list[VLLMOutput]:
        body = {
            "prompt": list(request.prompt),
            "n": request.count,
            "temperature": request.temperature,
            "top_p": request.cuts.top_p,
            "top_k": request.cuts.top_k or 0,
            "min_p": request.cuts.min_p,
            "max_tokens": request.max_tokens,
            "stop_token_ids": list(request.end),
            "seed": request.seed,
            "stop": list(request.stop),
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "ignore_eos": True,  # otherwise the model's own end tokens also end a completion
            "logprobs": 0,
            "return_token_ids": True,
            "add_special_tokens": False,
        }
        choices = sorted(self._ask("/v1/completions", body)["choices"], key=lambda choice: int(choice["index"]))
        return [
            VLLMOutput(tuple(c["token_ids"]), tuple(c["logprobs"]["token_logprobs"]), c["finish_reason"] == "stop")
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
