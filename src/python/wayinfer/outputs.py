"""What comes of a prompt or a chat."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Union

__all__ = ["Answer", "Completion", "Output", "Perplexity", "Piece"]

Prompt = Union[str, Sequence[int]]


@dataclass(frozen=True)
class Completion:
    """A text that was made."""

    index: int
    text: str
    finish_reason: Optional[str]
    """`stop` (the model ended, or a text to stop at came), `length` or `tool_calls`."""
    logprobs: Optional[Dict[str, Any]] = None
    """As OpenAI's completions have them, where they were asked for."""


@dataclass(frozen=True)
class Output:
    """All that was made of a prompt."""

    prompt: Prompt
    outputs: List[Completion]
    seed: int
    """The seed of the first; those behind it have the ones after."""
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    """Tokens of the prompt that were remembered from another text."""

    @property
    def text(self) -> str:
        """The first text."""
        return self.outputs[0].text

    def __str__(self) -> str:
        return self.text

    @staticmethod
    def of(prompt: Prompt, raw: Dict[str, Any]) -> Output:
        outputs = [
            Completion(choice["index"], choice["text"], choice["finish_reason"], choice["logprobs"])
            for choice in raw["choices"]
        ]
        return Output(prompt, outputs, raw["wayinfer"]["seed"], **_usage(raw))


def _usage(raw: Dict[str, Any]) -> Dict[str, int]:
    usage = raw["usage"]
    return {
        "prompt_tokens": usage["prompt_tokens"],
        "completion_tokens": usage["completion_tokens"],
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
    }


@dataclass(frozen=True)
class Answer:
    """The answer to a chat."""

    message: Dict[str, Any]
    """To be appended to the messages, for the next question."""
    finish_reason: Optional[str]
    seed: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    raw: Dict[str, Any]
    """As OpenAI's chats have it, with all choices."""

    @property
    def text(self) -> str:
        """What it says; empty where it calls tools alone."""
        return self.message.get("content") or ""

    @property
    def reasoning(self) -> str:
        """What the model thought before."""
        return self.message.get("reasoning_content") or ""

    @property
    def tool_calls(self) -> List[Dict[str, Any]]:
        """Functions that are called: `id`, and `function` with `name` and `arguments`, the text of an object."""
        return list(self.message.get("tool_calls") or [])

    def __str__(self) -> str:
        return self.text

    @staticmethod
    def of(raw: Dict[str, Any]) -> Answer:
        choice = raw["choices"][0]
        return Answer(choice["message"], choice["finish_reason"], raw["wayinfer"]["seed"], raw=raw, **_usage(raw))


@dataclass(frozen=True)
class Piece:
    """More of a text. The last piece of each text says why it ended."""

    text: str = ""
    index: int = 0
    """Of which text: with `n` answers to each prompt, prompt `index // n`."""
    finish_reason: Optional[str] = None
    reasoning: str = ""
    tool_calls: List[Dict[str, Any]] = field(default_factory=list)
    """Parts of calls, as OpenAI's streams have them."""
    token: Optional[int] = None
    """The token that it came with; sessions alone tell."""

    def __str__(self) -> str:
        return self.text

    @staticmethod
    def of(choice: Dict[str, Any]) -> Piece:
        """Of a choice of a stream's chunk: a text's, or a chat's."""
        delta = choice.get("delta") or choice
        text = delta.get("content") or delta.get("text") or ""
        return Piece(
            text,
            choice["index"],
            choice["finish_reason"],
            delta.get("reasoning_content") or "",
            delta.get("tool_calls") or [],
        )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is new."""
        return not (self.text or self.reasoning or self.tool_calls or self.finish_reason)


@dataclass(frozen=True)
class Perplexity:
    """How well a model foretells a text."""

    value: float
    """exp of the mean negative logarithm of the probability of the tokens that are scored."""
    error: float
    """Its standard error."""
    tokens: int
    """Tokens that are scored."""
    windows: int

    def __float__(self) -> float:
        return self.value
