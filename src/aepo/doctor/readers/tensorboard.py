"""TensorBoard events, through the tensorboard package (no TensorFlow)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from aepo.checks import InvalidValue
from aepo.doctor.names import recognise
from aepo.doctor.readers.rows import PREFIX, make_log
from aepo.doctor.types import Log


def files(path: Path) -> list[Path]:
    """The event files that a path stands for: itself, or those in the first folder under it that has some."""
    if path.is_file():
        return [path] if "tfevents" in path.name else []
    found = sorted(path.rglob("*tfevents*"), key=lambda file: (len(file.parts), file.name))
    return [file for file in found if file.parent == found[0].parent]


def read(paths: Sequence[Path]) -> list[Log]:
    """One run. A second file in a folder is a second session: the run was resumed at its first step."""
    rows: list[tuple[int, dict[str, float]]] = []
    resumes = []
    for path in paths:
        session = _scalars(path)
        if rows and session:
            resumes.append(session[0][0])
        rows.extend(session)
    dialect = recognise({key for _, row in rows for key in row})
    if dialect is None:
        tags = ", ".join(sorted({key for _, row in rows for key in row})[:6]) or "none"
        raise InvalidValue("LOG", str(paths[0]), f"events of a trainer that is known here (its scalars: {tags})")
    return [make_log(dialect, paths[0], rows, resumes=resumes, framework=f"{dialect.name} (TensorBoard)")]


def _scalars(path: Path) -> list[tuple[int, dict[str, float]]]:
    # Said before the import, or an installed TensorFlow would be loaded for nothing.
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
