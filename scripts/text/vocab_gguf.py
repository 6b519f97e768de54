"""Vocabularies as GGUF files without tensors: from tokenizer.json, Mistral's tekken.json, SentencePiece."""

import base64
import json

import gguf
import sentencepiece

CONTROL, USER, NORMAL = gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED, gguf.TokenType.NORMAL
UNUSED, BYTE, UNKNOWN = gguf.TokenType.UNUSED, gguf.TokenType.BYTE, gguf.TokenType.UNKNOWN


class Vocabulary:
    """Tokens and types; scores where the model is `llama`, else merges."""

    def __init__(self, tokens, types, merges=None, scores=None, space_prefix=None, model=None):
        self.tokens, self.types, self.merges, self.scores = tokens, types, merges, scores
        self.space_prefix, self.model = space_prefix, model or ("llama" if scores else "gpt2")

    def write(self, path, pre, bos=None, eos=None, add_bos=None, chat_template=None):
        w = gguf.GGUFWriter(path, "llama")
        w.add_tokenizer_model(self.model)
        w.add_tokenizer_pre(pre)
        w.add_token_list(self.tokens)
        w.add_token_types(self.types)
        if self.scores:
            w.add_token_scores(self.scores)
        else:
            w.add_token_merges(self.merges)
        if self.space_prefix is not None:
            w.add_add_space_prefix(self.space_prefix)
        optional = [(w.add_bos_token_id, bos), (w.add_eos_token_id, eos), (w.add_add_bos_token, add_bos),
                    (w.add_chat_template, chat_template)]
        for add, value in optional:
            if value is not None:
                add(value)
        w.write_header_to_file()
        w.write_kv_data_to_file()
        w.close()


def byte_alphabet():
    """GPT-2's character of each byte."""
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (b for b in range(256) if b not in own)
    return {b: chr(b) for b in own} | {b: chr(256 + n) for n, b in enumerate(others)}


def from_tokenizer_json(path, model=None):
    """Byte-level BPE with its merges; SentencePiece's BPE with scores that order as they do, or as the model
    `gemma4` with the merges."""
    with open(path, encoding="utf-8") as file:
        tokenizer = json.load(file)
    bpe, gemma = tokenizer["model"], model == "gemma4"
    ids, types = dict(bpe["vocab"]), {}
    spm = bpe.get("byte_fallback", False)
    by_id = {i: text for text, i in ids.items()}
    for added in tokenizer["added_tokens"]:
        ids.pop(by_id.get(added["id"]), None)
        # As SentencePiece's own text has it: its spaces are U+2581 inside only.
        text = added["content"]
        text = text.replace("\u2581", " ") if spm and not gemma and not added["special"] else text
        ids[text] = added["id"]
        types[added["id"]] = CONTROL if added["special"] else USER
    size = max(ids.values()) + 1
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for text, i in ids.items():
        tokens[i], kinds[i] = text, types.get(i, NORMAL)
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in bpe["merges"]]
    if not spm:
        return Vocabulary(tokens, kinds, merges=[" ".join(m) for m in merges])
    for i, text in enumerate(tokens):
        if len(text) == 6 and text.startswith("<0x") and kinds[i] == NORMAL:
            kinds[i] = BYTE
    if bpe.get("unk_token") in ids:
        kinds[ids[bpe["unk_token"]]] = UNKNOWN
    if gemma:
        return Vocabulary(tokens, kinds, merges=[" ".join(m) for m in merges], model=model)
    ranks = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    scores = [float(-ranks.get(text, 0)) for text in tokens]
    prefix = "Prepend" in json.dumps(tokenizer["normalizer"])
    return Vocabulary(tokens, kinds, scores=scores, space_prefix=prefix)


def from_tekken(path):
    """Ranks are the merges: a token's merge is the last pair that forms it from lower ranks."""
    with open(path, encoding="utf-8") as file:
        tekken = json.load(file)
    special, size = tekken["config"]["default_num_special_tokens"], tekken["config"]["default_vocab_size"]
    raw = [base64.b64decode(v["token_bytes"]) for v in tekken["vocab"][: size - special]]
    rank = {b: i for i, b in enumerate(raw)}
    alphabet = byte_alphabet()
    show = lambda b: "".join(alphabet[x] for x in b)
    none = len(raw)
    merges = []
    for whole, most in rank.items():
        parts = [bytes([x]) for x in whole]
        while len(parts) > 2:
            ranks = [rank.get(a + b, none) for a, b in zip(parts, parts[1:])]
            best = min(ranks)
            if best >= most:
                break
            at = ranks.index(best)
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            merges.append(" ".join(map(show, parts)))
    named = {s["rank"]: s["token_str"] for s in tekken.get("special_tokens") or []}
    tokens = [named.get(i, f"<SPECIAL_{i}>") for i in range(special)] + [show(b) for b in raw]
    return Vocabulary(tokens, [CONTROL] * special + [NORMAL] * len(raw), merges=merges)


def from_sentencepiece(path):
    """Pieces, scores and types of a SentencePiece model."""
    sp = sentencepiece.SentencePieceProcessor(model_file=str(path))
    kinds = [(sp.is_unknown, UNKNOWN), (sp.is_control, CONTROL), (sp.is_unused, UNUSED), (sp.is_byte, BYTE)]
    kind = lambda i: next((kind for test, kind in kinds if test(i)), NORMAL)
    ids = range(sp.vocab_size())
    tokens, scores = [sp.id_to_piece(i) for i in ids], [sp.get_score(i) for i in ids]
    return Vocabulary(tokens, [kind(i) for i in ids], scores=scores)
