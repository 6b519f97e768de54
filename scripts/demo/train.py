"""Trains the demo model, with checkpoints; run again, it goes on where it stopped."""

import argparse
import json
import os
import time
from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np

import data
import model
import vocabulary

ROWS, LENGTH = 32, 128
PEAK, WARMUP, DECAY, WEIGHT_DECAY, BALANCE = 2e-3, 40, 0.3, 0.1, 0.01
LATE_FROM = 900  # the step from which examples come in their later shares
BETA1, BETA2, MOMENTUM, MUON_GAIN = 0.9, 0.98, 0.95, 1.5
NEWTON_SCHULZ = [(4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
                 (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012)]


def conversations(seed, kinds):
    """Endless (ids, is_answer) of dialogues, most of one question, some of two or three."""
    rng = np.random.default_rng(seed)
    stream = data.examples(seed, kinds=kinds)
    while True:
        turns = list(islice(stream, int(rng.choice([1, 2, 3], p=[0.88, 0.09, 0.03]))))
        yield encode([(question, answer) for _, question, answer in turns])


def encode(turns):
    encoder = vocabulary.tokenizer()
    ids, is_answer = [vocabulary.BOS], [False]
    for question, answer in turns:
        asked = [vocabulary.USER, *encoder.encode(question).ids, vocabulary.END,
                 vocabulary.ASSISTANT]
        said = [*encoder.encode(answer).ids, vocabulary.END]
        ids += asked + said
        is_answer += [False] * len(asked) + [True] * len(said)
    return ids, is_answer


def pack(items, rows, length):
    """Fills rows with dialogues: arrays of tokens, segments (0: nothing) and answer marks."""
    tokens, segments, marks = (np.zeros((rows, length), np.int32) for _ in range(3))
    waiting = []
    for row in range(rows):
        at, segment = 0, 1
        while True:
            waiting += islice(items, 64 - len(waiting))
            fitting = [i for i, (ids, _) in enumerate(waiting) if len(ids) <= length - at]
            if not fitting:
                break
            # The oldest that fits; towards the end of a row the one that fills it best.
            best = fitting[0] if length - at > 60 else max(
                fitting, key=lambda i: len(waiting[i][0]))
            ids, is_answer = waiting.pop(best)
            end = at + len(ids)
            tokens[row, at:end], segments[row, at:end] = ids, segment
            marks[row, at:end] = is_answer
            at, segment = end, segment + 1
    return tokens, segments, marks


def loss_of(params, tokens, segments, marks):
    logits, balance = model.forward(params, tokens, segments)
    log_probs = jax.nn.log_softmax(logits[:, :-1])
    picked = jnp.take_along_axis(log_probs, tokens[:, 1:, None], -1)[..., 0]
    weight = marks[:, 1:].astype(jnp.float32)
    loss = -jnp.sum(picked * weight) / jnp.sum(weight)
    return loss + BALANCE * balance, loss


def orthogonal(batch):
    """Each matrix of [n, a, b] with its singular values brought to about one (Newton-Schulz)."""
    x = batch / (jnp.linalg.norm(batch, axis=(1, 2), keepdims=True) + 1e-7)
    for a, b, c in NEWTON_SCHULZ:
        square = jnp.einsum("nij,nkj->nik", x, x)
        x = a * x + jnp.einsum("nij,njk->nik", b * square + c * square @ square, x)
    return x


def muon_names(params):
    """The matrices that Muon trains, grouped by shape; AdamW trains the rest."""
    groups = {}
    for name, weight in params.items():
        if name.startswith("blk.") and weight.ndim > 1 and "gate_inp" not in name:
            groups.setdefault(weight.shape[-2:], []).append(name)
    return groups


def muon_updates(params, blended):
    """Updates of root mean square 0.2 (times the rate), as AdamW's are, for all Muon matrices."""
    updates = {}
    for shape, names in muon_names(params).items():
        parts = [blended[name].reshape(-1, *shape) for name in names]
        done = orthogonal(jnp.concatenate(parts)) * (0.2 * max(shape) ** 0.5)
        at = 0
        for name, part in zip(names, parts):
            updates[name] = done[at:at + len(part)].reshape(params[name].shape)
            at += len(part)
    return updates


@jax.jit
def train_step(params, moments, batch, step, rate):
    (_, loss), grads = jax.value_and_grad(loss_of, has_aux=True)(params, *batch)
    norm = jnp.sqrt(sum(jnp.sum(g * g) for g in grads.values()))
    clip = jnp.minimum(1.0, 1.0 / norm)
    by_muon = {name for names in muon_names(params).values() for name in names}
    new_params, new_moments, blended = {}, {}, {}
    for name in params:
        grad = grads[name] * clip
        first, second = moments[name]
        beta = MOMENTUM if name in by_muon else BETA1
        first = beta * first + (1 - beta) * grad
        second = BETA2 * second + (1 - BETA2) * grad * grad
        new_moments[name] = (first, second)
        blended[name] = beta * first + (1 - beta) * grad
    muon = muon_updates(params, blended)
    for name, weight in params.items():
        first, second = new_moments[name]
        if name in by_muon:
            update = MUON_GAIN * muon[name]
        else:
            update = (first / (1 - BETA1 ** step)) / (
                jnp.sqrt(second / (1 - BETA2 ** step)) + 1e-8)
        shrink = WEIGHT_DECAY if weight.ndim > 1 else 0.0
        new_params[name] = weight - rate * (update + shrink * weight)
    return new_params, new_moments, loss


def rate_at(step, steps):
    """Warm-up, a constant rate, then a fall to a hundredth over the last part (a cosine)."""
    left = (steps - step) / (DECAY * steps)
    fall = 0.5 - 0.5 * np.cos(np.pi * min(1.0, left))
    return PEAK * min(1.0, step / WARMUP) * max(fall, 0.01)


@jax.jit
def guesses(params, tokens, segments):
    return jnp.argmax(model.forward(params, tokens, segments)[0], -1)


def evaluate(params, questions):
    """Right answers by kind. All of an answer's tokens are the likeliest ones after the right ones
    before them exactly where greedy decoding gives that answer."""
    right, total = {}, {}
    rows, length = 64, 64
    for at in range(0, len(questions), rows):
        part = questions[at:at + rows]
        tokens, segments, marks = (np.zeros((rows, length), np.int32) for _ in range(3))
        for row, (_, question, answer) in enumerate(part):
            ids, is_answer = encode([(question, answer)])
            tokens[row, :len(ids)], segments[row, :len(ids)] = ids, 1
            marks[row, :len(ids)] = is_answer
        said = np.asarray(guesses(params, tokens, segments))
        same = ((said[:, :-1] == tokens[:, 1:]) | (marks[:, 1:] == 0)).all(1)
        for (kind, _, _), good in zip(part, same):
            right[kind] = right.get(kind, 0) + int(good)
            total[kind] = total.get(kind, 0) + 1
    return right, total


def report(params, questions):
    right, total = evaluate(params, questions)
    share = sum(right.values()) / sum(total.values())
    return f"{share:.1%} " + " ".join(f"{kind} {right[kind]}/{total[kind]}" for kind in total)


def save(path, step, params, moments):
    arrays = {f"w.{name}": value for name, value in params.items()}
    arrays |= {f"m.{name}": value for name, (value, _) in moments.items()}
    arrays |= {f"v.{name}": value for name, (_, value) in moments.items()}
    np.savez(path + ".new.npz", step=step, **arrays)
    os.replace(path + ".new.npz", path)


def load(path):
    with np.load(path) as file:
        names = [name[2:] for name in file if name.startswith("w.")]
        params = {name: jnp.asarray(file["w." + name]) for name in names}
        moments = {name: (jnp.asarray(file["m." + name]), jnp.asarray(file["v." + name]))
                   for name in names}
        return int(file["step"]), params, moments


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--out", default="out", help="folder for the checkpoint")
    options.add_argument("--steps", type=int, default=1700)
    options.add_argument("--seed", type=int, default=1)
    args = options.parse_args()
    os.makedirs(args.out, exist_ok=True)
    path = os.path.join(args.out, "checkpoint.npz")
    if os.path.exists(path):
        step, params, moments = load(path)
    else:
        step, params = 0, model.init(args.seed)
        moments = {name: (jnp.zeros_like(w), jnp.zeros_like(w)) for name, w in params.items()}
    questions = data.held_out_questions()
    started, seen, losses = time.time(), 0, []
    while step < args.steps:
        if step % 100 == 0 or not seen:  # so that a run resumed shows the same examples
            items = conversations(args.seed * 100000 + step // 100,
                                  data.KINDS if step < LATE_FROM else data.LATE_KINDS)
        batch = pack(items, ROWS, LENGTH)
        step += 1
        params, moments, loss = train_step(params, moments, batch, step,
                                           rate_at(step, args.steps))
        losses.append(float(loss))
        seen += int((batch[1] > 0).sum())
        if step % 20 == 0:
            speed = seen / (time.time() - started)
            print(f"step {step} loss {np.mean(losses):.4f} {speed:.0f} tokens/s "
                  f"{time.time() - started:.0f} s", flush=True)
            losses = []
        if step % 100 == 0:
            save(path, step, params, moments)
        if step % 200 == 0 or step == args.steps:
            print("held out:", report(params, questions), flush=True)
    save(path, step, params, moments)


if __name__ == "__main__":
    main()
