"""What every rank needs of the others, in the order in which TRL counts rows: rank by rank."""

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
    """accelerator: of `accelerate`. Each method must be called by all ranks."""

    accelerator: Any
    pad_token_id: int

    @property
    def number(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes)

    def part(self, values: Sequence[T], size: int) -> list[T]:
        """This rank's `size` values of those of all ranks; the last one again where there are too few."""
        first = int(self.accelerator.process_index) * size
        return [values[min(place, len(values) - 1)] for place in range(first, first + size)]

    def objects(self, own: Sequence[T]) -> list[T]:
        """The objects of all ranks."""
        return list(gather_object(list(own)))

    def tensor(self, own: Tensor, padding: float = 0, left: bool = False) -> Tensor:
        """[B, ...] -> the rows of all ranks, padded to the widest rank's width."""
        if own.dim() > 1:
            own = self.accelerator.pad_across_processes(own, dim=1, pad_index=padding, pad_first=left)
        gathered: Tensor = self.accelerator.gather(own.contiguous())
        return gathered

    def stats(self, own: BatchStatistics) -> BatchStatistics:
        """The statistics of all ranks' rows."""
        return own.each(self.tensor)

    def rows(self, own: Rows) -> Rows:
        """All ranks' rows."""
        return {
            name: self.tensor(values, self.pad_token_id if name.endswith("_ids") else 0, left=name in table.PROMPT)
            for name, values in own.items()
        }

    def agree(self, own: T) -> T:
        """The first rank's object, so that a last digit never parts the ranks."""
        shared = [own]
        broadcast_object_list(shared)
        return shared[0]
