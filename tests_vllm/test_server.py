from __future__ import annotations

import pytest

from aepo.engines.stops import StopStrings
from aepo.sampling.vllm import VLLMSampler
from aepo.sampling.vllm_server import ServerVLLMBackend
from tests.sampling.test_hf import outcomes, p_value, request

from .models import logprob_error, tiny, tokenizer
from .server import serving
from .test_vllm import EOS, LONGER_THAN_A_BLOCK, mixed, run

KIND = "qwen2 tied"


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    tiny(KIND, seed=0).save_merged(folder / "model")
    with serving(folder / "model", folder / "log") as url:
        yield ServerVLLMBackend(url, scratch=folder)


@pytest.fixture
def policy():
    return tiny(KIND, seed=0)


@pytest.fixture
def sampler(engine, policy):
    engine.refresh(policy)
    return VLLMSampler(engine, eos_token_ids=[EOS])


def test_two_temperatures_in_one_call_have_the_exact_distributions(sampler, policy):
    prompts = {0: (1.0, (4, 2)), 1: (1.5, (5, 2, 3))}
    requests = [request(prompt, 10_000, t, group) for group, (t, prompt) in prompts.items()]
    completions = run(sampler, requests, max_tokens=2, seed=1)
    for group, (temperature, prompt) in prompts.items():
        own = [c for c in completions if c.group == group]
        assert len(own) == 10_000
        assert p_value(own, outcomes(policy.model, prompt, temperature)) > 0.01
        assert p_value(own, outcomes(policy.model, prompt, temperature * 1.1)) < 1e-4


def test_new_weights_are_the_ones_sampled_from(sampler, policy):
    requests = [*mixed(5), request(LONGER_THAN_A_BLOCK, 20, 1.0, 9)]
    first = run(sampler, requests)
    assert [c.group for c in first] == [0] * 5 + [1] * 5 + [2] * 5 + [3] * 5 + [9] * 20
    assert [c.tokens for c in run(sampler, requests)] == [c.tokens for c in first]
    assert logprob_error(policy.model, first) < 1e-4
    other = tiny(KIND, seed=1)
    sampler.refresh(other)
    completions = run(sampler, requests)
    assert logprob_error(policy.model, completions) > 0.5
    assert logprob_error(other.model, completions) < 1e-4


def test_a_completion_ends_with_the_first_end_token_or_is_truncated(sampler):
    completions = run(VLLMSampler(sampler.backend, eos_token_ids=[1, 4]), mixed(30), max_tokens=6)
    for completion in completions:
        ends = [token in (1, 4) for token in completion.tokens]
        assert not any(ends[:-1]) and completion.truncated is not ends[-1]
        assert len(completion.tokens) == len(completion.logprobs) <= 6
    assert any(c.truncated for c in completions) and not all(c.truncated for c in completions)


def test_a_completion_ends_with_a_stop_string(sampler):
    words = tokenizer()
    stops = StopStrings(("3 4", "5 5"), words)
    completions = run(VLLMSampler(sampler.backend, eos_token_ids=[EOS], stop=stops, top_k=6), mixed(30), max_tokens=8)
    stopped = [words.decode(c.tokens).endswith(("3 4", "5 5")) for c in completions]
    assert any(stopped) and not all(stopped)
    for completion, by_stop in zip(completions, stopped, strict=True):
        assert by_stop + (completion.tokens[-1] == EOS) + completion.truncated == 1
        assert stops.length(completion.tokens) == (len(completion.tokens) if by_stop else None)


def test_what_the_server_refuses_and_a_server_that_is_not_there_are_errors_in_one_line(sampler, tmp_path):
    with pytest.raises(RuntimeError, match="refused /collective_rpc: 500") as error:
        sampler.backend.update(tmp_path / "nothing")
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="cannot be reached"):
        run(VLLMSampler(ServerVLLMBackend("http://127.0.0.1:9", scratch=tmp_path), eos_token_ids=[]), mixed())
