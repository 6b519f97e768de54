"""Numbers as NumPy has them. It is imported when it is asked for first: the package works without it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Dict, Sequence

from . import errors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Types of tensors that are the same in NumPy. GGUF is little-endian.
PLAIN = {"F32": "<f4", "F64": "<f8", "F16": "<f2", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}


def floats(data: bytearray, shape: Sequence[int]) -> npt.NDArray[np.float32]:
    """An array of the bytes, which it takes over."""
    import numpy as np

    return np.frombuffer(data, dtype="<f4").reshape(shape)


def mapped(tensor: Dict[str, Any], file: Dict[str, Any]) -> npt.NDArray[Any]:
    """A view of a tensor in its file, as `inspect` tells of both; read-only. It keeps the file mapped.

    Raises `FileError` where the file is not what it was.
    """
    import numpy as np

    path, expected = file["path"], file["bytes"]
    try:
        found = os.stat(path).st_size
        if found != expected:
            raise errors.FileError(
                f"{path}: was {expected} bytes when its header was read and is {found} now"
            )
        shape = tuple(reversed(tensor["shape"]))
        return np.memmap(path, dtype=PLAIN[tensor["type"]], mode="r", offset=tensor["offset"], shape=shape)
    except (OSError, ValueError) as error:
        if isinstance(error, errors.Error):
            raise
        raise errors.FileError(f"{path}: {error}") from error
