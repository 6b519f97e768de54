#!/usr/bin/env python3
"""Random models of a family, run by ggml and by wayinfer: every node and the logits must agree.

    scripts/differential.py qwen3 gemma3                     30 configurations of each
    scripts/differential.py --all --count 5                  of every family
    scripts/differential.py qwen3 --seed 17 --count 1        one again, by the seed that its line names
    scripts/differential.py gpt-oss --weights q8_0:mxfp4     quantised; experts in a format of their own
    scripts/differential.py qwen3 --break                    canary: one key changed must fail each
    scripts/differential.py qwen3 --reference-only           whether llama.cpp loads the models
    scripts/differential.py --self-test [FAMILY..]           without any program

A configuration is drawn (scripts/families), its model written, and run on random ids by the reference
(`wayinfer-ggml capture`: portable ggml, scripts/ggml/build.sh), with a prompt longer than windows and
original contexts and some decode steps. Then `wayinfer trace` compares twice: in a free run, where with F32
weights and an F32 cache every node must be within an NMSE of 1e-6 (of 1e-2 otherwise, for roundings to 8 or
16 bits may come out otherwise), and isolated, where each node is computed from ggml's values and must be
within four times its stated bound (5e-7 with a cache in F16). Prompts that come near a tie between experts
are drawn again. Prints a line a configuration, and ends with 1 where one failed; its model, ids and
reference are kept.
"""
import argparse, json, shutil, subprocess, sys, tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

import families
from families import Draw
from families.core import MIXED, REFERENCE
from ties import NEAR, gap, nearest_tie, tensors_of

ROOT = Path(__file__).resolve().parents[1]
FREE, ROUNDED = 1e-6, 1e-2
# With a cache in F16 probabilities are rounded too: a chunk at a time here, a whole row at a time in ggml.
# Measured: 7e-8.
CACHE_F16 = 5e-7
# Bounds are at most ten times the error of the fixtures' nodes. Among thousands that are drawn some go
# further, such as the two logits of a router whose terms cancel. Measured: 1.8 times the bound.
SLACK = 4
KEPT = 3  # failed configurations of a family, at most


@dataclass
class Outcome:
    """What became of a configuration."""
    seed: int
    text: str
    problems: list[str] = field(default_factory=list)
    beyond: bool = False  # a comparison found nodes beyond tolerance
    worst: tuple[float, str] = (0.0, "")
    missing: Counter = field(default_factory=Counter)  # names that only ggml has
    extra: Counter = field(default_factory=Counter)    # names that only wayinfer has


def block_of(types):
    """What a quantised matrix's inputs are multiples of."""
    kinds = MIXED if types.upper() == "MIXED" else types.upper().split(":")
    return max(gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][0] for kind in kinds)


def prompt(d, config):
    """Random ids: beyond windows and original contexts where those are within reach, now and then over one
    or two pages. A configuration may ask for a prompt of so many ids."""
    reach = [config.window or 0, (config.scaling or {}).get("original", 0)]
    least = max([n for n in reach if n <= 140] + [config.get("least", 0)]) + 9
    length = max(least, d.of(d.between(20, 60), d.between(20, 60), d.between(130, 150), d.between(258, 270)))
    # A prime: no size of a node is taken for a count of tokens.
    while any(length % n == 0 for n in range(2, int(length ** 0.5) + 1)):
        length += 1
    return [int(token) for token in d.rng.integers(0, config.vocab, length)]


def bare(node):
    """The name of `{pass}/{name}-{layer}#{occurrence}`."""
    name = node.split("/", 1)[-1].rsplit("#", 1)[0]
    head, _, layer = name.rpartition("-")
    return head if layer.isdigit() else name


def place(node):
    layer = "" if node["layer"] is None else f"-{node['layer']}"
    return f"{node['name']}{layer} ({node['pass']})"


def judge(outcome, what, report):
    """Takes over what a comparison says; `what` is how it ran."""
    nodes = [node for node in report["nodes"] if "nmse" in node]
    slack = SLACK if what == "isolated" else 1
    beyond = [node for node in report["nodes"] if node["beyond"]
              and not float(node.get("nmse", "inf")) <= slack * float(node["tolerance"])]
    if beyond:
        first, said = beyond[0], report.get("first") or {}
        error = first.get("nmse", "other experts")
        outcome.beyond = True
        suspect = f"; suspect: {said['suspect']}" if said.get("suspect") else ""
        outcome.problems.append(f"{what}: {len(beyond)} of {report['compared']} nodes beyond; "
                                f"first {place(first)}: {error}, allowed {first['tolerance']}{suspect}")
    if what == "free":
        for node in nodes:
            error = float(node["nmse"])  # infinities and NaN are strings
            if not error <= outcome.worst[0]:
                outcome.worst = (error, place(node))
    outcome.missing.update(bare(name) for name in report["only_reference"])
    outcome.extra.update(bare(name) for name in report["only_subject"])


def run(command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def capture(family, config, d, options, folder):
    """Writes the model and runs the reference; returns the reference's file and the number of tokens, or
    what is wrong."""
    model = families.build(family, config, options.weights)
    families.write(model, folder / "model.gguf")
    prompts, golden = folder / "prompts.json", folder / "p.safetensors"
    for _ in range(8):
        ids = prompt(d, config)
        prompts.write_text(json.dumps({"p": ids}))
        steps = d.between(1, 4)
        done = run([REFERENCE, "capture", "-m", folder / "model.gguf", "--prompts", prompts, "--out", folder,
                    "--kv", options.kv, "--steps", steps, "--greedy", steps + 1])
        if done.returncode:
            return None, f"the reference: {last_line(done.stderr)}"
        nodes = tensors_of(golden)
        for name, values in nodes.items():
            if values.dtype == np.float32 and not np.isfinite(values).all():
                return None, f"the reference: {name} is not finite"
        if nearest_tie(nodes, config) >= NEAR:
            return golden, len(ids)
    return None, "eight prompts came near a tie"


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def differ(family, seed, options, folder):
    """One configuration."""
    d = Draw(seed, block_of(options.weights))
    config = family.draw(d)
    (folder / "config.json").write_text(json.dumps(config) + "\n")
    golden, said = capture(family, config, d, options, folder)
    if golden is None:
        return Outcome(seed, config.described(), [said])
    outcome = Outcome(seed, f"{config.described()}, {said} tokens")
    if options.reference_only:
        return outcome
    ours = folder / "model.gguf"
    if options.breaks:
        ours = folder / "broken.gguf"
        families.write(broken(families.build(family, config, options.weights), options.breaks), ours)
    exact = options.weights.upper() == "F32" and options.kv == "f32"
    bounds = ["--tolerance", str(CACHE_F16)] if options.kv == "f16" else []
    ways = [("free", ["--tolerance", str(FREE if exact else ROUNDED)]), ("isolated", ["--isolate", *bounds])]
    for what, more in ways:
        done = run([options.wayinfer, "trace", "-m", ours, "--golden", golden, "--json", *more])
        try:
            judge(outcome, what, json.loads(done.stdout))
        except ValueError:
            outcome.problems.append(f"{what}: {last_line(done.stderr)}")
    return outcome


def broken(model, key):
    """The model with a key 1 % larger; RoPE's base is there even where the file left it out."""
    name = f"{model.arch}.{key}"
    unless = model.config.rope_base if key == "rope.freq_base" and model.config.rot else None
    value = model.keys.get(name, unless)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        sys.exit(f"{name}: no number to change in this configuration")
    model.keys[name] = value * 1.01 if isinstance(value, float) else value + 1
    return model


def of_family(family, options):
    """All configurations of a family; returns whether they are as they should be."""
    kept, good, seeds = 0, 0, range(options.seed, options.seed + options.count)

    def one(seed):
        folder = Path(tempfile.mkdtemp(prefix=f"{family.name}-{seed}-"))
        return differ(family, seed, options, folder), folder

    outcomes = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for outcome, folder in pool.map(one, seeds):
            outcomes.append(outcome)
            failed = bool(outcome.problems)
            state = "FAILED" if failed else "ok"
            if options.breaks:
                # A model that is refused shows nothing.
                failed, state = (False, "tripped") if outcome.beyond else (True, "NOT TRIPPED")
            good += not failed
            worst = f", worst {outcome.worst[0]:.1e} {outcome.worst[1]}" if outcome.worst[1] else ""
            print(f"{family.name} seed {outcome.seed}: {outcome.text}: {state}{worst}")
            if failed:
                for problem in outcome.problems:
                    print(f"    {problem}")
                if kept < KEPT:
                    kept += 1
                    target = options.keep / f"{family.name}-{outcome.seed}"
                    shutil.rmtree(target, ignore_errors=True)
                    shutil.copytree(folder, target)
                    print(f"    kept in {target}")
            shutil.rmtree(folder)
            sys.stdout.flush()
    print(summary(family, outcomes, good, options))
    return good == len(outcomes)


def summary(family, outcomes, good, options):
    what = "tripped" if options.breaks else "run" if options.reference_only else "agree"
    lines = [f"{family.name}: {good} of {len(outcomes)} configurations {what}"]
    worst = max(outcomes, key=lambda outcome: outcome.worst[0]).worst
    if worst[1]:
        lines[0] += f"; the worst NMSE of a free run is {worst[0]:.1e} at {worst[1]}"
    for who, counts in (("ggml", sum((o.missing for o in outcomes), Counter())),
                        ("wayinfer", sum((o.extra for o in outcomes), Counter()))):
        if counts:
            lines.append(f"    nodes that only {who} has: {', '.join(sorted(counts))}")
    return "\n".join(lines)


def self_test(chosen):
    """Everything that needs no program."""
    for family in chosen:
        for seed in range(4):
            for block in (1, 32, 256):
                d = Draw(seed, block)
                config = family.draw(d)
                model = families.build(family, config)
                for name, (values, _) in model.tensors.items():
                    assert np.isfinite(values).all(), name
                    # Norms, biases and factors stay floats; what is multiplied can be cut into blocks.
                    vector = values.ndim == 1 or name.endswith(".bias") or "_norm." in name
                    whole = vector or values.shape[-1] % block == 0
                    assert whole, f"{family.name} {seed}: {name} {values.shape} in blocks of {block}"
                ids = prompt(d, config)
                assert 0 <= min(ids) and max(ids) < config.vocab and len(ids) > min(config.window or 0, 140)
            json.dumps(config)
        for suffix, (config, _) in family.fixtures.items():
            families.build(family, config)
    d, again = Draw(5), Draw(5)
    family = families.ALL["qwen3"]
    first, second = (families.build(family, family.draw(x)) for x in (d, again))
    assert all((first.tensors[n][0] == second.tensors[n][0]).all() for n in first.tensors)
    base = first.config.rope_base
    assert broken(second, "rope.freq_base").keys["qwen3.rope.freq_base"] == base * 1.01
    blocks = {"f32": 1, "q8_0:mxfp4": 32, "Q8_0:q4_k": 256, "mixed": 32}
    assert blocks == {types: block_of(types) for types in blocks}
    assert bare("prefill/ffn_moe_topk-3#0") == "ffn_moe_topk" and bare("decode.1/embd#0") == "embd"
    assert abs(gap(np.array([[0.5, 0.3, 0.3000003, 0.1]]), 2) - 1e-6) < 1e-9
    assert gap(np.array([[1.0], [2.0]]), 1) == np.inf
    nodes = {"prefill/ffn_moe_topk-0#0": np.zeros((1, 1), np.int32),
             "prefill/ffn_moe_probs-0#0": np.array([[0.4, 0.1, 0.4, 0.1]])}
    assert nearest_tie(nodes, families.shape()) == 0.0
    assert nearest_tie({"prefill/embd#0": np.zeros((1, 4))}, families.shape()) == np.inf
    outcome = Outcome(1, "")
    node = {"name": "l_out", "layer": 1, "pass": "prefill", "nmse": "NaN", "beyond": True, "tolerance": 1e-6}
    report = {"nodes": [node], "compared": 1, "only_reference": ["prefill/kqv_out-0#0"], "only_subject": []}
    judge(outcome, "free", report)
    assert outcome.problems and outcome.worst[1] == "l_out-1 (prefill)" and outcome.missing == {"kqv_out": 1}
    print(f"{len(chosen)} families: drawn configurations are sound")


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(families.ALL))
    a.add_argument("--all", action="store_true", help="every family")
    a.add_argument("--count", type=int, default=30, help="configurations of a family")
    a.add_argument("--seed", type=int, default=1, help="of the first; the others follow")
    a.add_argument("--weights", default="f32", help="type of matrices, or of matrices:experts; or `mixed`")
    a.add_argument("--kv", default="f32", choices=["f32", "f16"], help="type of the cache")
    a.add_argument("--wayinfer", type=Path, default=ROOT / "target/release/wayinfer")
    a.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "wayinfer-differential",
                   help="where failures are kept")
    a.add_argument("--jobs", type=int, default=1)
    a.add_argument("--break", dest="breaks", nargs="?", const="rope.freq_base", metavar="KEY",
                   help="change a key (rope.freq_base) by 1 %% in the model that wayinfer reads")
    a.add_argument("--reference-only", action="store_true")
    a.add_argument("--self-test", action="store_true")
    o = a.parse_args()
    chosen = list(families.ALL) if o.all or o.self_test and not o.families else o.families
    for name in chosen:
        if name not in families.ALL:
            a.error(f"unknown family {name}: known are {', '.join(families.ALL)}")
    if not chosen:
        a.error("no family")
    if o.self_test:
        return self_test([families.ALL[name] for name in chosen])
    for program in [REFERENCE] + ([] if o.reference_only else [o.wayinfer]):
        if not program.is_file():
            a.error(f"{program}: not built")
    results = [of_family(families.ALL[name], o) for name in chosen]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
