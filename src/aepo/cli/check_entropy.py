"""`aepo check-entropy`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Annotated

import tyro

from aepo.errors import InvalidValue, require


@dataclass(frozen=True)
class CheckEntropy:
    """Run our fixtures through the log-prob and entropy function of a trainer (docs/conformance.md)."""

    function: Annotated[str, tyro.conf.Positional]
    """module:function or file.py:function, f(logits, labels, mask, temperature) -> (logprobs, entropy[, mean])."""
    combine: str | None = None
    """The function, module:function, with which the trainer joins the third results of its ranks, a list, to one
    number (default: it is not checked)."""
    causal: bool = False
    """logits and labels are the output and the input of the model; the function shifts them itself."""
    tolerance: float = 1e-4
    """Largest accepted difference, nats."""

    def run(self) -> None:
        """Print a line for each property; exit code 1 if one fails, 2 if there was nothing to check."""
        from aepo.conformance import check_function, load_function

        require(self.tolerance > 0, "--tolerance", self.tolerance, "a positive number of nats")
        joined = None if self.combine is None else load_function(self.combine, "--combine")
        function = load_function(self.function, "function")
        results = check_function(function, combine=joined, causal=self.causal, tolerance=self.tolerance)
        for result in results:
            print(f"{result.status:<12} {result.name}{f': {result.text}' * bool(result.text)}")
        if all(result.status == "not checked" for result in results):
            wanted = "a function that returns log-probabilities or entropies: nothing was checked"
            raise InvalidValue("function", self.function, wanted)
        if any(result.status == "FAILED" for result in results):
            sys.exit(1)
