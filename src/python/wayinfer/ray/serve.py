"""An application of Ray Serve whose replicas answer as `wayinfer serve` does, in all of its dialects."""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Any, AsyncIterator, Dict, Mapping, Optional, Sequence

from .._calls import Call
from ..model import Model

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

__all__ = ["serve_app"]

# Bytes of the longest body that a replica reads; the server refuses longer ones itself.
_MAX_BODY = (32 << 20) + 1


class Replica:
    """A model with the server's dialects before it."""

    def __init__(self, model: str, api_keys: Sequence[str], options: Dict[str, Any]) -> None:
        self._keys = [key.encode() for key in api_keys]
        self._model = Model(model, **options)

    def check_health(self) -> None:
        """Asked by Serve now and then."""
        self._model.request("GET", "/health").checked()

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
        call = self._model.request(request.method, path, bytes(body))
        try:
            status, content_type = await asyncio.to_thread(lambda: (call.status, call.content_type))
        except BaseException:
            call.close()
            raise
        return StreamingResponse(_pieces(call), status_code=status, media_type=content_type)


async def _pieces(call: Call) -> AsyncIterator[bytes]:
    """The body as it comes. Where the client goes, the request ends."""
    pieces = iter(call)
    try:
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece
    finally:
        call.close()


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
    api_keys: Sequence[str] = (),
    deployment: Optional[Mapping[str, Any]] = None,
    **model_options: Any,
) -> Any:
    """An application for `serve.run`, with the dialects of `wayinfer serve` behind it.

        serve.run(serve_app("model.gguf", cpus=16, max_replicas=8, threads=16), route_prefix="/")

    There are `min_replicas` to `max_replicas` of the model, as many as bring the requests that wait or run in each to
    `target_requests`; each has `max_requests` at a time at most. One that is to end takes no more, and has `drain`
    seconds for those that it has. `api_keys`: any of them has to come with a request. `cpus` and `memory` (bytes) are
    set aside on a replica's machine; `deployment` are further options of `serve.deployment`: with a
    `request_router_config`, requests that begin alike go to the replica that has read their beginning. model_options
    are those of `wayinfer.Model`; the answers of all replicas are the same, bit for bit.
    """
    from ray import serve

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
    options.update(deployment or {})
    return serve.deployment(**options)(Replica).bind(model, list(api_keys), dict(model_options))
