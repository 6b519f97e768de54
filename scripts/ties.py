"""How near a captured run comes to a tie between experts, which two programs would resolve differently."""
import json

import numpy as np

# What is too near, relative to the probability: errors of F32 are far smaller.
NEAR = 2e-5


def tensors_of(path):
    """Every tensor of a safetensors file, as arrays."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        kind = {"F32": np.float32, "I32": np.int32}[entry["dtype"]]
        values = np.frombuffer(data[end + first:end + last], kind)
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def nearest_tie(nodes, config):
    """The least relative distance of two probabilities among those that decide about a token's experts or
    groups."""
    least = np.inf
    for name, chosen in nodes.items():
        where, _, layer = name.partition("/ffn_moe_topk")
        if not layer:
            continue
        kinds = ("probs_biased", "probs", "logits_biased", "logits")
        found = (nodes.get(f"{where}/ffn_moe_{kind}{layer}") for kind in kinds)
        scores = next((values for values in found if values is not None), None)
        if scores is None:
            continue
        least = min(least, gap(scores, chosen.shape[1]))
        if config.get("groups", 0) > 1:
            best = np.sort(scores.reshape(len(scores), config.groups, -1), axis=2)[:, :, -2:].sum(axis=2)
            least = min(least, gap(best, config.groups_used))
    return least


def gap(scores, used):
    """The least relative distance of neighbours among the `used` largest of a row and the next."""
    rows = -np.sort(-scores.astype(np.float64), axis=1)[:, :used + 1]
    if rows.shape[1] < 2:
        return np.inf
    scale = np.maximum(np.abs(rows[:, 1:]), np.abs(rows[:, :-1]))
    return float(((rows[:, :-1] - rows[:, 1:]) / np.maximum(scale, 1e-30)).min())
