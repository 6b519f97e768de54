"""Messages between the stages of a pipeline: JSON and rows in one `bytes`. Nothing in them is ever unpickled, so that what
a client sends is text and numbers wherever it comes."""

from __future__ import annotations

import json
import struct
from typing import Any, Dict, Tuple

from .. import errors

__all__ = ["pack", "unpack"]

_MAGIC = b"WayRows1"
_HEAD = struct.Struct("<8sQ")


def pack(said: Dict[str, Any], rows: bytes = b"") -> bytes:
    """A message."""
    text = json.dumps(said, separators=(",", ":")).encode()
    return b"".join((_HEAD.pack(_MAGIC, len(text)), text, rows))


def unpack(message: bytes) -> Tuple[Dict[str, Any], bytes]:
    """What a message says, and its rows.

    Raises `UsageError` for what is no message.
    """
    if not isinstance(message, bytes) or len(message) < _HEAD.size:
        raise errors.UsageError("what came is no message of a stage")
    magic, length = _HEAD.unpack_from(message)
    if magic != _MAGIC or length > len(message) - _HEAD.size:
        raise errors.UsageError("what came is no message of a stage, or of another version")
    end = _HEAD.size + length
    try:
        said = json.loads(message[_HEAD.size : end])
    except ValueError as error:
        raise errors.UsageError(f"what came is no message of a stage: {error}") from None
    if not isinstance(said, dict):
        raise errors.UsageError("what came is no message of a stage")
    return said, message[end:]
