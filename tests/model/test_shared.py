"""A prompt that is computed once for all its rows gives the numbers of plain rows."""

from dataclasses import replace

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from aepo.config import PolicyConfig, make_config
from aepo.control.base import Needs
from aepo.engines.collate import collate
from aepo.entropy.partial import Clamped
from aepo.model import policy as policy_module
from aepo.model import shared
from aepo.model.memory import Sizes, sizes
from aepo.model.policy import Policy, trimmed
from aepo.model.shared import (
    by_prompt,
    fit_update,
    packs_for,
    plain_hidden,
    prompts_of,
    saving,
    shared_hidden,
    sharing_error,
    whole_prompts,
)
from aepo.types import Completion, Prompt, Rollout, Sample
from tests.tiny_models import BF16, CLASSES, LORA, make_model, stir

# Lengths of each prompt, and of its answers.
GROUPS = ((20, (5, 2, 9, 1)), (13, (4,)), (17, (6, 6, 3)))
NEEDS = Needs(temperatures=(0.7, 1.4), entropy_gradient=True, kept=Clamped(0.3))


def group_samples(groups=GROUPS, temperatures=(1.0, 1.3)) -> list[Sample]:
    """Random groups; the rows of one group are drawn at different temperatures."""
    draw, rows = torch.Generator().manual_seed(3), []
    for number, (prompt, answers) in enumerate(groups):
        asked = Prompt(str(number), tuple(torch.randint(0, 256, (prompt,), generator=draw).tolist()), {})
        for place, answer in enumerate(answers):
            tokens = tuple(torch.randint(0, 256, (answer,), generator=draw).tolist())
            heat = temperatures[place % len(temperatures)]
            completion = Completion(asked, number, heat, tokens, (-1.0,) * answer, truncated=True)
            rows.append(Sample(Rollout(completion, 1.0), 1.0, extra=heat != 1.0))
    return rows


def group_batch(policy: Policy, groups=GROUPS):
    """The rows in another order than that of their groups."""
    rows = collate(group_samples(groups), policy.pad_token_id)
    return rows.select(torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)))


def both(policy: Policy, monkeypatch) -> list[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Statistics and gradients with each row by itself, and shared; the second way must have made packs."""
    found, packed = [], []
    original = shared.shared_hidden
    monkeypatch.setattr(policy_module, "shared_hidden", lambda *a: packed.append(len(a[2])) or original(*a))
    for share in (False, True):
        if share:
            assert policy.share_prompts()
        policy.model.zero_grad()
        stats = policy.statistics(group_batch(policy), NEEDS)
        values = [stats.logprobs, stats.entropy, stats.kept_entropy, *stats.tempered.values()]
        total = sum((v * (1 + torch.arange(v.numel()).view(v.shape).sin())).sum() for v in values[:3])
        total.backward()
        gradients = [p.grad.clone() for p in policy.model.parameters() if p.grad is not None]
        found.append(([v.detach() for v in values], gradients))
    assert len(packed) == 1
    return found


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(
    "settings", [PolicyConfig(), replace(LORA, gradient_checkpointing=True), PolicyConfig(attention="eager"), LORA]
)
def test_shared_prompts_change_no_statistic_and_no_gradient(kind, settings, models, monkeypatch):
    policy = stir(Policy.load(models[kind], settings=settings), 0.02)
    plain, packed = both(policy, monkeypatch)
    for mine, wanted in zip(packed[0], plain[0], strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-6, rtol=1e-6)
    assert len(plain[1]) == len(packed[1]) > 10
    largest = max(gradient.abs().max() for gradient in plain[1])
    for mine, wanted in zip(packed[1], plain[1], strict=True):
        torch.testing.assert_close(mine, wanted, atol=1e-6 * max(1, largest), rtol=1e-5)


@pytest.mark.parametrize("kind", CLASSES)
def test_in_bfloat16_packs_differ_from_plain_rows_by_no_more_than_padding_does(kind, models, monkeypatch):
    policy = stir(Policy.load(models[kind], settings=BF16), 0.02)
    plain, packed = both(policy, monkeypatch)
    alone = [policy.statistics(collate([row], policy.pad_token_id), Needs()).logprobs for row in group_samples()]
    order = torch.randperm(len(alone), generator=torch.Generator().manual_seed(0))
    rounding = max(
        (plain[0][0][place, : alone[row].shape[1]] - alone[row][0]).abs().max()
        for place, row in enumerate(order.tolist())
    )
    assert (packed[0][0] - plain[0][0]).abs().max() < max(3 * rounding, 0.05)
    a, b = (torch.cat([g.flatten() for g in found[1]]) for found in (plain, packed))
    assert torch.cosine_similarity(a, b, dim=0) > 0.999


def test_scores_are_in_the_order_of_the_rows(llama):
    policy = Policy.load(llama)
    rows = group_batch(policy)
    plain = policy.score(rows, NEEDS)
    assert policy.share_prompts()
    packed = policy.score(rows, NEEDS)
    torch.testing.assert_close(packed.logprobs, plain.logprobs, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(packed.tempered[1.4], plain.tempered[1.4], atol=1e-6, rtol=1e-6)


def test_a_pack_has_no_token_twice_and_no_padding_between_answers(llama, monkeypatch):
    policy = Policy.load(llama)
    rows = trimmed(collate(group_samples(((20, (5, 2, 9, 1)),)), policy.pad_token_id))
    seen = []
    policy.model.base_model.register_forward_pre_hook(
        lambda module, inputs, named: seen.append(named["input_ids"]), with_kwargs=True
    )
    shared_hidden(policy.model, rows, [[0, 1, 2, 3]])
    prompt = group_samples(((20, (5, 2, 9, 1)),))[0].rollout.completion.prompt.tokens
    answers = [row.rollout.completion.tokens for row in group_samples(((20, (5, 2, 9, 1)),))]
    assert seen[0].tolist() == [[*prompt, *(token for answer in answers for token in answer[:-1])]]


@pytest.mark.parametrize("kind", ["gemma2", "gpt2", "mixtral", "gpt_neox"])
def test_other_architectures_that_can(kind):
    assert sharing_error(toy(kind), range(1, 9), 0) < 1e-5


@pytest.mark.parametrize("kind", ["mpt", "bloom", "mamba", "jamba"])
def test_architectures_that_cannot_are_found(kind):
    """ALiBi counts the places of a pack, recurrent layers read one answer after another."""
    assert sharing_error(toy(kind), range(1, 9), 0) > 0.01


def toy(kind: str):
    """A random model of two layers of another architecture."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "head_dim": 8}
    sizes |= {"num_key_value_heads": 4, "intermediate_size": 48, "n_layer": 2, "n_head": 4, "n_embd": 32}
    sizes |= {"d_model": 32, "n_heads": 4, "n_layers": 2, "mamba_expand": 2, "initializer_range": 0.2}
    known = vars(CONFIG_MAPPING[kind]())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(
            CONFIG_MAPPING[kind](**{name: value for name, value in sizes.items() if name in known}, pad_token_id=0)
        ).eval()


def test_a_mask_that_lets_answers_see_each_other_is_found(llama, monkeypatch):
    policy = Policy.load(llama)
    original = shared._seen
    monkeypatch.setattr(shared, "_seen", lambda owner: original(torch.zeros_like(owner)))
    assert not policy.share_prompts() and policy.sharing is None


def test_packs_are_no_longer_than_the_shortest_window(tmp_path):
    """Gemma's and Mistral's windows count the tokens of a row, and a pack has more of them."""
    policy = Policy.load(make_model(tmp_path))
    rows = trimmed(group_batch(policy, ((40, (9, 9, 9, 9)),)))
    size = sizes(policy.model)
    assert size.looks_back is None and [len(pack) for pack in packs_for(rows, size)] == [4]
    assert [len(pack) for pack in packs_for(rows, replace(size, looks_back=60))] == [2, 2]
    assert packs_for(rows, replace(size, looks_back=50)) is None


def test_a_window_is_read_from_the_configuration():
    model = toy("gemma2")
    assert sizes(model).looks_back == model.config.sliding_window == 4096


def test_long_answers_and_lone_rows_stay_plain(llama):
    policy = Policy.load(llama)
    assert policy.share_prompts()
    for groups in (((2, (60, 60)),), ((20, (5,)), (19, (4,)))):
        rows = trimmed(group_batch(policy, groups))
        assert packs_for(rows, policy.sharing) is None
        hidden = policy._hidden(rows)
        assert torch.equal(hidden, plain_hidden(policy.model, rows))


def test_eager_attention_keeps_no_larger_matrix(llama):
    policy = Policy.load(llama, settings=PolicyConfig(attention="eager"))
    rows = trimmed(group_batch(policy, ((18, (12, 12, 12, 12)),)))
    eager = sizes(policy.model)
    assert eager.eager_heads and packs_for(rows, eager) is not None
    assert max(map(len, packs_for(rows, eager))) < max(map(len, packs_for(rows, replace(eager, eager_heads=0))))


def test_rows_of_a_prompt_are_found_by_its_tokens_and_stay_together(llama):
    policy = Policy.load(llama)
    rows = collate(group_samples(((3, (4, 2)), (3, (9, 1, 1)), (5, (2,)))), policy.pad_token_id)
    assert prompts_of(rows) == [0, 0, 2, 2, 2, 5]
    assert by_prompt(rows).tolist() == [2, 3, 4, 0, 1, 5]
    assert [part.tolist() for part in whole_prompts(rows, 3)] == [[2, 3, 4], [0, 1, 5]]
    assert [part.tolist() for part in whole_prompts(rows, 4)] == [[2, 3, 4], [0, 1, 5]]
    assert [part.tolist() for part in whole_prompts(rows, 2)] == [[2, 3], [4], [0, 1], [5]]


# --- whether a run shares -----------------------------------------------------------------------------------


SMOL = Sizes(parameters=135 * 10**6, trained=10**6, layers=30, hidden=576, queries=576, keys=192, feed_forward=1536)


def config(share="auto", answer=32, *more):
    given = [f"policy.share_prompts={share}", "task=sentences", f"task.max_response={answer}", "sampling.prompts=8"]
    return make_config(settings=[*given, "sampling.group_size=8", "optimizer.minibatches=4", *more])


def test_auto_shares_long_prompts_of_short_answers():
    golden = saving(config(), SMOL, 50.0, None)
    # 8 rows of 50 + 32 tokens against one of 50 + 8 x 31, with 2 x 3 538 944 operations a token and 2 304 a pair
    plain, packed = 656 * (7077888 + 2304 * 82), 298 * (7077888 + 2304 * 298)
    assert golden == pytest.approx(1 - packed / plain)
    assert saving(config(answer=1024), SMOL, 50.0, None) is None
    assert saving(config("false"), SMOL, 50.0, None) is None
    assert saving(config("true", answer=1024), SMOL, 50.0, None) == pytest.approx(0.0, abs=0.05)


def test_rows_that_no_pass_has_together_are_not_counted():
    assert saving(config(), SMOL, 50.0, 1) is None
    assert 0 < saving(config(), SMOL, 50.0, 2) < saving(config(), SMOL, 50.0, 4)
    assert saving(config("auto", 32, "sampling.prompts=2"), SMOL, 50.0, None) < saving(config(), SMOL, 50.0, None)


def test_the_choice_stands_in_place_of_auto():
    fit = fit_update(config(), SMOL, 60, 50.0, 16 * 2**30)
    assert fit.applied(config()).policy.share_prompts is True
    assert replace(fit, saved=None).applied(config()).policy.share_prompts is False
