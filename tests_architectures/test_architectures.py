"""Each architecture against plain logits of its own model: log-probabilities, entropies, gradients, sampling."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from aepo.control.base import Needs
from aepo.engines.collate import collate
from aepo.entropy.statistics import logits_statistics
from aepo.errors import InvalidValue
from aepo.model.policy import Policy, trimmed
from aepo.model.shared import packs_for
from aepo.sampling.check import check_sampler
from aepo.sampling.hf import HFSampler
from aepo.types import BatchStatistics, Prompt, Request, Rollout, Sample
from tests.tiny_models import batch, drawn, mismatch, samples
from tests_architectures.toys import REFUSED, ROUGH, WORK, saved

TEMPERATURES = (0.7, 1.4)
LENGTHS = ((3, 5), (7, 2))
# Recurrent layers, convolutions and ALiBi read the places of a pack, so that each row computes its own prompt.
EACH_ROW = {
    *("bamba", "bloom", "falcon_h1", "falcon_mamba", "granitemoehybrid", "jamba", "lfm2_moe", "mamba", "mamba2", "mpt"),
    *("nemotron_h", "olmo_hybrid", "qwen3_5_text", "qwen3_next", "zamba2"),
}
# Models that take no mask of the form that a fixed cache needs.
DYNAMIC_ONLY = {"bloom"}
NAMES = ("logprobs", "entropy")


@pytest.fixture(scope="module", params=WORK)
def policy(request, tmp_path_factory) -> Policy:
    return Policy.load(saved(request.param, WORK[request.param], tmp_path_factory.mktemp(request.param)))


def plain(policy: Policy, row: Sample):
    """The statistics of one row, from `model(...)` of the row alone: no padding, no batch, no tiles."""
    prompt, answer = row.rollout.completion.prompt.tokens, row.rollout.completion.tokens
    logits = policy.model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits_statistics(logits, torch.tensor(answer), temperatures=TEMPERATURES)


def total(parts: list[Tensor]) -> Tensor:
    """A sum in which every value has another weight."""
    values = torch.cat([part.flatten() for part in parts])
    return (values * torch.arange(1.0, 1 + len(values)).sin()).sum()


def flat(stats: BatchStatistics, mask: Tensor) -> list[Tensor]:
    inside = mask.bool()
    return [stats.logprobs[inside], stats.entropy[inside], *(stats.tempered[t][inside] for t in TEMPERATURES)]


def test_statistics_and_gradients_are_those_of_plain_logits(policy):
    """Two rows of two lengths, padded on both sides."""
    rows = batch(policy, *LENGTHS)
    ours = flat(policy.statistics(rows, Needs(temperatures=TEMPERATURES, entropy_gradient=True)), rows.mask)
    each = [plain(policy, row) for row in samples(LENGTHS)]
    right = [torch.cat([getattr(s, name) for s in each]) for name in NAMES]
    right += list(torch.cat([s.tempered for s in each], dim=1))
    for mine, wanted in zip(ours, right, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)
    weights = [p for p in policy.model.parameters() if p.requires_grad]
    mine, wanted = (torch.autograd.grad(total(parts), weights, allow_unused=True) for parts in (ours, right))
    largest = max(g.abs().max().item() for g in wanted if g is not None)
    for a, b in zip(mine, wanted, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * largest)
        else:
            assert a is b or not any(x.any() for x in (a, b) if x is not None)


def test_a_shared_prompt_gives_the_same_numbers_or_is_refused(policy):
    torch.manual_seed(0)
    asked = samples(((12, 1),))[0].rollout.completion.prompt
    answers = [row.rollout.completion for row in samples(((1, 3), (1, 5), (1, 1)))]
    rows = [Sample(Rollout(replace(c, prompt=asked, group=0), 1.0), 1.0) for c in answers]
    batch = collate(rows, policy.pad_token_id)
    alone = flat(policy.statistics(batch, Needs(temperatures=TEMPERATURES)), batch.mask)
    kind = policy.model.config.model_type
    assert policy.share_prompts() is (kind not in EACH_ROW)
    try:
        packs = policy.sharing and packs_for(trimmed(batch), policy.sharing)
        assert (packs is None) is (kind in EACH_ROW)
        shared = flat(policy.statistics(batch, Needs(temperatures=TEMPERATURES)), batch.mask)
    finally:
        policy.sharing = None
    for mine, wanted in zip(shared, alone, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-5)


def test_the_sampler_draws_what_is_scored(policy):
    check_sampler(policy, sampler(policy))
    completions = drawn(policy, count=4)
    assert len({c.tokens for c in completions}) > 4
    assert mismatch(policy, completions) < ROUGH.get(policy.model.config.model_type, 2e-5)


def test_static_decoding_draws_what_is_scored_or_is_refused(policy):
    static = HFSampler(
        policy.model, eos_token_ids=policy.eos_token_ids, pad_token_id=policy.pad_token_id, decode="static"
    )
    kind = policy.model.config.model_type
    try:
        check_sampler(policy, static)
    except InvalidValue:
        assert kind in DYNAMIC_ONLY
        return
    requests = [Request(row.rollout.completion.prompt, i, 4) for i, row in enumerate(samples(LENGTHS))]
    completions = static.sample(requests, max_tokens=20, generator=torch.Generator().manual_seed(0))
    assert kind not in DYNAMIC_ONLY and mismatch(policy, completions) < ROUGH.get(kind, 2e-5)


def test_greedy_tokens_are_those_of_generate(policy):
    prompts = [row.rollout.completion.prompt.tokens for row in samples(LENGTHS)]
    requests = [Request(Prompt(str(i), tokens, {}), i, 1, 1e-4) for i, tokens in enumerate(prompts)]
    ours = sampler(policy).sample(requests, max_tokens=6, generator=torch.Generator().manual_seed(0))
    for tokens, completion in zip(prompts, ours, strict=True):
        ids = torch.tensor([tokens])
        named = {"attention_mask": torch.ones_like(ids), "pad_token_id": policy.pad_token_id}
        theirs = policy.model.generate(ids, do_sample=False, max_new_tokens=6, **named)
        assert completion.tokens == tuple(theirs[0, len(tokens) :].tolist())


def sampler(policy: Policy) -> HFSampler:
    return HFSampler(policy.model, eos_token_ids=policy.eos_token_ids, pad_token_id=policy.pad_token_id)


@pytest.mark.parametrize("kind", REFUSED)
def test_the_rest_is_refused_in_one_line(kind, tmp_path):
    changes, reason = REFUSED[kind]
    with pytest.raises(InvalidValue, match=reason) as error:
        policy = Policy.load(saved(kind, changes, tmp_path))
        check_sampler(policy, sampler(policy))
    assert len(str(error.value).splitlines()) == 1


def test_the_table_of_the_docs_names_them():
    """The table of docs/models.md, which `python -m tests_architectures.toys` prints."""
    from tests_architectures.toys import table

    assert table() in (Path(__file__).parents[1] / "docs/models.md").read_text()


def test_collate_is_used_with_the_policys_padding(policy):
    """The toys' padding id is a token whose embedding is not special: a mask alone must keep it out."""
    rows = collate(samples(LENGTHS), policy.pad_token_id)
    other = collate(samples(LENGTHS), 5)
    assert not torch.equal(rows.input_ids, other.input_ids)
    mine, theirs = (policy.score(b, Needs()).logprobs for b in (rows, other))
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
