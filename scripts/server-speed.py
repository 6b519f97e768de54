#!/usr/bin/env python3
"""How fast `wayinfer serve` answers one client and several, and how long a short prompt waits while a long one
is read. Standard library only.

    scripts/server-speed.py BINARY MODEL [--threads N] [--clients N] [--tokens N] [--rounds N]
    scripts/server-speed.py --url http://127.0.0.1:8080 [..]      another server of OpenAI's dialect

One client and several take turns; medians are told. Prompts are words that no two requests share.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
import urllib.request


def post(url, body):
    request = urllib.request.Request(url + "/v1/completions", json.dumps(body).encode())
    return urllib.request.urlopen(request, timeout=600)


def words(seed, count):
    """A text of about so many tokens."""
    return " ".join(f"w{(seed * 7919 + i * 31) % 9973}" for i in range(count // 4))


def answer(url, seed, prompt_tokens, tokens, out):
    """Streams an answer: when its pieces came."""
    body = {"prompt": words(seed, prompt_tokens), "max_tokens": tokens, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True}, "ignore_eos": True}
    began, pieces, usage = time.monotonic(), [], None
    with post(url, body) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                sys.exit(f"an error: {chunk}")
            usage = chunk.get("usage") or usage
            if any(choice.get("text") for choice in chunk["choices"]):
                pieces.append(time.monotonic())
    out.append((began, pieces, usage))


def together(url, clients, prompt_tokens, tokens, seed):
    """Tokens a second of all clients together, from the first token of the first to the last of the last."""
    out = []
    threads = [threading.Thread(target=answer, args=(url, seed + i, prompt_tokens, tokens, out)) for i in range(clients)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    began = min(pieces[0] for _, pieces, _ in out)
    ended = max(pieces[-1] for _, pieces, _ in out)
    made = sum(usage["completion_tokens"] for _, _, usage in out)
    return (made - len(out)) / (ended - began)


def waits(url, long_tokens, seed):
    """Seconds to the first token of a short prompt while a long one is read, and of the long one."""
    out, short = [], []
    reader = threading.Thread(target=answer, args=(url, seed, long_tokens, 2, out))
    reader.start()
    time.sleep(1.5)
    answer(url, seed + 1, 16, 2, short)
    reader.join()
    (began, pieces, usage), (short_began, short_pieces, _) = out[0], short[0]
    return short_pieces[0] - short_began, pieces[0] - began, usage["prompt_tokens"]


def measure(url, args):
    together(url, 1, 16, 8, 1)
    one, several = [], []
    for turn in range(args.rounds):
        order = [(1, one), (args.clients, several)]
        for clients, rates in order if turn % 2 == 0 else reversed(order):
            rates.append(together(url, clients, 16, args.tokens, 1000 * turn + 50 * clients))
    rates = statistics.median(one), statistics.median(several)
    print(f"1 client: {rates[0]:.2f} tok/s {[round(r, 2) for r in one]}")
    print(f"{args.clients} clients: {rates[1]:.2f} tok/s {[round(r, 2) for r in several]}")
    print(f"ratio {rates[1] / rates[0]:.2f}")
    for turn in range(args.long_rounds):
        short, long, read = waits(url, args.long, 100_000 + turn * 10)
        chunk = long / (read / args.chunk)
        print(f"short prompt beside one of {read}: first token after {short:.3f} s; the long one's after {long:.2f} s, "
              f"{chunk:.3f} s a chunk of {args.chunk}: {short / chunk:.2f} chunks")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary", nargs="?")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--url")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--long", type=int, default=4096)
    parser.add_argument("--long-rounds", type=int, default=1)
    parser.add_argument("--chunk", type=int, default=128)
    args = parser.parse_args()
    if args.url:
        return measure(args.url, args)
    command = [args.binary, "serve", "-m", args.model, "--port", "0", "-t", str(args.threads), "--parallel",
               str(args.clients), "--ctx", "8192", "--chunk", str(args.chunk)]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        url = next(line.split()[-1] for line in server.stderr if "listening on" in line)
        threading.Thread(target=lambda: [None for _ in server.stderr], daemon=True).start()
        measure(url, args)
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
