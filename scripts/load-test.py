#!/usr/bin/env python3
"""Many clients at once: no answer is lost or mixed up, memory stays flat, nothing panics.

    scripts/load-test.py target/release/wayinfer [--seconds 300] [--clients 200] [--canary]

Each request is answered alone first. Then all clients ask at once for the given time. Of five, three ask and
compare each answer with the one made alone, one leaves midway, one sends rubbish. Exit code 1 where anything
was wrong. With --canary an expected answer is changed, which has to be noticed: exit code 1 where it is not.
The standard library is all that is needed; Linux.
"""

import argparse
import asyncio
import collections
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time

QUESTIONS = ["What is {a}+{b}?", "What is {b}+{a}?", "Spell the word cat.", "Which is larger, {a} or {b}?",
             "What day comes after Monday?"]
# What an answer may take on a busy machine before it counts as lost.
PATIENCE = 240


def requests(count):
    """Requests of all kinds, each with a seed of its own."""
    for n in range(count):
        a, b = n % 10, n * 7 % 10
        body = {"seed": n, "temperature": [0, 0.9, 1.5][n % 3], "max_tokens": 4 + n % 9}
        if n % 4 == 3:
            body.update(prompt=f"Number {n // 8}. " * (n % 9) + f"What is {a}", logprobs=2 if n % 3 else None)
            path = "/v1/completions"
        else:
            question = QUESTIONS[n % 5].format(a=a, b=b)
            body.update(messages=[{"role": "user", "content": question}], logprobs=n % 2 == 0)
            path = "/v1/chat/completions"
        if n % 6 == 5:
            body["stop"] = ["e", "4."]
        if n % 13 == 6:
            body["n"] = 2
        yield path, body


class Lost(Exception):
    """An answer that did not come, or not whole."""


async def read_head(reader):
    status = await reader.readline()
    if not status:
        raise Lost("the connection was ended without a reply")
    headers = {}
    while (line := await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.lower()] = value.strip()
    return int(status.split()[1]), headers


async def read_body(reader, headers):
    """The pieces of a body."""
    if "content-length" in headers:
        yield await reader.readexactly(int(headers["content-length"]))
        return
    while True:
        size = int((await reader.readline()).strip() or b"0", 16)
        piece = await reader.readexactly(size + 2)
        if size == 0:
            return
        yield piece[:-2]


def head(path, body, more=""):
    return (f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            f"Connection: close\r\n{more}\r\n").encode()


def essence(path, answer):
    """Texts, reasons and probabilities of an answer, by choice."""
    chat = path.startswith("/v1/chat")
    choices = []
    for choice in answer["choices"]:
        text = choice["message"]["content"] if chat else choice["text"]
        logprobs = choice["logprobs"]
        if logprobs:
            logprobs = logprobs["content"] if chat else [*zip(logprobs["tokens"], logprobs["token_logprobs"])]
        choices.append([text, choice["finish_reason"], json.dumps(logprobs or [])])
    return choices, answer["usage"]["completion_tokens"]


def joined(path, pieces):
    """The same of an answer that has come in pieces."""
    chat = path.startswith("/v1/chat")
    choices, made = collections.defaultdict(lambda: ["", None, []]), None
    if len({piece["id"] for piece in pieces}) != 1:
        raise Lost("a stream has more than one id")
    for piece in pieces:
        if "usage" in piece:
            made = piece["usage"]["completion_tokens"]
        for choice in piece["choices"]:
            of = choices[choice["index"]]
            of[0] += (choice["delta"].get("content") if chat else choice["text"]) or ""
            of[1] = choice["finish_reason"] or of[1]
            if logprobs := choice["logprobs"]:
                of[2] += (logprobs["content"] if chat
                          else zip(logprobs["tokens"], logprobs["token_logprobs"]))
    return [[text, reason, json.dumps(all)] for _, (text, reason, all) in sorted(choices.items())], made


class Load:
    def __init__(self, port, canary):
        self.port = port
        self.requests = list(requests(60))
        self.canary = canary
        self.expected = []
        self.counts = collections.Counter()
        self.wrong = []
        self.slowest = 0

    async def connect(self):
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)

    async def ask(self, number, stream):
        """What a request is answered with; None where it is to be tried again later."""
        path, body = self.requests[number]
        if stream:
            body = body | {"stream": True, "stream_options": {"include_usage": True}}
        body = json.dumps(body).encode()
        reader, writer = await self.connect()
        try:
            writer.write(head(path, body) + body)
            status, headers = await read_head(reader)
            whole = b"".join([piece async for piece in read_body(reader, headers)])
        finally:
            writer.close()
        if status == 503 and "retry-after" in headers:
            return None
        if status != 200:
            raise Lost(f"{status}: {whole[:200]}")
        if not stream:
            return essence(path, json.loads(whole))
        lines = [line[6:] for line in whole.decode().split("\n") if line]
        if lines[-1] != "[DONE]":
            raise Lost(f"a stream ends with {lines[-1][:200]}")
        return joined(path, [json.loads(line) for line in lines[:-1]])

    async def alone(self):
        """What each request is answered with alone."""
        for number in range(len(self.requests)):
            self.expected.append(await self.ask(number, False))
        if self.canary:
            self.expected[0][0][0][0] += "."

    async def honest(self, random):
        number = random.randrange(len(self.requests))
        began = time.monotonic()
        answer = await asyncio.wait_for(self.ask(number, random.random() < 0.5), PATIENCE)
        self.slowest = max(self.slowest, time.monotonic() - began)
        if answer is None:
            self.counts["told to wait"] += 1
            await asyncio.sleep(1)
        elif answer != self.expected[number]:
            self.wrong.append(f"answer {number}: {answer}, not {self.expected[number]}")
        else:
            self.counts["answers compared"] += 1

    async def leaver(self, random):
        """Asks for a long answer and leaves: while it writes, waits, or reads."""
        path, body = random.choice(self.requests)
        body = json.dumps(body | {"stream": random.random() < 0.7, "max_tokens": 200, "stop": None}).encode()
        request = head(path, body) + body
        reader, writer = await self.connect()
        try:
            writer.write(request[:random.randrange(len(request))] if random.random() < 0.2 else request)
            await writer.drain()
            try:
                await asyncio.wait_for(reader.read(random.randrange(1, 4000)), random.random() * 2)
            except asyncio.TimeoutError:
                pass
            if random.random() < 0.5:
                writer.transport.abort()
        finally:
            writer.close()
        self.counts["left midway"] += 1

    async def rubbish(self, random):
        """Sends what is no request; it is refused or the connection is ended."""
        noise = random.randbytes(random.randrange(1, 3000))
        chat = "/v1/chat/completions"
        deep = b'{"messages":' + b"[" * 20000
        kinds = [noise, b"GET / HTTP/1.1\r\n" + noise, head(chat, noise) + noise, head(chat, deep) + deep,
                 head(chat, b"x" * 999, "Transfer-Encoding: chunked\r\n") + b"zz\r\n",
                 head("/%00" + "x" * 5000, b"{}") + b"{}",
                 b"POST /v1/completions HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 2\r\n\r\n{}"]
        for wrong in ({"messages": [{"role": "user", "content": {"a": 1}}]}, {"messages": None}, [], 5,
                      {"messages": [{"role": "user", "content": "a " * 5000}]},
                      {"messages": [{"role": "user", "content": "a"}], "temperature": -1e300},
                      {"messages": [{"role": "user", "content": "a"}], "n": 10 ** 9}):
            wrong = json.dumps(wrong).encode()
            kinds.append(head(chat, wrong) + wrong)
        reader, writer = await self.connect()
        try:
            writer.write(random.choice(kinds))
            if writer.can_write_eof():
                writer.write_eof()
            reply = await asyncio.wait_for(reader.read(200), 60)
            status = int(reply.split()[1]) if reply else 400
            if not 400 <= status < 500:
                self.wrong.append(f"rubbish was answered with {reply}")
        except ConnectionError:
            pass
        finally:
            writer.close()
        self.counts["rubbish refused"] += 1

    async def client(self, number, until):
        kind = {0: self.leaver, 1: self.rubbish}.get(number % 5, self.honest)
        generator = random.Random(number)
        while time.monotonic() < until:
            try:
                await kind(generator)
            except (Lost, OSError, asyncio.IncompleteReadError, asyncio.TimeoutError, ValueError) as error:
                # Those that leave do not care.
                if kind != self.leaver:
                    self.wrong.append(f"{kind.__name__} {number}: {type(error).__name__}: {error}")
            # Rubbish is refused at once: nobody sends more than some a second.
            if kind != self.honest:
                await asyncio.sleep(generator.random() / 2)


def memory(pid):
    """Bytes in RAM that no file backs."""
    with open(f"/proc/{pid}/status") as status:
        return sum(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


def files(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def threads(pid):
    return len(os.listdir(f"/proc/{pid}/task"))


async def watch(pid, samples):
    while True:
        samples.append((time.monotonic(), memory(pid)))
        await asyncio.sleep(0.25)


def growth(samples, began, ended):
    """Most bytes in the second and in the last quarter of the time."""
    def most(a, b):
        span = [bytes for at, bytes in samples if a <= (at - began) / (ended - began) < b]
        return max(span, default=0)
    return most(0.25, 0.5), most(0.75, 1.01)


async def run(args, server, port):
    load = Load(port, args.canary)
    began = time.monotonic()
    await load.alone()
    print(f"{len(load.requests)} requests answered alone in {time.monotonic() - began:.1f} s", flush=True)
    before = files(server.pid), threads(server.pid)
    samples = []
    watcher = asyncio.create_task(watch(server.pid, samples))
    began = time.monotonic()
    until = began + args.seconds
    await asyncio.gather(*(load.client(n, until) for n in range(args.clients)))
    ended = time.monotonic()
    watcher.cancel()
    wrong = load.wrong
    # What they left behind is cleared up.
    for _ in range(100):
        after = files(server.pid), threads(server.pid)
        if after[0] <= before[0] + 1:
            break
        await asyncio.sleep(0.2)
    if after[0] > before[0] + 1:
        wrong.append(f"{before[0]} files were open, now {after[0]}")
    for number in range(len(load.requests)):
        if await load.ask(number, True) != load.expected[number]:
            wrong.append(f"answer {number} is another one afterwards")
    settled, last = growth(samples, began, ended)
    if last > settled * 1.1 + (16 << 20):
        wrong.append(f"memory grows: {settled >> 20} MiB, then {last >> 20} MiB")
    if not load.counts["answers compared"]:
        wrong.append("no answer was compared")
    print(f"{args.clients} clients, {ended - began:.0f} s: "
          + ", ".join(f"{count} {what}" for what, count in sorted(load.counts.items())))
    print(f"slowest answer {load.slowest:.1f} s; memory beside files at most {settled >> 20} MiB in the second "
          f"quarter, {last >> 20} MiB in the last; {after[1]} threads, {before[1]} before")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--canary", action="store_true")
    args = parser.parse_args()
    command = [args.binary, "serve", "-m", "demo", "--port", "0", "--queue", "1000"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    port, log = None, []
    for line in server.stderr:
        log.append(line)
        if line.startswith("listening on"):
            port = int(line.rsplit(":", 1)[1])
            break
    if port is None:
        sys.exit("".join(log))
    reader = threading.Thread(target=lambda: log.extend(server.stderr))
    reader.start()
    try:
        wrong = asyncio.run(run(args, server, port))
        if server.poll() is not None:
            wrong.append("the server has ended")
        server.send_signal(signal.SIGTERM)
        if code := server.wait(60):
            wrong.append(f"exit code {code}")
    finally:
        server.kill()
        server.wait()
    reader.join()
    if any("panicked" in line for line in log):
        wrong.append("a panic: " + "".join(log))
    for what, count in collections.Counter(text[:300] for text in wrong).most_common(20):
        print(f"wrong, {count} times: {what}")
    if args.canary:
        print("the canary was noticed" if wrong else "the canary was not noticed")
        sys.exit(not wrong)
    print("all is well" if not wrong else f"{len(wrong)} things were wrong")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
