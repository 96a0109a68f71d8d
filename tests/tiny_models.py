"""Random models of real architectures, in Hugging Face format, and what tests do with them."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from aepo.config import PolicyConfig
from aepo.control.base import Needs, generator
from aepo.engines.collate import collate
from aepo.errors import InvalidValue
from aepo.model.policy import Policy
from aepo.sampling.hf import HFSampler
from aepo.types import Completion, Prompt, Request, Rollout, Sample

CLASSES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}
TEMPLATE = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
TEMPLATE += "{% if add_generation_prompt %}[assistant]{% endif %}"
BF16, LORA = PolicyConfig(dtype="bfloat16"), PolicyConfig(lora_rank=4, lora_alpha=16)


def byte_tokenizer(pad: str | None = "<pad>", eos: str | None = "<eos>") -> PreTrainedTokenizerFast:
    """One token per byte, then the special ones."""
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(BPE(vocab=alphabet, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=eos, pad_token=pad)


def make_model(folder: Path, kind: str = "llama", tokenizer=None, eos="eos", dtype=torch.float32, **changes) -> Path:
    """A random model of this architecture with two layers, in Hugging Face format."""
    tokenizer = tokenizer or byte_tokenizer()
    config_class, model_class = CLASSES[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    tokens = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id if eos == "eos" else eos}
    tokens |= {"pad_token_id": tokenizer.pad_token_id, "tie_word_embeddings": kind == "qwen2", "vocab_size": 272}
    config = config_class(**(sizes | heads | tokens | {"initializer_range": 0.2} | changes))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model_class(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def samples(lengths=((3, 5), (7, 2), (1, 9), (4, 4))) -> list[Sample]:
    """Random prompts and completions of these lengths."""
    draw, rows = torch.Generator().manual_seed(0), []
    for number, (prompt, answer) in enumerate(lengths):
        ids = torch.randint(0, 256, (prompt + answer,), generator=draw).tolist()
        asked = Prompt(str(number), tuple(ids[:prompt]), {})
        completion = Completion(asked, number, 1.0, tuple(ids[prompt:]), (-1.0,) * answer, truncated=True)
        rows.append(Sample(Rollout(completion, 1.0), 1.0))
    return rows


def batch(policy: Policy, *lengths):
    return collate(samples(lengths) if lengths else samples(), policy.pad_token_id)


def logprobs(policy: Policy) -> torch.Tensor:
    return policy.score(batch(policy), Needs()).logprobs


def drawn(policy: Policy, count: int = 8, max_tokens: int = 12) -> list[Completion]:
    sampler = HFSampler(policy.model, eos_token_ids=policy.eos_token_ids, pad_token_id=policy.pad_token_id)
    requests = [Request(Prompt(text, policy.encode(text), {}), i, count) for i, text in enumerate(("2 + 2 =", "why?"))]
    return sampler.sample(requests, max_tokens=max_tokens, generator=generator(0, 0, "test"))


def mismatch(policy: Policy, completions: list[Completion]) -> float:
    """Largest difference of the sampler's and the scored log-probabilities, nats."""
    rows = collate([Sample(Rollout(c, 0.0), 0.0) for c in completions], policy.pad_token_id).to(policy.device)
    return ((policy.score(rows, Needs()).logprobs - rows.sampling_logprobs) * rows.mask).abs().max().item()


def stir(policy: Policy, size: float = 0.1) -> Policy:
    """Move what is trained; the adapter's B is zero at first."""
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter += size * torch.randn(parameter.shape, generator=noise)
    return policy


def gradients(policy: Policy) -> dict[str, torch.Tensor]:
    policy.model.zero_grad()
    rows = batch(policy)
    stats = policy.statistics(rows, Needs(entropy_gradient=True))
    (stats.logprobs.sum() + stats.entropy.sum()).backward()
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


def refused(words: str, *arguments, **settings) -> None:
    with pytest.raises(InvalidValue, match=words) as error:
        Policy.load(*arguments, settings=PolicyConfig(**settings))
    assert len(str(error.value).splitlines()) == 1
