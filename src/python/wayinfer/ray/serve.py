"""An application of Ray Serve whose replicas answer as `wayinfer serve` does, in all of its dialects."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import (
    TYPE_CHECKING,
    Any,
    AsyncIterator,
    Callable,
    Dict,
    Iterator,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
    cast,
)

from .. import _aio, errors
from ..model import Model

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["serve_app"]

# Bytes of the longest body that a replica reads; the server refuses longer ones itself.
_MAX_BODY = (32 << 20) + 1

# Characters of a prompt by which those that go on with it are known.
_BEGINNING = 256

# The router of Serve that has requests of one session answered by one replica.
_BY_SESSION = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"

# What an answer comes in: its status and its type first, then its body.
Part = Union[Tuple[int, str], bytes]


class Front:
    """Reads requests, with their keys where they are needed, and passes answers on."""

    def __init__(self, api_keys: Sequence[str]) -> None:
        self._keys = [key.encode() for key in api_keys]

    def _answer(self, request: Request, path: str, body: bytes) -> AsyncIterator[Part]:
        """What answers a request. Left, it ends."""
        raise NotImplementedError

    def _may(self, request: Request) -> bool:
        """Whether a request comes with a key, where one is needed."""
        if not self._keys or request.url.path == "/health":
            return True
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = [key.strip() if scheme.lower() == "bearer" else "", request.headers.get("x-api-key", "")]
        # All are compared, each in a time that does not tell how much of it is right.
        right = [hmac.compare_digest(key, one.encode()) for key in self._keys for one in given]
        return any(right)

    async def __call__(self, request: Request) -> Response:
        from starlette.responses import JSONResponse, StreamingResponse

        if not self._may(request):
            told = {"message": "a key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY"}
            return JSONResponse({"error": {**told, "type": "authentication_error"}}, status_code=401)
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) >= _MAX_BODY:
                told = {"message": f"the body is longer than {_MAX_BODY - 1} bytes"}
                return JSONResponse({"error": {**told, "type": "invalid_request_error"}}, status_code=413)
        path = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        parts = self._answer(request, path, bytes(body))
        head = await parts.__anext__()
        assert not isinstance(head, bytes)
        status, content_type = head
        return StreamingResponse(cast("AsyncIterator[bytes]", parts), status_code=status, media_type=content_type)


class Replica(Front):
    """A model with the server's dialects before it."""

    def __init__(self, model: str, api_keys: Sequence[str], options: Dict[str, Any]) -> None:
        super().__init__(api_keys)
        self._model = Model(model, **options)

    def check_health(self) -> None:
        """Asked by Serve now and then."""
        self._model.request("GET", "/health").checked()

    async def answer(self, method: str, path: str, body: bytes) -> AsyncIterator[Part]:
        """What answers a request; in bytes, and never unpickled. Left, it ends."""

        def start() -> Tuple[Iterator[Part], Callable[[], None]]:
            call = self._model.request(method, path, body)

            def parts() -> Iterator[Part]:
                yield call.status, call.content_type
                yield from call

            return parts(), call.close

        async for part in _aio.iterate(start):
            yield part

    def _answer(self, request: Request, path: str, body: bytes) -> AsyncIterator[Part]:
        return self.answer(request.method, path, body)


class Door(Front):
    """Passes requests to replicas, those of a conversation to the same one."""

    def __init__(self, replicas: Any, api_keys: Sequence[str]) -> None:
        super().__init__(api_keys)
        self._replicas = replicas.options(method_name="answer", stream=True)

    async def _answer(self, request: Request, path: str, body: bytes) -> AsyncIterator[Part]:
        session = request.headers.get("x-session-id") or conversation(body)
        replicas = self._replicas.options(session_id=session) if session else self._replicas
        parts = replicas.remote(request.method, path, body)
        try:
            async for part in parts:
                yield part
        finally:
            parts.cancel()


def conversation(body: bytes) -> Optional[str]:
    """What the requests of a conversation have in common, as a short text: a hash of what it begins with, up to the
    first thing that its user says. None where a body has no conversation."""
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    said = fields.get("messages") or fields.get("input") or fields.get("prompt")
    if isinstance(said, list):
        users = (at for at, one in enumerate(said) if isinstance(one, dict) and one.get("role") == "user")
        said = said[: next(users, 0) + 1]
    elif isinstance(said, str):
        said = said[:_BEGINNING]
    begins = [_text(part) for part in (fields.get("system"), fields.get("instructions"), said)]
    if not any(begins):
        return None
    return hashlib.blake2b(json.dumps(begins).encode(), digest_size=16).hexdigest()


def _text(said: Any) -> str:
    """The text of a message or of several, without what clients change on the way (marks of caches, ids)."""
    if isinstance(said, str):
        return said
    if isinstance(said, list):
        return "".join(_text(part) for part in said)
    if isinstance(said, dict):
        return _text(said.get("text", said.get("content")))
    return ""


def serve_app(
    model: str,
    *,
    name: str = "wayinfer",
    min_replicas: int = 1,
    max_replicas: int = 4,
    target_requests: float = 8,
    max_requests: int = 64,
    cpus: float = 1,
    memory: Optional[int] = None,
    drain: float = 60,
    by_conversation: bool = False,
    api_keys: Sequence[str] = (),
    deployment: Optional[Mapping[str, Any]] = None,
    **model_options: Any,
) -> Any:
    """An application for `serve.run`, with the dialects of `wayinfer serve` behind it.

        serve.run(serve_app("model.gguf", cpus=16, max_replicas=8), route_prefix="/")

    There are `min_replicas` to `max_replicas` of the model, as many as bring the requests that wait or run in each to
    `target_requests`; each has `max_requests` at a time at most. One that is to end takes no more, and has `drain`
    seconds for those that it has. `cpus` and `memory` (bytes) are set aside on a replica's machine; it has as many
    threads where `threads` does not say it.

    With `by_conversation` all requests that begin alike, up to what the user says first, go to the same replica, which
    has read their beginning; where it has no room, to another one. A header `X-Session-Id` says instead which belong
    together. Serve's router by sessions does it, behind a deployment more that every request passes.

    `api_keys`: any of them has to come with a request. `deployment` are further options of `serve.deployment`, for the
    replicas. model_options are those of `wayinfer.Model`; the answers of all replicas are the same, bit for bit.

    Raises `Unsupported` where this Ray Serve has no router by sessions and one is asked for.
    """
    from ray import serve

    model_options = {"threads": max(1, int(cpus)), **model_options}
    resources: Dict[str, Any] = {"num_cpus": cpus}
    if memory is not None:
        resources["memory"] = memory
    options: Dict[str, Any] = {
        "name": name,
        "autoscaling_config": {
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": target_requests,
        },
        "max_ongoing_requests": max_requests,
        "graceful_shutdown_timeout_s": drain,
        "ray_actor_options": resources,
    }
    if not by_conversation:
        options.update(deployment or {})
        return serve.deployment(**options)(Replica).bind(model, list(api_keys), model_options)
    options["request_router_config"] = _by_session()
    options.update(deployment or {})
    # The door alone asks for keys.
    replicas = serve.deployment(**options)(Replica).bind(model, [], model_options)
    door = serve.deployment(
        name=f"{name}-door",
        # It passes on what comes; what finds no room waits here, where Serve counts it.
        max_ongoing_requests=1 << 16,
        graceful_shutdown_timeout_s=drain,
        ray_actor_options={"num_cpus": 0},
    )
    return door(Door).bind(replicas, list(api_keys))


def _by_session() -> Dict[str, str]:
    """Serve's router that has requests of one session answered by one replica."""
    try:
        from ray.serve.experimental import consistent_hash_router  # noqa: F401
    except ImportError as error:
        raise errors.Unsupported(f"this Ray Serve has no router by sessions: {error}") from None
    return {"request_router_class": _BY_SESSION}
