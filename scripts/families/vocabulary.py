"""Small vocabularies for random models."""
import gguf

PAIRS = """
Ġ t, h e, i n, Ġ a, r e, o n, Ġt he, e r, Ġ s, a t, e n, o r, Ġ w, Ġ c, i t, i s, a n, Ġ b, e s,
Ġ f, e d, Ġ m, in g, o u, Ġ o, Ġ p, a r, Ġa n, Ġt o, Ġ d, l e, Ġ h, Ġo f, i c, o m, a s, Ġan d,
l l, Ġ in, Ġ l, e t, Ġ n, r o, v e, i on, Ġw h, Ġb e, Ġ e, Ġ g, i d, o t, c h, o w, e l, Ġ re, u t,
Ġ is, Ġ y, Ġy ou, a l, g h
""".strip().replace("\n", " ").split(", ")
PIECES = ["▁", *"etaoinshrdlcumwfgypbvkjxqz", "▁t", "he", "in", "▁a", "re", "on", "▁the", "er", "▁s", "at",
          "en", "or", "▁w", "an", "▁an", "▁and", "nd", "ou", "is", "it", "▁is", "ing", "ed", "▁of", "▁o",
          "to", "▁to"]
SIGNS = [*(chr(c) for c in range(ord("A"), ord("Z") + 1)), *"0123456789", *".,!?'-:;()\""]
NORMAL, UNKNOWN, CONTROL, BYTE = (gguf.TokenType[name] for name in ("NORMAL", "UNKNOWN", "CONTROL", "BYTE"))


def byte_letters():
    """GPT-2's printable letter for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(b) if b in kept else chr(next(extra)) for b in range(256)]


def add(w, kind, size):
    """Writes a vocabulary of `size` tokens: `gpt2` is byte-level BPE, all bytes and merges; `llama` is
    SentencePiece with all bytes and letters; `letters` is SentencePiece without bytes, for models so small
    that 256 of them would be half of it."""
    w.add_tokenizer_model("gpt2" if kind == "gpt2" else "llama")
    if kind == "gpt2":
        special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
        pairs = PAIRS[:size - 256 - len(special)]
        tokens = byte_letters() + [p.replace(" ", "") for p in pairs] + special
        assert all(part in tokens for pair in pairs for part in pair.split(" "))
        types = [NORMAL] * (len(tokens) - 3) + [CONTROL] * 3
        w.add_tokenizer_pre("llama-bpe")
        w.add_token_merges(pairs)
        w.add_bos_token_id(len(tokens) - 3); w.add_eos_token_id(len(tokens) - 2)
        w.add_eot_token_id(len(tokens) - 1)
    else:
        # llama.cpp looks for a line's end.
        bytes_ = [f"<0x{b:02X}>" for b in range(256)] if kind == "llama" else []
        tokens = ["<unk>", "<s>", "</s>", *bytes_, *PIECES, *([] if bytes_ else ["\n"]), *SIGNS]
        tokens += [f"▁{a}{b}" for a in "bcdfghlmnprstvw" for b in "aeiou"][:max(0, size - len(tokens))]
        tokens = tokens[:size]
        types = [UNKNOWN] + [CONTROL] * 2 + [BYTE] * len(bytes_)
        types += [NORMAL] * (len(tokens) - len(types))
        first = 3 + len(bytes_)
        w.add_token_scores([0.0] * first + [-float(i) for i in range(len(tokens) - first)])
        w.add_bos_token_id(1); w.add_eos_token_id(2); w.add_unk_token_id(0)
    assert len(set(tokens)) == len(tokens) == size, (len(set(tokens)), len(tokens), size)
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_add_bos_token(True)
