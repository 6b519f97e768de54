"""How tokens are chosen, and what a text has to be."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, Dict, Mapping, Optional, Sequence, Union

__all__ = ["SamplingParams"]

# Names of the fields of requests, where they are others.
_NAMES = {"regex": "guided_regex"}


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and where a text ends. What is None is the model's default: that of `wayinfer serve`.

    The same model, prompt, parameters and seed give the same text on every CPU, with any number of threads, alone or
    among other prompts.
    """

    max_tokens: Optional[int] = None
    """Tokens to make at most; None: until the model ends or the context is full."""
    temperature: Optional[float] = None
    """0 takes the most probable token always [default: 0.7]."""
    top_k: Optional[int] = None
    """Choose among so many of the most probable tokens; 0: all [default: 40]."""
    top_p: Optional[float] = None
    """Choose among the fewest tokens that together reach this probability [default: 0.95]."""
    min_p: Optional[float] = None
    """Choose among tokens at least this fraction as probable as the best [default: 0.05]."""
    seed: Optional[int] = None
    """Of the random numbers; None: another one each time, which `Output.seed` tells. The answers of `n` have seeds one
    after another."""
    n: int = 1
    """Answers to each prompt, at most 128."""
    stop: Union[str, Sequence[str], None] = None
    """The text ends before any of these."""
    repeat_penalty: Optional[float] = None
    """Make tokens of the last `repeat_last_n` less probable; 1: do not [default: 1]."""
    repeat_last_n: Optional[int] = None
    """[default: 64]"""
    presence_penalty: Optional[float] = None
    """Taken from the logit of a token that the answer has already [default: 0]."""
    frequency_penalty: Optional[float] = None
    """The same, for each time that it has it [default: 0]."""
    logit_bias: Optional[Mapping[int, float]] = None
    """Added to the logits of tokens, by their ids."""
    logprobs: Optional[int] = None
    """Tell the logarithm of the probability of each token, and of so many of the most probable ones (at most 20)."""
    grammar: Optional[str] = None
    """The text obeys this grammar: GBNF, or Lark as llguidance has it."""
    json_schema: Optional[Mapping[str, Any]] = None
    """The text is JSON of this schema."""
    regex: Optional[str] = None
    """The text matches this regular expression."""

    def fields(self) -> Dict[str, Any]:
        """The fields of a request to the server."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given = {_NAMES.get(name, name): value for name, value in given.items() if value is not None}
        if self.stop is not None and not isinstance(self.stop, str):
            given["stop"] = list(self.stop)
        if self.logit_bias is not None:
            given["logit_bias"] = {str(token): value for token, value in self.logit_bias.items()}
        return given


def as_json(fields: Mapping[str, Any]) -> bytes:
    """The body of a request."""
    return json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogatepass")
