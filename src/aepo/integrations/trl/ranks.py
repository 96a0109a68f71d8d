"""`Ranks` gathers data from all ranks, in the order in which TRL counts rows: rank by rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from aepo.integrations.trl import rows as table
from aepo.integrations.trl.rows import Rows
from aepo.types import BatchStatistics

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """`Ranks` exchanges data between the ranks of a run.

    All ranks must call `objects`, `tensor`, `stats`, `rows` and `agree` together.
    """

    accelerator: Any
    """The `Accelerator` of `accelerate`."""
    pad_token_id: int
    """The token that pads rows to a common width."""

    @property
    def number(self) -> int:
        """Return the number of ranks."""
        return int(self.accelerator.num_processes)

    def part(self, values: Sequence[T], size: int) -> list[T]:
        """Return this rank's `size` values out of the values of all ranks.

        Where too few values remain, the last value is repeated.
        """
        first = int(self.accelerator.process_index) * size
        return [values[min(place, len(values) - 1)] for place in range(first, first + size)]

    def objects(self, own: Sequence[T]) -> list[T]:
        """Return the objects of all ranks."""
        return list(gather_object(list(own)))

    def tensor(self, own: Tensor, padding: float = 0, left: bool = False) -> Tensor:
        """Return the rows [B, ...] of all ranks, padded to the width of the widest rank."""
        if own.dim() > 1:
            own = self.accelerator.pad_across_processes(own, dim=1, pad_index=padding, pad_first=left)
        gathered: Tensor = self.accelerator.gather(own.contiguous())
        return gathered

    def stats(self, own: BatchStatistics) -> BatchStatistics:
        """Return the statistics of the rows of all ranks."""
        return own.each(self.tensor)

    def rows(self, own: Rows) -> Rows:
        """Return the rows of all ranks."""
        return {
            name: self.objects(values)
            if isinstance(values, list)
            else self.tensor(values, self.pad_token_id if name.endswith("_ids") else 0, left=name in table.PROMPT)
            for name, values in own.items()
        }

    def agree(self, own: T) -> T:
        """Return the first rank's object on every rank.

        Without it the ranks could differ by a rounding error.
        """
        shared = [own]
        broadcast_object_list(shared)
        return shared[0]
