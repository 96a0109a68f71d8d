"""A completion ends with the token that completes a stop string, with every sampler."""

from dataclasses import dataclass

import pytest
import torch

from aepo.engines.stops import MARGIN, StopStrings
from aepo.errors import InvalidValue
from aepo.model.policy import Policy
from aepo.sampling.hf import HFSampler
from aepo.sampling.vllm import VLLMBackend, VLLMOutput, VLLMSampler
from aepo.types import Prompt, Request
from tests.tiny_models import byte_tokenizer, make_model
from tests.tiny_tokenizers import family_tokenizer


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_golden_the_length_is_up_to_the_token_that_completes_the_first_stop_string():
    tokenizer = byte_tokenizer()
    stops = StopStrings(("</a>", "é!", "<eos>"), tokenizer)
    assert stops.length(ids(tokenizer, "x</a>y</a>")) == 5
    assert stops.length(ids(tokenizer, "xé!")) == 4  # two bytes of the letter
    assert stops.length([*ids(tokenizer, "ab"), tokenizer.eos_token_id, 65]) == 3
    for text in ("", "x</a", "é"):
        assert stops.length(ids(tokenizer, text)) is None


@pytest.mark.parametrize("family", ["llama3", "mistral"])
def test_the_window_of_last_tokens_holds_every_stop_string(family):
    """Each prefix of a text: the last tokens hold the string exactly when the whole text ends with it."""
    tokenizer = family_tokenizer(family)
    stops = StopStrings((" So:", "]]"), tokenizer)
    tokens = ids(tokenizer, "one two [1] so: So: three]] four" * 3)
    for count in range(1, len(tokens) + 1):
        text, tail = tokenizer.decode(tokens[:count]), tokens[max(0, count - stops.window) : count]
        held = [string in text[-len(tail) :] for string in stops.strings]
        if text.endswith(stops.strings):
            assert any(held) and stops.ended([tail]) == [True]
    assert stops.window == 4 + MARGIN and stops.length(tokens) == len(ids(tokenizer, "one two [1] so: So:"))


@pytest.mark.parametrize("strings", [(), ("",), ("a", "")])
def test_an_empty_stop_string_is_refused(strings):
    with pytest.raises(InvalidValue, match="^stop: got .*texts that are not empty"):
        StopStrings(strings, byte_tokenizer())


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A model that says nearly only a, b and <eos>."""
    policy = Policy.load(make_model(tmp_path_factory.mktemp("model")))
    said = [ids(policy.tokenizer, letter)[0] for letter in "ab"]
    with torch.no_grad():
        policy.model.model.norm.weight.zero_()  # the bias alone decides
        policy.model.lm_head.bias = torch.nn.Parameter(torch.full((272,), -12.0))
        policy.model.lm_head.bias[[*said, policy.tokenizer.eos_token_id]] = torch.tensor([2.0, 2.0, 0.0])
    return policy


def drawn(policy, max_tokens=8, max_rows=None, stop=("abb",), decode="dynamic"):
    sampler = HFSampler(
        policy.model,
        eos_token_ids=policy.eos_token_ids,
        pad_token_id=policy.pad_token_id,
        stop=StopStrings(stop, policy.tokenizer) if stop else None,
        max_rows=max_rows,
        decode=decode,
    )
    requests = [Request(Prompt(text, policy.encode(text), {}), i, 60) for i, text in enumerate(("x", "abb abb"))]
    return sampler.sample(requests, max_tokens=max_tokens, generator=torch.Generator().manual_seed(0))


def test_hf_completions_end_with_the_stop_string_whose_tokens_stay(policy):
    completions, kinds = drawn(policy), set()
    for completion in completions:
        text = policy.tokenizer.decode(completion.tokens)
        by_eos = completion.tokens[-1] == policy.tokenizer.eos_token_id
        by_stop = text.endswith("abb")
        assert by_eos + by_stop + completion.truncated == 1
        assert "abb" not in text[:-1] and len(completion.tokens) == len(completion.logprobs)
        assert not completion.truncated or len(completion.tokens) == 8
        kinds.add((by_eos, by_stop))
    assert kinds == {(True, False), (False, True), (False, False)}
    # A stop string changes nothing before it, and the rows in one batch do not change each other.
    for whole, cut in zip(drawn(policy, stop=()), completions, strict=True):
        assert whole.tokens[: len(cut.tokens)] == cut.tokens
    for other in (drawn(policy, max_rows=7), drawn(policy, decode="static")):
        assert [c.tokens for c in other] == [c.tokens for c in completions]


@dataclass
class Said(VLLMBackend):
    """A backend that has drawn this, and keeps what it was asked."""

    outputs: list[VLLMOutput]
    asked: tuple = ()
    max_model_len = 100

    def generate(self, requests):
        self.asked = requests
        return [self.outputs]

    def update(self, folder):
        pass

    def close(self):
        pass


def test_vllm_completions_are_cut_at_the_same_token(policy):
    tokenizer = policy.tokenizer
    tokens = [tuple(ids(tokenizer, text)) for text in ("xabb", "xabbab", "xab", "xab")]
    ended = [True, False, True, False]
    backend = Said(
        [VLLMOutput(t, tuple(-float(i) for i in range(len(t))), e) for t, e in zip(tokens, ended, strict=True)]
    )
    sampler = VLLMSampler(backend, eos_token_ids=[256], top_k=5, min_p=0.1, stop=StopStrings(("abb",), tokenizer))
    prompt = Prompt("p", (1,), {})
    completions = sampler.sample([Request(prompt, 0, 4)], max_tokens=9, generator=torch.Generator().manual_seed(0))
    assert [tokenizer.decode(c.tokens) for c in completions] == ["xabb", "xabb", "xab", "xab"]
    assert [c.truncated for c in completions] == [False, False, False, True]
    assert completions[1].logprobs == (0.0, -1.0, -2.0, -3.0)
    (asked,) = backend.asked
    assert asked.stop == ("abb",) and (asked.cuts.top_k, asked.cuts.min_p) == (5, 0.1)
