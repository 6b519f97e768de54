#!/usr/bin/env python3
"""Random models of a family, run by ggml and by wayinfer: every node and the logits must agree.

    scripts/differential.py qwen3 gemma3                     30 configurations of each
    scripts/differential.py --all --count 5                  of every family
    scripts/differential.py qwen3 --seed 17 --count 1        one again, by the seed that its line names
    scripts/differential.py gpt-oss --weights q8_0:mxfp4     quantised; experts in a format of their own
    scripts/differential.py qwen3 --break                    canary: one key changed must fail each
    scripts/differential.py qwen35moe --mtp                  blocks of multi-token prediction too
    scripts/differential.py qwen3 --reference-only           whether llama.cpp loads the models
    scripts/differential.py --self-test [FAMILY..]           without any program

A configuration is drawn (scripts/families), its model written, and run on random ids by the reference
(`wayinfer-ggml capture`: portable ggml, scripts/ggml/build.sh), with a prompt longer than windows and
original contexts and some decode steps. Then `wayinfer trace` compares twice: in a free run, where every
node must be within an NMSE of 1e-6 (1e-5 with a cache in F16), and isolated, where each node is computed
from ggml's values and must be within its stated bound. Where weights or cache are not F32, activations are
rounded, and one that lies at the boundary between two values goes either way: there the free run goes on
with ggml's row (`--same-roundings`) and the rows are counted. Prompts that come near a tie between experts
are drawn again. Prints a line a configuration, and ends with 1 where one failed; its model, ids and reference
are kept.
"""
import argparse, json, shutil, subprocess, sys, tempfile, zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

import families
from families import Draw
from families.core import MIXED, REFERENCE
from ties import NEAR, gap, is_of_positions, nearest_tie, tensors_of

ROOT = Path(__file__).resolve().parents[1]
# What a free run may come to, by the type of the cache. With F16 probabilities are rounded as well: a chunk
# at a time here, a whole row at a time in ggml. Measured: 1.1e-6 in a free run, 7e-8 in attention alone.
FREE, CACHE_F16 = {"f32": 1e-6, "f16": 1e-5}, 5e-7
# The factor of a norm is rounded once for a whole row, which nothing averages out where that is one head of 8
# values, shorter than any fixture's. Measured: 4.3e-14.
LAYER_NORM = 1e-13
# A GELU that ggml gives no name rounds the values in the midst of a product to F16 (Gemma 3n's): where few of
# them are not 0 and one lies at a boundary, a token's row goes as far as that. wayinfer's bound for such a
# product, which is of many rows, tells it from others. Measured: 2.1e-8.
UNNAMED_GELU, OF_ROWS = 1e-7, 7.6e-10
# Lightning attention token by token is further from ggml's, which takes the decays of a whole prompt at once,
# the longer the prompt. Measured: 7.0e-12, of 269 tokens.
LIGHTNING = 5e-11
# A recurrence whose queries, keys and values ggml gives no names (Ling 3's) is judged together with their
# products, convolutions and norms. Measured, of one token: 1.03e-12.
RECURRENCE = 2e-12
# ggml takes the logarithm of 1 + exp(x), which leaves nothing of x below -16; its root is far more than that of
# an error: the scores of experts by the root of softplus. Measured: 3.3e-11.
SQRT_SOFTPLUS = 3e-10
# A product of so few values (a router's or a gate's, of one token), or a softplus, may be small as its terms cancel,
# while the error goes with the terms: it is judged by the energy that the node's values have in all passes.
# In a free run so is every node, for some hand on what a product gave.
FEW = 16
# Nodes of a block of multi-token prediction that both name alike.
BLOCK_NODES = {"mtp_tok_embd", "mtp_enorm", "mtp_hnorm", "mtp_concat", "mtp_eh_proj", "h_nextn",
               "mtp_shared_head_norm", "result_output"}
KEPT = 3  # failed configurations of a family, at most


@dataclass
class Outcome:
    """What became of a configuration."""
    seed: int
    text: str
    problems: list[str] = field(default_factory=list)
    beyond: bool = False  # a comparison found nodes beyond tolerance
    worst: tuple[float, str] = (0.0, "")
    block: tuple[float, str] = (-1.0, "")  # the same of nodes of the block of multi-token prediction
    # By kind of node: the largest isolated error over its bound.
    strain: dict[str, float] = field(default_factory=dict)
    substituted: int = 0   # rows that were rounded otherwise
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


class Energies:
    """Energies of a reference's nodes: of a pass, and on average of all passes."""

    def __init__(self, nodes):
        self.own = {name: float(np.square(values, dtype=np.float64).sum()) for name, values in nodes.items()}
        self.all, self.count = Counter(), Counter()
        for name, energy in self.own.items():
            node = name.split("/", 1)[-1]
            self.all[node] += energy
            self.count[node] += nodes[name].size

    def share(self, node):
        """The energy of the pass over what is usual for as many values, where it is less."""
        layer = "" if node["layer"] is None else f"-{node['layer']}"
        bare = f"{node['name']}{layer}#{node['occurrence']}"
        usual = self.all[bare] / max(self.count[bare], 1) * node["values"]
        return min(1.0, self.own.get(f"{node['pass']}/{bare}", 0.0) / usual) if usual else 1.0


def error_of(node, energies, kinds):
    """The NMSE of a node; of a few values of these kinds by their usual energy."""
    error = float(node["nmse"])  # infinities and NaN are strings
    few = node["kind"] in kinds and node["values"] <= FEW
    return error * energies.share(node) if few and np.isfinite(error) else error


def isolated_bound(node, kv):
    """How far it may go."""
    bound = float(node["tolerance"])
    if node["kind"] in ("attention", "sink_attention"):
        return CACHE_F16 if kv == "f16" else bound
    if node["kind"] in ("product", "product_gelu") and bound == OF_ROWS:
        return UNNAMED_GELU
    if node["kind"] == "linear_attention":
        return LIGHTNING
    if node["kind"] == "recurrence":
        return max(bound, RECURRENCE)
    if node["kind"] == "softplus" and node["name"] == "ffn_moe_probs":
        return SQRT_SOFTPLUS
    return max(bound, LAYER_NORM) if node["kind"] == "layer_norm" else bound


def judge_isolated(outcome, report, energies, kv):
    """Takes over what the comparison on equal inputs says."""
    beyond = []
    for node in report["nodes"]:
        if "nmse" not in node:
            beyond += [node] if node["beyond"] else []
            continue
        error, bound = error_of(node, energies, ["product", "softplus"]), isolated_bound(node, kv)
        if bound:
            kind = node["kind"]
            outcome.strain[kind] = max(outcome.strain.get(kind, 0.0), error / bound)
        if not error <= bound or not bound and node["differing"]:
            beyond.append({**node, "nmse": error, "tolerance": bound})
    say_beyond(outcome, "isolated", report, beyond)


def judge_free(outcome, report, energies):
    """Takes over what the comparison of a free run says."""
    beyond = []
    for node in report["nodes"]:
        outcome.substituted += node.get("substituted", 0)
        if "nmse" not in node:
            beyond += [node] if node["beyond"] else []
            continue
        error = error_of(node, energies, [node["kind"]])
        if not error <= float(node["tolerance"]):
            beyond.append({**node, "nmse": error})
        if not error <= outcome.worst[0]:
            outcome.worst = (error, place(node))
    say_beyond(outcome, "free", report, beyond)


def say_beyond(outcome, what, report, beyond):
    """Nodes beyond tolerance, and those that one side alone has; `what` is how it ran."""
    if beyond:
        first, said = beyond[0], report.get("first") or {}
        error = first.get("nmse", "other experts")
        outcome.beyond = True
        suspect = f"; suspect: {said['suspect']}" if said.get("suspect") else ""
        outcome.problems.append(f"{what}: {len(beyond)} of {report['compared']} nodes beyond; "
                                f"first {place(first)}: {error}, allowed {first['tolerance']}{suspect}")
    outcome.missing.update(bare(name) for name in report["only_reference"])
    outcome.extra.update(bare(name) for name in report["only_subject"])


def has_block(family, config):
    """Whether a model of it has a block of multi-token prediction that llama.cpp runs."""
    latent = config.get("absorbed", True) and config.get("q_rank", 1) and not config.get("temp_scale")
    whole = family.name not in ("hy_v3", "cohere2moe") or config.rot == config.head
    fused = family.name != "mimo2" or config.fused
    return config.get("nextn") == 1 and config.get("next_token", True) and latent and whole and fused


def own_tensors(seed):
    """What such a block has of its own instead of the model's."""
    rng = np.random.default_rng([seed, zlib.crc32(b"nextn")])
    return [name for name in ("shared_head_norm", "shared_head_head", "embed_tokens") if rng.random() < 0.5]


def judge_block(outcome, ours, folder, options):
    """Compares the nodes of the block, in a free run, as far as both sides have them."""
    ids = folder / "ids"
    np.array(json.loads((folder / "prompts.json").read_text())["p"], "<u4").tofile(ids)
    kept = folder / "block.safetensors"
    done = run([options.wayinfer, "trace", "-m", ours, "--mtp", "--ids-file", ids, "--kv", options.kv,
                "--save", kept])
    if done.returncode:
        outcome.problems.append(f"block: {last_line(done.stderr)}")
        return
    reference, subject = tensors_of(folder / "p.mtp.safetensors"), tensors_of(kept)
    names = [name for name in reference if name in subject and name.startswith("prefill/")
             and bare(name) in BLOCK_NODES]
    if "prefill/result_output#0" not in names or not any("mtp_eh_proj" in name for name in names):
        outcome.problems.append(f"block: only {names} are there on both sides")
        return
    for name in names:
        a, b = reference[name].astype(np.float64), subject[name].astype(np.float64)
        b = b.reshape(a.shape)
        error = float(np.square(a - b).sum() / max(np.square(a).sum(), 1e-30))
        if not error <= outcome.block[0]:
            outcome.block = (error, bare(name))
        if not error <= FREE[options.kv]:
            outcome.beyond = True
            outcome.problems.append(f"block: {name}: {error}, allowed {FREE[options.kv]}")


def run(command):
    return subprocess.run([str(part) for part in command], capture_output=True, text=True)


def capture(family, config, d, options, folder):
    """Writes the model and runs the reference; returns the reference's file and the number of tokens, or
    what is wrong."""
    model = families.build(family, config, options.weights)
    families.write(model, folder / "model.gguf")
    prompts, golden = folder / "prompts.json", folder / "p.safetensors"
    for _ in range(20):
        ids = prompt(d, config)
        prompts.write_text(json.dumps({"p": ids}))
        steps = d.between(1, 4)
        done = run([REFERENCE, "capture", "-m", folder / "model.gguf", "--prompts", prompts, "--out", folder,
                    "--kv", options.kv, "--steps", steps, "--greedy", steps + 1,
                    *["--flash"] * config.get("flash", False), *["--mtp"] * options.mtp])
        if done.returncode:
            return None, f"the reference: {last_line(done.stderr)}"
        nodes = tensors_of(golden)
        for name, values in nodes.items():
            # Scores of positions that are masked are minus infinity.
            masked = is_of_positions(name)
            if values.dtype == np.float32 and not masked and not np.isfinite(values).all():
                return None, f"the reference: {name} is not finite"
        block = tensors_of(folder / "p.mtp.safetensors") if options.mtp else {}
        if min(nearest_tie(nodes, config), nearest_tie(block, config)) >= NEAR:
            return golden, len(ids)
    return None, "twenty prompts came near a tie"


def last_line(text):
    lines = [line for line in text.strip().splitlines() if line.strip()]
    return lines[-1] if lines else "no message"


def differ(family, seed, options, folder):
    """One configuration."""
    d = Draw(seed, block_of(options.weights))
    config = family.draw(d)
    if options.mtp:
        config = config.but(nextn_own=own_tensors(seed))
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
    energies = Energies(tensors_of(golden))
    if options.mtp:
        judge_block(outcome, ours, folder, options)
    ways = {"free": ["--tolerance", str(FREE[options.kv]), *([] if exact else ["--same-roundings"])],
            "isolated": ["--isolate"]}
    for what, more in ways.items():
        done = run([options.wayinfer, "trace", "-m", ours, "--golden", golden, "--json", *more])
        try:
            report = json.loads(done.stdout)
        except ValueError:
            outcome.problems.append(f"{what}: {last_line(done.stderr)}")
            continue
        if what == "free":
            judge_free(outcome, report, energies)
        else:
            judge_isolated(outcome, report, energies, options.kv)
    return outcome


def broken(model, key):
    """The model with a key 1 % larger; RoPE's bases are there even where the file left them out. `all`: those
    bases that the model has, for layers may all be of one kind, and where they turn one pair alone, whose
    frequency is 1 with any base, the epsilon of norms, by 0.01."""
    c = model.config
    if key == "all" and c.rot > 2:
        keys = ["rope.freq_base"] + (["rope.freq_base_swa"] if "base_swa" in c and c.window else [])
    else:
        keys = [name.removeprefix(model.arch + ".") for name in model.keys if name.endswith("epsilon")]
    for key in keys if key == "all" else [key]:
        name = f"{model.arch}.{key}"
        unless = c.rope_base if key.startswith("rope.freq_base") and c.rot else None
        value = model.keys.get(name, unless)
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            sys.exit(f"{name}: no number to change in this configuration")
        by = 0.01 if key.endswith("epsilon") else value * 0.01
        model.keys[name] = value + by if isinstance(value, float) else value + 1
    return model


def of_family(family, options):
    """All configurations of a family; returns whether they are as they should be."""
    kept, good, seeds = 0, 0, range(options.seed, options.seed + options.count)
    if options.mtp:
        drawn = (seed for seed in count(options.seed)
                 if has_block(family, family.draw(Draw(seed, block_of(options.weights)))))
        seeds = list(islice(drawn, options.count))

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
            worst += f", block {outcome.block[0]:.1e} {outcome.block[1]}" if outcome.block[1] else ""
            if outcome.substituted:
                worst += f", {outcome.substituted} rows rounded otherwise"
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
    block = max(outcome.block for outcome in outcomes)
    if block[1]:
        lines[0] += f"; of a block {block[0]:.1e} at {block[1]}"
    strain = {}
    for outcome in outcomes:
        for kind, error in outcome.strain.items():
            strain[kind] = max(strain.get(kind, 0.0), error)
    if strain:
        errors = ", ".join(f"{kind} {error:.2g}" for kind, error in sorted(strain.items()) if error)
        lines.append(f"    the largest isolated errors over their bounds: {errors}")
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
                model = families.build(family, config, "F16")
                for name, (values, kind) in model.tensors.items():
                    assert np.isfinite(values).all(), name
                    # What stays a float may be of any size; the rest can be cut into blocks.
                    whole = kind == "F32" or values.shape[-1] % block == 0
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
    assert broken(second, "all").keys["qwen3.rope.freq_base"] == base * 1.01
    step = families.ALL["step35"]
    model = families.build(step, step.draw(Draw(2)))
    before = dict(model.keys)
    assert {name for name, value in broken(model, "all").keys.items() if value != before.get(name)} == \
        {"step35.rope.freq_base", "step35.rope.freq_base_swa"}
    model = families.build(family, family.draw(Draw(5)).but(rot=2))
    assert broken(model, "all").keys["qwen3.attention.layer_norm_rms_epsilon"] > 0.01
    blocks = {"f32": 1, "q8_0:mxfp4": 32, "Q8_0:q4_k": 256, "mixed": 32}
    assert blocks == {types: block_of(types) for types in blocks}
    assert bare("prefill/ffn_moe_topk-3#0") == "ffn_moe_topk" and bare("decode.1/embd#0") == "embd"
    assert abs(gap(np.array([[0.5, 0.3, 0.3000003, 0.1]]), 2) - 1e-6) < 1e-9
    assert gap(np.array([[1.0], [2.0]]), 1) == np.inf
    nodes = {"prefill/ffn_moe_topk-0#0": np.zeros((1, 1), np.int32),
             "prefill/ffn_moe_probs-0#0": np.array([[0.4, 0.1, 0.4, 0.1]])}
    assert nearest_tie(nodes, families.shape()) == 0.0
    assert nearest_tie({"prefill/embd#0": np.zeros((1, 4))}, families.shape()) == np.inf
    test_judges()
    print(f"{len(chosen)} families: drawn configurations are sound")


def test_judges():
    """What is beyond, on made-up reports."""
    node = {"name": "l_out", "layer": 1, "occurrence": 0, "pass": "prefill", "kind": "product", "values": 2,
            "differing": 2, "nmse": "NaN", "beyond": True, "tolerance": 1e-6}

    def report(**changes):
        return {"nodes": [{**node, **changes}], "compared": 1, "only_reference": ["prefill/kqv_out-0#0"],
                "only_subject": []}

    def isolated(nodes=None, kv="f32", **changes):
        outcome = Outcome(1, "")
        judge_isolated(outcome, report(**changes), Energies(nodes or {}), kv)
        return bool(outcome.problems)

    outcome = Outcome(1, "")
    judge_free(outcome, report(), Energies({}))
    assert outcome.problems and outcome.worst[1] == "l_out-1 (prefill)" and outcome.missing == {"kqv_out": 1}
    assert isolated() and isolated(nmse=2e-6) and not isolated(nmse=1e-6)
    assert isolated(nmse=1e-9, tolerance=0.0) and not isolated(nmse=0.0, tolerance=0.0, differing=0)
    assert not isolated(kv="f16", nmse=4e-7, tolerance=1e-14, kind="attention")
    assert isolated(kv="f16", nmse=4e-7, tolerance=1e-14) and isolated(nmse=4e-7, tolerance=1e-14)
    assert not isolated(nmse=5e-14, tolerance=4e-14, kind="layer_norm")
    assert isolated(nmse=2e-13, tolerance=4e-14, kind="layer_norm") and isolated(nmse=5e-14, tolerance=4e-14)
    assert not isolated(nmse=9e-8, tolerance=OF_ROWS) and isolated(nmse=2e-7, tolerance=OF_ROWS)
    # Terms of a product of few values that cancel: its energy is a hundredth of what is usual.
    small, large = np.array([[0.1, 0.1]], np.float32), np.array([[1.0, 1.0]] * 99, np.float32)
    nodes = {"prefill/l_out-1#0": small, "decode.0/l_out-1#0": large}
    assert not isolated(nodes, nmse=9e-5) and isolated(nodes, nmse=2e-4)
    assert isolated(nodes, nmse=9e-5, values=17) and isolated(nodes, nmse=9e-5, kind="rope")
    for nmse, problems in ((9e-5, 0), (2e-4, 1)):
        outcome = Outcome(1, "")
        judge_free(outcome, report(nmse=nmse, kind="rope"), Energies(nodes))
        assert len(outcome.problems) == problems and 9e-7 < outcome.worst[0] < 3e-6


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(families.ALL))
    a.add_argument("--all", action="store_true", help="every family")
    a.add_argument("--count", type=int, default=30, help="configurations of a family")
    a.add_argument("--seed", type=int, default=1, help="of the first; the others follow")
    a.add_argument("--weights", default="f32", help="type of matrices, or of matrices:experts; or `mixed`")
    a.add_argument("--kv", default="f32", help="type of the cache: f32, f16, q8_0, q4_0, or that of keys and of values, as in q8_0/q4_0")
    a.add_argument("--wayinfer", type=Path, default=ROOT / "target/release/wayinfer")
    a.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()) / "wayinfer-differential",
                   help="where failures are kept")
    a.add_argument("--jobs", type=int, default=1)
    a.add_argument("--break", dest="breaks", nargs="?", const="all", metavar="KEY",
                   help="change a key (RoPE's bases) by 1 %% in the model that wayinfer reads")
    a.add_argument("--mtp", action="store_true",
                   help="of configurations that have a block of multi-token prediction, its nodes too")
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
