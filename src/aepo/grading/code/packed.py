"""LiveCodeBench's packed tests: base64 of zlib of a pickle that holds one text. Nothing is unpickled.

A pickle is a program, so loading a user's file would run it. This module reads the pickle's instructions without
carrying them out, and accepts those alone that a single text needs.
"""

from __future__ import annotations

import base64
import pickletools
import zlib

from aepo.errors import InvalidValue

_TEXTS = {"SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
_HARMLESS = _TEXTS | {"PROTO", "FRAME", "MEMOIZE", "BINPUT", "LONG_BINPUT", "STOP"}
# The largest text that is unpacked, bytes.
_MOST = 2**29


def text_of(packed: str, where: str) -> str:
    """Return the text in a packed column.

    Raises:
        InvalidValue: It is not packed so, or the pickle holds anything but one text.
    """
    wanted = "JSON, or base64 of zlib of a pickle that holds one text (nothing else is read from a pickle)"
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(packed, validate=True), _MOST)
        steps = [(step.name, argument) for step, argument, _ in pickletools.genops(data)]
    except (ValueError, zlib.error) as error:
        raise InvalidValue(where, packed[:40], f"{wanted} ({error})") from None
    foreign = [name for name, _ in steps if name not in _HARMLESS]
    texts = [argument for name, argument in steps if name in _TEXTS]
    if foreign or len(texts) != 1 or unpacker.unconsumed_tail:
        got = f"a pickle with {foreign[0]}" if foreign else f"a pickle of {len(texts)} texts"
        raise InvalidValue(where, got, wanted)
    return str(texts[0])
