"""What a file holds, and what is said of files that hold nothing."""

from __future__ import annotations

import gc
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import cli, fixture

import wayinfer
from wayinfer import Model


def test_inspect_is_the_command_lines() -> None:
    path = fixture("moe-q4_k_m")
    with Model(path, threads=1) as model:
        assert model.inspect() == cli("inspect", path, "--json").json
        assert model.inspect(arrays=True) == cli("inspect", path, "--json", "--arrays").json


def dequantised(path: Path, name: str, to: Path) -> np.ndarray:
    ran = cli("dequant", "-m", path, name, "--out", to, "--force")
    assert ran.code == 0, ran.told
    return np.load(to)


@pytest.mark.parametrize("name", ["dense-f32", "dense-f16", "dense-bf16", "dense-q8_0", "moe-q4_k_m"])
def test_tensors_are_what_dequant_writes(name: str, tmp_path: Path) -> None:
    path = fixture(name)
    with Model(path, threads=1) as model:
        tensors = {tensor["type"]: tensor for tensor in model.inspect()["tensors"]}
        assert tensors
        for kind, tensor in tensors.items():
            values = model.tensor(tensor["name"])
            assert values.shape == tuple(reversed(tensor["shape"]))
            assert np.array_equal(values.astype(np.float32), dequantised(path, tensor["name"], tmp_path / "t.npy"))
            plain = kind in ("F32", "F16")
            assert values.flags.writeable != plain
            assert isinstance(values, np.memmap) == plain
            assert values.dtype == {"F16": np.float16}.get(kind, np.float32)


def test_a_view_keeps_its_file_mapped(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(fixture("dense-f32"), path)
    with Model(path, threads=1) as model:
        view = model.tensor("output_norm.weight")
    assert view.base is not None
    with pytest.raises(ValueError, match="read-only"):
        view[0] = 1
    copy = view.copy()
    del model
    gc.collect()
    if os.name != "nt":
        path.unlink()
    assert np.array_equal(view, copy)


def test_a_file_that_has_changed_is_not_viewed(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    shutil.copy(fixture("dense-f32"), path)
    with Model(path, threads=1) as model:
        assert model.tensor("output_norm.weight").size
        with open(path, "ab") as file:
            file.write(b"more")
        with pytest.raises(wayinfer.FileError, match="bytes when its header was read"):
            model.tensor("output_norm.weight")


def test_tensors_in_no_file_and_no_tensors(demo: Model) -> None:
    name = demo.inspect()["tensors"][0]["name"]
    assert demo.tensor(name).dtype == np.float32
    with pytest.raises(wayinfer.UsageError, match='there is no tensor "blk.99"') as raised:
        demo.tensor("blk.99")
    assert raised.value.hint is not None


def test_perplexity_is_the_command_lines(dense: Model, tmp_path: Path) -> None:
    text = "How well does a model foretell a text? " * 30
    file = tmp_path / "text.txt"
    file.write_text(text)
    for more in ([], ["--stride", "32"]):
        told = cli("perplexity", "-m", fixture("dense-q8_0"), "-f", file, "-c", 64, "--json", *more).json
        measured = dense.perplexity(text, window=64, stride=32 if more else None)
        assert (measured.value, measured.error) == (told["perplexity"]["mean"], told["perplexity"]["error"])
        assert (measured.tokens, measured.windows) == (told["scored"], len(told["windows"]))
        assert float(measured) == measured.value
    with pytest.raises(wayinfer.UsageError, match="where two windows of 512 need 1024"):
        dense.perplexity("short")


def test_tokens_there_and_back(dense: Model) -> None:
    for text in ("Once upon a time", "Grüße, 世界"):
        ids = dense.tokenize(text)
        assert ids == cli("tokenize", "-m", fixture("dense-q8_0"), "--text", text, "--special", "--json").json
        assert dense.detokenize(dense.tokenize(text, add_special=False)).strip() == text
    with pytest.raises(wayinfer.UsageError, match="outside the vocabulary"):
        dense.detokenize([dense.vocab])


def refused(path: object, kind: type[wayinfer.Error], **options: object) -> wayinfer.Error:
    with pytest.raises(kind) as raised:
        Model(str(path), **options)  # type: ignore[arg-type]
    return raised.value


def test_broken_files_are_refused_in_the_command_lines_words(tmp_path: Path) -> None:
    good = fixture("dense-q8_0").read_bytes()
    broken = {
        "empty": b"",
        "noise": os.urandom(4096),
        "cut": good[:5000],
        "short": good[:-100],
        "counts": good[:8] + b"\xff" * 16 + good[24:],
        "header": good[:200] + b"\xff" * 64 + good[264:],
    }
    for name, data in broken.items():
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(data)
        error = refused(path, wayinfer.FileError)
        ran = cli("generate", "-m", path, "-p", "a")
        assert str(error) == ran.error
        assert (error.hint is None) == ("hint: " not in ran.told)
        if error.hint is not None:
            assert f"hint: {error.hint}" in ran.told.splitlines()
    path = tmp_path / "none.gguf"
    assert str(refused(path, wayinfer.FileError)) == cli("generate", "-m", path, "-p", "a").error
    assert isinstance(refused(path, wayinfer.FileError), OSError)
    refused(tmp_path, wayinfer.FileError)


def test_what_is_sound_and_cannot_be_run(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    data = fixture("dense-q8_0").read_bytes()
    at = data.index(b"llama", data.index(b"general.architecture"))
    path.write_bytes(data[:at] + b"lamma" + data[at + 5 :])
    error = refused(path, wayinfer.Unsupported)
    assert str(error) == cli("generate", "-m", path, "-p", "a").error
    assert "architecture lamma is not supported" in str(error)


def test_options_are_the_command_lines() -> None:
    path = fixture("dense-q8_0")
    assert "12G and 800M are sizes" in str(refused(path, wayinfer.UsageError, ram="much"))
    assert "bytes run nothing" in str(refused(path, wayinfer.UsageError, ram=12))
    assert "--kv <TYPE>" in str(refused(path, wayinfer.UsageError, kv="q9"))
    assert "--threads <N>" in str(refused(path, wayinfer.UsageError, threads=0))
    assert "wayinfer devices" in str(refused(path, wayinfer.UsageError, gpu="on"))
    memory = refused(path, wayinfer.OutOfMemory, ram="1M")
    assert isinstance(memory, MemoryError) and "cannot be run in 1" in str(memory) and memory.hint
    with Model(path, ram="800M", kv="q8_0", threads=1, context=64, gpu="off", parallel=2) as model:
        assert model.context == 64


def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYINFER_CTX", "17")
    monkeypatch.setenv("WAYINFER_THREADS", "many")
    with Model(fixture("dense-q8_0")) as model:
        assert model.context == model.facts["trained_context"]


def test_requests_that_make_no_sense(dense: Model, demo: Model) -> None:
    params = wayinfer.SamplingParams
    with pytest.raises(wayinfer.UsageError, match="temperature"):
        dense.generate("a", params(temperature=-1))
    with pytest.raises(wayinfer.UsageError):
        dense.generate("a", params(temperature=float("nan")))
    with pytest.raises(wayinfer.UsageError, match="at most 128"):
        dense.generate("a", params(n=129))
    with pytest.raises(wayinfer.UsageError, match="outside the vocabulary"):
        dense.generate([dense.vocab])
    with pytest.raises(wayinfer.ContextFull, match="maximum context length"):
        dense.generate([1] * (dense.context + 1))
    with pytest.raises(wayinfer.UsageError, match="grammar"):
        dense.generate("a", params(grammar="root ::= ("))
    with pytest.raises(wayinfer.UsageError, match="2 parameters for 1 prompts"):
        dense.generate(["a"], [params(), params()])
    with pytest.raises(wayinfer.UsageError, match="no JSON"):
        dense.generate("a", params(logit_bias={1: object()}))  # type: ignore[dict-item]
    with pytest.raises(wayinfer.UsageError, match="role"):
        demo.chat([{"role": "nobody", "content": "a"}])
    with pytest.raises(wayinfer.Unsupported, match="no chat template"):
        dense.chat([{"role": "user", "content": "a"}])
    with pytest.raises(wayinfer.ContextFull):
        dense.logits([1] * (dense.context + 1))
    with pytest.raises(wayinfer.UsageError, match="outside the vocabulary"):
        dense.logits([dense.vocab])
    assert dense.logits([]).shape == (0, dense.vocab)
    with pytest.raises(wayinfer.Unsupported):
        demo.chat([{"role": "user", "content": [{"type": "image_url"}]}])


def test_a_template_that_fails_says_so(tmp_path: Path) -> None:
    template = tmp_path / "template.txt"
    template.write_text("{{ raise_exception('not this one') }}")
    with Model("demo", template=str(template), threads=1) as model:
        with pytest.raises(wayinfer.UsageError, match="not this one"):
            model.chat([{"role": "user", "content": "a"}])
    # It runs in a process that may take little.
    template.write_text("{% for i in range(99999999) %}{% for j in range(99999999) %}{% endfor %}{% endfor %}")
    with Model("demo", template=str(template), threads=1) as model:
        with pytest.raises(wayinfer.UsageError):
            model.chat([{"role": "user", "content": "a"}])
