"""Rows of a Ray Data set, answered by a pool of actors."""

from __future__ import annotations

import json
import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple, Union

from .. import errors
from ..model import Model
from ..sampling import SamplingParams

__all__ = ["Predictor", "predict"]

Row = Dict[str, Any]


class Predictor:
    """Answers rows; for `map_batches` with actors, each of which opens the model once.

        ds.map_batches(
            Predictor,
            fn_constructor_kwargs={"model": "model.gguf", "params": {"max_tokens": 100, "seed": 1}},
            compute=ray.data.ActorPoolStrategy(size=4), num_cpus=8, batch_size=64,
        )

    A row has a `prompt` (a text) or `messages` (a conversation, as a list or as the text of its JSON). It gets
    `generated_text`, `finish_reason`, `prompt_tokens`, `completion_tokens` and `error`: what is wrong with a row is told
    in it, with no text, and the others go on. `params` are those of all rows (fields of `SamplingParams`); a column
    `params` with the text of a JSON object adds to them row by row. An answer depends on its row alone, not on batches
    or actors: with a seed, or a temperature of 0, a run that is repeated gives the same bytes.

    model_options are those of `wayinfer.Model`; `parallel` is the number of rows that are answered at a time.
    """

    def __init__(
        self,
        model: str,
        params: Union[None, SamplingParams, Mapping[str, Any]] = None,
        *,
        prompt_column: str = "prompt",
        messages_column: str = "messages",
        parallel: int = 16,
        **model_options: Any,
    ) -> None:
        self._params = params.fields() if isinstance(params, SamplingParams) else dict(params or {})
        self._columns = (prompt_column, messages_column)
        self._model = Model(model, parallel=parallel, **model_options)

    def _ask(self, row: Row) -> Callable[[], Row]:
        """Begins with a row; what waits for its answer."""
        prompt_column, messages_column = self._columns
        try:
            own = row.get("params")
            fields = {**self._params, **(json.loads(own) if own else {})}
            messages = row.get(messages_column)
            if messages is not None:
                messages = json.loads(messages) if isinstance(messages, str) else [dict(one) for one in messages]
                path, fields = "/v1/chat/completions", {**fields, "messages": messages}
            elif isinstance(row.get(prompt_column), str):
                path, fields = "/v1/completions", {**fields, "prompt": row[prompt_column]}
            else:
                raise errors.UsageError(f"the row has neither {prompt_column!r} nor {messages_column!r}")
            call = self._model.request("POST", path, fields)
        except (errors.Error, TypeError, ValueError) as error:
            wrong = str(error)
            return lambda: _told(error=wrong)

        def answer() -> Row:
            try:
                return _answer(call.json())
            except errors.Error as error:
                return _told(error=str(error))

        return answer

    def __call__(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        columns = list(batch)
        count = len(batch[columns[0]]) if columns else 0
        rows: List[Row] = [{name: batch[name][at] for name in columns} for at in range(count)]
        # All are asked before any is waited for.
        answers = [answer() for answer in [self._ask(row) for row in rows]]
        made = {name: _column([answer[name] for answer in answers]) for name in _told()}
        return {**batch, **made}


def _column(values: List[Any]) -> Any:
    import numpy as np

    return np.array(values, dtype="int64" if values and isinstance(values[0], int) else object)


def _told(
    text: str = "", reason: str = "", tokens: Tuple[int, int] = (0, 0), error: Optional[str] = None
) -> Row:
    return {
        "generated_text": text,
        "finish_reason": reason,
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "error": error or "",
    }


def _answer(raw: Dict[str, Any]) -> Row:
    choice, usage = raw["choices"][0], raw["usage"]
    text = choice["text"] if "text" in choice else choice["message"].get("content") or ""
    return _told(text, choice["finish_reason"], (usage["prompt_tokens"], usage["completion_tokens"]))


def predict(
    dataset: Any,
    model: str,
    params: Union[None, SamplingParams, Mapping[str, Any]] = None,
    *,
    actors: int = 1,
    cpus: float = 1,
    batch_size: int = 32,
    id_column: Optional[str] = None,
    checkpoint: Optional[str] = None,
    **options: Any,
) -> Any:
    """The data set with the answers of a pool of `Predictor`s, computed when it is written; `options` are those of
    `Predictor`. Each actor has `cpus`, and as many threads where `threads` does not say it. One that dies is started
    again, and its batch is answered once more.

        asked = ray.data.read_parquet("questions")
        rows = predict(asked, "model.gguf", actors=4, id_column="id", checkpoint="/nfs/done")
        rows.write_parquet("answers")

    With `id_column` and `checkpoint`, a folder that all machines have, a run that broke off goes on where the same is
    run again: rows whose ids were written are left out as they are read, and the answers of both runs lie in the folder
    that they are written to. These are Ray Data's own checkpoints, for what is read from files and written to files;
    they hold for this data set from then on. The folder stays when all is done: another run has nothing to do.

    Raises `UsageError` where one of both is missing, the data set is one in memory or is known to have no such column;
    `Unsupported` where this Ray has no checkpoints.
    """
    import ray.data

    if (id_column is None) != (checkpoint is None):
        raise errors.UsageError("checkpoints need both a column of ids and a folder")
    # A batch a block: files may be long, and a block is one actor's, written and done when all of it is.
    answered = dataset.repartition(target_num_rows_per_block=batch_size).map_batches(
        Predictor,
        fn_constructor_kwargs={"model": model, "params": params, "threads": max(1, int(cpus)), **options},
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=cpus,
        batch_size=batch_size,
    )
    if id_column is not None and checkpoint is not None:
        answered.context.checkpoint_config = _checkpoints(dataset, id_column, checkpoint)
    return answered


def _checkpoints(dataset: Any, id_column: str, folder: str) -> Any:
    """Ray Data's checkpoints by a column of ids, for a data set."""
    try:
        from ray.data.checkpoint import CheckpointConfig
    except ImportError:
        raise errors.Unsupported("this Ray Data has no checkpoints; 2.51 and later have") from None
    # What is done is left out behind what reads. Where nothing does, Ray would warn, and compute all of it again.
    if any(type(source).__name__.startswith(("From", "InputData")) for source in _sources(dataset)):
        raise errors.UsageError("checkpoints need a data set that is read from files, not one that is in memory")
    columns = dataset.columns(fetch_if_missing=False)
    if columns is not None and id_column not in columns:
        raise errors.UsageError(f"the data set has no column {id_column!r}, but {', '.join(columns)}")
    path = folder if "://" in folder else os.path.abspath(folder)
    return CheckpointConfig(id_column, path, delete_checkpoint_on_success=False)


def _sources(dataset: Any) -> List[Any]:
    """What a data set comes from, where this Ray Data tells it."""
    try:
        return list(dataset._logical_plan.sources())
    except AttributeError:
        return []
