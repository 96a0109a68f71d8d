"""How models make logits of hidden states: five architectures against their own logits, and what is refused."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from aepo.config import PolicyConfig
from aepo.control.base import Needs
from aepo.engines.linear_head import logit_transform, readings, real_tokens
from aepo.entropy.statistics import logits_statistics
from aepo.entropy.transform import LogitTransform
from aepo.errors import InvalidValue
from aepo.model.forward import check_padding
from aepo.model.loading import Loaded
from aepo.model.policy import Policy
from aepo.sampling.check import check_sampler
from aepo.sampling.hf import HFSampler
from tests.tiny_models import batch, byte_tokenizer, drawn, mismatch, samples

KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}, LogitTransform()),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {}, LogitTransform()),
    "gemma2": (Gemma2Config, Gemma2ForCausalLM, {"final_logit_softcapping": 3.0}, LogitTransform(softcap=3.0)),
    "granite": (GraniteConfig, GraniteForCausalLM, {"logits_scaling": 8.0}, LogitTransform(1 / 8)),
    "cohere": (CohereConfig, CohereForCausalLM, {"logit_scale": 1 / 16}, LogitTransform(1 / 16)),
}


def toy(kind: str, **changes):
    config, model, own, _ = KINDS[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 272}
    tokens = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": 257, "initializer_range": 0.3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(**(sizes | tokens | own | changes))).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probabilities_and_entropies_are_those_of_the_models_logits(kind, dtype):
    """Rows of two lengths in one padded batch; each alone through the model."""
    policy = Policy(Loaded(toy(kind), byte_tokenizer()), PolicyConfig(dtype=dtype))
    rows = batch(policy, (3, 5), (7, 2))
    scored = policy.score(rows, Needs(temperatures=(0.7,)))
    for place, row in enumerate(samples(((3, 5), (7, 2)))):
        prompt, answer = row.rollout.completion.prompt.tokens, row.rollout.completion.tokens
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        right = logits_statistics(logits, torch.tensor(answer), temperatures=(0.7,))
        for mine, wanted in (
            (scored.logprobs, right.logprobs),
            (scored.entropy, right.entropy),
            (scored.tempered[0.7], right.tempered[0]),
        ):
            tolerance = 1e-5 if dtype == "float32" else 0.1  # attention with and without a mask rounds apart
            torch.testing.assert_close(mine[place, : len(answer)], wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_sampler_draws_what_is_scored(kind):
    policy = Policy(Loaded(toy(kind), byte_tokenizer()))
    assert mismatch(policy, drawn(policy)) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_the_configurations_words_are_read(kind):
    model = toy(kind)
    assert logit_transform(model, model.get_output_embeddings()) == KINDS[kind][3]


def test_small_logits_do_not_hide_a_cap():
    """Fresh weights: logits of 0.1, which a cap of 30 changes by 4e-7."""
    model = toy("gemma2", final_logit_softcapping=30.0, initializer_range=0.002)
    head = model.get_output_embeddings()
    assert model(input_ids=real_tokens(model)).logits.abs().max() < 0.1
    assert logit_transform(model, head) == LogitTransform(softcap=30.0)
    model.config = LlamaConfig(vocab_size=272)  # nothing names the cap
    model.config.final_logit_softcapping = None
    assert logit_transform(model, head) == LogitTransform()
    plain = model.forward
    model.forward = lambda *given, **named: _changed(plain(*given, **named), lambda z: 30 * (z / 30).tanh())
    with pytest.raises(InvalidValue, match=r"logits of up to 29.9 differ by 70 .* soft-capped as named \(none\)$"):
        logit_transform(model, head)


def _changed(output, change):
    output.logits = change(output.logits)
    return output


@pytest.mark.parametrize("change", [lambda z: 1.001 * z, lambda z: z + 0.01, lambda z: z.clamp(max=60), lambda z: -z])
def test_logits_that_are_something_else_are_refused(change):
    """A tenth of a percent is enough, and so is what shows in large logits alone."""
    model = toy("llama")
    plain = model.forward
    model.forward = lambda *given, **named: _changed(plain(*given, **named), change)
    with pytest.raises(InvalidValue, match="^model: got 'LlamaForCausalLM, whose logits of up to"):
        Policy(Loaded(model, byte_tokenizer()))


def test_fewer_logits_than_rows_of_the_output_layer_are_refused():
    model = toy("llama")
    plain = model.forward
    model.forward = lambda *given, **named: _changed(plain(*given, **named), lambda z: z[..., :270])
    with pytest.raises(InvalidValue, match="whose output layer has 272 rows and which gives 270 logits"):
        Policy(Loaded(model, byte_tokenizer()))


def test_a_name_may_be_meant_in_another_way():
    """HyperCLOVA X multiplies by Granite's word; MPT's code ignores Cohere's; MPT's may be a text."""
    model = toy("granite")
    model.forward = _multiplying(model, 8.0)
    assert logit_transform(model, model.get_output_embeddings()) == LogitTransform(8.0)
    model = toy("llama")
    model.config.logit_scale = 0.5
    assert logit_transform(model, model.get_output_embeddings()) == LogitTransform()
    assert list(readings(MptConfig(logit_scale="inv_sqrt_d_model"))) == [LogitTransform()]


def _multiplying(model, factor):
    plain = model.forward
    return lambda *given, **named: _changed(plain(*given, **named), lambda z: z * factor * factor)


def test_the_checks_tokens_are_words():
    model = toy("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[:200] = 0
    ids = real_tokens(model)[0].tolist()
    assert len(set(ids)) == len(ids) >= 5 and all(token >= 200 and token not in (256, 257) for token in ids)


def test_weights_that_are_not_finite_are_refused():
    model = toy("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(InvalidValue, match="model: got 'LlamaForCausalLM'; must be one with finite logits"):
        Policy(Loaded(model, byte_tokenizer()))


def _average(states: torch.Tensor) -> torch.Tensor:
    """The average over all columns up to each, whatever the mask says."""
    return states.cumsum(1) / torch.arange(1, 1 + states.shape[1])[:, None]


def test_a_model_that_reads_padding_is_refused():
    model = toy("llama")
    check_padding(model, real_tokens(model), 257, torch.float32)
    model.model.forward = lambda input_ids, **named: (_average(model.model.embed_tokens(input_ids)),)
    with pytest.raises(InvalidValue, match="LlamaForCausalLM, whose hidden states change by .* leaves masked padding"):
        check_padding(model, real_tokens(model), 257, torch.float32)


def test_a_model_that_reads_later_tokens_is_refused():
    model = toy("llama")
    body, plain = model.model, model.model.forward
    body.forward = lambda input_ids, **named: (plain(input_ids.flip(1), use_cache=False)[0].flip(1),)
    with pytest.raises(InvalidValue, match="one that reads from left to right"):
        check_padding(model, real_tokens(model), 257, torch.float32)


def test_a_cache_that_forgets_is_refused():
    policy = Policy(Loaded(toy("llama"), byte_tokenizer()))
    sampler = HFSampler(policy.model, eos_token_ids=policy.eos_token_ids, pad_token_id=policy.pad_token_id)
    check_sampler(policy, sampler)
    forward = sampler._forward
    sampler._forward = lambda ids, mask, positions, *more: forward(ids, mask, positions + (ids.shape[1] == 1), *more)
    with pytest.raises(InvalidValue, match="^sampling.engine: got 'hf, whose log-probabilities of LlamaFor"):
        check_sampler(policy, sampler)
    sampler._forward = None
    with pytest.raises(InvalidValue, match="LlamaForCausalLM cannot be sampled here"):
        check_sampler(policy, sampler)
