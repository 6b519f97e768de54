#!/usr/bin/env python3
"""A Ray cluster of four nodes within this machine, each with a raylet and an address of its own, and what WayInfer does
on it: a batch of questions with an actor that is killed in its midst, one that is cut off and run again, and a model in
stages with a node that is killed. Prints what was compared and measured; ends with 1 where anything differs.

    pip install 'wayinfer[ray]'
    scripts/synth_gguf.py mixtral-8x7b --layers 4 --vocab VOCAB.gguf --out mixtral-4.gguf
    scripts/cluster/shown.py --questions 2000 --resumed 400 --pipeline mixtral-4.gguf hybrid.gguf --speed model.gguf
"""

import argparse
import json
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

import ray
import ray.data
from ray.cluster_utils import Cluster

import wayinfer
from wayinfer.ray import Pipeline, Predictor, predict

NODES = 4
# What was sent to an actor that is killed is looked at by nobody.
os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")


def say(line: str) -> None:
    print(line, flush=True)


def connect(address: str) -> None:
    """To a cluster, whose own lines are left out: nodes and actors that are killed make many."""
    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False


def cluster(nodes: int) -> Cluster:
    """Nodes of one CPU each beside the head, which has none: actors are spread over them."""
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for number in range(nodes):
        # What the node that is killed had, the last one has too.
        names = {f"node{number}": 1, **({"node1": 1} if number == nodes - 1 else {})}
        made.add_node(num_cpus=2, resources=names)
    connect(made.address)
    made.wait_for_nodes()
    say(f"a Ray cluster of {nodes} nodes and a head, Ray {ray.__version__}")
    return made


def questions(count: int) -> List[Dict[str, Any]]:
    """Questions that the demo knows."""
    kinds = ["What is {}+{}?", "What is {}-{}?", "Which is smaller, {} or {}?", "Which is larger, {} or {}?"]
    return [
        {"id": number, "messages": [{"role": "user", "content": kinds[number % 4].format(number % 97, number % 89)}]}
        for number in range(count)
    ]


PARAMS = {"max_tokens": 24, "temperature": 0.7, "seed": 11}


def in_one_process(model: str, rows: List[Dict[str, Any]]) -> Tuple[Dict[int, str], float]:
    """The answers of one process, and the seconds that they took."""
    began = time.time()
    with wayinfer.Model(model, parallel=16) as one:
        calls = [
            one.request("POST", "/v1/chat/completions", {"messages": row["messages"], **PARAMS}) for row in rows
        ]
        answers = {row["id"]: call.json()["choices"][0]["message"]["content"] for row, call in zip(rows, calls)}
    return answers, time.time() - began


def batch(model: str, count: int) -> bool:
    """All questions over four actors, one of which is killed."""
    rows = questions(count)

    class Mortal(Predictor):
        """The second batch of the first actor is its last one."""

        def __init__(self, *args: Any, marker: str, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._marker, self._batches = marker, 0

        def __call__(self, batch: Dict[str, Any]) -> Dict[str, Any]:
            self._batches += 1
            if self._batches == 2:
                try:
                    os.close(os.open(self._marker, os.O_CREAT | os.O_EXCL))
                    os.kill(os.getpid(), signal.SIGKILL)
                except FileExistsError:
                    pass
            return super().__call__(batch)

    want, alone = in_one_process(model, rows)
    with tempfile.TemporaryDirectory() as folder:
        marker = os.path.join(folder, "killed")
        began = time.time()
        answered = (
            ray.data.from_items(rows)
            .repartition(max(8, count // 50))
            .map_batches(
                Mortal,
                fn_constructor_kwargs={"model": model, "params": PARAMS, "threads": 1, "marker": marker},
                compute=ray.data.ActorPoolStrategy(size=NODES),
                num_cpus=1,
                batch_size=25,
            )
            .take_all()
        )
        over = time.time() - began
        died = os.path.exists(marker)
    got = {row["id"]: row["generated_text"] for row in answered}
    same = len(answered) == count and got == want
    say(
        f"batch: {len(answered)} answers to {count} questions over {NODES} actors, one killed: {died}; "
        f"{'the same bytes' if same else 'OTHERS'} as of one process ({alone:.0f} s alone, {over:.0f} s)"
    )
    return same and died


def answer(address: str, model: str, folder: Path) -> None:
    """A run over questions of a file, with checkpoints. Its process may be killed."""
    connect(address)
    asked = ray.data.read_parquet(str(folder / "questions"))
    done = str(folder / "done")
    kept = {"id_column": "id", "checkpoint": done}
    rows = predict(asked, model, PARAMS, actors=2, batch_size=10, messages_column="asked", **kept)
    rows.write_parquet(str(folder / "answers"))


def ids_of_done(folder: Path) -> Set[int]:
    """The ids of the rows that are written, as Ray Data's checkpoints have them."""
    from pyarrow import parquet

    files = [path for path in (folder / "done").glob("*.parquet") if not path.stem.endswith(".pending")]
    return {number for path in files for number in parquet.read_table(path)["id"].to_pylist()}


def resumed(model: str, count: int, address: str) -> bool:
    """A run that is killed on its way, and the same again: no question is answered twice."""
    import pyarrow
    from pyarrow import parquet

    rows = questions(count)
    want, _ = in_one_process(model, rows)
    asked = [{"id": row["id"], "asked": json.dumps(row["messages"])} for row in rows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "questions").mkdir()
        parquet.write_table(pyarrow.Table.from_pylist(asked), folder / "questions" / "all.parquet")
        spawn = multiprocessing.get_context("spawn")
        first = spawn.Process(target=answer, args=(address, model, folder))
        first.start()
        while first.is_alive() and len(ids_of_done(folder)) < count // 4:
            time.sleep(0.1)
        first.kill()
        first.join()
        before = len(ids_of_done(folder))
        took, ended = [], True
        for _ in range(2):
            began = time.time()
            again = spawn.Process(target=answer, args=(address, model, folder))
            again.start()
            again.join()
            took.append(time.time() - began)
            ended = ended and again.exitcode == 0
        rows = parquet.read_table(folder / "answers").to_pylist()
    same = len(rows) == count and {row["id"]: row["generated_text"] for row in rows} == want
    say(
        f"resumed: killed when {before} of {count} answers were written, run again ({took[0]:.0f} s), and once more"
        f" ({took[1]:.0f} s): {'each answered once, the same bytes' if same else 'OTHERS'} as of one process"
    )
    return same and ended and 0 < before < count


def prompts(count: int, vocab: int) -> List[List[int]]:
    return [[(7 + 31 * number + 7919 * at) % vocab for at in range(12 + number)] for number in range(count)]


def pipeline(model: str, made: Cluster) -> bool:
    """The model in three stages on three nodes: logits, then texts with a node killed on the way."""
    with wayinfer.Model(model, context=256, threads=1) as whole:
        asked = prompts(6, whole.vocab)
        want = [whole.logits(tokens)[-1] for tokens in asked]
        params = wayinfer.SamplingParams(max_tokens=40, temperature=0.8, seed=5)
        texts = [output.outputs[0].text for output in whole.generate(asked, params)]
    nodes = [{"resources": {f"node{number}": 0.01}, "num_cpus": 1} for number in range(3)]
    with Pipeline(model, 3, context=256, threads=1, actor_options=nodes) as stages:
        got = stages.logits(asked)
        same_logits = all((a.view("u4") == b.view("u4")).all() for a, b in zip(got, want))
        say(f"pipeline of {os.path.basename(model)} in 3 stages: logits {'the same bits' if same_logits else 'OTHERS'}")
        node = next(node for node in made.worker_nodes if node.node_id == stages.facts[1]["node"])
        killer = threading.Timer(0.3, made.remove_node, [node, False])
        killer.start()
        made_texts = [text.text for text in stages.generate(asked, params)]
        killer.join()
        # Where the texts were made sooner, the next ones find it gone.
        while any(other["NodeID"] == node.node_id and other["Alive"] for other in ray.nodes()):
            time.sleep(0.5)
        again = [text.text for text in stages.generate(asked, params)]
        same_texts = made_texts == texts == again and stages.restarts > 0
        say(
            f"  with the node of the second stage killed ({stages.restarts} started again): "
            f"{'the same texts' if same_texts else 'OTHER TEXTS'}"
        )
        made.add_node(num_cpus=2, resources={"node1": 1})
        for line in str(stages.plan()).splitlines():
            say(f"  {line}")
    return same_logits and same_texts


def speed(model: str, micro_batches: Optional[int]) -> float:
    """Tokens a second of 8 sequences: two stages of a thread each, and one process of two threads. What a message from
    stage to stage costs beside what stages compute is measured with one sequence."""
    name, params = os.path.basename(model), wayinfer.SamplingParams(max_tokens=64, temperature=0)
    with wayinfer.Model(model, context=256, threads=2, parallel=8) as whole:
        asked = prompts(8, whole.vocab)
        whole.generate(asked, params)
        began = time.time()
        outputs = whole.generate(asked, params)
        one = sum(output.completion_tokens for output in outputs) / (time.time() - began)
    with Pipeline(model, 2, context=256, threads=1, micro_batches=micro_batches) as stages:
        made = []
        for most in (2, 66):
            began = time.time()
            [text] = stages.generate(asked[:1], wayinfer.SamplingParams(max_tokens=most, temperature=0))
            made.append((len(text.tokens), time.time() - began))
        token = (made[1][1] - made[0][1]) / max(made[1][0] - made[0][0], 1)
        computed = sum(stage.seconds for stage in stages.plan().stages)
        stages.generate(asked, params)
        began = time.time()
        texts = stages.generate(asked, params)
        two = sum(len(text.tokens) for text in texts) / (time.time() - began)
    say(f"speed of {name}: {one:.1f} tokens/s in one process, {two:.1f} in two stages: {two / one:.2f}")
    say(f"  one sequence: {token * 1e3:.2f} ms a token, of which stages compute {computed * 1e3:.2f}")
    return two / one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo", help="for the batch")
    parser.add_argument("--questions", type=int, default=2000)
    parser.add_argument("--resumed", type=int, default=400, metavar="QUESTIONS")
    parser.add_argument("--pipeline", nargs="*", default=[], metavar="MODEL")
    parser.add_argument("--speed", nargs="*", default=[], metavar="MODEL")
    parser.add_argument("--micro-batches", type=int, metavar="N", help="of --speed [default: as many as stages]")
    args = parser.parse_args()
    made = cluster(NODES)
    try:
        good = args.questions == 0 or batch(args.model, args.questions)
        good = (args.resumed == 0 or resumed(args.model, args.resumed, made.address)) and good
        for model in args.pipeline:
            good = pipeline(os.path.abspath(model), made) and good
        for model in args.speed:
            good = speed(os.path.abspath(model), args.micro_batches) >= 0.8 and good
    finally:
        ray.shutdown()
        made.shutdown()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
