#!/usr/bin/env python3
"""Tokens a second of a model over several machines, on paper: from the bytes that a token reads, the speed of each
machine's memory, the network, and what a message from stage to stage costs beside it.

    scripts/cluster/scale.py model.gguf --machines 1 2 4
    scripts/cluster/scale.py --layers 61 --weights 400 --active 22 --row 7168

A stage's time is the bytes that it reads over the speed of its memory; a message takes the latency, its rows over the
bandwidth, and the overhead that `shown.py --speed` measures. One text goes through all stages in turn; as many texts as
there are stages keep all of them busy, a text each. What is computed, and prompts, are left out.
"""

import argparse

from wayinfer.ray import plan
from wayinfer.stage import Costs, costs


def costs_of(args: argparse.Namespace) -> Costs:
    """Those of the file, or of a model whose layers are all alike."""
    if args.model is not None:
        return costs(args.model)
    each = args.layers
    weights, active = int(args.weights * 1e9 / each), args.active * 1e9 / each
    return Costs([weights] * each, [active] * each, 0, 0, list(range(1, each)), args.row, 0, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="a file, of which the headers are read")
    parser.add_argument("--layers", type=int, default=61)
    parser.add_argument("--weights", type=float, default=400, metavar="GB", help="of all layers")
    parser.add_argument("--active", type=float, default=400, metavar="GB", help="that a token reads of them")
    parser.add_argument("--row", type=int, default=7168, metavar="VALUES", help="of a token, f32")
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--memory", type=float, default=200, metavar="GB/s", help="of each machine")
    parser.add_argument("--network", type=float, default=10, metavar="Gbit/s")
    parser.add_argument("--latency", type=float, default=0.1, metavar="ms", help="of the network")
    parser.add_argument("--overhead", type=float, default=1.4, metavar="ms", help="of a message beside it")
    args = parser.parse_args()
    model = costs_of(args)
    print("machines   GB each   one text   a text a stage")
    for machines in args.machines:
        made = plan.make(model, machines, speeds=[args.memory * 1e9] * machines)
        latency = (args.latency + args.overhead) / 1e3 if machines > 1 else 0.0
        one, all_busy = (
            made.tokens_per_second(latency, args.network * 1e9 / 8, texts) for texts in (1, machines)
        )
        most = max(stage.memory for stage in made.stages) / 1e9
        print(f"{machines:>8} {most:>9.1f} {one:>10.2f} {all_busy:>16.2f}")


if __name__ == "__main__":
    main()
