#!/usr/bin/env python3
"""Where the authors' pre-tokenizers cut texts: `golden/text/pre-tokenizers.json`.

    scripts/text/pre_tokenizers.py [--check]

No vocabulary is needed for that, only what tokenizer.json says under `normalizer` and `pre_tokenizer`; so
names whose vocabularies cannot be had are held to it too. The patterns are those of the models'
tokenizer.json, the engine is that of the Python package tokenizers. A cut is a list of the words' lengths in
bytes, of the text as it is after normalisation.

Needs: pip install tokenizers
"""

import argparse
import json
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel, Digits, Split

import texts

GOLDEN = Path(__file__).resolve().parent.parent.parent / "golden/text/pre-tokenizers.json"

TAIL = r"|\s+(?!\S)|\s+"
ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
LLAMA3 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + TAIL
QWEN2 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + TAIL
QWEN35 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+" + TAIL
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*|\p{{N}}"
          r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+" + TAIL)
GPT4O = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{ENDINGS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{ENDINGS}?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+" + TAIL)
DEEPSEEK_V3 = (r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
               r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+" + TAIL)
BAILING = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}"
           r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]" + TAIL)
SEED = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+" + TAIL
EXAONE_MOE = (ENDINGS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
              r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]" + TAIL)
MINICPM5 = ENDINGS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}+| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+" + TAIL


def split(*patterns):
    return [Split(Regex(pattern), "isolated") for pattern in patterns]


WORDS = ByteLevel(add_prefix_space=False, use_regex=True)
DIGITS = Digits(individual_digits=True)
NFC = normalizers.NFC()

# Name in GGUF: normaliser, pre-tokenizers.
NAMES = {
    "gpt-2": (None, [WORDS]),
    "exaone4": (None, [WORDS]),
    "olmo": (NFC, [WORDS]),
    "llama-bpe": (None, split(LLAMA3)),
    "dbrx": (None, split(LLAMA3)),
    "glm4": (None, split(LLAMA3)),
    "qwen2": (NFC, split(QWEN2)),
    "hunyuan": (None, split(QWEN2)),
    "qwen35": (NFC, split(QWEN35)),
    "command-r": (NFC, [DIGITS, WORDS]),
    "starcoder": (None, [DIGITS, WORDS]),
    "refact": (None, [DIGITS, WORDS]),
    "tekken": (None, split(TEKKEN)),
    "gpt-4o": (None, split(GPT4O)),
    "llama4": (None, split(GPT4O)),
    "minimax-m2": (None, split(GPT4O)),
    "cohere2moe": (None, split(r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O)),
    "deepseek-v3": (None, split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3)),
    "hunyuan-dense": (None, split(r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", DEEPSEEK_V3)),
    "bailingmoe2": (None, split(BAILING)),
    "exaone-moe": (None, split(EXAONE_MOE)),
    "seed-coder": (None, split(SEED)),
    "minicpm5": (None, split(r"\p{N}{1,3}", MINICPM5)),
}


def cut(normalizer, steps, text):
    text = normalizer.normalize_str(text) if normalizer else text
    words = pre_tokenizers.Sequence(steps).pre_tokenize_str(text)
    return " ".join(str(len(text[start:end].encode())) for _, (start, end) in words)


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    inputs = texts.HARD + texts.random_texts(120, seed=2)
    cuts = {name: [cut(*row, text) for text in inputs] for name, row in NAMES.items()}
    # Names with the same cuts share them.
    shared = {}
    for name, found in cuts.items():
        shared.setdefault("\n".join(found), []).append(name)
    rows = [{"names": names, "cuts": cuts[names[0]]} for names in shared.values()]
    made = json.dumps({"texts": inputs, "rows": rows}, ensure_ascii=False, indent=0) + "\n"
    if args.check:
        raise SystemExit(0 if GOLDEN.read_text(encoding="utf-8") == made else f"differs: {GOLDEN}")
    GOLDEN.write_text(made, encoding="utf-8")
    print(f"{GOLDEN}: {len(NAMES)} names in {len(rows)} rows, {len(inputs)} texts, {len(made)} bytes")


if __name__ == "__main__":
    main()
