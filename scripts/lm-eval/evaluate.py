#!/usr/bin/env python3
"""Runs lm-eval's tasks against a server of the demo and holds the figures to logits that `trace` has saved:
evaluate.py BINARY URL FOLDER

Three tasks, of each kind that asks a server for texts: the answer among several (log-probabilities), the
answer as it is made, and the probability of whole texts.
"""
from __future__ import annotations

import json, math, struct, subprocess, sys, tempfile, urllib.request
from pathlib import Path

import numpy as np

# A log-probability is a float of 32 bits to the server's clients; sums over some ten of them are compared.
# Measured: 4.3e-8 of 1.
TOLERANCE = 4e-7

QUESTIONS = [(a, b) for a in (2, 3, 5, 8) for b in (1, 2, 4, 7)]
TEXTS = [
    "The sum of 2 and 2 is 4.",
    "The sum of 12 and 7 is 19. The sum of 1 and 1 is 2.",
    "Tuesday comes after Monday.",
]


class Server:
    def __init__(self, url: str):
        self.url = url

    def post(self, path: str, body: dict) -> dict:
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=60) as reply:
            return json.load(reply)

    def prompt(self, question: str) -> str:
        messages = [{"role": "user", "content": question}]
        return self.post("/apply-template", {"messages": messages})["prompt"]

    def encode(self, text: str) -> list[int]:
        return self.post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"]


def write_tasks(server: Server, folder: Path):
    """The data and what lm-eval is to know of it."""
    folder.mkdir(parents=True, exist_ok=True)
    sums = []
    for a, b in QUESTIONS:
        answers = [f"The sum of {a} and {b} is {a + b + d}." for d in (-1, 0, 2, 10)]
        prompt = server.prompt(f"What is {a}+{b}?")
        sums.append({"prompt": prompt, "choices": answers, "answer": 1, "text": answers[1]})
    texts = [{"text": text} for text in TEXTS]
    for name, rows in [("sums", sums), ("texts", texts)]:
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def task(name: str, data: str, **more):
        config = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{data}.jsonl")}},
            "test_split": "test",
            "target_delimiter": "",
            "metadata": {"version": 1.0},
            **more,
        }
        (folder / f"{name}.yaml").write_text(json.dumps(config))  # JSON is YAML

    task("sums_choice", "sums", output_type="multiple_choice", doc_to_text="{{prompt}}",
         doc_to_choice="{{choices}}", doc_to_target="answer",
         metric_list=[{"metric": "acc", "aggregation": "mean", "higher_is_better": True}])
    task("sums_made", "sums", output_type="generate_until", doc_to_text="{{prompt}}",
         doc_to_target="{{text}}",
         generation_kwargs={"until": ["\n"], "max_gen_toks": 32, "temperature": 0},
         metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}])
    task("texts_whole", "texts", output_type="loglikelihood_rolling", doc_to_text="",
         doc_to_target="{{text}}", metric_list=[{"metric": "byte_perplexity"}])


def evaluate(url: str, folder: Path, batch: int) -> dict:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    arguments = {
        "base_url": f"{url}/v1/completions", "model": "demo", "tokenizer_backend": "auto",
        "num_concurrent": 2, "max_length": 512,
    }
    return simple_evaluate(
        model="local-completions", model_args=arguments, batch_size=batch, log_samples=True,
        bootstrap_iters=0, tasks=["sums_choice", "sums_made", "texts_whole"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
    )


class Logits:
    """The program's own, from `trace`, without a server."""

    def __init__(self, binary: str):
        self.binary = binary

    def of(self, ids: list[int]) -> np.ndarray:
        """The logarithms of all probabilities behind each token, [tokens][vocabulary]."""
        with tempfile.TemporaryDirectory() as folder:
            prompt, out = Path(folder, "ids"), Path(folder, "nodes.safetensors")
            prompt.write_bytes(struct.pack(f"<{len(ids)}I", *ids))
            subprocess.run(
                [self.binary, "trace", "-m", "demo", "--ids-file", prompt, "--nodes", "result_output",
                 "--batch", "512", "--save", out], check=True, capture_output=True)
            raw = out.read_bytes()
        size = struct.unpack("<Q", raw[:8])[0]
        header = json.loads(raw[8 : 8 + size])
        (node,) = [value for name, value in header.items() if "result_output" in name]
        start, end = (8 + size + offset for offset in node["data_offsets"])
        rows = np.frombuffer(raw[start:end], "<f4").astype(np.float64).reshape(len(ids), -1)
        rows = rows - rows.max(axis=1, keepdims=True)
        return rows - np.log(np.exp(rows).sum(axis=1, keepdims=True))

    def likelihood(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """The logarithm of a continuation's probability, and whether each token is the most probable one."""
        rows = self.of(context + continuation)[len(context) - 1 : -1]
        picked = [row[id] for row, id in zip(rows, continuation)]
        return sum(picked), all(row.max() == p for row, p in zip(rows, picked))


def split(server: Server, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """As lm-eval parts the tokens of both: white space at the end of a context is the continuation's."""
    bare = context.rstrip()
    whole = server.encode(context + continuation)
    before = server.encode(bare)
    return whole[: len(before)], whole[len(before) :]


def near(what: str, told: float, own: float, worst: list[float]):
    error = abs(told - own) / max(1.0, abs(own))
    worst.append(error)
    assert error <= TOLERANCE, f"{what}: lm-eval has {told}, the logits say {own}"


def check(server: Server, logits: Logits, results: dict) -> list[str]:
    worst: list[float] = []
    samples = results["samples"]
    right = 0
    for sample in samples["sums_choice"]:
        own = []
        for (context, continuation), told in zip(sample["arguments"], sample["filtered_resps"]):
            likelihood, greedy = logits.likelihood(*split(server, context, continuation))
            near(continuation, float(told[0]), likelihood, worst)
            assert str(told[1]) == str(greedy), f"{continuation}: greedy is {told[1]}, not {greedy}"
            own.append(likelihood)
        right += int(np.argmax(own)) == sample["doc"]["answer"]
    accuracy = results["results"]["sums_choice"]["acc,none"]
    assert accuracy == right / len(QUESTIONS), f"acc is {accuracy}, not {right}/{len(QUESTIONS)}"
    assert accuracy > 0.5, f"acc is {accuracy}: the demo knows better"

    made = results["results"]["sums_made"]["exact_match,none"]
    ask = {"max_tokens": 32, "temperature": 0}
    asked = [server.post("/v1/completions", {"prompt": sample["doc"]["prompt"], **ask})
             for sample in samples["sums_made"]]
    same = sum(answer["choices"][0]["text"] == sample["doc"]["text"]
               for answer, sample in zip(asked, samples["sums_made"]))
    assert made == same / len(QUESTIONS), f"exact_match is {made}, not {same}/{len(QUESTIONS)}"

    total = size = 0
    with urllib.request.urlopen(server.url + "/tokenizer_info") as reply:
        info = json.load(reply)
    prefix = server.encode(info["bos_token"] or info["eos_token"])
    for text in TEXTS:
        likelihood, _ = logits.likelihood(prefix[:1], server.encode(text))
        total, size = total + likelihood, size + len(text.encode())
    perplexity = results["results"]["texts_whole"]["byte_perplexity,none"]
    near("byte_perplexity", perplexity, math.exp(-total / size), worst)
    return [f"acc {accuracy}, exact_match {made}, byte_perplexity {perplexity:.6f}",
            f"{len(worst)} figures within {max(worst):.1e} of the logits' (allowed: {TOLERANCE:.0e})"]


def main():
    binary, url, folder = sys.argv[1:]
    server, logits, folder = Server(url), Logits(binary), Path(folder)
    write_tasks(server, folder)
    for batch in (1, 8):
        results = evaluate(url, folder, batch)
        for line in check(server, logits, results):
            print(f"batches of {batch}: {line}", flush=True)
    # The canary: a figure that is another is seen.
    answers = results["samples"]["sums_choice"][0]["filtered_resps"]
    answers[0] = (float(answers[0][0]) + 1e-4, answers[0][1])
    try:
        check(server, logits, results)
    except AssertionError as error:
        print(f"canary: {error}")
    else:
        sys.exit("the canary was not seen")


if __name__ == "__main__":
    main()
