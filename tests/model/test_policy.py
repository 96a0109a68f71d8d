from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
)

from aepo.config import PolicyConfig
from aepo.control.base import Needs, generator
from aepo.engines.collate import collate
from aepo.entropy.partial import Clamped
from aepo.errors import InvalidValue
from aepo.model import policy as policy_module
from aepo.model.policy import Policy, by_length, trimmed
from aepo.sampling.hf import HFSampler
from aepo.types import Prompt, Request
from tests.tiny_models import (
    BF16,
    CLASSES,
    LORA,
    TEMPLATE,
    batch,
    byte_tokenizer,
    drawn,
    gradients,
    logprobs,
    make_model,
    mismatch,
    samples,
    stir,
)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("settings", [PolicyConfig(), PolicyConfig(attention="eager"), LORA, BF16])
def test_every_architecture_samples_what_it_scores(kind, settings, models):
    policy = stir(Policy.load(models[kind], settings=settings), 0.02)
    assert type(policy.model) is CLASSES[kind][1]
    completions = drawn(policy)
    assert len({c.tokens for c in completions}) > 10
    # bfloat16 attends to a cache and to a whole row with other roundings; the logits themselves: next test.
    assert mismatch(policy, completions) < (0.05 if settings is BF16 else 1e-5)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("settings", [PolicyConfig(), LORA, BF16])
def test_scores_are_those_of_the_models_own_logits(kind, settings, models):
    """In bfloat16 too: the model that a sampler calls has logits of the same roundings as the update's."""
    policy = stir(Policy.load(models[kind], settings=settings), 0.02)
    for row in samples():
        prompt, answer = row.rollout.completion.prompt.tokens, row.rollout.completion.tokens
        scored = policy.score(collate([row], policy.pad_token_id), Needs()).logprobs[0]
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None])[:, 0]
        torch.testing.assert_close(scored, expected, atol=1e-5, rtol=0)


def test_the_head_of_a_tied_model_is_trained_with_its_embedding(models):
    policy = Policy.load(models["qwen2"])
    assert policy.model.get_output_embeddings().weight is policy.model.get_input_embeddings().weight


def test_every_end_of_sequence_id_ends_a_completion(tmp_path):
    """Two ids in the generation config, both frequent."""
    policy = Policy.load(make_model(tmp_path, "qwen3", eos=[256, 65]))
    assert policy.eos_token_ids == (256, 65)
    with torch.no_grad():  # the head's rows of both, along every hidden state
        weight = policy.model.get_output_embeddings().weight
        weight[65] = weight[256]
    policy.model.generation_config.eos_token_id = None  # nothing but what the policy took from it
    completions = drawn(policy, count=200, max_tokens=40)
    ends = [c.tokens[-1] for c in completions if not c.truncated]
    assert {256, 65} == set(ends) and not {256, 65} & {t for c in completions for t in c.tokens[:-1]}
    assert policy.decode([(66, 65), (66, 256)]) == policy.decode([(66,), (66,)])


def test_a_tokenizer_without_padding_pads_with_the_end_of_sequence(tmp_path):
    policy = Policy.load(make_model(tmp_path, tokenizer=byte_tokenizer(pad=None)))
    assert policy.tokenizer.pad_token_id is None and policy.pad_token_id == policy.eos_token_ids[0] == 256
    assert mismatch(policy, drawn(policy)) < 2e-5


# --- numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_in_bfloat16_a_step_of_a_millionth_stays(stored, tmp_path):
    """Master weights are float32 whatever the file and the forward pass are, also after saving."""
    policy = Policy.load(make_model(tmp_path / "model", dtype=stored), settings=BF16)
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}
    before = [p.detach().clone() for p in policy.model.parameters()]
    optimizer = torch.optim.SGD(policy.model.parameters(), lr=1.0)
    for p in policy.model.parameters():
        p.grad = torch.full_like(p, 1e-6)
    optimizer.step()
    policy.save(tmp_path / "saved")
    for p, old in zip(Policy.load(tmp_path / "saved", settings=BF16).model.parameters(), before, strict=True):
        torch.testing.assert_close(old - p, torch.full_like(p, 1e-6), atol=2e-7, rtol=0)


@pytest.mark.parametrize("kind", CLASSES)
def test_bfloat16_is_the_forward_pass_and_close_to_float32(kind, models):
    exact, rounded = Policy.load(models[kind]), Policy.load(models[kind], settings=BF16)
    seen = []
    layer = rounded.model.base_model.layers[0].mlp.down_proj
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    difference = (logprobs(exact) - logprobs(rounded)).abs()
    assert seen == [torch.bfloat16] and 0 < difference.max() < 0.3
    a, b = (torch.cat([g.flatten() for g in gradients(p).values()]) for p in (exact, rounded))
    assert b.dtype == torch.float32 and torch.cosine_similarity(a, b, dim=0) > 0.99


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("base", [PolicyConfig(), LORA, BF16])
def test_gradient_checkpointing_recomputes_and_changes_no_gradient(kind, base, models):
    """Dropout in the configuration is turned off, so that train mode, which checkpointing needs, adds no noise."""
    passes, found = [], []
    for on in (False, True):
        policy = stir(Policy.load(models[kind], settings=replace(base, gradient_checkpointing=on)), 0.02)
        calls: list[int] = []
        policy.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found.append(gradients(policy))
        passes.append(len(calls))
        policy.score(batch(policy), Needs())
        assert len(calls) == passes[-1] + 1 and not policy.model.training
    assert passes == [1, 2]
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("settings", [BF16, replace(BF16, lora_rank=4), PolicyConfig()])
@pytest.mark.parametrize("decode", ["dynamic", "static"])
def test_weights_that_are_rounded_once_change_no_bit(kind, settings, decode, models):
    policy = stir(Policy.load(models[kind], settings=settings), 0.02)
    trained = [parameter.requires_grad for parameter in policy.model.parameters()]
    found = []
    for context in (nullcontext, policy.rounded_once):
        sampler = HFSampler(policy.model, eos_token_ids=(), pad_token_id=0, decode=decode, context=context)
        requests = [Request(Prompt(str(i), (7, 8, 9 + i), {}), i, 3) for i in range(2)]
        found.append(sampler.sample(requests, max_tokens=8, generator=generator(0, 0, "test")))
    assert found[0] == found[1]
    assert [parameter.requires_grad for parameter in policy.model.parameters()] == trained
    assert mismatch(policy, found[1]) < 0.3
    assert len(gradients(policy)) == sum(trained)


@pytest.mark.parametrize("lora_rank", [None, 4])
def test_inside_the_block_the_rounded_weights_stay(lora_rank, llama):
    policy = Policy.load(llama, settings=replace(BF16, lora_rank=lora_rank))
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad(), policy.rounded_once():
        before = policy.model(input_ids=ids).logits
        for weight in policy.model.parameters():
            if weight.dim() == 2:
                weight.data.mul_(2)
        after = policy.model(inputs_embeds=policy.model.get_input_embeddings()(ids) / 2).logits
    assert torch.equal(before, after)
    with torch.no_grad():
        assert not torch.equal(before, policy.model(input_ids=ids).logits)


def test_dropout_of_the_model_is_turned_off(tmp_path):
    config = GPT2Config(vocab_size=272, n_embd=32, n_layer=2, n_head=2, n_positions=64, eos_token_id=256)
    assert (config.resid_pdrop, config.attn_pdrop, config.embd_pdrop) == (0.1, 0.1, 0.1)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    byte_tokenizer().save_pretrained(tmp_path / "gpt2")
    llama = make_model(tmp_path / "llama", attention_dropout=0.5)
    for folder in (tmp_path / "gpt2", llama):
        policy = Policy.load(folder, settings=PolicyConfig(gradient_checkpointing=True))
        rows = batch(policy)
        trained = policy.statistics(rows, Needs()).logprobs
        assert policy.model.training
        torch.testing.assert_close(trained.detach(), policy.score(rows, Needs()).logprobs, atol=2e-6, rtol=0)


# --- prompts ------------------------------------------------------------------------------------------------


def test_chat_turns_are_encoded_by_the_template(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE
    policy = Policy.load(make_model(tmp_path, tokenizer=tokenizer))
    ids = policy.encode_chat([("system", "Be brief."), ("user", "2 + 2?")])
    assert policy.decode([ids]) == ["[system]Be brief.[user]2 + 2?[assistant]"]
    assert ids == policy.encode("[system]Be brief.[user]2 + 2?[assistant]")


def test_without_a_chat_template_chat_turns_are_refused(llama):
    with pytest.raises(InvalidValue, match="^model: got .*; must be one whose tokenizer has a chat template"):
        Policy.load(llama).encode_chat([("user", "2 + 2?")])


def test_turns_that_the_template_rejects_are_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(InvalidValue, match=r"^messages: got \['system'\]; .*no system turns here"):
        Policy.load(make_model(tmp_path, tokenizer=tokenizer)).encode_chat([("system", "Be brief.")])


# --- padding ------------------------------------------------------------------------------------------------

SKEWED = tuple((1 + 7 * i % 13, 1 + (41 * i) % 60 // (1 + i % 5)) for i in range(24))


def test_scores_do_not_depend_on_chunks_and_keep_their_order(llama, monkeypatch):
    policy = Policy.load(llama)
    rows = batch(policy, *SKEWED)
    needs = Needs(temperatures=(1.5,), kept=Clamped(removed=0.5))
    whole, widths = policy.score(rows, needs), []
    hidden = policy._hidden
    monkeypatch.setattr(policy_module, "SCORING_TOKENS", 150)
    monkeypatch.setattr(policy, "_hidden", lambda part: widths.append(part.input_ids.shape) or hidden(part))
    parts = policy.score(rows, needs)
    assert len(widths) > 5 and all(r * c <= 150 or r == 1 for r, c in widths) and sum(r for r, _ in widths) == 24
    for name in ("logprobs", "entropy", "kept_entropy"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), atol=2e-5, rtol=0)
    torch.testing.assert_close(parts.tempered[1.5], whole.tempered[1.5], atol=2e-5, rtol=0)
    alone = [policy.score(rows.select(torch.tensor([i])), needs).logprobs[0] for i in range(24)]
    torch.testing.assert_close(parts.logprobs, torch.stack(alone), atol=2e-5, rtol=0)


def test_columns_that_are_padding_in_every_row_are_not_computed(llama):
    policy = Policy.load(llama)
    rows = batch(policy, (3, 5), (2, 2), (9, 30))
    short = rows.select(torch.tensor([0, 1]))
    assert short.input_ids.shape == (2, 39) and trimmed(short).input_ids.shape == (2, 8)
    assert trimmed(short).prompt_width == 3 and trimmed(short).advantages.shape == (2, 5)
    alone = policy.statistics(batch(policy, (3, 5), (2, 2)), Needs())
    with_padding = policy.statistics(short, Needs())
    assert with_padding.logprobs.shape == (2, 30) and with_padding.logprobs[:, 5:].abs().sum() == 0
    torch.testing.assert_close(with_padding.logprobs[:, :5], alone.logprobs, atol=1e-6, rtol=0)


def test_rows_are_ordered_by_their_tokens(llama):
    assert by_length(batch(Policy.load(llama), (1, 2), (3, 9), (8, 1), (2, 1))).tolist() == [1, 2, 0, 3]
