"""`check_sampler` draws a few tokens before the work starts, and compares their probabilities with the scored ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from aepo.control.base import Needs
from aepo.engines.linear_head import real_tokens
from aepo.errors import InvalidValue
from aepo.model.policy import Policy
from aepo.sampling.base import Sampler
from aepo.types import Prompt, Request, Rollout, Sample

# Largest difference between the two log-probabilities of a token, nats, as the median over tokens. A cache rounds in
# another way; a cache that loses tokens differs by much more.
DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.1}
TOKENS, COMPLETIONS = 4, 2


def check_sampler(policy: Policy, sampler: Sampler) -> None:
    """Refuse a model that the sampler cannot draw from, or whose cache gives other probabilities than a whole row.

    Args:
        policy: The policy.
        sampler: A sampler on the policy's own weights, without cuts of the distribution.

    Raises:
        InvalidValue: The sampler and the model do not fit.
    """
    ids = real_tokens(policy.model)[0].tolist()
    prompts = [Prompt(str(length), tuple(ids[:length]), {}) for length in (len(ids), max(1, len(ids) - 3))]
    _check(policy, sampler, prompts, "rows")
    if policy.images is not None:  # the answer to an image stands at other positions than its number of tokens says
        image = policy.images.example()
        places = (policy.images.token,) * policy.images.count(image)
        shown = (ids[0], *places, *ids[1:])
        _check(
            policy, sampler, [Prompt("image", shown, {}, images=policy.images.remember([image]))], "rows with images"
        )


def _check(policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], rows: str) -> None:
    kind = type(policy.model).__name__
    requests = [Request(prompt, group, COMPLETIONS) for group, prompt in enumerate(prompts)]
    try:
        drawn = sampler.sample(requests, max_tokens=TOKENS, generator=torch.Generator().manual_seed(0))
        batch = policy.collate([Sample(Rollout(completion, 0.0), 0.0) for completion in drawn])
        scored = policy.score(batch, Needs()).logprobs
    except Exception as error:  # any model's own code
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidValue(
            "sampling.engine", "hf", f"another, because {kind} cannot be sampled here ({reason})"
        ) from None
    off = (scored - batch.sampling_logprobs).abs()[batch.mask.bool()].median().item()
    if not off <= DIFFERENCE[policy.dtype]:
        got = f"hf, whose log-probabilities of {kind} are {off:.2g} nats off those of whole {rows}"
        raise InvalidValue("sampling.engine", got, "another: the model's cache does not work here")
