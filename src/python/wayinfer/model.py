"""A model."""

from __future__ import annotations

import atexit
import json
import os
import time
import weakref
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    Literal,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
    cast,
    overload,
)

from . import _aio, _arrays, _native, _program, errors
from ._calls import Call, Many, Stream
from .outputs import Answer, Output, Perplexity, Piece, Prompt
from .sampling import SamplingParams, as_json
from .session import Session
from .stage import Stage

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Model"]

Size = Union[int, str]
Messages = Sequence[Mapping[str, Any]]
Prompts = Union[str, Sequence[int], Sequence[str], Sequence[Sequence[int]]]
Params = Union[SamplingParams, Sequence[SamplingParams]]

# Requests that the model runs at a time where nobody says, as `wayinfer serve` has it.
_PARALLEL = 4

# Seconds that threads which wait for a model have to come back.
_LONGEST_END = 2

_open: weakref.WeakSet[Model] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Threads that wait for a model come back before the interpreter goes."""
    models = [model for model in _open if model._process == os.getpid()]
    if not models:
        return
    for model in models:
        model.close()
    deadline = time.monotonic() + _LONGEST_END
    while _native.waiting() > 0 and time.monotonic() < deadline:
        time.sleep(0.001)


class Model:
    """A GGUF model that is ready to run.

    `path` is a file (of a split model any one), `hf:USER/REPO[:QUANT]` for a model of the hub, which is fetched where
    it is not in the cache, or `demo` for the small model that is part of WayInfer. Options have the names and the
    meaning of those of `wayinfer serve`; sizes are bytes, or texts as "8G" and "800M". What the environment and files
    of settings say is not looked at.

    ram: memory that the model may take in all [default: what is available]; one that does not fit is streamed.
    context: tokens of a text, prompt included [default: the model's, at most 8192].
    kv, kv_k, kv_v: type of the KV cache: f32, f16, bf16, q8_0, ..
    threads: worker threads [default: what is best on this machine].
    parallel: texts that are made at a time, and as many of sessions [default: 4]; memory for so many contexts is set
        aside, which all texts share that are made or kept.
    chunk: tokens of prompts in a pass.
    gpu, vram: graphics card that takes part of the model (auto, off or a number), and the memory that it may take.
    cache, cache_size: folder in which beginnings of texts are kept, and what it may hold.
    template: chat template instead of the model's own: a file, or a name that WayInfer knows.
    pre: pre-tokenizer instead of the one that the file names.
    isa: kernel set; guess_experts: on, off or auto. Neither changes any result.
    verbose: tell how it goes on stderr.

    It may be used by several threads at once. Leaving a `with` block, or `close`, frees it. It does not survive a fork
    of the process.

    Raises `FileError`, `UsageError`, `OutOfMemory` or `Unsupported`, in the words of the command line.
    """

    def __init__(
        self,
        path: Union[str, os.PathLike[str]] = "demo",
        *,
        ram: Optional[Size] = None,
        context: Optional[int] = None,
        kv: Optional[str] = None,
        kv_k: Optional[str] = None,
        kv_v: Optional[str] = None,
        threads: Optional[int] = None,
        parallel: Optional[int] = None,
        chunk: Optional[int] = None,
        gpu: Union[int, str, None] = None,
        vram: Optional[Size] = None,
        cache: Union[str, os.PathLike[str], None] = None,
        cache_size: Optional[Size] = None,
        template: Optional[str] = None,
        pre: Optional[str] = None,
        isa: Optional[str] = None,
        guess_experts: Optional[str] = None,
        verbose: bool = False,
    ) -> None:
        path = os.fspath(path)
        given = {
            "ram": ram,
            "ctx": context,
            "kv": kv,
            "kv-k": kv_k,
            "kv-v": kv_v,
            "threads": threads,
            "parallel": parallel,
            "chunk": chunk,
            "gpu": gpu,
            "vram": vram,
            "cache": None if cache is None else os.fspath(cache),
            "cache-size": cache_size,
            "template": template,
            "pre": pre,
            "isa": isa,
            "guess-experts": guess_experts,
        }
        options = [(name, str(value)) for name, value in given.items() if value is not None]
        if path.startswith("hf:") and not os.path.isfile(path):
            _program.fetch(path, verbose)
        self._process = os.getpid()
        self._closed = False
        self._ahead = 4 * (parallel or _PARALLEL)
        self._model = _native.Model(path, options, verbose, _program.program())
        self._facts: Dict[str, Any] = json.loads(self._model.facts())
        self._tensors: Optional[Dict[str, Any]] = None
        _open.add(self)

    @property
    def _native(self) -> _native.Model:
        if os.getpid() != self._process:
            raise errors.UsageError("a model does not survive a fork of the process: open it in each")
        if self._closed:
            raise errors.UsageError("the model has been closed")
        return self._model

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<wayinfer.Model {self.name!r}>"

    def close(self) -> None:
        """Ends all that is under way, and frees the memory. Sessions end with it."""
        _open.discard(self)
        self._closed = True
        if os.getpid() == self._process:
            self._model.close()

    @property
    def name(self) -> str:
        """Its file's name without the ending."""
        return str(self._facts["name"])

    @property
    def context(self) -> int:
        """Tokens of a text, prompt included."""
        return int(self._facts["context"])

    @property
    def vocab(self) -> int:
        """Tokens of the vocabulary."""
        return int(self._facts["vocab"])

    @property
    def facts(self) -> Dict[str, Any]:
        """What is known of it: name, architecture, parameters, quantization, file_bytes, context, trained_context,
        vocab, embd, bos and eos (ids), adds_bos, ends (the ids that end a text), template."""
        return dict(self._facts)

    # Texts

    @overload
    def generate(  # type: ignore[overload-overlap]  # a text is a sequence of texts, too
        self,
        prompts: Union[str, Sequence[int]],
        params: Optional[SamplingParams] = None,
        *,
        stream: Literal[False] = False,
    ) -> Output: ...

    @overload
    def generate(
        self,
        prompts: Union[Sequence[str], Sequence[Sequence[int]]],
        params: Optional[Params] = None,
        *,
        stream: Literal[False] = False,
    ) -> List[Output]: ...

    @overload
    def generate(
        self, prompts: Prompts, params: Optional[SamplingParams] = None, *, stream: Literal[True]
    ) -> Stream[Piece]: ...

    def generate(
        self, prompts: Prompts, params: Optional[Params] = None, *, stream: bool = False
    ) -> Union[Output, List[Output], Stream[Piece]]:
        """Continues a prompt, or each of several; as many at a time as `parallel` says, in any number.

        A prompt is a text or the ids of its tokens. A text gets the tokens that the model begins texts with, and marks
        of control tokens in it are such; `chat` is for what strangers write. Of several prompts each may have
        parameters of its own. With `stream` the texts come in pieces (of 128 texts at most); closing the stream ends
        them.

            output = model.generate("Once upon a time", SamplingParams(max_tokens=60, seed=1))
            for piece in model.generate("Once upon a time", stream=True):
                print(piece.text, end="", flush=True)

        Raises `UsageError` for what makes no sense, `ContextFull` where a prompt does not fit, `KeyboardInterrupt` on
        Ctrl-C: what is under way ends then.
        """
        if stream:
            fields = {"prompt": prompts, "stream": True, **_one(params).fields()}
            return Stream(self._ask("/v1/completions", fields), _pieces)
        if _is_one(prompts):
            call = self._ask("/v1/completions", {"prompt": prompts, **_one(params).fields()})
            return Output.of(cast(Prompt, prompts), call.json())
        return list(self._outputs(cast(Sequence[Prompt], prompts), params))

    def _many(self, prompts: Sequence[Prompt], params: Optional[Params]) -> Many[Prompt]:
        each = [_one(params)] * len(prompts) if params is None or isinstance(params, SamplingParams) else list(params)
        if len(each) != len(prompts):
            raise errors.UsageError(f"{len(each)} parameters for {len(prompts)} prompts")

        def ask(prompt: Prompt, params: SamplingParams) -> Callable[[], Call]:
            return lambda: self._ask("/v1/completions", {"prompt": prompt, **params.fields()})

        return Many(((prompt, ask(prompt, params)) for prompt, params in zip(prompts, each)), self._ahead)

    def _outputs(self, prompts: Sequence[Prompt], params: Optional[Params]) -> Iterator[Output]:
        return (Output.of(prompt, raw) for prompt, raw in self._many(prompts, params))

    @overload
    async def agenerate(  # type: ignore[overload-overlap]
        self, prompts: Union[str, Sequence[int]], params: Optional[SamplingParams] = None
    ) -> Output: ...

    @overload
    async def agenerate(
        self, prompts: Union[Sequence[str], Sequence[Sequence[int]]], params: Optional[Params] = None
    ) -> List[Output]: ...

    async def agenerate(
        self, prompts: Prompts, params: Optional[Params] = None
    ) -> Union[Output, List[Output]]:
        """The same for asyncio; cancelled, what is under way ends. As many may be awaited at a time as there are."""
        one = _is_one(prompts)
        all_prompts = [cast(Prompt, prompts)] if one else cast(Sequence[Prompt], prompts)

        def start() -> Tuple[Iterable[Output], Callable[[], None]]:
            many = self._many(all_prompts, params)
            return (Output.of(prompt, raw) for prompt, raw in many), many.close

        outputs = [output async for output in _aio.iterate(start)]
        return outputs[0] if one else outputs

    def astream(self, prompts: Prompts, params: Optional[SamplingParams] = None) -> AsyncIterator[Piece]:
        """The texts in pieces, for asyncio: `async for piece in model.astream(..)`."""
        return _stream(lambda: self.generate(prompts, params, stream=True))

    # Chats

    def _chat(
        self,
        messages: Messages,
        params: Optional[SamplingParams],
        tools: Optional[Sequence[Mapping[str, Any]]],
        tool_choice: Union[str, Mapping[str, Any], None],
        response_format: Optional[Mapping[str, Any]],
        more: Mapping[str, Any],
    ) -> Dict[str, Any]:
        fields = {"messages": list(messages), **_one(params).fields(), **more}
        if (logprobs := fields.pop("logprobs", None)) is not None:
            fields.update(logprobs=True, top_logprobs=logprobs)
        given = {"tools": tools, "tool_choice": tool_choice, "response_format": response_format}
        fields.update({name: value for name, value in given.items() if value is not None})
        return fields

    @overload
    def chat(
        self,
        messages: Messages,
        params: Optional[SamplingParams] = None,
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        tool_choice: Union[str, Mapping[str, Any], None] = None,
        response_format: Optional[Mapping[str, Any]] = None,
        stream: Literal[False] = False,
        **more: Any,
    ) -> Answer: ...

    @overload
    def chat(
        self,
        messages: Messages,
        params: Optional[SamplingParams] = None,
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        tool_choice: Union[str, Mapping[str, Any], None] = None,
        response_format: Optional[Mapping[str, Any]] = None,
        stream: Literal[True],
        **more: Any,
    ) -> Stream[Piece]: ...

    def chat(
        self,
        messages: Messages,
        params: Optional[SamplingParams] = None,
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        tool_choice: Union[str, Mapping[str, Any], None] = None,
        response_format: Optional[Mapping[str, Any]] = None,
        stream: bool = False,
        **more: Any,
    ) -> Union[Answer, Stream[Piece]]:
        """Answers a conversation in the model's own chat template, which runs in a confined process. Nothing that a
        message says becomes a control token.

        All is as OpenAI's chats have it: `messages` with roles and contents, `tools` that may be called and whether one
        has to be (`tool_choice`), what the answer has to be (`response_format`: a JSON object, or one of a schema), and
        `more` of the server's fields: chat_template_kwargs, reasoning_effort, parallel_tool_calls,
        continue_final_message. With `stream` the answer comes in pieces.

            answer = model.chat([{"role": "user", "content": "What is 2+2?"}])
            print(answer.text)

        Raises as `generate` does, and `Unsupported` where the model has no chat template.
        """
        fields = self._chat(messages, params, tools, tool_choice, response_format, more)
        if stream:
            return Stream(self._ask("/v1/chat/completions", {**fields, "stream": True}), _pieces)
        return Answer.of(self._ask("/v1/chat/completions", fields).json())

    async def achat(
        self,
        messages: Messages,
        params: Optional[SamplingParams] = None,
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        tool_choice: Union[str, Mapping[str, Any], None] = None,
        response_format: Optional[Mapping[str, Any]] = None,
        **more: Any,
    ) -> Answer:
        """The same for asyncio; cancelled, the answer ends."""
        fields = self._chat(messages, params, tools, tool_choice, response_format, more)

        def start() -> Tuple[Iterable[Answer], Callable[[], None]]:
            call = self._ask("/v1/chat/completions", fields)
            return (Answer.of(call.json()) for _ in range(1)), call.close

        return [answer async for answer in _aio.iterate(start)][0]

    def achat_stream(
        self,
        messages: Messages,
        params: Optional[SamplingParams] = None,
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        tool_choice: Union[str, Mapping[str, Any], None] = None,
        response_format: Optional[Mapping[str, Any]] = None,
        **more: Any,
    ) -> AsyncIterator[Piece]:
        """The answer in pieces, for asyncio: `async for piece in model.achat_stream(..)`."""
        fields = {**self._chat(messages, params, tools, tool_choice, response_format, more), "stream": True}
        return _stream(lambda: Stream(self._ask("/v1/chat/completions", fields), _pieces))

    # Requests

    def _ask(self, path: str, fields: Mapping[str, Any]) -> Call:
        try:
            body = as_json(fields)
        except (TypeError, ValueError) as error:
            raise errors.UsageError(f"no JSON: {error}") from error
        return Call(self._native.request("POST", path, body))

    def request(self, method: str, path: str, body: Union[bytes, Mapping[str, Any]] = b"") -> Call:
        """Asks as a client of `wayinfer serve` does, in any of its dialects, without a socket: a path of the server,
        and a body of bytes or an object. Waits for nothing; the call has the status, and the body as it comes.

            model.request("POST", "/v1/messages", {"messages": [..], "max_tokens": 9}).json()
        """
        return Call(self._native.request(method, path, body if isinstance(body, bytes) else as_json(body)))

    # Tokens, logits, sessions, stages

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> List[int]:
        """The ids of a text's tokens: with those that the model begins and ends texts with (`add_special`), and with
        marks of control tokens as such (`parse_special`)."""
        return self._native.encode(text, add_special, parse_special)

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """The text that tokens stand for; that of control tokens where `special` is set."""
        return self._native.decode(list(tokens), special).decode("utf-8", "replace")

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        """The logits behind each of the tokens: float32, shape [tokens, vocabulary]. Needs NumPy.

        Raises `ContextFull` where there are too many, `OutOfMemory` where there is no room for the array.
        """
        return _arrays.floats(self._native.logits(list(tokens)), [len(tokens), self.vocab])

    def perplexity(
        self, text: str, *, window: int = 512, stride: Optional[int] = None, special: bool = False
    ) -> Perplexity:
        """How well the model foretells a text, in windows of so many tokens of which the second half is scored: as
        `wayinfer perplexity` and llama-perplexity compute it. With a stride, windows begin every so many tokens.

        Raises `UsageError` where the text has fewer tokens than two windows, `ContextFull` where a window does not fit.
        """
        return Perplexity(*self._native.perplexity(text, window, stride, special))

    def session(self) -> Session:
        """A sequence of its own, empty: to be appended to, forked, saved."""
        return Session(self, self._native.session())

    def load_session(self, folder: Union[str, os.PathLike[str]]) -> Session:
        """A session that was saved to a folder. What is missing or damaged there is computed anew.

        Raises `FileError` where the folder holds none, or one of another model.
        """
        return Session(self, self._native.load_session(folder))

    @staticmethod
    def stage(
        path: Union[str, os.PathLike[str]], layers: Optional[Tuple[int, int]] = None, **options: Any
    ) -> Stage:
        """A part of a model's layers, for whoever carries rows from one machine to the next by MPI, gloo or sockets: the
        first layer and the one behind the last. Nothing but these layers is opened; `wayinfer.stage.costs` says where a
        model can be cut. `options` and errors are those of `wayinfer.stage.Stage`.

            first = wayinfer.Model.stage("model.gguf", (0, 16), threads=8)
        """
        return Stage(path, layers, **options)

    # The file

    def inspect(self, *, arrays: bool = False) -> Dict[str, Any]:
        """What the file holds: `files`, `summary`, `metadata`, `tensors`, `totals`, as `wayinfer inspect --json` has
        it; with the elements of the metadata's arrays where they are wanted."""
        told: Dict[str, Any] = json.loads(self._native.inspect(arrays))
        return told

    def tensor(self, name: str) -> npt.NDArray[Any]:
        """A tensor's values, the slowest-moving size first: [rows, columns], of experts [experts, rows, columns].
        Needs NumPy.

        Of F32, F16, F64 and integers it is a read-only view of the mapped file, which is copied nowhere; of all other
        types, and of a model that is in no file, a float32 array of its own.

        Raises `FileError` where the file has changed, `UsageError` where there is no such tensor, `Unsupported` where
        its type cannot be computed with.
        """
        if self._tensors is None:
            self._tensors = self.inspect()
        files = self._tensors["files"]
        found = next((tensor for tensor in self._tensors["tensors"] if tensor["name"] == name), None)
        if found is not None and found["type"] in _arrays.PLAIN and os.path.isfile(files[found["file"]]["path"]):
            return _arrays.mapped(found, files[found["file"]])
        values = self._native.values(name)
        return _arrays.floats(values, list(reversed(found["shape"])) if found else [-1])


def _is_one(prompts: Prompts) -> bool:
    """Whether it is one prompt: a text, or ids."""
    return isinstance(prompts, str) or (len(prompts) > 0 and all(isinstance(part, int) for part in prompts))


def _one(params: Optional[Params]) -> SamplingParams:
    if params is not None and not isinstance(params, SamplingParams):
        raise errors.UsageError("several parameters are for several prompts")
    return params or SamplingParams()


def _pieces(event: Dict[str, Any]) -> Iterator[Piece]:
    return (piece for piece in map(Piece.of, event["choices"]) if not piece.is_empty)


def _stream(begin: Callable[[], Stream[Piece]]) -> AsyncIterator[Piece]:
    def start() -> Tuple[Iterable[Piece], Callable[[], None]]:
        stream = begin()
        return stream, stream.close

    return _aio.iterate(start)
