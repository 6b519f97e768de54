#!/usr/bin/env python3
"""Makes fixtures/ and golden/: the random models, what belongs to the demo, and what ggml computes on them all. Only this writes
goldens.

    scripts/goldens.py            build the reference, make everything, write golden/manifest.json
    scripts/goldens.py --check    make everything again in a temporary folder and compare bytes
    scripts/goldens.py --only dense-q4_k_m formats      a part of it (the manifest's other entries stay)

Needs what scripts/ggml/setup.sh installs. The reference is the portable build: generic C without AVX or FMA.
"""
import argparse, hashlib, json, shutil, subprocess, sys, tempfile, tomllib
from pathlib import Path

import fixtures

ROOT = fixtures.SCRIPTS.parent
sys.path.append(str(fixtures.SCRIPTS / "demo"))
import data as language
REFERENCE = fixtures.REFERENCE
PROMPTS = "golden/prompts.json"
PACKAGE = "llama-cpp-sys-2"
KINDS = ("prompts", "fixtures", "formats")
LIMIT_FILE, LIMIT_ALL = 8_000_000, 64_000_000

# Whole rows of the long prompt for one fixture, the edges of tiles for the others.
WHOLE = {"dense-q4_k_m"}
# Captured once more with a KV cache in F16, the short prompt alone.
KV_F16 = {"dense-q8_0"}
# llama.cpp no longer loads one tensor an expert: the same weights' goldens serve.
SAME_AS = {"moe-per-expert-q4_k_m": "moe-q4_k_m"}
# Models without goldens, and why.
WITHOUT = {"mixed": "each of its formats has goldens; its runs are compared among kernel sets"}
# Models that are made elsewhere and only captured here: name -> model file, prompts file (a name -> token ids).
DEMO = "demo-q4_k_m"
OTHERS = {DEMO: (f"fixtures/{DEMO}.gguf", "golden/demo-prompts.json")}
# What the demo is asked: said by user and assistant in turns.
DEMO_PROMPTS = {
    "short": ["What is 2+2?"],
    "spell": ["Spell the word house."],
    "long": ["What is 17+25?", "The sum of 17 and 25 is 42.", "Which month comes after May?", "June comes after May.",
             "What is 90-41?", "The difference of 90 and 41 is 49.", "Count back from 9 to 5."],
}
# A conversation whose ids alone are used, to compare the whole model with its parts: nodes of it would take too much room.
IDS_ONLY = {(DEMO, "long")}
DEMO_ANSWER = 64  # tokens at most
DEMO_FILES = 3
# Read here and not made.
GIVEN = {PROMPTS, *(model for model, _ in OTHERS.values())}


def reference(*arguments):
    run = subprocess.run([REFERENCE, *map(str, arguments)], stderr=subprocess.PIPE if quiet else None, text=True)
    if run.returncode:
        sys.exit(f"{run.stderr or ''}the reference failed on: {' '.join(map(str, arguments))}")


def capture(name, model, prompts, out):
    """All goldens of one model; returns the manifest's list."""
    rows = "all" if name in WHOLE else "edges"
    ids = (out if prompts not in GIVEN else ROOT) / prompts
    runs = [(prompt, "f32", "") for prompt in json.loads(ids.read_text()) if (name, prompt) not in IDS_ONLY]
    if name in KV_F16:
        runs.append(("short", "f16", "-kv-f16"))
    goldens = []
    for prompt, kv, suffix in runs:
        reference("capture", "--model", model, "--prompts", ids, "--out", out / "golden" / name,
                  "--only", prompt, "--kv", kv, f"--suffix={suffix}", "--rows", rows)
        file = f"golden/{name}/{prompt}{suffix}.safetensors"
        goldens.append({"prompts": prompts, "prompt": prompt, "kv": kv, "rows": rows, **described(out, file)})
    return goldens


def demo(model, prompts, out):
    """What belongs to the demo besides: prompts, held-out questions and ggml's answers, the model in parts. Returns what the
    manifest says of the model and of its parts."""
    questions = language.held_out_questions()
    texts = [language.prompt_text(*said) for said in DEMO_PROMPTS.values()]
    texts += [language.prompt_text(question) for _, question, _ in questions]
    with tempfile.TemporaryDirectory() as tmp:
        asked, answered = Path(tmp) / "texts.json", Path(tmp) / "answers.json"
        asked.write_text(json.dumps(texts))
        reference("answers", "--model", model, "--prompts", asked, "--out", answered, "--max-tokens", DEMO_ANSWER)
        answers = json.loads(answered.read_text())
    ids = {name: answer["prompt_ids"] for name, answer in zip(DEMO_PROMPTS, answers)}
    answers = answers[len(DEMO_PROMPTS):]
    assert len(ids["long"]) >= 80 and all(answer["ended"] for answer in answers)

    (out / prompts).parent.mkdir(parents=True, exist_ok=True)
    (out / prompts).write_text("{\n" + ",\n".join(f'  "{name}": {row}' for name, row in ids.items()) + "\n}\n")
    held_out, said = "fixtures/demo-held-out.json", f"golden/{DEMO}/answers.json"
    write_rows(out / held_out, ({"kind": kind, "question": question, "answer": answer} for kind, question, answer in questions))
    write_rows(out / said, ({"text": answer["text"], "margin": min(answer["margins"])} for answer in answers))
    (out / "fixtures").mkdir(exist_ok=True)
    parts = fixtures.split_files(model, out / "fixtures", DEMO_FILES)
    right = sum(answer["text"] == wanted for answer, (_, _, wanted) in zip(answers, questions))
    print(f"{DEMO}: {right} of {len(questions)} held-out questions right, a long prompt of {len(ids['long'])} tokens")
    first, *rest = (described(out, f"fixtures/{path.name}") for path in parts)
    return {"held_out": described(out, held_out), "answers": described(out, said)}, {**first, "parts": rest, "goldens_of": DEMO}


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
    entries["prompts"]["random"] = described(ROOT, PROMPTS)
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
    for name, (file, prompts) in OTHERS.items():
        if name in only:
            model, entry = ROOT / file, described(ROOT, file)
            if name == DEMO:
                more, entries["fixtures"][f"{DEMO}-split"] = demo(model, prompts, out)
                entry |= more
                entries["prompts"]["demo"] = described(out, prompts)
            entries["fixtures"][name] = {**entry, "goldens": capture(name, model, prompts, out)}
    if "formats" in only:
        reference("formats", "--out", out / "golden/formats")
        for path in sorted((out / "golden/formats").glob("*.safetensors")):
            entries["formats"][path.stem] = described(out, f"golden/formats/{path.name}")
    return entries


def pin():
    """The reference's version, as scripts/ggml/Cargo.toml has it."""
    return tomllib.loads((fixtures.SCRIPTS / "ggml/Cargo.toml").read_text())["dependencies"][PACKAGE]["version"]


def manifest(entries):
    info = json.loads(subprocess.run([REFERENCE, "info"], check=True, capture_output=True, text=True).stdout)
    return {
        "format": 1,
        "reference": {
            "package": f"{PACKAGE} {pin()}", "version": info["version"],
            "system_info": info["system_info"].strip(), "build": "portable: no AVX, FMA, F16C, SSE4.2, BMI2",
        },
        "captured": "one thread, flash attention off, no extra buffer types, each prompt in one batch with the logits of all "
                    "tokens, 8 decode steps with nodes, 32 greedy tokens; decode step i feeds greedy token i",
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
    parts = [*fixtures.FIXTURES, *OTHERS, "formats"]
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("--check", action="store_true", help="write nothing, compare bytes")
    a.add_argument("--only", nargs="+", default=parts, choices=parts, metavar="PART", help=", ".join(parts))
    o = a.parse_args()
    global quiet
    quiet = o.check
    subprocess.run([fixtures.SCRIPTS / "ggml/build.sh", "portable"], check=True)
    path = ROOT / "golden/manifest.json"
    old = json.loads(path.read_text()) if path.is_file() else {}
    if o.check:
        with tempfile.TemporaryDirectory() as tmp:
            sys.exit(1 if compare(Path(tmp), make(Path(tmp), o.only), old) else 0)
    if set(o.only) == set(parts):
        for name in parts:
            shutil.rmtree(ROOT / "golden" / name, ignore_errors=True)
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
