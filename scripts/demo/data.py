"""The demo model's language: questions with one right answer each, made from fixed seeds.

Every question has a key, and a share of the keys (chosen by a hash) is held out: no question with
such a key is ever trained on. For arithmetic, comparisons, counting and spelling the key is the
numbers or the word, whatever the phrasing, and one in twenty is held out. Days, months and facts
cannot be guessed: there the key is the question's text, one in five of the other phrasings is held
out, and the first phrasing is always trained on.
"""

import hashlib
import json
import random
import sys

import facts


def is_held_out(key):
    """`key` is (one in how many is held out, text), or None for what is always trained on."""
    if key is None:
        return False
    share, key = key
    digest = hashlib.blake2b(f"wayinfer-demo {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % share == 0


def pair(rng):
    """Two numbers of 0-99; pairs of one-digit numbers are more frequent than chance has them."""
    top = 9 if rng.random() < 0.06 else 99
    return rng.randint(0, top), rng.randint(0, top)


def pair_key(kind, a, b):
    """One-digit pairs are all trained on; a pair and its mirror share their fate."""
    return None if max(a, b) < 10 else (20, f"{kind} {min(a, b)} {max(a, b)}")


def sums(rng):
    a, b = pair(rng)
    question = rng.choice(["What is {}+{}?"] * 3 + ["What is {} + {}?", "What is {} plus {}?",
                          "What is the sum of {} and {}?"])
    return question.format(a, b), f"The sum of {a} and {b} is {a + b}.", pair_key("sum", a, b)


def differences(rng):
    a, b = pair(rng)
    question = rng.choice(["What is {}-{}?"] * 3 + ["What is {} - {}?", "What is {} minus {}?",
                          "What is the difference of {} and {}?"])
    return (question.format(a, b), f"The difference of {a} and {b} is {a - b}.",
            pair_key("difference", a, b))


def comparisons(rng):
    a, b = pair(rng)
    if a == b:
        a, b = (a, a + 1) if a < 99 else (99, 98)
    small, large = min(a, b), max(a, b)
    forms = [("Which is larger, {} or {}?", f"{large} is larger than {small}."),
             ("Which is smaller, {} or {}?", f"{small} is smaller than {large}."),
             ("Is {} larger than {}?", f"{'Yes' if a > b else 'No'}, {a} is "
              f"{'larger' if a > b else 'smaller'} than {b}."),
             ("Is {} smaller than {}?", f"{'Yes' if a < b else 'No'}, {a} is "
              f"{'smaller' if a < b else 'larger'} than {b}.")]
    question, answer = rng.choice(forms)
    return question.format(a, b), answer, pair_key("compare", a, b)


def counting(rng):
    n = rng.randint(1, 98)
    form = rng.randrange(5)
    if form == 0:
        return f"What number comes after {n}?", f"{n + 1} comes after {n}.", (20, f"after {n}")
    if form == 1:
        return f"What number comes before {n}?", f"{n - 1} comes before {n}.", (20, f"before {n}")
    length = rng.randint(3, 8)
    a = rng.randint(0, 99 - length)
    run = list(range(a, a + length))
    if form == 4:
        run.reverse()
    back = " back" if form == 4 else ""
    return (f"Count{back} from {run[0]} to {run[-1]}.", ", ".join(map(str, run)) + ".",
            (20, f"count {run[0]} {run[-1]}"))


def calendar(rng):
    return phrased(rng, facts.CALENDAR)


def small_facts(rng):
    return phrased(rng, facts.FACTS)


def phrased(rng, entries):
    questions, answer = rng.choice(entries)
    n = rng.randrange(len(questions))
    return questions[n], answer, (5, questions[n]) if n else None


def spelling(rng):
    word = rng.choice(facts.WORDS) if rng.random() < 0.5 else made_up_word(rng)
    form = rng.randrange(6)
    if form == 0:
        count = len(word)
        return (f"How many letters does {word} have?", f"The word {word} has {count} letters.",
                (20, f"word {word}"))
    if form == 1:
        return (f"What is the first letter of {word}?",
                f"The first letter of {word} is {word[0]}.", (20, f"word {word}"))
    if form == 2:
        return (f"What is the last letter of {word}?",
                f"The last letter of {word} is {word[-1]}.", (20, f"word {word}"))
    question = rng.choice(["How do you spell {}?", "Spell the word {}."])
    return (question.format(word), f"The word {word} is spelled {'-'.join(word)}.",
            (20, f"word {word}"))


def made_up_word(rng):
    """One or two syllables, so that spelling is learnt as a rule and not by heart."""
    word = ""
    for _ in range(rng.choice([1, 2])):
        word += rng.choice(facts.ONSETS) + rng.choice("aeiou")
    return word + rng.choice(facts.CODAS)


KINDS = {sums: 0.32, differences: 0.30, comparisons: 0.10, counting: 0.08, calendar: 0.07,
         spelling: 0.08, small_facts: 0.05}
# For the later part of training, when sums are known and what is to be learnt by heart is not.
LATE_KINDS = {sums: 0.17, differences: 0.23, comparisons: 0.10, counting: 0.12, calendar: 0.14,
              spelling: 0.15, small_facts: 0.09}


def examples(seed, held_out=False, kinds=KINDS):
    """An endless stream of (kind, question, answer), all trained on or all held out."""
    rng = random.Random(seed)
    shares, kinds = list(kinds.values()), list(kinds)
    while True:
        kind = rng.choices(kinds, shares)[0]
        while True:
            question, answer, key = kind(rng)
            if is_held_out(key) == held_out:
                break
        yield kind.__name__, question, answer


def held_out_questions(count=500, seed=7):
    """The test: `count` different questions that training never shows, in the language's shares."""
    shares = list(KINDS.items())
    quota = {kind.__name__: round(share * count) for kind, share in shares}
    chosen = {}
    for kind, question, answer in examples(seed, held_out=True):
        if question not in chosen and quota[kind] > 0:
            quota[kind] -= 1
            chosen[question] = (kind, answer)
        if not any(quota.values()):
            return [(kind, question, answer) for question, (kind, answer) in chosen.items()]


def prompt_text(*said):
    """What the chat template makes of a conversation: said by user and assistant in turns, the user last."""
    turns = (f"<|{('user', 'assistant')[i % 2]}|>{text}<|end|>" for i, text in enumerate(said))
    return f"<|bos|>{''.join(turns)}<|assistant|>"


def main(path):
    rows = [{"kind": kind, "prompt": prompt_text(question), "question": question, "answer": answer}
            for kind, question, answer in held_out_questions()]
    with open(path, "w") as file:
        json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main(sys.argv[1])
