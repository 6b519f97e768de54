"""How near a captured run comes to a tie between experts, or between the positions that an indexer chooses,
which two programs would resolve differently."""
import json

import numpy as np

# What is too near, relative to the probability: errors of F32 are far smaller.
NEAR = 2e-5
# The same between scores of positions, relative to a row's greatest: there are many of them.
NEAR_POSITIONS = 3e-6


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
    groups, and of scores that decide about positions, in terms of the former."""
    least = np.inf
    for name, chosen in nodes.items():
        if "/indexer_score-" in name:
            least = min(least, position_gap(chosen, config.top_k) * NEAR / NEAR_POSITIONS)
        if "/msa_bs-" in name:
            step = name.partition("/")[0].partition(".")[2]
            rows = [len(nodes["prompt"]) + int(step)] if step else nodes["rows"]
            least = min(least, block_gap(chosen, rows, config) * NEAR / NEAR_POSITIONS)
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


def is_of_positions(node):
    """Whether a node has scores or masks of positions, which are minus infinity where these are masked."""
    masks = ("/indexer_score-", "/indexer_sel-", "/kq_mask_dsa-", "/kq_mask_qsa-", "/msa_")
    return any(mask in node for mask in masks)


def position_gap(scores, count):
    """The least distance of the last chosen and the next score, relative to the row's greatest; what is
    masked is minus infinity."""
    least = np.inf
    for row in scores.astype(np.float64):
        row = -np.sort(-row[np.isfinite(row)])
        if len(row) > count:
            least = min(least, (row[count - 1] - row[count]) / max(np.abs(row).max(), 1e-30))
    return float(least)


def block_gap(scores, positions, config):
    """The same of blocks that each head chooses, of which the last are chosen without a score."""
    rows = scores.reshape(len(scores), config.kv, -1).astype(np.float64)
    assert len(rows) == len(positions)
    for position, row in zip(positions, rows):
        own = position // config.block
        row[:, own + 1:] = -np.inf
        row[:, max(own + 1 - config.local, 0):own + 1] = np.inf
    forced = np.isposinf(rows).sum(axis=2)
    kept = np.where(np.isposinf(rows), -np.inf, rows)
    left = config.top_k - forced
    return min((position_gap(kept[i, h:h + 1], left[i, h]) for i, h in np.ndindex(left.shape) if left[i, h] > 0),
               default=np.inf)


def leave_out(path, wanted):
    """Rewrites a safetensors file without the tensors whose names are not wanted."""
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header, kept, at = json.loads(data[8:end]), [], 0
    for name in list(header):
        if name == "__metadata__":
            continue
        if not wanted(name):
            del header[name]
            continue
        first, last = header[name]["data_offsets"]
        kept.append(data[end + first:end + last])
        header[name]["data_offsets"] = [at, at + last - first]
        at += last - first
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(kept))


def gap(scores, used):
    """The least relative distance of neighbours among the `used` largest of a row and the next."""
    rows = -np.sort(-scores.astype(np.float64), axis=1)[:, :used + 1]
    if rows.shape[1] < 2:
        return np.inf
    scale = np.maximum(np.abs(rows[:, 1:]), np.abs(rows[:, :-1]))
    return float(((rows[:, :-1] - rows[:, 1:]) / np.maximum(scale, 1e-30)).min())
