"""Requests that are under way."""

from __future__ import annotations

import json
from collections import deque
from typing import Any, Callable, Deque, Dict, Generic, Iterable, Iterator, Tuple, TypeVar

from . import _native, errors

T = TypeVar("T")


class Call:
    """A request that is under way: its status, its type, its body as it comes. Dropped or closed, it ends."""

    def __init__(self, reply: _native.Reply) -> None:
        self._reply = reply

    @property
    def status(self) -> int:
        """As HTTP has it; waits for it."""
        return self._reply.head()[0]

    @property
    def content_type(self) -> str:
        """As HTTP has it; waits for it."""
        return self._reply.head()[1]

    def __iter__(self) -> Iterator[bytes]:
        """The body in pieces, as they come."""
        self._reply.head()
        while (chunk := self._reply.chunk()) is not None:
            yield chunk

    def read(self) -> bytes:
        """The whole body, or what is left of it.

        Raises `Error` where the call was closed.
        """
        body = b"".join(self)
        if self._reply.closed:
            raise errors.Error("the request was broken off")
        return body

    def close(self) -> None:
        """Ends it."""
        self._reply.close()

    def checked(self) -> Call:
        """The same, once it is known to be answered.

        Raises what is wrong with it.
        """
        if self.status != 200:
            raise errors.of_reply(self.read())
        return self

    def json(self) -> Dict[str, Any]:
        """The object that it is answered with.

        Raises what is wrong with it.
        """
        answer: Dict[str, Any] = json.loads(self.checked().read())
        return answer

    def events(self) -> Iterator[Dict[str, Any]]:
        """The events of a stream.

        Raises what goes wrong on the way.
        """
        rest = b""
        for chunk in self:
            *events, rest = (rest + chunk).split(b"\n\n")
            for event in events:
                data = event[len(b"data: ") :]
                if data == b"[DONE]":
                    return
                value: Dict[str, Any] = json.loads(data)
                if "error" in value:
                    raise errors.of_reply(data)
                yield value
        raise errors.Error("the request was broken off")


class Stream(Generic[T]):
    """What comes of a request, piece by piece. Closed, or left by an interrupt, the request ends; a pass that is under
    way does not wait for it."""

    def __init__(self, call: Call, make: Callable[[Dict[str, Any]], Iterable[T]]) -> None:
        self._call = call.checked()
        self._items = (item for event in call.events() for item in make(event))

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        return next(self._items)

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it."""
        self._call.close()


class Many(Generic[T]):
    """Requests that are answered in their order, with so many under way at a time."""

    def __init__(self, requests: Iterable[Tuple[T, Callable[[], Call]]], ahead: int) -> None:
        self._requests = iter(requests)
        self._ahead = ahead
        self._under_way: Deque[Tuple[T, Call]] = deque()
        self._closed = False

    def __iter__(self) -> Iterator[Tuple[T, Dict[str, Any]]]:
        try:
            while not self._closed:
                while len(self._under_way) < self._ahead:
                    request = next(self._requests, None)
                    if request is None:
                        break
                    self._under_way.append((request[0], request[1]()))
                if not self._under_way:
                    return
                of, call = self._under_way[0]
                answer = call.json()
                self._under_way.popleft()
                yield of, answer
            raise errors.Error("the request was broken off")
        finally:
            self.close()

    def close(self) -> None:
        """Ends all that are under way."""
        self._closed = True
        for _, call in list(self._under_way):
            call.close()
