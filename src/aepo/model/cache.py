"""The cache folder holds models that were made on this machine. A model in it is complete or absent.

The folder is $AEPO_CACHE, or else ~/.cache/aepo. Every model has a manifest with the digests of its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"


def cache_folder() -> Path:
    """Return the folder that holds all models: $AEPO_CACHE, or else ~/.cache/aepo."""
    return Path(os.environ.get("AEPO_CACHE") or Path.home() / ".cache" / "aepo")


def cached(folder: Path, make: Callable[[Path], None]) -> Path:
    """Return the folder of a model. The model is made first if it is absent or broken.

    Args:
        folder: The folder of the model, inside the cache folder.
        make: A function that writes the files of the model into the folder that it is given.
    """
    if not _whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=folder.parent) as work:
            made = Path(work) / "model"
            make(made)
            digests = {path.name: digest(path.read_bytes()) for path in sorted(made.iterdir())}
            (made / MANIFEST).write_text(json.dumps(digests, indent=2))
            _publish(Path(work), folder)
    return folder


def digest(content: bytes) -> str:
    """Return the SHA-256 digest of some bytes, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _publish(work: Path, folder: Path) -> None:
    """Rename work/model to `folder`.

    A broken model in `folder` is moved away first. A complete model of another process stays in place.
    """
    if folder.exists() and not _whole(folder):
        with suppress(FileNotFoundError):
            folder.rename(work / "broken")
    try:
        (work / "model").rename(folder)
    except OSError:
        if not _whole(folder):
            raise


def _whole(folder: Path) -> bool:
    """Return whether every file of the folder is there and unchanged."""
    try:
        digests = json.loads((folder / MANIFEST).read_text())
        return all(digest((folder / name).read_bytes()) == known for name, known in digests.items())
    except (OSError, ValueError):
        return False
