"""Files as text: packed or not, in several encodings; what a file is, if it is no text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from aepo.errors import InvalidValue

# Largest share of broken characters in a text file: a console's progress bars leave a broken byte here and there.
MOST_BROKEN = 0.05
HEAD = 1 << 16
PACKED = {".gz", ".bz2", ".xz"}
"""The endings of packed files that are unpacked while they are read."""
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What reading a file can raise: it is not there, or the packed file is broken or cut off."""
CUT_OFF = "the packed file is cut off or broken; what stands before that place was read"
SQLITE = b"SQLite format 3\0"
WANDB = b":W&B"
_SIGNS = {
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x28\xb5\x2f\xfd": "packed with zstd: unpack it",
    b"PAR1": "a Parquet file",
    b"\x80\x02": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x89HDF": "an HDF5 file",
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
}


def unpacked(path: Path) -> io.BufferedReader | gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile:
    """Open a file, through gzip, bz2 or xz if its first bytes say so.

    Raises:
        InvalidValue: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            first = file.read(6)
        if first.startswith(b"\x1f\x8b"):
            return gzip.open(path)
        if first.startswith(b"BZh"):
            return bz2.open(path)
        if first.startswith(b"\xfd7zXZ\x00"):
            return lzma.open(path)
        return path.open("rb")
    except OSError as error:
        raise InvalidValue("LOG", str(path), f"a readable file ({error.strerror})") from None


def head(path: Path) -> bytes:
    """Return the first bytes of a file, unpacked; of a packed file that was cut off, those that can be read.

    Raises:
        InvalidValue: Nothing of the file can be read.
    """
    start = b""
    with unpacked(path) as file:
        try:
            while len(start) < HEAD and (piece := file.read1(HEAD - len(start))):
                start += piece
        except UNREADABLE as error:
            if not start:
                raise InvalidValue("LOG", str(path), f"a readable file ({error})") from None
    return start


def open_text(path: Path, start: bytes) -> TextIO:
    """Open a text file whose first bytes are `start`. A lone carriage return ends a line, as progress bars use it.

    Raises:
        InvalidValue: The file cannot be read, or is empty or binary.
    """
    text = decoded(start)
    if text.count("\ufffd") + text.count("\0") > len(text) * MOST_BROKEN:
        kind = next((what for sign, what in _SIGNS.items() if start.startswith(sign)), "binary")
        raise InvalidValue("LOG", str(path), f"text, Parquet or TensorBoard events (this file is {kind})")
    if not text.strip() and len(start) < HEAD:
        raise InvalidValue("LOG", str(path), "a log with at least one step in it (this one is empty)")
    return io.TextIOWrapper(unpacked(path), encoding=_encoding(start), errors="replace", newline=None)


def decoded(start: bytes) -> str:
    """Return the text of the first bytes of a file, with line ends as `open_text` gives them."""
    text = codecs.getincrementaldecoder(_encoding(start))("replace").decode(start)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encoding(start: bytes) -> str:
    """Guess the encoding: by the byte order mark, else by where the zero bytes of ASCII characters stand."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    even, odd = start[0::2].count(0), start[1::2].count(0)
    if odd > len(start) * 0.3 and even < len(start) * 0.05:
        return "utf-16-le"
    if even > len(start) * 0.3 and odd < len(start) * 0.05:
        return "utf-16-be"
    return "utf-8-sig"


def lines(file: TextIO, notes: list[str]) -> Iterator[str]:
    """Yield the lines of a text; add a note if it is a packed file that was cut off, and yield its whole part."""
    try:
        yield from file
    except UNREADABLE:
        notes.append(CUT_OFF)


def chunks(file: TextIO, notes: list[str]) -> Iterator[str]:
    """Yield the text in pieces of bounded size; add a note if it is a packed file that was cut off."""
    try:
        while piece := file.read(1 << 20):
            yield piece
    except UNREADABLE:
        notes.append(CUT_OFF)
