from __future__ import annotations

import math
import time
from dataclasses import replace
from threading import Timer

import pytest
import torch

from aepo.engines.stops import StopStrings
from aepo.errors import InvalidValue
from aepo.sampling.hf import HFSampler
from aepo.sampling.vllm import VLLMSampler
from aepo.sampling.vllm_local import BATCHED_TOKENS, LocalVLLMBackend
from aepo.types import Completion
from tests.sampling.test_hf import LONG, MIDDLE, SHORT, outcomes, p_value, request

from .models import KINDS, LIMIT, VOCAB, Tiny, logprob_error, same_source, tiny, tokenizer

EOS = 1
LONGER_THAN_A_BLOCK = tuple(2 + (7 * i * i + i) % 6 for i in range(300))  # a block of the prefix cache is 128 tokens


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def policy(kind) -> Tiny:
    return tiny(kind, seed=0)


@pytest.fixture(scope="module")
def engine(policy):
    engine = LocalVLLMBackend(kv_cache_memory_bytes=2**28)
    engine.refresh(policy)
    yield engine
    engine.close()


@pytest.fixture
def sampler(engine, policy):
    """Whatever a test did to the engine's weights, the next one starts with the first ones."""
    yield VLLMSampler(engine, eos_token_ids=[EOS])
    engine.refresh(policy)


def mixed(count: int = 3):
    prompts = [(SHORT, 1.5), (MIDDLE, 1.0), (LONG, 0.7), (MIDDLE, 1.2)]
    return [
        request(tuple(token % VOCAB for token in prompt), count, t, group) for group, (prompt, t) in enumerate(prompts)
    ]


def run(sampler, requests, max_tokens: int = 12, seed: int = 0) -> list[Completion]:
    return sampler.sample(requests, max_tokens=max_tokens, generator=torch.Generator().manual_seed(seed))


def kill(engine) -> None:
    for process in engine._processes:
        process.kill()


def test_20_000_completions_have_the_exact_distribution_and_the_hf_samplers(sampler, policy):
    prompts = {0: (1.0, (4, 2)), 1: (1.5, (5, 2, 3))}
    requests = [request(prompt, 10_000, t, group) for group, (t, prompt) in prompts.items()]
    completions = run(sampler, requests, max_tokens=2, seed=1)
    others = run(HFSampler(policy.model, eos_token_ids=[EOS], pad_token_id=0), requests, max_tokens=2, seed=2)
    for group, (temperature, prompt) in prompts.items():
        own = [c for c in completions if c.group == group]
        first = [replace(c, tokens=c.tokens[:1]) for c in own]
        assert len(own) == 10_000
        exact = outcomes(policy.model, prompt, temperature)
        exact_first = {(token,): 0.0 for token in range(VOCAB)}
        for tokens, p in exact.items():
            exact_first[tokens[:1]] += p
        assert p_value(own, exact) > 0.01
        assert p_value(first, exact_first) > 0.01
        assert same_source(own, [c for c in others if c.group == group]) > 0.01
        # The tests would see a temperature that is 10 % off, and the other prompt's completions.
        assert p_value(own, outcomes(policy.model, prompt, temperature * 1.1)) < 1e-4
        assert same_source(own, [c for c in others if c.group != group]) < 1e-4


def test_logprobs_are_those_of_the_distribution_drawn_from(sampler, policy):
    completions = run(sampler, mixed(20))
    assert {c.temperature for c in completions} == {0.7, 1.0, 1.2, 1.5}
    assert logprob_error(policy.model, completions) < 1e-4


def test_top_p_cuts_at_the_requests_temperature_and_the_logprobs_are_renormalised(sampler, policy):
    completions = run(VLLMSampler(sampler.backend, eos_token_ids=[EOS], top_p=0.6), mixed(20))
    for completion in completions:
        prompt, tokens = completion.prompt.tokens, completion.tokens
        full = outcomes_at(policy.model, (*prompt, *tokens), completion.temperature)[len(prompt) - 1 : -1]
        for token, logprob, probs in zip(tokens, completion.logprobs, full, strict=True):
            ranked = probs.sort(descending=True).values
            nucleus = ranked[: int((ranked.cumsum(0) < 0.6).sum()) + 1]
            assert probs[token] >= nucleus[-1]
            assert logprob == pytest.approx(math.log(probs[token] / nucleus.sum()), abs=1e-3)


def test_min_p_and_top_k_cut_as_the_hf_sampler_cuts(sampler, policy):
    cuts = {"top_p": 0.97, "top_k": 5, "min_p": 0.03}
    prompts = {0: (1.5, (4, 2)), 1: (2.0, (5, 2, 3))}
    requests = [request(prompt, 2_000, t, group) for group, (t, prompt) in prompts.items()]
    completions = run(VLLMSampler(sampler.backend, eos_token_ids=[EOS], **cuts), requests, max_tokens=2, seed=1)
    others = run(HFSampler(policy.model, eos_token_ids=[EOS], pad_token_id=0, **cuts), requests, max_tokens=2, seed=2)
    known = {(c.group, c.tokens): c.logprobs for c in others}
    for group in prompts:
        own = [c for c in completions if c.group == group]
        assert len({c.tokens for c in own}) > 4
        assert same_source(own, [c for c in others if c.group == group]) > 0.01
        for completion in own:
            assert completion.logprobs == pytest.approx(known[group, completion.tokens], abs=1e-3)


def test_a_completion_ends_with_the_token_that_completes_a_stop_string(policy, kind):
    words = tokenizer()
    engine = LocalVLLMBackend(kv_cache_memory_bytes=2**28, skip_tokenizer_init=False)
    try:
        engine.refresh(policy)
        sampler = VLLMSampler(engine, eos_token_ids=[EOS], stop=StopStrings(("3 4", "5 5"), words))
        completions = run(sampler, mixed(50), max_tokens=8)
        ways = set()
        for completion in completions:
            text = words.decode(completion.tokens)
            stopped = text.endswith(("3 4", "5 5"))
            assert stopped + (completion.tokens[-1] == EOS) + completion.truncated == 1
            assert not any(stop in text[:-1] for stop in ("3 4", "5 5"))
            assert len(completion.logprobs) == len(completion.tokens)
            ways.add((stopped, completion.truncated))
        assert ways == {(True, False), (False, True), (False, False)}
        assert logprob_error(policy.model, completions) < 1e-4
    finally:
        engine.close()


def outcomes_at(model, tokens, temperature):
    with torch.no_grad():
        return (model(torch.tensor([tokens])).logits[0] / temperature).softmax(-1)


def test_new_weights_are_the_ones_sampled_from(sampler, kind, policy):
    """Also by a prompt whose keys and values are in the prefix cache, also a second time."""
    requests = [*mixed(5), request(LONGER_THAN_A_BLOCK, 20, 1.0, 9)]
    assert logprob_error(policy.model, run(sampler, requests)) < 1e-4
    for seed in (1, 2):
        other = tiny(kind, seed)
        sampler.refresh(other)
        completions = run(sampler, requests)
        assert logprob_error(policy.model, completions) > 0.5
        assert logprob_error(other.model, completions) < 1e-4


def test_more_prompt_tokens_than_one_batch_takes(sampler, policy):
    """vLLM's CPU engine dies when a seeded prompt is prefilled in parts."""
    prompts = [(2 + i // 6, 2 + i % 6, *LONGER_THAN_A_BLOCK) for i in range(36)]
    assert sum(map(len, prompts)) > BATCHED_TOKENS
    completions = run(sampler, [request(prompt) for prompt in prompts], max_tokens=4)
    assert logprob_error(policy.model, completions) < 1e-4


def test_the_generator_alone_decides(sampler):
    first = run(sampler, mixed(), seed=5)
    assert [c.tokens for c in run(sampler, mixed(), seed=5)] == [c.tokens for c in first]
    assert [c.tokens for c in run(sampler, mixed(), seed=6)] != [c.tokens for c in first]
    generator = torch.Generator().manual_seed(5)
    calls = [sampler.sample(mixed(), max_tokens=12, generator=generator) for _ in range(2)]
    assert [c.tokens for c in calls[0]] == [c.tokens for c in first] != [c.tokens for c in calls[1]]


def test_completions_come_in_the_order_of_the_requests(sampler):
    requests = [request((4, 4), 2, 0.5, 7), request((5,), 0, 1.0, 8), request((6,), 1500, 2.0, 9)]
    completions = run(sampler, requests, max_tokens=2)
    assert [c.group for c in completions] == [7] * 2 + [9] * 1500
    assert [c.prompt.tokens for c in completions] == [(4, 4)] * 2 + [(6,)] * 1500
    assert [c.temperature for c in completions] == [0.5] * 2 + [2.0] * 1500
    assert run(sampler, []) == run(sampler, [request((4,), 0)]) == []


def test_a_completion_ends_with_the_first_end_token_or_is_truncated(sampler):
    completions = run(VLLMSampler(sampler.backend, eos_token_ids=[1, 4]), mixed(30), max_tokens=6)
    for completion in completions:
        ends = [token in (1, 4) for token in completion.tokens]
        assert not any(ends[:-1])
        assert completion.truncated is not ends[-1]
        assert len(completion.tokens) == len(completion.logprobs) <= 6
        assert len(completion.tokens) == 6 or not completion.truncated
    # An end token in the last place allowed is an end.
    assert any(len(c.tokens) == 6 and not c.truncated for c in completions)
    assert any(c.truncated for c in completions)


def test_without_end_tokens_every_completion_is_truncated(sampler):
    for completion in run(VLLMSampler(sampler.backend, eos_token_ids=[]), mixed(), max_tokens=7):
        assert len(completion.tokens) == 7 and completion.truncated


def test_weights_that_are_not_finite_are_an_error_and_spoil_nothing_after_it(sampler, kind, policy):
    broken = tiny(kind, seed=0)
    with torch.no_grad():
        broken.model.get_output_embeddings().weight.fill_(math.nan)
    sampler.refresh(broken)
    with pytest.raises(RuntimeError, match="not finite"):
        run(sampler, mixed())
    sampler.refresh(policy)
    assert logprob_error(policy.model, run(sampler, mixed(50), max_tokens=200)) < 1e-4


def heat(entropy):
    return entropy + 1


@pytest.mark.parametrize(
    ("requests", "more", "message"),
    [
        ([request((2,), temperature=0.0)], {}, r"temperature: got 0.0; must be .* from 0.01"),
        ([request((2,)), request((2,), temperature=0.009)], {}, r"temperature: got 0.009; must be"),
        ([request((2,), temperature=math.nan)], {}, r"temperature: got nan; must be"),
        ([request((2,), temperature=math.inf)], {}, r"temperature: got inf; must be"),
        ([replace(request((2,)), token_temperature=heat)], {}, r"token_temperature: got .* must be none with vLLM"),
        ([request((2,), count=-1)], {}, r"count: got -1; must be"),
        ([request(())], {}, r"prompt '\(\)' tokens: got \(\); must be"),
        ([request((2,))], {"max_tokens": 0}, r"max_tokens: got 0; must be"),
        ([request((2,)), request((2,) * 500)], {}, rf"max_tokens: got 13; must be at most 12 after .* is {LIMIT}"),
    ],
)
def test_bad_values_are_named_in_one_line(sampler, requests, more, message):
    with pytest.raises(InvalidValue, match=message) as error:
        run(sampler, requests, **{"max_tokens": 13, **more})
    assert "\n" not in str(error.value)


def test_bad_top_p_is_named_in_one_line():
    for top_p in (0.0, 1.1, math.nan):
        with pytest.raises(InvalidValue, match=r"top_p: got .*; must be in \(0, 1\]"):
            VLLMSampler(LocalVLLMBackend(), eos_token_ids=[], top_p=top_p)


def test_an_engine_without_weights_says_so():
    with pytest.raises(RuntimeError, match="no weights yet"):
        run(VLLMSampler(LocalVLLMBackend(), eos_token_ids=[]), mixed())


# --- crashes: each starts an engine, so with one model only ---------------------------------------------------


def test_a_dead_engine_is_started_again_with_the_newest_weights(sampler, kind):
    if kind != next(iter(KINDS)):
        pytest.skip("the other model's engine is killed")
    engine, other = sampler.backend, tiny(kind, seed=3)
    sampler.refresh(other)
    expected = run(sampler, mixed(5))
    first = engine._processes
    kill(engine)  # between two calls
    assert [c.tokens for c in run(sampler, mixed(5))] == [c.tokens for c in expected]
    second = engine._processes
    assert second != first

    many = mixed(1000)
    Timer(1.0, kill, [engine]).start()  # in the middle of a call
    completions = run(sampler, many, max_tokens=200)
    assert engine._processes != second
    assert len(completions) == 4000 and logprob_error(other.model, completions[::200]) < 1e-4

    kill(engine)  # before an update: the next engine starts with the update's weights
    last = tiny(kind, seed=4)
    sampler.refresh(last)
    assert logprob_error(last.model, run(sampler, mixed())) < 1e-4


def test_a_second_death_in_one_call_is_raised_and_the_next_call_works(sampler, kind, policy, monkeypatch):
    if kind != next(iter(KINDS)):
        pytest.skip("the other model's engine is killed")
    engine, generate = sampler.backend, LocalVLLMBackend._generate
    starts = []

    def deadly(self, requests):
        starts.append(list(self._processes))
        kill(self)
        return generate(self, requests)

    run(sampler, mixed())
    monkeypatch.setattr(LocalVLLMBackend, "_generate", deadly)
    began = time.monotonic()
    with pytest.raises(RuntimeError, match="process ended"):
        run(sampler, mixed())
    assert len(starts) == 2 and starts[0] != starts[1]
    assert time.monotonic() - began < 120
    monkeypatch.undo()
    assert logprob_error(policy.model, run(sampler, mixed())) < 1e-4
    assert engine._processes != starts[1]


def test_weights_that_do_not_fit_are_an_error_and_leave_no_half_loaded_engine(sampler, kind, policy, tmp_path):
    if kind != next(iter(KINDS)):
        pytest.skip("a new engine is started")
    wrong = tiny(kind, seed=5).model
    wrong.resize_token_embeddings(VOCAB + 100)
    wrong.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="did not take the weights"):
        sampler.backend.update(tmp_path)
    assert sampler.backend._llm is None
