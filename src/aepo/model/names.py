"""`check_name` refuses at once a model that is no folder here and that the hub cannot give."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

from aepo.errors import InvalidValue, require


def check_name(name: str) -> None:
    """Check the name of a model before anything is loaded or asked for over the network.

    The hub's own client tries an address that does not exist six times, which takes half a minute and says nothing.

    Args:
        name: A folder in Hugging Face format, or a name on the hub, NAME or OWNER/NAME.

    Raises:
        InvalidValue: The name is a file, or a path at which there is nothing, or a model that is not in the cache while
            the hub cannot be reached.
    """
    wanted = "a folder in Hugging Face format, or the name of a model on the hub"
    path = Path(name)
    if path.is_dir():
        return
    require(not path.is_file(), "model", name, f"{wanted} (it is a file)")
    parts = name.split("/")
    is_path = len(parts) > 2 or "" in parts or parts[0].startswith((".", "~")) or "\\" in name
    require(not is_path, "model", name, f"{wanted} (there is nothing at this path)")
    reason = _unreachable(name)
    if reason:
        raise InvalidValue("model", name, f"{wanted} (there is no such folder, and {reason})")


def _unreachable(name: str) -> str:
    """Return why the hub cannot give the model; empty if it is in the cache, or nothing is known against it."""
    from huggingface_hub import constants

    cached = Path(constants.HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    if cached.is_dir() or urllib.request.getproxies():
        return ""
    if constants.HF_HUB_OFFLINE:
        return "the hub is not asked, because HF_HUB_OFFLINE is set"
    host = urlparse(os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).hostname or ""
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        return f"{host} cannot be reached: {error.strerror}"
    return ""
