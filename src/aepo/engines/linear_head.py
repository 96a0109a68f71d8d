"""`logit_transform` finds how a model makes its logits of its last hidden states, and refuses what is no linear head.

The token statistics compute the logits themselves: the LM head's product, a factor, a soft cap. The configuration says
which factor and which cap, and the model's own logits say whether it means them so: models give one name to a factor
and to its inverse, or name what their code ignores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from aepo.entropy.transform import LogitTransform
from aepo.errors import InvalidValue, require

# Names of configurations for a factor of the logits. With the first names most models multiply, with the second ones
# they divide.
MULTIPLIED = ("logit_scale", "lm_head_multiplier", "output_multiplier", "output_multiplier_scale")
DIVIDED = ("logits_scaling", "logits_mup_width_multiplier")
# Names of configurations for a soft cap of the logits.
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")

# Number of tokens that the check reads, and of random candidates for them.
TOKENS, CANDIDATES = 8, 64
# The hidden states are also enlarged until the largest logit has this size, where a cap of up to some thousand shows.
LARGE = 100.0
# Largest difference of two logits, as a multiple of the dtype's epsilon and of the largest logit.
TOLERANCE = 32


def logit_transform(model: Any, linear: Callable[[Tensor], Tensor]) -> LogitTransform:
    """Return the factor and the soft cap with which the model makes its logits of `linear` of its hidden states.

    The model's own logits decide, on several random tokens and at two sizes of the hidden states.

    Args:
        model: A causal language model of transformers.
        linear: The output layer, hidden states [B, T, D] -> [B, T, V].

    Raises:
        InvalidValue: The model does not run on token ids, or its logits are something else; the message says what.
    """
    kind = type(model).__name__
    if model.base_model is model:
        raise InvalidValue("model", kind, "one whose layers below its output layer are a model of their own")
    ids = real_tokens(model)
    try:
        cases = [_Case.of(model, linear, ids, 1.0)]
        size = cases[0].logits.abs().max().item()
        if 0 < size < math.inf and cases[0].inside:
            cases.append(_Case.of(model, linear, ids, LARGE / size))
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
        wanted = f"one that makes logits of token ids alone ({_first_line(error)})"
        raise InvalidValue("model", kind, wanted) from None
    require(math.isfinite(size), "model", kind, "one with finite logits: some of its weights are NaN or infinite")
    possible = list(readings(model.config))
    for transform in possible:
        if all(case.agrees(transform) for case in cases):
            return transform
    raise InvalidValue("model", f"{kind}, {_difference(cases, possible[0])}", _wanted(model.config))


def readings(config: Any) -> Iterator[LogitTransform]:
    """Yield what the configuration may mean, the most likely first.

    A factor may be multiplied or divided by, or ignored. A cap may be ignored.

    Args:
        config: The model's configuration, or one that holds the text model's configuration.
    """
    named = words(config)
    scales: list[float] = [1.0]
    caps: list[float | None] = [None]
    for name in (*MULTIPLIED, *DIVIDED):
        if named.get(name, 1.0) != 1.0:
            scale = 1 / named[name] if name in DIVIDED else named[name]
            scales = [scale, 1 / scale, 1.0]
    for name in CAPS:
        if name in named:
            caps = [named[name], None]
    for cap in caps:
        for scale in scales:
            yield LogitTransform(scale, cap)


def words(config: Any) -> dict[str, float]:
    """Return the positive numbers of the configuration that name a factor or a soft cap of the logits."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    found = {name: getattr(text, name, None) for name in (*MULTIPLIED, *DIVIDED, *CAPS)}
    return {
        name: float(value)
        for name, value in found.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
    }


def real_tokens(model: Any) -> Tensor:
    """Return random token ids, [1, TOKENS], that stand for words.

    The special tokens of the configuration are left out, and so are tokens whose embedding is zero, as that of padding
    often is: their logits may be 0 whatever the factor.
    """
    embedding = model.get_input_embeddings()
    weight = embedding.weight
    special = _special(model.config)
    draw = torch.randint(weight.shape[0], (CANDIDATES,), generator=torch.Generator().manual_seed(0))
    drawn = [token for token in dict.fromkeys(draw.tolist()) if token not in special] or draw.tolist()
    ids = torch.tensor(drawn, device=weight.device)
    with torch.no_grad():
        filled = embedding(ids).abs().flatten(1).amax(1) > 0
    return (ids[filled] if filled.any() else ids)[:TOKENS][None]


def _special(config: Any) -> set[int]:
    special: set[int] = set()
    for name, value in vars(config).items():
        if name.endswith(("_token_id", "_token_ids", "_token_index")) and value is not None:
            special.update(value if isinstance(value, list | tuple) else [value])
    return special


class _Case:
    """`_Case` holds the model's logits and the output layer's results for one set of hidden states, in float32."""

    def __init__(self, outputs: Tensor, logits: Tensor, inside: bool = True) -> None:
        # Whether the hidden states were those inside the pass that made the logits. Only those can be enlarged.
        self.inside = inside
        self.tolerance = TOLERANCE * max(torch.finfo(x.dtype).eps for x in (outputs, logits))
        self.outputs, self.logits = outputs.float(), logits.float()

    @classmethod
    def of(cls, model: Any, linear: Callable[[Tensor], Tensor], ids: Tensor, factor: float) -> _Case:
        """Run the model, with its last hidden states times the factor."""
        seen: list[Tensor] = []

        def enlarge(module: Any, arguments: Any, output: Any) -> Any:
            seen.append(output[0] * factor)
            if isinstance(output, tuple):
                return (seen[-1], *output[1:])
            output["last_hidden_state"] = seen[-1]
            return output

        handle = model.base_model.register_forward_hook(enlarge)
        try:
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits
                inside = bool(seen)  # OPT calls the layers of its body one by one
                if not inside:
                    model.base_model(input_ids=ids, use_cache=False)
                return cls(linear(seen[-1]), logits, inside)
        finally:
            handle.remove()

    def agrees(self, transform: LogitTransform) -> bool:
        """Return whether the transform makes the model's logits of the output layer's results."""
        if self.outputs.shape != self.logits.shape:
            return False
        return self.off(transform) <= self.tolerance * self.logits.abs().max().item()

    def off(self, transform: LogitTransform) -> float:
        """Return the largest difference between the transform's logits and the model's."""
        return (transform(self.outputs) - self.logits).abs().max().item()


def _difference(cases: list[_Case], transform: LogitTransform) -> str:
    """Return what is wrong with the case in which the logits differ most."""
    worst = max(cases, key=lambda case: not case.agrees(transform))
    if worst.outputs.shape != worst.logits.shape:
        mine, theirs = worst.outputs.shape[-1], worst.logits.shape[-1]
        return f"whose output layer has {mine} rows and which gives {theirs} logits"
    largest = worst.logits.abs().max().item()
    return f"whose logits of up to {largest:.3g} differ by {worst.off(transform):.2g} from those of its output layer"


def _wanted(config: Any) -> str:
    named = ", ".join(f"{name} = {value:g}" for name, value in words(config).items()) or "none"
    return f"one whose logits are a linear map of its hidden states, times a factor or soft-capped as named ({named})"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
