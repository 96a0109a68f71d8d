"""`Room` says how long a prompt and its completion may be together: as long as the model has positions.

Beyond them a model with rotary positions computes numbers that it was never trained for, and one with an embedding for
each position fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from aepo.errors import InvalidValue, require

# Names of configurations for the number of positions.
NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")
# Kinds of scaled rotary positions whose factor the configuration does not count among its positions.
SCALED = ("linear", "dynamic", "yarn")

OverLength = Literal["refuse", "cut"]


@dataclass(frozen=True)
class Room:
    """`Room` holds the model's positions and what happens beyond them."""

    positions: int | None = None
    """The largest number of tokens of a prompt and its completion; None for no limit."""
    over_length: OverLength = "refuse"
    """`refuse` refuses a prompt after which the longest completion has no room; `cut` gives it the room left."""

    advice: str = "set policy.over_length=cut"
    """What else would do, for the message of a refusal."""

    def holds(self, tokens: int) -> bool:
        """Return whether a row of this many tokens, prompt and completion, has a position for each."""
        return self.positions is None or tokens <= self.positions

    def limit(self, prompt: int, max_tokens: int) -> int:
        """Return the largest length of a completion, tokens.

        Args:
            prompt: The length of the prompt, tokens.
            max_tokens: The largest length of a completion after a short prompt, tokens.

        Raises:
            InvalidValue: There is no room, or not enough and `over_length` is `refuse`.
        """
        if self.positions is None or self.holds(prompt + max_tokens):
            return max_tokens
        if self.over_length == "refuse":
            got = f"{prompt} + {max_tokens} tokens"
            wanted = f"at most the model's {self.positions} positions together; or {self.advice}"
            raise InvalidValue("prompt and completion", got, wanted)
        wanted = f"shorter than the model's {self.positions} positions, to leave room for a completion"
        require(prompt < self.positions, "prompt", f"{prompt} tokens", wanted)
        return self.positions - prompt


def positions(config: Any) -> int | None:
    """Return the number of positions of a model, or None if its configuration names none.

    Args:
        config: The model's configuration, or one that holds the text model's configuration.
    """
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    named = (getattr(text, name, None) for name in NAMES)
    found = next((value for value in named if isinstance(value, int) and value > 0), None)
    if found is None:
        return None
    scaling = getattr(text, "rope_parameters", None) or getattr(text, "rope_scaling", None) or {}
    return max(found, _scaled(found, scaling))


def _scaled(found: int, scaling: Mapping[str, Any]) -> int:
    """Return the positions that the factor of the rotary positions gives; 0 if there is none that counts."""
    kind, factor = scaling.get("rope_type", scaling.get("type")), scaling.get("factor")
    if kind not in SCALED or not isinstance(factor, int | float):
        return 0
    return int((scaling.get("original_max_position_embeddings") or found) * factor)
