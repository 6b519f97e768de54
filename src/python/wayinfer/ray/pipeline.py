"""A model whose layers are shared out among machines: a stage each, as actors of Ray, rows from one to the next.

Several micro-batches of sequences are under way at once, so that all stages have something to do. What a stage knows of
a sequence follows from its tokens: where a stage dies it is started again, and the sequences are run anew from their
tokens. The texts are those of one machine, with and without that.
"""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import ray
import ray.exceptions

from .. import errors
from ..sampling import SamplingParams
from ..stage import Costs, Part, Stage, check_stages, costs
from . import plan as plans
from .plan import Plan, Size
from .wire import pack, unpack

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Pipeline", "Text"]

Prompt = Union[str, Sequence[int]]

# What Ray raises where a process or a machine has gone. The rest is an error of ours, and no other try helps.
_LOST = tuple(
    getattr(ray.exceptions, name)
    for name in ("RayActorError", "ObjectLostError", "WorkerCrashedError", "NodeDiedError", "OwnerDiedError")
    if hasattr(ray.exceptions, name)
)

# Fields of SamplingParams that options of a stage's sampler stand for.
_SAMPLED = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_SAMPLED.update({"repeat_penalty": "repeat_penalty"})


@dataclass(frozen=True)
class Text:
    """What was made of a prompt."""

    text: str
    tokens: List[int]
    finish_reason: str
    """`stop` (the model ended) or `length`."""
    seed: int
    prompt_tokens: int

    def __str__(self) -> str:
        return self.text


class StageActor:
    """A stage, as an actor. What it is sent and what it gives are `bytes` that are never unpickled."""

    def __init__(self, model: str, layers: Tuple[int, int], options: Dict[str, Any]) -> None:
        self._stage = Stage(model, layers, **options)

    def hello(self) -> bytes:
        """What is known of the stage, and the node of the cluster that it is on."""
        return pack({**self._stage.facts, "node": ray.get_runtime_context().get_node_id()})

    def forget(self) -> None:
        """Frees all sequences."""
        self._stage.forget()

    def encode(self, message: bytes) -> bytes:
        """The ids of texts' tokens."""
        said, _ = unpack(message)
        return pack({"tokens": [self._stage.encode(str(text)) for text in said["texts"]]})

    def decode(self, message: bytes) -> bytes:
        """The texts of tokens that go on from others."""
        said, _ = unpack(message)
        return pack({"texts": [self._stage.decode(tokens, begins=False) for tokens in said["tokens"]]})

    def feed(self, message: bytes) -> bytes:
        """Runs a pass: a message for the next stage, or what the last one has drawn."""
        said, rows = unpack(message)
        if said["id"] != self._stage.id:
            raise errors.UsageError("a stage of another model, of other settings or of another build has sent this")
        if said["forget"]:
            self._stage.forget(said["forget"])
        began = time.perf_counter()
        rows = self._stage.feed([Part(*part) for part in said["parts"]], rows)
        if not self._stage.is_last:
            said["took"].append(time.perf_counter() - began)
            return pack(said, rows)
        for number, sampler in said["samplers"]:
            self._stage.sampler(number, **sampler)
        drawn = [[number, *self._stage.draw(number)] for number in said["draw"]]
        said["took"].append(time.perf_counter() - began)
        logits = b"".join(self._stage.logits(number).tobytes() for number in said["logits"])
        return pack({"drawn": drawn, "took": said["took"]}, logits)


@dataclass
class _Job:
    """A sequence under way."""

    prompt: List[int]
    options: Dict[str, Any]
    max_tokens: int
    seed: int
    number: int = 0
    """By which stages know it; another one after each replay."""
    answer: List[int] = field(default_factory=list)
    past: int = 0
    """Tokens that the stages have run."""
    position: int = 0
    """Random numbers that it has used."""
    has_sampler: bool = False
    reason: Optional[str] = None
    logits: Optional[bytes] = None

    @property
    def tokens(self) -> List[int]:
        return self.prompt + self.answer

    def begin_again(self, number: int) -> None:
        """All that stages knew of it is gone."""
        self.number, self.past, self.has_sampler = number, 0, False


class Pipeline:
    """A model in stages, one behind another, each an actor of Ray.

        pipeline = Pipeline("model.gguf", ram=["60G", "60G", "120G"])
        for text in pipeline.generate(["Once upon a time", "What is 2+2?"]):
            print(text)

    `stages` says how many there are, or `ram` what each may take; layers go where the slowest stage is the fastest, by
    `speeds`: bytes a second that each reads of its memory. The file has to be at the same path on every machine, which
    reads its layers of it alone.

    sequences: texts that are made at a time. micro_batches: parts that they are made in, as many as there are stages
    where not given. threads, context, kv, isa: as `wayinfer.Model` has them, for each stage. actor_options: for each
    stage's actor, or one for all: what `ray.remote` takes, `num_cpus` and `resources` say. restarts: how often stages
    may die.

    Raises `UsageError`, `Unsupported`, `OutOfMemory` or `FileError`.
    """

    def __init__(
        self,
        model: Union[str, os.PathLike[str]],
        stages: Optional[int] = None,
        *,
        ram: Optional[Sequence[Size]] = None,
        speeds: Optional[Sequence[float]] = None,
        sequences: int = 8,
        micro_batches: Optional[int] = None,
        threads: Optional[int] = None,
        context: Optional[int] = None,
        kv: Optional[str] = None,
        isa: Optional[str] = None,
        actor_options: Union[None, Mapping[str, Any], Sequence[Mapping[str, Any]]] = None,
        restarts: int = 8,
    ) -> None:
        if (stages is None) == (ram is None):
            raise errors.UsageError("either the number of stages is needed, or the memory of each")
        count = len(ram) if ram is not None else int(stages or 0)
        self._model = os.path.abspath(os.fspath(model))
        self._options = {"threads": threads, "context": context, "kv": kv, "isa": isa, "sequences": sequences}
        self._ram, self._speeds, self._sequences = ram, speeds, sequences
        self._costs: Costs = costs(self._model, context=context, kv=kv)
        self._plan = plans.make(self._costs, count, ram, speeds, sequences)
        self._micro_batches = max(1, min(micro_batches or count, sequences))
        if actor_options is None or isinstance(actor_options, Mapping):
            actor_options = [actor_options or {}] * count
        self._actor_options = [dict(each) for each in actor_options]
        self._restarts_left = restarts
        self.restarts = 0
        """How often a stage was started again."""
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._took = [0.0] * count
        self._passes = 0
        self._actors: List[Any] = [self._start(at) for at in range(count)]
        self._facts = self._shake_hands()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Stages

    def _start(self, at: int) -> Any:
        """The actor of a stage."""
        given = {"num_cpus": 1, "scheduling_strategy": "SPREAD", **self._actor_options[at]}
        options = dict(self._options)
        if self._ram is not None:
            options["ram"] = self._ram[at]
        remote = ray.remote(StageActor).options(**given)
        return remote.remote(self._model, self._plan.layers[at], options)

    def _shake_hands(self) -> List[Dict[str, Any]]:
        """What is known of all stages, which have to be of one model, version and arithmetic."""
        while True:
            try:
                facts = [unpack(said)[0] for said in ray.get([actor.hello.remote() for actor in self._actors])]
                check_stages(facts)
                return facts
            except ray.exceptions.RayTaskError as error:
                raise _own(error) from None
            except ray.exceptions.ActorDiedError as error:
                # A machine that has gone takes stages with it that were to be started there.
                started = _started(error)
                if type(started) is not errors.Error or self._restarts_left == 0:
                    raise started from None
                self._start_lost()

    def _start_lost(self) -> None:
        """Starts the stages that have gone again."""
        for at, actor in enumerate(self._actors):
            try:
                ray.get(actor.hello.remote())
            except _LOST:
                if self._restarts_left == 0:
                    raise errors.Error(f"stage {at} has died once more, and is not started again") from None
                self._restarts_left -= 1
                self.restarts += 1
                self._actors[at] = self._start(at)

    def _recover(self, jobs: Sequence[_Job]) -> None:
        """Starts the stages that have gone again, and has all sequences run anew."""
        self._start_lost()
        self._facts = self._shake_hands()
        # What was under way comes before, for calls are run in their order.
        ray.get([actor.forget.remote() for actor in self._actors])
        for job in jobs:
            job.begin_again(next(self._numbers))

    def plan(self) -> Plan:
        """Where the layers would go best by what is known now: once texts have been made, by the speeds that were
        measured. The stages that run stay as they are."""
        if self._passes == 0:
            return self._plan
        times = [max(took / self._passes, 1e-9) for took in self._took]
        speeds = [max(stage.active, 1.0) / seconds for stage, seconds in zip(self._plan.stages, times)]
        return plans.make(self._costs, len(self._actors), self._ram, speeds, self._sequences)

    @property
    def facts(self) -> List[Dict[str, Any]]:
        """What is known of each stage: see `Stage.facts`; `node` is that of the cluster."""
        return [dict(facts) for facts in self._facts]

    @property
    def actors(self) -> List[Any]:
        """The actors, first to last."""
        return list(self._actors)

    def close(self) -> None:
        """Ends all stages."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    # Texts

    def generate(
        self, prompts: Union[str, Sequence[Prompt]], params: Union[None, SamplingParams, Sequence[SamplingParams]] = None
    ) -> List[Text]:
        """Continues prompts: texts, or lists of ids. Of `params` max_tokens, temperature, top_k, top_p, min_p,
        repeat_penalty and seed are looked at; others are refused. The same prompt, parameters and seed give the text
        that one machine gives.

        Raises `UsageError`, `ContextFull`, `Unsupported`; `Error` where stages die too often.
        """
        listed: List[Prompt] = [prompts] if isinstance(prompts, str) else list(prompts)
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(listed)
        if len(each) != len(listed):
            raise errors.UsageError(f"{len(each)} parameters for {len(listed)} prompts")
        with self._lock:
            jobs = self._jobs(listed, each)
            self._run(jobs)
            return self._texts(jobs)

    def logits(self, prompts: Sequence[Prompt]) -> npt.NDArray[np.float32]:
        """The logits behind the last token of each prompt: `[prompts, vocabulary]`.

        Raises `UsageError`, `ContextFull`; `Error` where stages die too often.
        """
        import numpy as np

        with self._lock:
            jobs = self._jobs(prompts, [SamplingParams(max_tokens=0)] * len(prompts))
            self._run(jobs)
        rows = [np.frombuffer(job.logits or b"", dtype="<f4") for job in jobs]
        return np.stack(rows)

    def _jobs(self, prompts: Sequence[Prompt], each: Sequence[SamplingParams]) -> List[_Job]:
        texts = [prompt for prompt in prompts if isinstance(prompt, str)]
        encoded = iter(self._ask(0, "encode", {"texts": texts})["tokens"] if texts else [])
        listed = [next(encoded) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        return [self._job(tokens, one) for tokens, one in zip(listed, each)]

    def _job(self, tokens: List[int], params: SamplingParams) -> _Job:
        fields = params.fields()
        given = {name: value for name, value in fields.items() if name not in ("max_tokens", "seed")}
        if given.pop("n", 1) != 1 or not given.keys() <= _SAMPLED.keys():
            other = sorted(given.keys() - _SAMPLED.keys()) or ["n"]
            raise errors.Unsupported(f"{', '.join(other)}: a pipeline of stages has no such way to make texts")
        context = int(self._facts[0]["context"])
        least = 0 if params.max_tokens == 0 else 1
        if not tokens:
            raise errors.UsageError("the prompt is empty")
        if len(tokens) + least > context:
            raise errors.ContextFull(f"{len(tokens)} tokens do not fit the context of {context}")
        seed = random.getrandbits(32) if params.seed is None else params.seed
        options = {_SAMPLED[name]: value for name, value in given.items()}
        room = context - len(tokens)
        most = room if params.max_tokens is None else min(params.max_tokens, room)
        return _Job(tokens, {**options, "seed": seed}, most, seed, next(self._numbers))

    def _ask(self, at: int, method: str, said: Dict[str, Any]) -> Dict[str, Any]:
        """Asks a stage for something that needs no sequence."""
        while True:
            try:
                return unpack(ray.get(getattr(self._actors[at], method).remote(pack(said))))[0]
            except ray.exceptions.RayTaskError as error:
                raise _own(error) from None
            except _LOST:
                self._recover([])

    def _texts(self, jobs: Sequence[_Job]) -> List[Text]:
        ends = set(self._facts[0]["ends"])
        said = [[token for token in job.answer if token not in ends] for job in jobs]
        texts = self._ask(0, "decode", {"tokens": said})["texts"] if said else []
        return [
            Text(str(text), job.answer, job.reason or "length", job.seed, len(job.prompt))
            for text, job in zip(texts, jobs)
        ]

    def _run(self, jobs: Sequence[_Job]) -> None:
        """Runs sequences to their ends."""
        waiting = list(reversed(jobs))
        groups: List[List[_Job]] = [[] for _ in range(self._micro_batches)]
        forget: List[List[int]] = [[] for _ in groups]
        under_way: Dict[Any, Tuple[int, List[Tuple[_Job, int]]]] = {}
        while True:
            busy = {at for at, _ in under_way.values()}
            for at, group in enumerate(groups):
                if at in busy:
                    continue
                share = -(-self._sequences // len(groups))
                while waiting and len(group) < share:
                    group.append(waiting.pop())
                if group:
                    ref, fed = self._submit(group, forget[at])
                    forget[at] = []
                    under_way[ref] = (at, fed)
            if not under_way:
                return
            ready, _ = ray.wait(list(under_way), num_returns=1)
            at, fed = under_way.pop(ready[0])
            try:
                said, logits = unpack(ray.get(ready[0]))
            except ray.exceptions.RayTaskError as error:
                if not isinstance(error.cause, _LOST):
                    self._give_up(under_way)
                    raise _own(error) from None
                self._replay(under_way, groups, forget)
                continue
            except _LOST:
                self._replay(under_way, groups, forget)
                continue
            self._take(fed, said, logits)
            forget[at] = [job.number for job in groups[at] if job.reason is not None]
            groups[at] = [job for job in groups[at] if job.reason is None]

    def _replay(self, under_way: Dict[Any, Any], groups: Sequence[List[_Job]], forget: List[List[int]]) -> None:
        under_way.clear()
        for numbers in forget:
            numbers.clear()
        self._recover([job for group in groups for job in group])

    def _give_up(self, under_way: Dict[Any, Any]) -> None:
        """Leaves nothing of a run behind."""
        ray.wait(list(under_way), num_returns=len(under_way)) if under_way else None
        try:
            ray.get([actor.forget.remote() for actor in self._actors])
        except _LOST:
            self._recover([])

    def _submit(self, group: Sequence[_Job], forget: List[int]) -> Tuple[Any, List[Tuple[_Job, int]]]:
        """Sends a pass through all stages: what the last one will give, and how many tokens of each sequence it has."""
        room = min(int(facts["batch"]) for facts in self._facts)
        said: Dict[str, Any] = {"id": self._facts[0]["id"], "forget": forget, "took": []}
        said.update({"parts": [], "samplers": [], "draw": [], "logits": []})
        fed = []
        # A token of each text that is under way, then prompts as far as there is room.
        for job in sorted(group, key=lambda job: len(job.tokens) - job.past):
            tokens = job.tokens
            count = min(room, len(tokens) - job.past)
            if count == 0:
                continue
            room -= count
            whole = job.past + count == len(tokens)
            said["parts"].append([job.number, job.past, tokens[job.past : job.past + count], whole])
            if whole and job.max_tokens == 0:
                said["logits"].append(job.number)
            elif whole:
                said["draw"].append(job.number)
                if not job.has_sampler:
                    job.has_sampler = True
                    state = {"options": job.options, "prompt": job.prompt, "answer": job.answer}
                    said["samplers"].append([job.number, {**state, "position": job.position}])
            fed.append((job, count))
        ref: Any = pack(said)
        for actor in self._actors:
            ref = actor.feed.remote(ref)
        return ref, fed

    def _take(self, fed: Sequence[Tuple[_Job, int]], said: Dict[str, Any], logits: bytes) -> None:
        """Takes what a pass has given."""
        if all(count == 1 for _, count in fed):
            self._passes += 1
            self._took = [all_of + took for all_of, took in zip(self._took, said["took"])]
        drawn = {number: rest for number, *rest in said["drawn"]}
        vocab = int(self._facts[-1]["vocab"]) * 4
        for job, count in fed:
            job.past += count
            if job.number in drawn:
                token, job.position, ends = drawn[job.number]
                job.answer.append(token)
                if ends:
                    job.reason = "stop"
                elif len(job.answer) == job.max_tokens:
                    job.reason = "length"
            elif job.max_tokens == 0 and job.past == len(job.prompt):
                job.logits, logits, job.reason = logits[:vocab], logits[vocab:], "length"


def _own(error: Any) -> Exception:
    """What a stage has raised, as it raised it."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, errors.Error) else error


def _started(error: Any) -> Exception:
    """Why an actor could not be made: what its constructor raised, in its words."""
    text = str(error)
    for name in errors.__all__:
        _, found, rest = text.rpartition(f"{name}: ")
        if found and name != "Error":
            kind = getattr(errors, name)
            made: Exception = kind(rest.splitlines()[0])
            return made
    return errors.Error(text)
