#!/usr/bin/env python3
"""A model in stages over MPI, a stage each process: what `wayinfer.ray.Pipeline` does with Ray, by plain calls.

    pip install wayinfer mpi4py
    mpiexec -n 3 python -m mpi4py scripts/cluster/mpi.py model.gguf "Once upon a time"

Rows go from each process to the next as bytes, tokens from the last one to all. It makes one text; `Pipeline` keeps
several under way, so that all stages have something to do.
"""

import argparse
from typing import Tuple

from mpi4py import MPI

import wayinfer
from wayinfer.stage import Part, check_stages, costs


def layers_of(model: str, rank: int, stages: int) -> Tuple[int, int]:
    """The layers of a stage: about as many as others have, as far as the model can be cut there."""
    found = costs(model)
    places = [0, *found.borders, len(found.layers)]
    if stages > len(places) - 1:
        raise wayinfer.UsageError(f"the model can be cut into {len(places) - 1} stages at most, not into {stages}")
    first, end = (number * (len(places) - 1) // stages for number in (rank, rank + 1))
    return places[first], places[end]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("prompt")
    parser.add_argument("--tokens", type=int, default=60)
    parser.add_argument("--temp", type=float, default=0.8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    world = MPI.COMM_WORLD
    rank, last = world.Get_rank(), world.Get_size() - 1
    with wayinfer.Model.stage(args.model, layers_of(args.model, rank, last + 1), threads=args.threads) as stage:
        facts = world.allgather(stage.facts)
        check_stages(facts)
        batch = min(each["batch"] for each in facts)
        prompt, answer, past = stage.encode(args.prompt), [], 0
        while len(answer) < args.tokens:
            # What has not been run, as far as a pass has room; behind the last of it a token is drawn.
            tokens = (prompt + answer)[past : past + batch]
            whole = past + len(tokens) == len(prompt) + len(answer)
            rows = bytearray(len(tokens) * stage.facts["row_in"] * 4 if rank > 0 else 0)
            if rank > 0:
                world.Recv(rows, rank - 1)
            made = stage.feed([Part(0, past, tokens, wanted=whole)], bytes(rows))
            past += len(tokens)
            if rank < last:
                world.Send(made, rank + 1)
            if whole:
                if rank == last and not answer:
                    stage.sampler(0, {"temp": args.temp, "seed": args.seed}, prompt)
                token, _, ends = world.bcast(stage.draw(0) if rank == last else None, last)
                if ends:
                    break
                answer.append(token)
        if rank == last:
            print(stage.decode(answer, begins=False))


if __name__ == "__main__":
    main()
