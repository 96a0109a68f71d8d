"""Images of problems: what rows hold (PIL, a path, bytes) as `Image`, with the hash of its pixels.

In the text of a problem, `<image>` marks the place of an image.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aepo.errors import InvalidValue

MARK = "<image>"
"""The place of an image in a text, as EasyR1 and verl write it."""

COLUMNS = ("image", "images")
"""The columns that hold the images of a row: one, or a list."""


@dataclass(frozen=True)
class Image:
    """`Image` is an image of a problem. Two images are equal if their pixels are."""

    digest: str
    """The SHA-256 of its size and its RGB pixels, in hexadecimal digits."""
    size: tuple[int, int] = field(compare=False)
    """Width and height, pixels."""
    source: Any = field(compare=False, repr=False)
    """Where the pixels are: the path of a file, the bytes of one, or an image of PIL."""

    @classmethod
    def of(cls, value: Any, where: str, folder: Path | None = None) -> Image:
        """Return the image that a row holds. It is decoded once, so that a broken one is refused before the work.

        Args:
            value: An image of PIL, a path, the bytes of a file, or a table with `bytes` or `path`.
            where: The file and the row, for messages.
            folder: The folder that a relative path begins at; a path that is not in it begins at the working folder.

        Raises:
            InvalidValue: The value is none of these, or it cannot be read as an image.
        """
        source = _source(value, where, folder)
        try:
            picture = _decoded(source)
        except ImportError:
            wanted = "a row of text where Pillow is not installed; images need: pip install 'aepo[vision]'"
            raise InvalidValue(where, "an image", wanted) from None
        except Exception as error:  # decoders of many formats raise exceptions of their own
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InvalidValue(where, _named(source), f"an image that can be read ({reason})") from None
        return cls(_digest(picture), picture.size, source)

    def load(self) -> Any:
        """Return the image as RGB, an image of PIL.

        Raises:
            InvalidValue: The file holds other pixels than when the data was read.
        """
        picture = _decoded(self.source)
        if _digest(picture) != self.digest:
            raise InvalidValue("image", _named(self.source), "the pixels that it had when the data was read")
        return picture


def images_of(record: Mapping[str, Any], parts: Sequence[Any], where: str, folder: Path | None) -> tuple[Image, ...]:
    """Return the images of a row, in the order of their places.

    Args:
        record: The row, with its columns `image` or `images` if it has them.
        parts: What each image part of the messages holds: an image, or None for the next one of the columns.
        where: The file and the row, for messages.
        folder: The folder that a relative path begins at.

    Raises:
        InvalidValue: There are more image parts than images, or the other way round.
    """
    columns = [value for name in COLUMNS for value in _listed(record.get(name))]
    waiting = sum(part is None for part in parts)
    if parts and waiting != len(columns):
        got = f"{waiting} image parts and {len(columns)} images"
        raise InvalidValue(where, got, "as many images in the columns image and images as parts that wait for one")
    rest = iter(columns)
    values = [next(rest) if part is None else part for part in parts] or columns
    return tuple(Image.of(value, f"{where}, image {number}", folder) for number, value in enumerate(values, 1))


def without_images(value: Any, images: Sequence[Image] = ()) -> Any:
    """Return a value of a row in which no image stands, so that it can be printed, hashed and stored.

    The columns `image` and `images` become the `Image`s of the row; parts of messages lose theirs.
    """
    if isinstance(value, Mapping):
        part = value.get("type") == "image"
        kept = {key: without_images(one) for key, one in value.items() if not (part and key in COLUMNS)}
        shown = {key: list(images) for key in COLUMNS if key in value and not part}
        return {**kept, **shown} if images else kept
    if isinstance(value, list | tuple):
        return [without_images(one) for one in value]
    return value


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _source(value: Any, where: str, folder: Path | None) -> Any:
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str | Path) and str(value):
        beside = (folder / value) if folder is not None else Path(value)
        path = beside if beside.is_file() else Path(value)
        if not path.is_file():
            raise InvalidValue(
                where, str(value)[:120], "a file of an image that exists here (addresses are not loaded)"
            )
        return str(path.resolve())
    if hasattr(value, "convert") and hasattr(value, "size"):
        return value
    raise InvalidValue(where, type(value).__name__, "an image of PIL, a path, or a table with bytes or path")


def _decoded(source: Any) -> Any:
    from PIL import Image as Pillow
    from PIL import ImageOps

    if isinstance(source, str | bytes):
        opened = Pillow.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    else:
        opened = source
    return (ImageOps.exif_transpose(opened) or opened).convert("RGB")


def _digest(picture: Any) -> str:
    width, height = picture.size
    return hashlib.sha256(f"{width} {height} ".encode() + picture.tobytes()).hexdigest()


def _named(source: Any) -> str:
    if isinstance(source, bytes):
        return f"{len(source)} bytes"
    return source if isinstance(source, str) else type(source).__name__
