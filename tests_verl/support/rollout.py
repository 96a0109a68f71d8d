"""A rollout engine `hf` on the CPU: a transformers model behind a Ray actor, for each of verl's replicas.

What is sampled is a function of (step, problem, number in the group, temperature), whichever replica draws it.
"""

from __future__ import annotations

import hashlib
import os

import ray
import torch
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop
from verl.workers.rollout import base
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica, RolloutReplicaRegistry, TokenOutput
from verl.workers.rollout.utils import ensure_async_iterator

NAME = "hf_cpu"


def server_name(rank: int) -> str:
    return f"{NAME}_server_{rank}"


class Server:
    """Samples token by token with a key-value cache; weights come from the trainer before every step."""

    def __init__(self, path: str, longest: int) -> None:
        import transformers

        torch.set_num_threads(1)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        self.longest, self.end, self.version = longest, self.model.generation_config.eos_token_id, None

    async def generate(self, request_id, prompt_ids, sampling_params, **ignored) -> TokenOutput:
        tokens, logprobs = self.sample(list(prompt_ids), sampling_params)
        fields = {"global_steps": self.version, "min_global_steps": self.version, "max_global_steps": self.version}
        return TokenOutput(token_ids=tokens, log_probs=logprobs, stop_reason="completed", extra_fields=fields)

    @torch.no_grad()
    def sample(self, prompt: list[int], params: dict) -> tuple[list[int], list[float]]:
        draws = torch.Generator().manual_seed(params["seed"])
        given, cache, tokens, logprobs = torch.tensor([prompt]), None, [], []
        while len(tokens) < self.longest and (not tokens or tokens[-1] != self.end):
            output = self.model(input_ids=given, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            distribution = torch.log_softmax(output.logits[0, -1].float() / params["temperature"], -1)
            token = int(torch.multinomial(distribution.exp(), 1, generator=draws))
            tokens.append(token)
            logprobs.append(distribution[token].item())
            given = torch.tensor([[token]])
        return tokens, logprobs

    async def load_weights(self, weights: list) -> None:
        own = self.model.state_dict()
        for name, value in weights:
            own[name].copy_(value)

    async def set_global_steps(self, version: int) -> None:
        self.version = version
        if os.environ.get("AEPO_TEST_DUMP"):
            torch.save(self.model.state_dict(), f"{os.environ['AEPO_TEST_DUMP']}/weights-{version}.pt")

    async def nothing(self, *args, **kwargs) -> None:
        pass

    wake_up = sleep = clear_kv_cache = release_kv_cache = resume_kv_cache = nothing
    abort_all_requests = resume_generation = start_profile = stop_profile = nothing


class Replica(RolloutReplica):
    async def launch_servers(self) -> None:
        name = server_name(self.replica_rank)
        server = ray.remote(Server).options(name=name, num_cpus=1)
        self._server_handle = server.remote(self.model_config.path, self.config.response_length)
        self.servers, self._server_address = [self._server_handle], name


class Weights(BaseRollout):
    """The trainer's side: hands the weights over."""

    def __init__(self, config, model_config, device_mesh, replica_rank: int = -1, **ignored) -> None:
        super().__init__(config, model_config, device_mesh)
        self.rank = int(os.environ["RANK"]) if replica_rank == -1 else replica_rank

    async def resume(self, tags) -> None:
        pass

    async def release(self) -> None:
        pass

    async def update_weights(self, weights, global_steps=None, **ignored) -> None:
        server = ray.get_actor(server_name(self.rank))
        whole = []
        async for name, value in ensure_async_iterator(weights):
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            whole.append((name, value.detach().float().contiguous()))
        await server.load_weights.remote(whole)
        if global_steps is not None:
            await server.set_global_steps.remote(global_steps)


def seeded(run):
    """The agent loop `run`, which also tells the engine what to draw with."""

    async def seeded_run(self, sampling_params, priority=0, **fields):
        key = (int(fields[name]) for name in ("global_steps", "index", "session_id"))
        text = "/".join(map(str, (*key, sampling_params["temperature"])))
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
        return await run(self, {**sampling_params, "seed": seed}, priority, **fields)

    return seeded_run


base._ROLLOUT_REGISTRY[(NAME, "async")] = f"{__name__}.Weights"
RolloutReplicaRegistry.register(NAME, lambda: Replica)
SingleTurnAgentLoop.run = seeded(SingleTurnAgentLoop.run)
