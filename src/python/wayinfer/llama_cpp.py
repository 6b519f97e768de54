"""The names of llama-cpp-python, for scripts that move over by an import:

    from wayinfer.llama_cpp import Llama

Answers are WayInfer's: the same on every CPU, with any number of threads. What would change an answer and cannot be
done here is refused by name (`wayinfer.Unsupported`); what changes none (n_batch, use_mmap, flash_attn, ..) is not
looked at.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from . import errors
from ._calls import Stream
from .model import Model
from .sampling import SamplingParams
from .session import Session

__all__ = ["Llama", "LlamaGrammar", "LlamaState"]

Chunk = Dict[str, Any]
Stop = Union[str, List[str], None]

# The seed that means another one each time.
_RANDOM = 0xFFFFFFFF

# ggml's numbers of the types of keys and values.
_KV = {0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 20: "iq4_nl", 30: "bf16"}

_TEMPLATES = {"llama-2": "llama2", "llama-3": "llama3"}

# Arguments of the constructor that change no answer.
_IGNORED = frozenset(
    "n_batch n_ubatch n_threads_batch use_mmap use_mlock numa logits_all offload_kqv flash_attn op_offload swa_full "
    "split_mode main_gpu tensor_split no_perf check_tensors".split()
)

# Those that do, and the values that leave it as it is.
_NEUTRAL: Dict[str, Tuple[Any, ...]] = {
    "vocab_only": (False,),
    "embedding": (False,),
    "kv_overrides": (None,),
    "lora_base": (None,),
    "lora_path": (None,),
    "lora_scale": (None, 1.0),
    "rope_scaling_type": (None, -1),
    "pooling_type": (None, -1),
    "rope_freq_base": (None, 0.0),
    "rope_freq_scale": (None, 0.0),
    "yarn_ext_factor": (None, -1.0),
    "yarn_attn_factor": (None, 1.0),
    "yarn_beta_fast": (None, 32.0),
    "yarn_beta_slow": (None, 1.0),
    "yarn_orig_ctx": (None, 0),
    "chat_handler": (None,),
    "draft_model": (None,),
    "tokenizer": (None,),
    "spm_infill": (False,),
    # Of calls.
    "suffix": (None, ""),
    "typical_p": (None, 1.0),
    "tfs_z": (None, 1.0),
    "mirostat_mode": (None, 0),
    "stopping_criteria": (None,),
    "logits_processor": (None,),
    "functions": (None, []),
    "function_call": (None,),
}

# These say nothing where their mode is off.
_WITH_MODE = frozenset(["mirostat_tau", "mirostat_eta", "model", "penalize_nl"])


def _refuse(given: Mapping[str, Any], ignored: frozenset[str] = _WITH_MODE) -> None:
    """Refuses what would change an answer, and what nobody knows."""
    for name, value in given.items():
        if name in ignored:
            continue
        if name not in _NEUTRAL:
            raise TypeError(f"{name} is not known")
        if value not in _NEUTRAL[name]:
            raise errors.Unsupported(f"{name}={value!r} would change the answer, and is not supported")


class LlamaGrammar:
    """A grammar that an answer obeys: GBNF, or Lark as llguidance has it."""

    def __init__(self, text: Optional[str] = None, json_schema: Any = None) -> None:
        self.text = text
        self.json_schema = json_schema

    @classmethod
    def from_string(cls, grammar: str, verbose: bool = True) -> LlamaGrammar:
        return cls(grammar)

    @classmethod
    def from_file(cls, file: Union[str, Path], verbose: bool = True) -> LlamaGrammar:
        return cls(Path(file).read_text(encoding="utf-8"))

    @classmethod
    def from_json_schema(cls, json_schema: str, verbose: bool = True) -> LlamaGrammar:
        return cls(json_schema=json.loads(json_schema))


@dataclass(frozen=True)
class LlamaState:
    """Where a text stands: see `Llama.save_state`."""

    session: Session


def _fields(
    given: Mapping[str, Any], grammar: Optional[LlamaGrammar], seed: Optional[int], max_tokens: Optional[int]
) -> Dict[str, Any]:
    """The fields of a request; what is None is left out."""
    fields = {name: value for name, value in given.items() if value is not None}
    if max_tokens is not None and max_tokens > 0:
        fields["max_tokens"] = max_tokens
    if seed is not None and seed not in (_RANDOM, -1):
        fields["seed"] = seed
    if grammar is not None:
        text = {"grammar": grammar.text} if grammar.text is not None else {"json_schema": grammar.json_schema}
        fields.update(text)
    return fields


def _plain(answer: Dict[str, Any]) -> Chunk:
    """An answer without what llama-cpp-python does not have."""
    return {name: value for name, value in answer.items() if name != "wayinfer"}


class Llama:
    """A model, as llama-cpp-python has it. `model` is the `wayinfer.Model` behind it."""

    def __init__(
        self,
        model_path: str,
        *,
        n_gpu_layers: int = 0,
        seed: int = _RANDOM,
        n_ctx: int = 512,
        n_threads: Optional[int] = None,
        last_n_tokens_size: int = 64,
        type_k: Optional[int] = None,
        type_v: Optional[int] = None,
        chat_format: Optional[str] = None,
        verbose: bool = True,
        **more: Any,
    ) -> None:
        """n_ctx: tokens of a text, 0: as the model was trained. n_gpu_layers: 0: no graphics card takes part. seed:
        of all texts that have none of their own. chat_format: a chat template that WayInfer knows, in place of the
        model's own. type_k, type_v: ggml's numbers of types. `ram` and the other options of `wayinfer.Model` are
        taken as well."""
        own = {name: more.pop(name) for name in list(more) if name in _OWN}
        _refuse(more, _IGNORED)
        kinds = [_kv_type(name, number) for name, number in (("type_k", type_k), ("type_v", type_v))]
        if n_ctx == 0:
            with Model(model_path, **{**own, "gpu": "off", "context": 1}) as headers:
                n_ctx = headers.facts["trained_context"]
        self.model = Model(
            model_path,
            context=n_ctx,
            threads=n_threads or None,
            gpu="off" if n_gpu_layers == 0 else "auto",
            kv_k=kinds[0],
            kv_v=kinds[1],
            template=None if chat_format is None else _TEMPLATES.get(chat_format, chat_format),
            **own,
        )
        self.model_path = model_path
        self.verbose = verbose
        self._seed = seed
        self._last_n = last_n_tokens_size
        self._session: Optional[Session] = None

    @classmethod
    def from_pretrained(cls, repo_id: str, filename: Optional[str], **more: Any) -> Llama:
        """A model of the hub, fetched where it is not in the cache. `filename` is a file's name, or `*QUANT.gguf`."""
        for name in ("additional_files", "local_dir", "cache_dir"):
            if more.pop(name, None) is not None:
                raise errors.Unsupported(f"{name} is not supported: HF_HUB_CACHE names the folder of the hub's cache")
        for name in ("local_dir_use_symlinks",):
            more.pop(name, None)
        return cls(model_path=_hub_name(repo_id, filename), **more)

    def close(self) -> None:
        """Frees the memory."""
        self.model.close()

    # Texts

    def create_completion(
        self,
        prompt: Union[str, List[int]],
        *,
        max_tokens: Optional[int] = 16,
        temperature: float = 0.8,
        top_p: float = 0.95,
        min_p: float = 0.05,
        logprobs: Optional[int] = None,
        echo: bool = False,
        stop: Stop = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        top_k: int = 40,
        stream: bool = False,
        seed: Optional[int] = None,
        grammar: Optional[LlamaGrammar] = None,
        logit_bias: Optional[Mapping[int, float]] = None,
        **more: Any,
    ) -> Any:
        """Continues a text; the answer is OpenAI's object, or its chunks. max_tokens of 0 or None: as many as fit."""
        _refuse(more)
        given = self._sampling(
            temperature, top_p, min_p, top_k, frequency_penalty, presence_penalty, repeat_penalty, logit_bias, stop
        )
        given.update(prompt=prompt, logprobs=logprobs, echo=echo)
        fields = _fields(given, grammar, self._seed if seed is None else seed, max_tokens)
        return self._answer("/v1/completions", fields, stream)

    def __call__(self, prompt: str, **more: Any) -> Any:
        """As `create_completion`."""
        return self.create_completion(prompt, **more)

    def create_chat_completion(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Optional[Sequence[Mapping[str, Any]]] = None,
        tool_choice: Union[str, Mapping[str, Any], None] = None,
        temperature: float = 0.2,
        top_p: float = 0.95,
        top_k: int = 40,
        min_p: float = 0.05,
        stream: bool = False,
        stop: Stop = None,
        seed: Optional[int] = None,
        response_format: Optional[Mapping[str, Any]] = None,
        max_tokens: Optional[int] = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repeat_penalty: float = 1.0,
        grammar: Optional[LlamaGrammar] = None,
        logit_bias: Optional[Mapping[int, float]] = None,
        logprobs: Optional[bool] = None,
        top_logprobs: Optional[int] = None,
        **more: Any,
    ) -> Any:
        """Answers a conversation; the answer is OpenAI's object, or its chunks."""
        _refuse(more)
        given = self._sampling(
            temperature, top_p, min_p, top_k, frequency_penalty, presence_penalty, repeat_penalty, logit_bias, stop
        )
        given.update(messages=list(messages), tools=tools, tool_choice=tool_choice, response_format=response_format)
        given.update(logprobs=logprobs, top_logprobs=top_logprobs)
        fields = _fields(given, grammar, self._seed if seed is None else seed, max_tokens)
        return self._answer("/v1/chat/completions", fields, stream)

    def _sampling(
        self,
        temperature: float,
        top_p: float,
        min_p: float,
        top_k: int,
        frequency_penalty: float,
        presence_penalty: float,
        repeat_penalty: float,
        logit_bias: Optional[Mapping[int, float]] = None,
        stop: Stop = None,
    ) -> Dict[str, Any]:
        return {
            "temperature": temperature,
            "top_p": top_p,
            "min_p": min_p,
            "top_k": top_k,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            "repeat_penalty": repeat_penalty,
            "repeat_last_n": self._last_n,
            "logit_bias": None if logit_bias is None else {str(token): bias for token, bias in logit_bias.items()},
            "stop": stop or None,
        }

    def _answer(self, path: str, fields: Dict[str, Any], stream: bool) -> Union[Chunk, Iterator[Chunk]]:
        if not stream:
            return _plain(self.model.request("POST", path, fields).json())
        call = self.model.request("POST", path, {**fields, "stream": True})
        return Stream(call, lambda event: [_plain(event)])

    def create_embedding(self, input: Any, model: Optional[str] = None) -> Any:
        """Not there: raises `Unsupported`."""
        raise errors.Unsupported("create_embedding is not supported: models make texts here")

    def embed(self, input: Any, normalize: bool = False, truncate: bool = True, return_count: bool = False) -> Any:
        """Not there: raises `Unsupported`."""
        raise errors.Unsupported("embed is not supported: models make texts here")

    # Tokens

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> List[int]:
        """The ids of the tokens of a text, which is UTF-8."""
        return self.model.tokenize(text.decode(), add_special=add_bos, parse_special=special)

    def detokenize(
        self, tokens: Sequence[int], prev_tokens: Optional[Sequence[int]] = None, special: bool = False
    ) -> bytes:
        """The bytes that tokens stand for."""
        return self.model._native.decode(list(tokens), special)

    def n_ctx(self) -> int:
        return self.model.context

    def n_vocab(self) -> int:
        return self.model.vocab

    def n_embd(self) -> int:
        return int(self.model.facts["embd"])

    def token_bos(self) -> int:
        """Its id, or -1."""
        return _token(self.model.facts["bos"])

    def token_eos(self) -> int:
        """Its id, or -1."""
        return _token(self.model.facts["eos"])

    @property
    def metadata(self) -> Dict[str, str]:
        """The file's metadata as texts, arrays left out."""
        metadata = self.model.inspect()["metadata"]
        return {key: _as_text(entry["value"]) for key, entry in metadata.items() if "value" in entry}

    # Token by token

    @property
    def _sequence(self) -> Session:
        if self._session is None:
            self._session = self.model.session()
        return self._session

    @property
    def n_tokens(self) -> int:
        """Tokens that were evaluated."""
        return len(self._sequence)

    def reset(self) -> None:
        """Begins another text."""
        self._sequence.rewind(0)

    def eval(self, tokens: Sequence[int]) -> None:
        """Runs tokens behind those that were."""
        self._sequence.append(tokens)

    def sample(
        self,
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        grammar: Optional[LlamaGrammar] = None,
        **more: Any,
    ) -> int:
        """Draws a token, which `eval` takes. With a seed, the same text draws the same token."""
        _refuse(more)
        params = self._params(
            top_k, top_p, min_p, temp, repeat_penalty, frequency_penalty, presence_penalty, grammar, self.n_tokens
        )
        return self._sequence.sample(params)

    def _params(
        self,
        top_k: int,
        top_p: float,
        min_p: float,
        temp: float,
        repeat_penalty: float,
        frequency_penalty: float,
        presence_penalty: float,
        grammar: Optional[LlamaGrammar],
        after: int,
    ) -> SamplingParams:
        return SamplingParams(
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            temperature=temp,
            repeat_penalty=repeat_penalty,
            repeat_last_n=self._last_n,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            grammar=None if grammar is None else grammar.text,
            json_schema=None if grammar is None else grammar.json_schema,
            seed=None if self._seed in (_RANDOM, -1) else self._seed + after,
        )

    def generate(
        self,
        tokens: Sequence[int],
        top_k: int = 40,
        top_p: float = 0.95,
        min_p: float = 0.05,
        temp: float = 0.80,
        repeat_penalty: float = 1.0,
        reset: bool = True,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        grammar: Optional[LlamaGrammar] = None,
        **more: Any,
    ) -> Iterator[int]:
        """The tokens that follow these, one after another, until the model ends or the context is full."""
        _refuse(more)
        tokens = list(tokens)
        if reset:
            self._sequence.rewind(_common(self._sequence.tokens, tokens))
            tokens = tokens[self.n_tokens :]
        self.eval(tokens)
        params = self._params(
            top_k, top_p, min_p, temp, repeat_penalty, frequency_penalty, presence_penalty, grammar, 0
        )
        pieces = self._sequence.generate(params, stream=True)
        return (piece.token for piece in pieces if piece.token is not None)

    def save_state(self) -> LlamaState:
        """Where the text stands that `eval` and `generate` work on."""
        return LlamaState(self._sequence.fork())

    def load_state(self, state: LlamaState) -> None:
        """Goes on from there."""
        self._session = state.session.fork()


_OWN = frozenset("ram vram parallel chunk cache cache_size pre isa guess_experts".split())


def _kv_type(name: str, number: Optional[int]) -> Optional[str]:
    if number is not None and number not in _KV:
        raise errors.Unsupported(f"{name}={number!r} is not supported: {sorted(_KV)} are")
    return None if number is None else _KV[number]


def _hub_name(repo: str, filename: Optional[str]) -> str:
    if filename is None:
        return f"hf:{repo}"
    if not any(c in filename for c in "*?["):
        return f"hf:{repo}/{filename}"
    found = re.fullmatch(r"\*[-._]?(\w+?)(\.gguf|\*\.gguf|\*)?", filename)
    if found is None:
        raise errors.UsageError(f"filename={filename!r}: a file's name or '*QUANT.gguf' is needed")
    return f"hf:{repo}:{found[1]}"


def _token(id: Optional[int]) -> int:
    return -1 if id is None else id


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both begin with; the last of `b` is left to be run."""
    pairs = zip(a, b[:-1])
    return next((at for at, (x, y) in enumerate(pairs) if x != y), min(len(a), max(len(b) - 1, 0)))
