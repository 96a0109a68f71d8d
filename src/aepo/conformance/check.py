"""`check_function` tests whether a trainer's log-probabilities and entropy are those that this package defines.

docs/conformance.md describes the test. The tested function is f(logits, labels, mask, temperature), and it returns
(logprobs, entropy) or (logprobs, entropy, mean):

    logits       float32 [B, T, V], raw; logits[b, t] gives the distribution from which labels[b, t] was drawn
    labels       int64 [B, T]
    mask         float32 [B, T], 1.0 on completion tokens, else 0
    temperature  the temperature of the sampler
    logprobs     [B, T], nats, log softmax(logits / temperature) at the label; the sampler draws from this distribution
    entropy      [B, T], nats, exact entropy of softmax(logits) at temperature 1 over the whole vocabulary
    mean         the token mean of entropy over the mask, or (total, count), which ranks can add up

Values outside the mask are not checked. logprobs or entropy may be None; it is then not checked, and the result says
so. With `causal`, logits and labels are a model's output and input: logits[b, t] predicts labels[b, t + 1], and the
results are [B, T - 1], or [B, T] with a first column that is ignored.
"""

from __future__ import annotations

import importlib
import math
import runpy
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from aepo.conformance.fixtures import VOCABULARY, Fixture, wrong_entropy, wrong_logprobs
from aepo.errors import InvalidValue

TestedFunction = Callable[[Tensor, Tensor, Tensor, float], Sequence[Any]]
Combine = Callable[[list[Any]], Any]

RANKS = ((0,), (1, 2))
PER_TOKEN = ("logprobs", "entropy")
TEMPERATURE = 0.5


@dataclass(frozen=True)
class PropertyResult:
    """`PropertyResult` says whether the function has one property."""

    name: str
    """The name of the property, such as `padding`."""
    status: Literal["ok", "FAILED", "not checked"]
    """Whether the function has the property."""
    text: str = ""
    """The likely cause of a failure, the reason why the property was not checked, or what of it was not checked."""


class _Broken(Exception):
    """The tested function raised an exception, or returned something that cannot be compared."""


@dataclass(frozen=True)
class _Returned:
    """`_Returned` holds what the tested function returned for one call, without the columns that are ignored."""

    logprobs: Tensor | None
    entropy: Tensor | None
    mean: Any = None


def check_function(
    function: TestedFunction, *, combine: Combine | None = None, causal: bool = False, tolerance: float = 1e-4
) -> list[PropertyResult]:
    """Run a trainer's function on the fixtures and test each property.

    Args:
        function: The function, f(logits, labels, mask, temperature) -> (logprobs, entropy[, mean]).
        combine: A function that joins the list of the ranks' means to one number, as the trainer does. It is not needed
            if the function returns (total, count).
        causal: True if logits and labels are a model's output and input, and the function shifts them itself.
        tolerance: The largest accepted difference, nats.

    Returns:
        One result for each property.
    """
    tested = _Checker(function, combine, causal, tolerance)
    unseen = tested.unseen()
    checks = {
        "values": tested.values,
        "temperature": tested.temperature,
        "padding": tested.padding,
        "order": tested.order,
        "token mean": tested.token_mean,
        "rank mean": tested.rank_mean,
    }
    of_both = ("values", "temperature", "padding", "order")
    return [_property_result(name, check, unseen if name in of_both else "") for name, check in checks.items()]


def _property_result(name: str, check: Callable[[], str | None], unseen: str) -> PropertyResult:
    try:
        cause = check()
    except _Skipped as reason:
        return PropertyResult(name, "not checked", str(reason))
    except _Broken as error:
        cause = str(error)
    return PropertyResult(name, "FAILED", cause) if cause else PropertyResult(name, "ok", unseen)


class _Skipped(Exception):
    """The tested function returns nothing on which this property can be checked."""


@dataclass(frozen=True)
class _Checker:
    """`_Checker` has one method per property; it returns the likely cause of a failure, or None.

    `_Skipped` says that the property cannot be checked, `_Broken` that the function cannot be compared.
    """

    function: TestedFunction
    combine: Combine | None
    causal: bool
    tolerance: float

    def unseen(self) -> str:
        """Say which of logprobs and entropy is None; return "" if the function cannot be called."""
        try:
            found = self._call(Fixture.standard())
        except (_Broken, _Skipped):
            return ""
        return ", ".join(f"{name} not checked (None)" for name in PER_TOKEN if getattr(found, name) is None)

    def values(self) -> str | None:
        """Check the values at temperature 1."""
        return self._compare(1.0)

    def temperature(self) -> str | None:
        """Check that the temperature divides the logits of logprobs and leaves entropy alone."""
        return self._compare(TEMPERATURE)

    def padding(self) -> str | None:
        """Check that wider padding, and other logits and labels in it, change nothing inside the mask."""
        base = Fixture.standard()
        plain, wide, noisy = self._call(base), self._call(base.wider(3)), self._call(base, outside=50.0)
        self._require_results(plain)
        for what, other in (("wider padding", wide), ("other logits and labels outside the mask", noisy)):
            for name, before, after in _pairs(plain, other):
                if not self._close(after[:, : before.shape[1]], before, base.mask):
                    return f"{name} inside the mask changed with {what}: padding is counted"
            if plain.mean is not None and not math.isclose(
                _number(plain.mean), _number(other.mean), abs_tol=self.tolerance
            ):
                return f"the mean changed with {what}: padding is counted"
        return None

    def order(self) -> str | None:
        """Check that the values of a row do not depend on its place in the batch."""
        base, order = Fixture.standard(), [2, 0, 1]
        plain, moved = self._call(base), self._call(base.rows(order))
        self._require_results(plain)
        for name, before, after in _pairs(plain, moved):
            if not self._close(after, before[order], base.mask[order]):
                return f"{name} of a row depend on where in the batch it stands"
        if plain.mean is not None and abs(_number(plain.mean) - _number(moved.mean)) > self.tolerance:
            return "the mean depends on the order of the rows"
        return None

    def _require_results(self, found: _Returned) -> None:
        """Raise `_Skipped` if there is nothing to compare, and `_Broken` if a result is NaN inside the mask."""
        if all(part is None for part in (found.logprobs, found.entropy, found.mean)):
            raise _Skipped("the function returns None for logprobs and entropy")
        for name in PER_TOKEN:
            values = getattr(found, name)
            if values is not None:
                _refuse_nan(name, values, Fixture.standard().mask)
        if found.mean is not None and math.isnan(_number(found.mean)):
            raise _Broken("the mean is NaN")

    def token_mean(self) -> str | None:
        """Check that the mean is the mean over tokens of the function's own entropies."""
        base = Fixture.standard()
        found = self._call(base)
        if found.mean is None or found.entropy is None:
            raise _Skipped("the function returns no mean beside its entropy")
        _refuse_nan("entropy", found.entropy, base.mask)
        mask, own = base.mask.double(), torch.where(base.mask.bool(), found.entropy, 0.0)
        sums = own.sum(1)
        return self._cause(
            _number(found.mean),
            float(sums.sum() / mask.sum()),
            {
                "a mean of each row's mean (means of means): long rows count too little": (sums / mask.sum(1)).mean(),
                "padding is counted: divided by all positions": sums.sum() / mask.numel(),
                "padding is counted: its entropies are in the sum": found.entropy.mean(),
                "a sum per row, not per token": sums.mean(),
                "a sum, not a mean": sums.sum(),
            },
        )

    def rank_mean(self) -> str | None:
        """Check that the joined mean of two ranks is the mean over all their tokens."""
        base = Fixture.standard()
        parts = [self._call(base.rows(rows)) for rows in RANKS]
        thirds = [part.mean for part in parts]
        whole = self._call(base).entropy
        if any(third is None for third in thirds) or whole is None:
            raise _Skipped("the function returns no mean beside its entropy")
        if self.combine is None and not all(isinstance(third, tuple | list) for third in thirds):
            wanted = "return (total, count), or say how the trainer joins its ranks (combine)"
            raise _Skipped(f"means alone cannot be joined over ranks of different size: {wanted}")
        _refuse_nan("entropy", whole, base.mask)
        got = _number(self._combined(thirds))
        own = torch.where(base.mask.bool(), whole, 0.0).sum(1)
        rank_means = [own[list(rows)].sum() / base.mask[list(rows)].sum() for rows in RANKS]
        return self._cause(
            got,
            float(own.sum() / base.mask.double().sum()),
            {"a mean of the ranks' means: ranks with fewer tokens count too much": torch.stack(rank_means).mean()},
        )

    def _combined(self, thirds: list[Any]) -> Any:
        try:
            if self.combine is not None:
                return self.combine(thirds)
            totals, counts = zip(*thirds, strict=True)
            return sum(map(float, totals)), sum(map(float, counts))
        except (Exception, SystemExit) as error:
            what = "the third results cannot be added up" if self.combine is None else "combine raised"
            raise _Broken(f"{what} {type(error).__name__}: {error}") from None

    def _cause(self, got: float, wanted: float, candidates: Mapping[str, Tensor]) -> str | None:
        if math.isnan(got):
            return "the mean is NaN"
        if abs(got - wanted) <= self.tolerance:
            return None
        for cause, value in candidates.items():
            if abs(got - float(value)) <= self.tolerance:
                return f"{got:.4f} instead of {wanted:.4f}: {cause}"
        return f"{got:.4f} instead of {wanted:.4f}, for no cause known here"

    def _compare(self, temperature: float) -> str | None:
        base = Fixture.standard()
        found = self._call(base, temperature)
        if found.logprobs is None and found.entropy is None:
            raise _Skipped("the function returns None for logprobs and entropy")
        causes = []
        if found.logprobs is not None:
            wanted = base.logprobs(temperature)
            causes.append(self._named("logprobs", found.logprobs, wanted, base, wrong_logprobs(base, temperature)))
        if found.entropy is not None:
            causes.append(self._named("entropy", found.entropy, base.entropy(), base, wrong_entropy(base, temperature)))
        return "; ".join(filter(None, causes)) or None

    def _named(
        self, what: str, got: Tensor, wanted: Tensor, base: Fixture, candidates: Mapping[str, Tensor]
    ) -> str | None:
        _refuse_nan(what, got, base.mask)
        if self._close(got, wanted, base.mask):
            return None
        inner = base.mask.clone()
        inner[:, 0] = inner[:, -1] = 0  # `roll` moves values across the ends of a row, so the ends are not compared
        for cause, value in candidates.items():
            if self._close(got, value, inner):
                return f"{what}: {cause}"
        gap = torch.where(base.mask.bool(), got - wanted, 0.0).abs().max()
        if gap < 0.05:
            return f"{what}: off by up to {gap:.1e} nats, as with sums or logits in 16 bits"
        return f"{what}: off by up to {gap:.2g} nats, for no cause known here"

    def _close(self, got: Tensor, wanted: Tensor, mask: Tensor) -> bool:
        inside = mask.bool()
        return bool(((got[inside] - wanted[inside]).abs() <= self.tolerance).all())

    def _call(self, base: Fixture, temperature: float = 1.0, outside: float | None = None) -> _Returned:
        """Call the function on a fixture; the results are float64.

        Args:
            base: The fixture.
            temperature: The temperature that the function is given.
            outside: A logit to put where the mask is 0; None leaves the fixture's logits and labels there.
        """
        logits, labels, mask = base.logits(), base.labels.clone(), base.mask.clone()
        if outside is not None:
            logits[..., 0] = torch.where(mask.bool(), logits[..., 0], outside)
            labels[~mask.bool()] = VOCABULARY - 1
        if self.causal:
            logits = torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)
            labels, mask = (torch.cat([torch.zeros_like(part[:, :1]), part], 1) for part in (labels, mask))
        wanted = "wanted (logprobs, entropy) and maybe a mean"
        try:
            given = self.function(logits, labels, mask, temperature)
            returned = tuple(given)
        except (Exception, SystemExit) as error:
            raise _Broken(f"the function raised {type(error).__name__}: {error}") from None
        if isinstance(given, Mapping | str | bytes):
            raise _Broken(f"the function returned a {type(given).__name__}; {wanted}")
        if len(returned) not in (2, 3):
            raise _Broken(f"the function returned {len(returned)} things; {wanted}")
        return _Returned(*(self._values(part, base.mask) for part in returned[:2]), *returned[2:])

    def _values(self, returned: Any, mask: Tensor) -> Tensor | None:
        if returned is None:
            return None
        try:
            values = torch.as_tensor(returned).detach().cpu().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise _Broken(f"a result is a {type(returned).__name__}, not a tensor of numbers ({error})") from None
        if self.causal and values.dim() == 2 and values.shape[1] == mask.shape[1] + 1:
            values = values[:, 1:]
        if values.shape != mask.shape:
            wanted = "[B, T - 1] or [B, T]" if self.causal else "[B, T]"
            raise _Broken(f"a result has the shape {tuple(values.shape)}; wanted {wanted}, a value for each token")
        return values


def _refuse_nan(what: str, values: Tensor, mask: Tensor) -> None:
    inside = values[mask.bool()].isnan()
    if inside.any():
        raise _Broken(f"{what}: NaN at {int(inside.sum())} of {inside.numel()} tokens inside the mask")


def _pairs(plain: _Returned, other: _Returned) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield (name, before, after) of logprobs and entropy for two calls, without those that are None."""
    for name in PER_TOKEN:
        before, after = getattr(plain, name), getattr(other, name)
        if (before is None) != (after is None):
            raise _Broken(f"{name} is None in one call and not in another")
        if before is not None:
            yield name, before, after


def _number(mean: Any) -> float:
    """Return a mean as a float; (total, count) is divided."""
    try:
        if isinstance(mean, tuple | list):
            total, count = mean
            return float(total) / float(count)
        return float(mean)
    except (TypeError, ValueError, ZeroDivisionError, RuntimeError) as error:
        raise _Broken(f"the mean is not a number or (total, count): {error}") from None


def load_function(path: str, field: str) -> Callable[..., Any]:
    """Import a function.

    The working folder is put first on `sys.path`, as `python -m` does, so its modules are found first.

    Args:
        path: `module:function` or `file.py:function`.
        field: The name of the argument, for the error message.

    Raises:
        InvalidValue: The path cannot be imported or names no function.
    """
    place, colon, name = path.rpartition(":")
    if not colon:
        raise InvalidValue(field, path, "written as module:function or file.py:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = runpy.run_path(place)[name] if place.endswith(".py") else getattr(importlib.import_module(place), name)
    except (Exception, SystemExit) as error:
        raise InvalidValue(field, path, f"importable ({type(error).__name__}: {error})") from None
    if not callable(found):
        raise InvalidValue(field, path, "a function")
    function: Callable[..., Any] = found
    return function
