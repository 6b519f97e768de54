"""What tests of the package share: models, and the command line that they are held to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Iterator, Sequence

import pytest

import wayinfer
from wayinfer import _program

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"

# Of the byte-level fixture: all of them are texts of its vocabulary.
PROMPTS = ["Once upon a time", "a", "The sum of 2 and 2", "Grüße, 世界", "x" * 40, "0, 1, 2, 3", "\n\n", "Z", "end"]


def fixture(name: str) -> Path:
    return FIXTURES / f"{name}.gguf"


class Ran:
    """What a run of the program came to."""

    def __init__(self, code: int, out: str, told: str) -> None:
        self.code, self.out, self.told = code, out, told

    @property
    def error(self) -> str:
        return next(line[len("error: ") :] for line in self.told.splitlines() if line.startswith("error: "))

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def cli(*args: object) -> Ran:
    """Runs the program that came with the package."""
    command = [_program.program(), *map(str, args)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WAYINFER_")}
    environment["WAYINFER_NO_CONFIG"] = "1"
    run = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=environment, timeout=120)
    return Ran(run.returncode, run.stdout.decode(), run.stderr.decode())


class Script:
    """A Python program that runs beside."""

    def __init__(self, text: str, args: Sequence[object] = ()) -> None:
        command = [sys.executable, "-u", "-c", text, *map(str, args)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self) -> Ran:
        try:
            out, told = self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return Ran(self.process.returncode, out, told)


@pytest.fixture(scope="session")
def demo() -> Iterator[wayinfer.Model]:
    with wayinfer.Model("demo", threads=2) as model:
        yield model


@pytest.fixture(scope="session")
def dense() -> Iterator[wayinfer.Model]:
    with wayinfer.Model(fixture("dense-q8_0"), threads=2) as model:
        yield model


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the user's own folders."""
    home = tmp_path_factory.mktemp("home")
    for name in ("XDG_CACHE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME", "LOCALAPPDATA", "APPDATA"):
        monkeypatch.setenv(name, str(home))
