"""The demo model's own vocabulary: byte-level BPE of 512 tokens in which every digit is a token.

Merges are learnt from words alone (letters, with the space before them), so that none holds a digit
or a mark. Text is split as Llama 3 does it, which llama.cpp and others call "llama-bpe".
"""

import re
from collections import Counter
from functools import cache
from itertools import islice

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

import data

SIZE = 512
SPECIAL = ["<|bos|>", "<|end|>", "<|user|>", "<|assistant|>"]
BOS, END, USER, ASSISTANT = range(SIZE - len(SPECIAL), SIZE)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] in ['user', 'assistant'] %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
         r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def byte_alphabet():
    """GPT-2's printable stand-in for each byte, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


@cache
def merges():
    """The most frequent pair of neighbours, again and again; ties go to the first in order."""
    words = Counter()
    for _, question, answer in islice(data.examples(seed=1), 20000):
        for text in (question, answer):
            words.update(word.replace(" ", "Ġ") for word in re.findall(r" ?[A-Za-z]+", text))
    pieces = {word: list(word) for word in words}
    found = []
    while len(found) < SIZE - len(SPECIAL) - 256:
        pairs = Counter()
        for word, parts in pieces.items():
            for one in zip(parts, parts[1:]):
                pairs[one] += words[word]
        best = min(pairs, key=lambda one: (-pairs[one], one))
        found.append(best)
        for word, parts in pieces.items():
            pieces[word] = merged(parts, best)
    return found


def merged(parts, one):
    out = []
    for part in parts:
        if out and (out[-1], part) == one:
            out[-1] += part
        else:
            out.append(part)
    return out


@cache
def tokens():
    return byte_alphabet() + ["".join(one) for one in merges()] + SPECIAL


@cache
def tokenizer():
    ordinary = tokens()[:-len(SPECIAL)]
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(ordinary)}, merges(),
                                ignore_merges=True))
    made.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    return made
