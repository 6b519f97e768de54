#!/usr/bin/env python3
"""Rows of a DataFrame answered on Spark: one model in each Python worker, opened once, rows by their ids.

    spark-submit --conf spark.executor.cores=8 --conf spark.task.cpus=8 scripts/cluster/spark.py \
        --model model.gguf questions.parquet answers.parquet
"""

import argparse
from typing import Iterator

import pandas as pd
from pyspark.sql import SparkSession

SCHEMA = "id string, generated_text string, finish_reason string, error string"

_model = None


def answers(path: str, parts: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The answers to rows with `id` and `prompt`."""
    import wayinfer

    global _model
    if _model is None:
        _model = wayinfer.Model(path, parallel=16)
    params = wayinfer.SamplingParams(max_tokens=200, temperature=0)
    for part in parts:
        outputs = _model.generate(list(part["prompt"]), params)
        reasons = [output.outputs[0].finish_reason for output in outputs]
        texts = [output.text for output in outputs]
        yield pd.DataFrame({"id": part["id"], "generated_text": texts, "finish_reason": reasons, "error": ""})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("questions")
    parser.add_argument("answers")
    args = parser.parse_args()
    spark = SparkSession.builder.appName("wayinfer").getOrCreate()
    rows = spark.read.parquet(args.questions).select("id", "prompt")
    path = args.model
    rows.mapInPandas(lambda parts: answers(path, parts), SCHEMA).write.mode("errorifexists").parquet(args.answers)


if __name__ == "__main__":
    main()
