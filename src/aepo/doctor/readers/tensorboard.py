"""Reader for TensorBoard events; it uses the tensorboard package without TensorFlow."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from aepo.doctor.names import known_keys
from aepo.doctor.readers.rows import Rows, plain
from aepo.doctor.readers.runs import Found, Place, logs_or_refusal
from aepo.errors import InvalidValue

MARK = "tfevents"


def read(paths: Sequence[Path]) -> list[Found]:
    """Read the event files of one folder, oldest first: sessions of one run, or several runs.

    Raises:
        InvalidValue: The tensorboard package is not installed.
    """
    rows = Rows()
    for path in paths:
        if rows.count:
            rows.ends.append(rows.count)
        by_step: dict[int, dict[str, float]] = defaultdict(dict)
        for step, tag, value in _scalars(path):
            # A key of an unknown metric is kept once, for the message that refuses the file.
            if plain(tag) in known_keys() or tag not in rows.names:
                by_step[step][tag] = value
        for step in sorted(by_step):
            rows.add({"step": float(step), **by_step[step]})
    wanted = "events of a trainer that docs/doctor.md lists"
    return logs_or_refusal(rows, Place(str(paths[0]), form="TensorBoard"), wanted)


def _scalars(path: Path) -> Iterator[tuple[int, str, float]]:
    # This must be set before the import: it silences an installed TensorFlow.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util import tensor_util
    except ModuleNotFoundError:
        raise InvalidValue("LOG", str(path), "read with tensorboard: pip install 'aepo[doctor]'") from None
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            measured = tensor_util.make_ndarray(value.tensor)
            if measured.ndim == 0 and measured.dtype.kind in "fiu":
                yield event.step, value.tag, float(measured)
