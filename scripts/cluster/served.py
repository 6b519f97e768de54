#!/usr/bin/env python3
"""Replicas of WayInfer by Ray Serve, on a Ray cluster of four nodes within this machine: how many there are follows the
requests that wait, a conversation stays with the replica that has read it, and what is under way when the application
ends is answered to its end. Prints what was seen; ends with 1 where it is not as it should be.

    pip install 'wayinfer[ray]'
    scripts/cluster/served.py
"""

import argparse
import http.client
import json
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterator, List, Tuple

import ray
from ray import serve
from shown import NODES, cluster, say

import wayinfer
from wayinfer.ray import serve_app

APP = "wayinfer"


class Client:
    """Asks over HTTP."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, path: str, fields: Dict[str, Any]) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)
        connection.request("POST", path, json.dumps(fields), {"Content-Type": "application/json"})
        return connection.getresponse()

    def whole(self, path: str, fields: Dict[str, Any]) -> Dict[str, Any]:
        response = self.ask(path, fields)
        body = response.read()
        if response.status != 200:
            raise RuntimeError(f"{response.status}: {body[:200]!r}")
        answer: Dict[str, Any] = json.loads(body)
        return answer


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def running() -> int:
    """Replicas that answer."""
    application = serve.status().applications.get(APP)
    deployment = application and application.deployments.get("wayinfer")
    return deployment.replica_states.get("RUNNING", 0) if deployment else 0


def until(holds: Callable[[], bool], seconds: float) -> bool:
    end = time.time() + seconds
    while not holds():
        if time.time() > end:
            return False
        time.sleep(0.2)
    return True


class Long:
    """Requests that take their time: nothing ends their texts but their length."""

    def __init__(self, model: str) -> None:
        with wayinfer.Model(model, context=128, threads=1) as opened:
            self._bias = {token: -100.0 for token in opened.facts["ends"]}
            began = time.time()
            params = wayinfer.SamplingParams(max_tokens=64, temperature=0, logit_bias=self._bias)
            opened.generate(self._prompt(0), params)
            self._speed = 64 / (time.time() - began)

    @staticmethod
    def _prompt(number: int) -> str:
        return f"The sum of {number} and 2"

    def __call__(self, number: int, seconds: float, stream: bool = False) -> Dict[str, Any]:
        """A request that takes about so long where it is alone."""
        fields = {"prompt": self._prompt(number), "temperature": 0, "stream": stream, "logit_bias": self._bias}
        return {**fields, "max_tokens": max(8, min(int(self._speed * seconds), 1900))}


def scaled(model: str, client: Client, long: Long) -> bool:
    """More replicas while requests wait, fewer afterwards."""
    scaling = {
        "min_replicas": 1,
        "max_replicas": 3,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 3,
        "metrics_interval_s": 1,
        "look_back_period_s": 2,
    }
    app = serve_app(model, parallel=2, threads=1, context=2048, deployment={"autoscaling_config": scaling})
    serve.run(app, name=APP, route_prefix="/")
    before, most = running(), 0
    with ThreadPoolExecutor(16) as pool:
        answers = [pool.submit(client.whole, "/v1/completions", long(number % 4, 1)) for number in range(32)]
        while not all(answer.done() for answer in answers):
            most = max(most, running())
            time.sleep(0.2)
        texts = [answer.result()["choices"][0]["text"] for answer in answers]
    same = all(text == texts[number % 4] for number, text in enumerate(texts))
    fewer = until(lambda: running() == 1, 60)
    serve.delete(APP)
    say(
        f"scaled: {before} replica, {most} while 32 requests came 16 at a time, {1 if fewer else 'still more'}"
        f" afterwards; the same request gets {'the same answer' if same else 'OTHER ANSWERS'} of all"
    )
    return before == 1 and most == 3 and fewer and same


def kept_together(model: str, client: Client) -> bool:
    """Conversations of three turns over three replicas: of how many turns the beginning had been read."""
    shares = []
    for by_conversation in (False, True):
        app = serve_app(
            model, min_replicas=3, max_replicas=3, parallel=2, threads=1, context=2048, by_conversation=by_conversation
        )
        serve.run(app, name=APP, route_prefix="/")
        until(lambda: running() == 3, 120)
        found = []
        for number in range(6):
            messages = [{"role": "user", "content": f"Number {number}. " + "What is 2+2? " * 12}]
            for turn in range(3):
                asked = {"messages": messages, "max_tokens": 24, "temperature": 0}
                answer = client.whole("/v1/chat/completions", asked)
                usage = answer["usage"]
                if turn > 0:
                    found.append(usage["prompt_tokens_details"]["cached_tokens"] > before / 2)
                before = usage["prompt_tokens"]
                messages = [*messages, answer["choices"][0]["message"], {"role": "user", "content": "What is 1+2?"}]
        serve.delete(APP)
        shares.append(sum(found) / len(found))
    say(
        f"by conversation: {shares[1]:.0%} of the later turns found their beginning read at one of three replicas,"
        f" {shares[0]:.0%} without"
    )
    return shares[1] == 1 and shares[0] < 1


def drained(model: str, client: Client, long: Long, by_conversation: bool) -> bool:
    """An application that is deleted while answers are on their way."""
    app = serve_app(
        model, min_replicas=2, max_replicas=2, parallel=4, threads=1, context=2048, by_conversation=by_conversation
    )
    serve.run(app, name=APP, route_prefix="/")
    until(lambda: running() == 2, 120)
    want = client.whole("/v1/completions", long(1, 4))["choices"][0]["text"]
    begun: List[Tuple[bytes, Iterator[bytes]]] = []
    for _ in range(4):
        response = client.ask("/v1/completions", long(1, 4, stream=True))
        lines = iter(response.readline, b"")
        begun.append((next(lines), lines))
    deleting = threading.Thread(target=serve.delete, args=(APP,))
    deleting.start()
    time.sleep(1)
    refused = client.ask("/v1/completions", long(2, 0)).status
    texts, ends = [], []
    for first, lines in begun:
        pieces = [line[len(b"data: ") :].strip() for line in (first, *lines) if line.startswith(b"data: ")]
        ends.append(pieces[-1] == b"[DONE]")
        texts.append("".join(json.loads(piece)["choices"][0]["text"] for piece in pieces[:-1]))
    deleting.join()
    whole = all(ends) and all(text == want for text in texts)
    say(
        f"drained{' behind a door' if by_conversation else ''}: {sum(ends)} of {len(begun)} answers under way came"
        f" {'whole' if whole else 'IN PARTS'} after the application was deleted, a new request got {refused}"
    )
    return whole and refused in (404, 503)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="demo")
    args = parser.parse_args()
    made, port = cluster(NODES), free_port()
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        client, long = Client(port), Long(args.model)
        good = scaled(args.model, client, long)
        good = kept_together(args.model, client) and good
        for by_conversation in (False, True):
            good = drained(args.model, client, long, by_conversation) and good
        serve.shutdown()
    finally:
        ray.shutdown()
        made.shutdown()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
