"""Which prompts are computed at once before decoding, and which of their columns are padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aepo.types import Prompt

# Prompts of another length are computed in a pass of their own where this saves so many columns of padding in all, and
# a quarter of each row; a pass has a cost, too. See benchmarks/left_padding.py.
LEAST_COLUMNS, LEAST_SHARE = 512, 1 / 4


def alike(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Return the prompts in groups of like length, the longest first."""
    ordered = sorted(prompts, key=lambda prompt: -len(prompt.tokens))
    groups: list[list[Prompt]] = [[]]
    width = len(ordered[0].tokens)
    for number, prompt in enumerate(ordered):
        saved = width - len(prompt.tokens)
        if saved >= LEAST_SHARE * width and saved * (len(ordered) - number) >= LEAST_COLUMNS:
            groups.append([])
            width = len(prompt.tokens)
        groups[-1].append(prompt)
    return groups


def shown(prompts: Sequence[Prompt], device: torch.device) -> Tensor | None:
    """Return bool [P, C] for prompts that are padded on the left to the longest: false on padding. None without any."""
    lengths = torch.tensor([len(prompt.tokens) for prompt in prompts], device=device)
    width = int(lengths.max())
    if int(lengths.min()) == width:
        return None
    return torch.arange(width, device=device) >= width - lengths[:, None]
