#!/usr/bin/env python3
"""Rows of a DataFrame answered on Spark: one model in each Python worker, opened once, rows by their ids. What is wrong
with a row is told in its column `error`, and the others go on.

    spark-submit --conf spark.executor.cores=8 --conf spark.task.cpus=8 scripts/cluster/spark.py \
        --model model.gguf questions.parquet answers.parquet
"""

import argparse
from typing import Any, Iterator, Tuple

import pandas as pd
from pyspark import TaskContext
from pyspark.sql import SparkSession

SCHEMA = "id string, generated_text string, finish_reason string, error string"
PARAMS = {"max_tokens": 200, "temperature": 0}

_model: Any = None


def answers(path: str, parts: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
    """The answers to rows with `id` and `prompt`."""
    import wayinfer

    global _model
    if _model is None:
        _model = wayinfer.Model(path, parallel=16, threads=TaskContext.get().cpus())

    def answer(call: Any) -> Tuple[str, str, str]:
        try:
            choice = call.json()["choices"][0]
            return choice["text"], choice["finish_reason"], ""
        except wayinfer.Error as error:
            return "", "", str(error)

    for part in parts:
        # All are asked before any is waited for.
        calls = [_model.request("POST", "/v1/completions", {"prompt": prompt, **PARAMS}) for prompt in part["prompt"]]
        made = pd.DataFrame([answer(call) for call in calls], columns=["generated_text", "finish_reason", "error"])
        made.insert(0, "id", part["id"].astype(str).values)
        yield made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("questions")
    parser.add_argument("answers")
    args = parser.parse_args()
    spark = SparkSession.builder.appName("wayinfer").getOrCreate()
    # A batch of rows is asked at a time, and its answers leave when the last of them is there.
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "64")
    rows = spark.read.parquet(args.questions).select("id", "prompt")
    path = args.model
    rows.mapInPandas(lambda parts: answers(path, parts), SCHEMA).write.mode("errorifexists").parquet(args.answers)


if __name__ == "__main__":
    main()
