"""The program `wayinfer` that came with the package: it runs chat templates, and fetches models of the hub."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Iterator

from .errors import FileError

_NAME = "wayinfer.exe" if os.name == "nt" else "wayinfer"


def _places() -> Iterator[Path]:
    """Where it may be: where the installer says that it has put it, or where scripts are."""
    try:
        for file in importlib.metadata.files("wayinfer") or []:
            if file.name == _NAME:
                yield Path(str(file.locate()))
    except importlib.metadata.PackageNotFoundError:
        pass
    yield Path(sysconfig.get_path("scripts")) / _NAME


def program() -> str:
    """The path of the program.

    Raises `FileError` where it is not beside the package.
    """
    for place in _places():
        if place.is_file() and os.access(place, os.X_OK):
            return os.path.realpath(place)
    raise FileError("the program wayinfer, which comes with the package, is not beside it: install the wheel again")


def fetch(name: str, verbose: bool) -> None:
    """Has the program fetch a model of the hub, `hf:USER/REPO[:QUANT]`, where it is not in the cache.

    Raises `FileError` with the program's words.
    """
    told = None if verbose else subprocess.PIPE
    command = [program(), "inspect", "--no-tensors", f"--model={name}"]
    run = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=told)
    if run.returncode == 0:
        return
    lines = (run.stderr or b"").decode(errors="replace").splitlines()
    said = {kind: text for kind, found, text in (line.partition(": ") for line in lines) if found}
    error = FileError(said.get("error", f"{name} cannot be fetched"))
    error.hint = said.get("hint")
    raise error
