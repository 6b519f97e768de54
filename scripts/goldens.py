#!/usr/bin/env python3
"""Makes fixtures/ and golden/: the random models, of every family too (scripts/families), what belongs to the
demo, and what ggml computes on them all. Only this writes goldens.

    scripts/goldens.py            build the reference, make everything, write golden/manifest.json
    scripts/goldens.py --check    make everything again in a temporary folder and compare bytes
    scripts/goldens.py --only dense-q4_k_m formats      a part of it (the manifest's other entries stay)
    scripts/goldens.py --only qwen3moe qwen3moe-q       the fixtures of a family
    scripts/goldens.py --into FOLDER --only qwen3moe    into another folder, to look at

Needs what scripts/ggml/setup.sh installs. The reference is the portable build: generic C without AVX or FMA.
"""
import argparse, hashlib, json, shutil, subprocess, sys, tempfile, tomllib
from pathlib import Path

import numpy as np

import families
import fixtures
import ties

ROOT = fixtures.SCRIPTS.parent
sys.path.append(str(fixtures.SCRIPTS / "demo"))
import data as language
REFERENCE = fixtures.REFERENCE
PROMPTS, FAMILY_PROMPTS = "golden/prompts.json", "golden/family-prompts.json"
PACKAGE = "llama-cpp-sys-2"
KINDS = ("prompts", "fixtures", "formats")
LIMIT_FILE, LIMIT_ALL = 8_000_000, 40 * 2**20

# Decode steps with nodes, by prompt, and greedy tokens.
STEPS, GREEDY = {"short": 2, "long": 2, "deep": 1}, 8
# Prompts by name: how many random ids of which range, longer than windows (16) and original contexts (32) of
# families, and than a page (128) and a window. The seed is that of all.
LENGTHS = {PROMPTS: (24, 310, {"short": 7, "long": 43}),
           FAMILY_PROMPTS: (29, 100, {"long": 37, "deep": 149})}
# Which rows of a prompt's nodes are kept.
ROWS = {"short": "all", "long": "edges", "deep": "ends"}
# The first and last rows alone of these, which have many layers or wide nodes, and one decode step.
FEW = {"exaone4", "deepseek32", "deepseek4", "glm-dsa", "glm5-next", "hy_v4", "gemma3n", "gemma4",
       "gemma4-moe", "afmoe", "dots1", "qwen4exp"}
# The long prompt alone of these: the short one's nodes are those of a model beside it.
LONG = {"dense-f16", "dense-bf16", "odd-q8_0"}
# Captured once more with a KV cache of another type, the first prompt alone, and how many decode steps of it.
KV = {"dense-q8_0": ("f16", 2), "gpt-oss": ("f16", 2), "dense-f32": ("q8_0/q4_0", 1)}
# llama.cpp no longer loads one tensor an expert: the same weights' goldens serve.
SAME_AS = {"moe-per-expert-q4_k_m": "moe-q4_k_m"}
# Models without goldens, and why.
WITHOUT = {
    "mixed": "each of its formats has goldens; its runs are compared among kernel sets",
    "dense-q5_k_m": "Q5_K has goldens; its runs are compared among kernel sets",
}
# Models that are made elsewhere and only captured here: name -> model file, prompts file (names and ids).
DEMO = "demo-q4_k_m"
OTHERS = {DEMO: (f"fixtures/{DEMO}.gguf", "golden/demo-prompts.json")}
# What the demo is asked: said by user and assistant in turns.
DEMO_PROMPTS = {
    "short": ["What is 2+2?"],
    "spell": ["Spell the word house."],
    "long": ["What is 17+25?", "The sum of 17 and 25 is 42.", "Which month comes after May?",
             "June comes after May.", "What is 90-41?", "The difference of 90 and 41 is 49.",
             "Count back from 9 to 5."],
}
# Conversations whose ids alone are used, as prompts of other tests: nodes of them would take too much room.
IDS_ONLY = {(DEMO, "spell"), (DEMO, "long")}
DEMO_ANSWER = 64  # tokens at most
# The same model in so many files.
SPLIT = {"moe-q4_k_m": 3}
# Folders of goldens that other scripts make (scripts/text).
ELSEWHERE = {"text"}
# Read here and not made.
GIVEN = {model for model, _ in OTHERS.values()}


def reference(*arguments):
    errors = subprocess.PIPE if quiet else None
    run = subprocess.run([REFERENCE, *map(str, arguments)], stderr=errors, text=True)
    if run.returncode:
        sys.exit(f"{run.stderr or ''}the reference failed on: {' '.join(map(str, arguments))}")


def write_prompts(out):
    """The random prompts' files; returns what the manifest says of them."""
    described_as = {}
    for file, (seed, vocab, lengths) in LENGTHS.items():
        rng = np.random.default_rng(seed)
        ids = {name: rng.integers(3, vocab, n).tolist() for name, n in lengths.items()}
        write_ids(out / file, ids)
        described_as["random" if file == PROMPTS else "families"] = described(out, file)
    return described_as


def write_ids(path, ids):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(f'  "{name}": {row}' for name, row in ids.items()) + "\n}\n")


def capture(name, model, prompts, out, wanted=("short", "long"), config=families.shape()):
    """All goldens of one model; returns the manifest's list."""
    runs = [(prompt, "f32", "") for prompt in json.loads((out / prompts).read_text())
            if (name, prompt) not in IDS_ONLY and prompt in wanted and (prompt == "long" or name not in LONG)]
    if name in KV:
        kv, _ = KV[name]
        runs.append((runs[0][0], kv, "-kv-" + kv.replace("/", "-")))
    goldens = []
    for prompt, kv, suffix in runs:
        rows = "ends" if name in FEW or name == DEMO else ROWS[prompt]
        file = f"golden/{name}/{prompt}{suffix}.safetensors"
        # Of positions that are chosen, ties are looked for in every step.
        kept = KV[name][1] if suffix else 1 if name in FEW else STEPS[prompt]
        steps = [GREEDY - 1] * ("top_k" in config) + [kept]
        for steps in steps:
            reference("capture", "--model", model, "--prompts", out / prompts, "--out", out / "golden" / name,
                      "--only", prompt, "--kv", kv, f"--suffix={suffix}", "--rows", rows,
                      "--steps", steps, "--greedy", GREEDY, *["--flash"] * config.get("flash", False))
            if ties.nearest_tie(ties.tensors_of(out / file), config) < ties.NEAR:
                sys.exit(f"{file}: comes near a tie between experts or positions; another seed is needed")
        # Scores of all positions that there is room for: they are judged by what follows from them.
        if any(ties.is_of_positions(node) for node in ties.tensors_of(out / file)):
            ties.leave_out(out / file, lambda node: not ties.is_of_positions(node))
        goldens.append({"prompts": prompts, "prompt": prompt, "kv": kv, "rows": rows, **described(out, file)})
    return goldens


def family_fixture(name, out):
    """A fixture of a family with its goldens; returns the manifest's entry."""
    family, config, types = families.FIXTURES[name]
    path = out / "fixtures" / f"{name}.gguf"
    path.parent.mkdir(exist_ok=True)
    families.write(families.build(family, config, types), path)
    deep = ("deep",) if family.deep and name == family.name else ()
    goldens = capture(name, path, FAMILY_PROMPTS, out, ("long", *deep), config)
    return {**described(out, f"fixtures/{path.name}"), "goldens": goldens}


def demo(model, prompts, out):
    """What belongs to the demo besides: prompts, held-out questions and ggml's answers. Returns what the
    manifest says of the model."""
    questions = language.held_out_questions()
    texts = [language.prompt_text(*said) for said in DEMO_PROMPTS.values()]
    texts += [language.prompt_text(question) for _, question, _ in questions]
    with tempfile.TemporaryDirectory() as tmp:
        asked, answered = Path(tmp) / "texts.json", Path(tmp) / "answers.json"
        asked.write_text(json.dumps(texts))
        reference("answers", "--model", model, "--prompts", asked, "--out", answered,
                  "--max-tokens", DEMO_ANSWER)
        answers = json.loads(answered.read_text())
    ids = {name: answer["prompt_ids"] for name, answer in zip(DEMO_PROMPTS, answers)}
    answers = answers[len(DEMO_PROMPTS):]
    assert len(ids["long"]) >= 80 and all(answer["ended"] for answer in answers)

    write_ids(out / prompts, ids)
    held_out, said = "fixtures/demo-held-out.json", f"golden/{DEMO}/answers.json"
    keys = ("kind", "question", "answer")
    write_rows(out / held_out, (dict(zip(keys, question)) for question in questions))
    write_rows(out / said, ({"text": answer["text"], "margin": min(answer["margins"])} for answer in answers))
    right = sum(answer["text"] == wanted for answer, (_, _, wanted) in zip(answers, questions))
    print(f"{DEMO}: {right} of {len(questions)} held-out questions right, "
          f"a long prompt of {len(ids['long'])} tokens")
    ids_only = sorted(prompt for name, prompt in IDS_ONLY if name == DEMO)
    return {"held_out": described(out, held_out), "answers": described(out, said), "ids_only": ids_only}


def write_rows(path, rows):
    """A JSON list, a row a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n")


def described(out, file):
    data = (out / file).read_bytes()
    return {"file": file, "bytes": len(data), "sha256": sha256(data)}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def make(out, only):
    """Makes the parts named, below `out`; returns their entries of the manifest."""
    entries = {kind: {} for kind in KINDS}
    entries["prompts"] |= write_prompts(out)
    for name in fixtures.FIXTURES:
        if name not in only:
            continue
        model = fixtures.make(name, out / "fixtures")
        entry = described(out, f"fixtures/{name}.gguf")
        if name in WITHOUT:
            entry |= {"without_goldens": WITHOUT[name], "goldens": []}
        elif name in SAME_AS:
            entry["goldens_of"] = SAME_AS[name]
        else:
            entry["goldens"] = capture(name, model, PROMPTS, out)
        entries["fixtures"][name] = entry
        if name in SPLIT:
            paths = fixtures.split_files(model, out / "fixtures", SPLIT[name])
            first, *rest = (described(out, f"fixtures/{path.name}") for path in paths)
            entries["fixtures"][f"{name}-split"] = {**first, "parts": rest, "goldens_of": name}
    for name in families.FIXTURES:
        if name in only:
            entries["fixtures"][name] = family_fixture(name, out)
    for name, (file, prompts) in OTHERS.items():
        if name in only:
            model, entry = ROOT / file, described(ROOT, file)
            if name == DEMO:
                entry |= demo(model, prompts, out)
                entries["prompts"]["demo"] = described(out, prompts)
            entries["fixtures"][name] = {**entry, "goldens": capture(name, model, prompts, out)}
    if "formats" in only:
        reference("formats", "--out", out / "golden/formats")
        for path in sorted((out / "golden/formats").glob("*.safetensors")):
            entries["formats"][path.stem] = described(out, f"golden/formats/{path.name}")
    return entries


def pin():
    """The reference's version, as scripts/ggml/Cargo.toml has it."""
    cargo = tomllib.loads((fixtures.SCRIPTS / "ggml/Cargo.toml").read_text())
    return cargo["dependencies"][PACKAGE]["version"]


def manifest(entries):
    info = json.loads(subprocess.run([REFERENCE, "info"], check=True, capture_output=True, text=True).stdout)
    return {
        "format": 1,
        "reference": {
            "package": f"{PACKAGE} {pin()}", "version": info["version"],
            "system_info": info["system_info"].strip(), "build": "portable: no AVX, FMA, F16C, SSE4.2, BMI2",
        },
        "captured": "one thread, flash attention off, no extra buffer types, each prompt in one batch with "
                    f"the logits of all tokens, one or two decode steps with nodes, {GREEDY} greedy tokens; "
                    "decode step i feeds greedy token i",
        **entries,
    }


def merged(old, new):
    return {kind: dict(sorted({**old.get(kind, {}), **new[kind]}.items())) for kind in KINDS}


def files(entries):
    for entry in (entry for kind in KINDS for entry in entries.get(kind, {}).values()):
        yield entry
        yield from entry.get("parts", [])
        yield from (entry[also] for also in ("held_out", "answers") if also in entry)
        yield from entry.get("goldens", [])


def clear():
    """Removes what is made here, so that nothing stays of a fixture that is no more."""
    for folder in (path for path in (ROOT / "golden").iterdir() if path.is_dir() and path.name not in ELSEWHERE):
        shutil.rmtree(folder)
    for model in (ROOT / "fixtures").glob("*.gguf"):
        if str(model.relative_to(ROOT)) not in GIVEN:
            model.unlink()


def check_sizes(entries):
    total = 0
    for entry in files(entries):
        total += entry["bytes"]
        if entry["bytes"] > LIMIT_FILE:
            sys.exit(f"{entry['file']}: {entry['bytes']} bytes, more than {LIMIT_FILE}")
    if total > LIMIT_ALL:
        sys.exit(f"fixtures and goldens have {total} bytes, more than {LIMIT_ALL}")
    print(f"{sum(1 for _ in files(entries))} files, {total / 1e6:.1f} MB")


def compare(fresh, entries, old):
    """Bytes of what was made again against the repository's, and against the manifest."""
    recorded = {entry["file"]: entry["sha256"] for entry in files(old)}
    wrong = 0
    for entry in files(entries):
        file = entry["file"]
        mine = ROOT / file
        if file not in GIVEN and (not mine.is_file() or mine.read_bytes() != (fresh / file).read_bytes()):
            print(f"differs from what ggml gives now: {file}"); wrong += 1
        if recorded.get(file) != entry["sha256"]:
            print(f"differs from the manifest: {file}"); wrong += 1
    print(f"{sum(1 for _ in files(entries))} files made again, {wrong} differences")
    return wrong


def main():
    parts = [*fixtures.FIXTURES, *families.FIXTURES, *OTHERS, "formats"]
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--check", action="store_true", help="write nothing, compare bytes")
    a.add_argument("--only", nargs="+", default=parts, choices=parts, metavar="PART", help=", ".join(parts))
    a.add_argument("--into", type=Path, help="write below this folder, and no manifest")
    o = a.parse_args()
    global quiet
    quiet = o.check
    subprocess.run([fixtures.SCRIPTS / "ggml/build.sh", "portable"], check=True)
    path = ROOT / "golden/manifest.json"
    old = json.loads(path.read_text()) if path.is_file() else {}
    if o.into:
        entries = make(o.into, o.only)
        for entry in sorted(files(entries), key=lambda entry: entry["file"]):
            print(f"{entry['bytes']:9} {entry['file']}")
        return check_sizes(entries)
    if o.check:
        with tempfile.TemporaryDirectory() as tmp:
            sys.exit(1 if compare(Path(tmp), make(Path(tmp), o.only), old) else 0)
    if set(o.only) == set(parts):
        clear()
        old = {}
    elif old.get("reference", {}).get("package") != f"{PACKAGE} {pin()}":
        sys.exit(f"{path} is of another version of the reference: make all parts")
    entries = merged(old, make(ROOT, o.only))
    check_sizes(entries)
    (ROOT / "fixtures/README.md").write_text(fixtures.readme())
    path.write_text(json.dumps(manifest(entries), indent=1) + "\n")


quiet = False
if __name__ == "__main__":
    main()
