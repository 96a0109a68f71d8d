"""Reader for TensorBoard events; it uses the tensorboard package without TensorFlow."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from aepo.doctor.names import recognise
from aepo.doctor.readers.rows import PREFIX, make_log, some_of
from aepo.doctor.types import Log
from aepo.errors import InvalidValue

MARK = "tfevents"


def read_folder(path: Path) -> list[Log]:
    """Read the event files in this folder and below it, one run per folder.

    A folder whose events have no scalars of a known trainer is left out.

    Raises:
        InvalidValue: There are events, and none of them has scalars of a known trainer.
    """
    logs, refused = [], None
    files = sorted(file for file in path.rglob(f"*{MARK}*") if file.is_file())
    for folder in sorted({file.parent for file in files}):
        try:
            logs.extend(read([file for file in files if file.parent == folder]))
        except InvalidValue as error:
            refused = error
    if refused and not logs:
        raise refused
    return logs


def read(paths: Sequence[Path]) -> list[Log]:
    """Read the event files of one run; each file after the first begins with a step at which the run was resumed.

    Raises:
        InvalidValue: The scalars are of no known trainer.
    """
    rows: list[tuple[int, dict[str, float]]] = []
    resumes = []
    for path in paths:
        session = _scalars(path)
        if rows and session:
            resumes.append(session[0][0])
        rows.extend(session)
    dialect = recognise({key for _, row in rows for key in row})
    if dialect is None:
        tags = some_of({key for _, row in rows for key in row})
        raise InvalidValue("LOG", str(paths[0]), f"events of a trainer that is known here (its scalars: {tags})")
    return [make_log(dialect, paths[0], rows, resumes=resumes, framework=f"{dialect.name} (TensorBoard)")]


def _scalars(path: Path) -> list[tuple[int, dict[str, float]]]:
    # This must be set before the import: it silences an installed TensorFlow.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
        from tensorboard.util import tensor_util
    except ModuleNotFoundError:
        raise InvalidValue("LOG", str(path), "read with tensorboard: pip install 'aepo[doctor]'") from None
    rows: dict[int, dict[str, float]] = defaultdict(dict)
    for event in EventFileLoader(str(path)).Load():
        for value in event.summary.value:
            measured = tensor_util.make_ndarray(value.tensor)
            if measured.ndim == 0 and measured.dtype.kind in "fiu":
                rows[event.step][value.tag.removeprefix(PREFIX)] = float(measured)
    return sorted(rows.items())
