#!/usr/bin/env python3
"""Makes fixtures/ and golden/: the random models and what ggml computes on them. Only this writes goldens.

    scripts/goldens.py            build the reference, make everything, write golden/manifest.json
    scripts/goldens.py --check    make everything again in a temporary folder and compare bytes
    scripts/goldens.py --only dense-q4_k_m formats      a part of it (the manifest's other entries stay)

Needs what scripts/ggml/setup.sh installs. The reference is the portable build: generic C without AVX or FMA.
"""
import argparse, hashlib, json, shutil, subprocess, sys, tempfile
from pathlib import Path

import fixtures

ROOT = fixtures.SCRIPTS.parent
REFERENCE = fixtures.REFERENCE
PROMPTS = "golden/prompts.json"
LIMIT_FILE, LIMIT_ALL = 8 << 20, 64 << 20

# Whole rows of the long prompt for one fixture, the edges of tiles for the others.
WHOLE = {"dense-q4_k_m"}
# Captured once more with a KV cache in F16, the short prompt alone.
KV_F16 = {"dense-q8_0"}
# llama.cpp no longer loads one tensor an expert: the same weights' goldens serve.
SAME_AS = {"moe-per-expert-q4_k_m": "moe-q4_k_m"}
# Models that are made elsewhere and only captured here: name -> model file, prompts file (a name -> token ids).
OTHERS = {}


def reference(*arguments):
    run = subprocess.run([REFERENCE, *map(str, arguments)], stderr=subprocess.PIPE if quiet else None, text=True)
    if run.returncode:
        sys.exit(f"{run.stderr or ''}the reference failed on: {' '.join(map(str, arguments))}")


def capture(name, model, prompts, out):
    """All goldens of one model; returns the manifest's list."""
    rows = "all" if name in WHOLE else "edges"
    runs = [(prompt, "f32", "") for prompt in json.loads((ROOT / prompts).read_text())]
    if name in KV_F16:
        runs.append(("short", "f16", "-kv-f16"))
    goldens = []
    for prompt, kv, suffix in runs:
        reference("capture", "--model", model, "--prompts", ROOT / prompts, "--out", out / "golden" / name,
                  "--only", prompt, "--kv", kv, f"--suffix={suffix}", "--rows", rows)
        file = f"golden/{name}/{prompt}{suffix}.safetensors"
        goldens.append({"prompts": prompts, "prompt": prompt, "kv": kv, "rows": rows, **described(out, file)})
    return goldens


def described(out, file):
    data = (out / file).read_bytes()
    return {"file": file, "bytes": len(data), "sha256": sha256(data)}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def make(out, only):
    """Makes the parts named, below `out`; returns their entries of the manifest."""
    entries = {"fixtures": {}, "formats": {}}
    for name in fixtures.FIXTURES:
        if name not in only:
            continue
        model = fixtures.make(name, out / "fixtures")
        entry = described(out, f"fixtures/{name}.gguf")
        if name in SAME_AS:
            entry["goldens_of"] = SAME_AS[name]
        else:
            entry["goldens"] = capture(name, model, PROMPTS, out)
        entries["fixtures"][name] = entry
    for name, (file, prompts) in OTHERS.items():
        if name in only:
            model = ROOT / file
            entry = {"file": file, "bytes": model.stat().st_size, "sha256": sha256(model.read_bytes())}
            entries["fixtures"][name] = {**entry, "goldens": capture(name, model, prompts, out)}
    if "formats" in only:
        reference("formats", "--out", out / "golden/formats")
        for path in sorted((out / "golden/formats").glob("*.safetensors")):
            entries["formats"][path.stem] = described(out, f"golden/formats/{path.name}")
    return entries


def manifest(entries):
    info = json.loads(subprocess.run([REFERENCE, "info"], check=True, capture_output=True, text=True).stdout)
    return {
        "format": 1,
        "reference": {
            "package": "llama-cpp-sys-2 =0.1.161", "version": info["version"],
            "system_info": info["system_info"].strip(), "build": "portable: no AVX, FMA, F16C, SSE4.2, BMI2",
        },
        "captured": "one thread, flash attention off, no extra buffer types, each prompt in one batch with the logits of all "
                    "tokens, 8 decode steps with nodes, 32 greedy tokens; decode step i feeds greedy token i",
        **entries,
    }


def merged(old, new):
    return {kind: dict(sorted({**old.get(kind, {}), **new[kind]}.items())) for kind in ("fixtures", "formats")}


def files(entries):
    for entry in [*entries["fixtures"].values(), *entries["formats"].values()]:
        yield entry
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
        if file in {model for model, _ in OTHERS.values()}:
            continue  # its hash in the manifest ties it to its goldens; nothing here makes it
        if not mine.is_file() or mine.read_bytes() != (fresh / file).read_bytes():
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
    old = json.loads(path.read_text()) if path.is_file() else {"fixtures": {}, "formats": {}}
    if o.check:
        with tempfile.TemporaryDirectory() as tmp:
            sys.exit(1 if compare(Path(tmp), make(Path(tmp), o.only), old) else 0)
    if set(o.only) == set(parts):
        for name in parts:
            shutil.rmtree(ROOT / "golden" / name, ignore_errors=True)
        old = {"fixtures": {}, "formats": {}}
    entries = merged(old, make(ROOT, o.only))
    check_sizes(entries)
    (ROOT / "fixtures/README.md").write_text(fixtures.readme())
    path.write_text(json.dumps(manifest(entries), indent=1) + "\n")


quiet = False
if __name__ == "__main__":
    main()
