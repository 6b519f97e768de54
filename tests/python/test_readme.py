"""The README's examples in Python, as they stand there."""

from __future__ import annotations

import re
import shutil
import textwrap
from pathlib import Path
from typing import Any, Dict, List

import pytest
import typed
from conftest import fixture

README = Path(__file__).resolve().parents[2] / "README.md"


def examples() -> List[str]:
    section = README.read_text(encoding="utf-8").split("\n## Python\n")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n(?=    ))+", section, re.MULTILINE)
    code = [textwrap.dedent(block).strip("\n") for block in blocks]
    return [block for block in code if not block.startswith(("pip ", "scripts/"))]


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(fixture("demo-q4_k_m"), "model.gguf")
    blocks = examples()
    assert len(blocks) >= 2
    known: Dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), known)
    assert "The sum of 2 and 2 is 4." in capsys.readouterr().out


def test_the_typed_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    typed.main("demo")
    assert "The sum of 2 and 2 is 4." in capsys.readouterr().out
