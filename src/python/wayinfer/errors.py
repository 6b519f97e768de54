"""What goes wrong, with the words of the command line."""

from __future__ import annotations

import json
from typing import Optional

__all__ = ["ContextFull", "Error", "FileError", "OutOfMemory", "Unsupported", "UsageError"]


class Error(Exception):
    """Anything that goes wrong in WayInfer. The text says what; `hint` says what to do about it, where there is
    something to say."""

    hint: Optional[str] = None


class UsageError(Error, ValueError):
    """An argument that makes no sense."""


class FileError(Error, OSError):
    """A file that cannot be read or written, or is not what it has to be."""


class OutOfMemory(Error, MemoryError):
    """There is not the memory that is needed."""


class Unsupported(Error, NotImplementedError):
    """Something that is sound, and cannot be done here."""


class ContextFull(UsageError):
    """A text that does not fit the context."""


def of_reply(body: bytes) -> Error:
    """The error that a reply tells of: OpenAI's object, as all of them have it."""
    try:
        told = json.loads(body)["error"]
        message, kind, code = str(told["message"]), told.get("type"), told.get("code")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Error(body.decode(errors="replace") or "the request was broken off")
    if code == "context_length_exceeded":
        return ContextFull(message)
    if code == "out_of_memory":
        return OutOfMemory(message)
    if code == "unsupported":
        return Unsupported(message)
    if kind in ("invalid_request_error", "not_found_error"):
        return UsageError(message)
    return Error(message)
