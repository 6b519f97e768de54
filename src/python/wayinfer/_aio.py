"""What blocks, done beside an event loop: on a thread for each call, so that as many can be under way as there are."""

from __future__ import annotations

import asyncio
import threading
from typing import AsyncIterator, Callable, Iterable, Tuple, TypeVar, Union

T = TypeVar("T")


class _End:
    def __init__(self, error: Union[BaseException, None] = None) -> None:
        self.error = error


async def iterate(start: Callable[[], Tuple[Iterable[T], Callable[[], None]]]) -> AsyncIterator[T]:
    """Iterates over what `start` gives, which blocks. Where nobody waits any more, what `start` gives beside it ends
    it."""
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[Union[Tuple[T], _End]] = asyncio.Queue()
    closes = []
    gone = threading.Event()

    def put(item: Union[Tuple[T], _End]) -> None:
        try:
            loop.call_soon_threadsafe(items.put_nowait, item)
        except RuntimeError:
            gone.set()  # the loop is closed

    def work() -> None:
        try:
            source, close = start()
            closes.append(close)
            try:
                if gone.is_set():
                    return
                for item in source:
                    put((item,))
                    if gone.is_set():
                        return
            finally:
                close()
            put(_End())
        except BaseException as error:
            put(_End(error))

    threading.Thread(target=work, name="wayinfer", daemon=True).start()
    try:
        while True:
            item = await items.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item[0]
    finally:
        gone.set()
        for close in closes:
            close()
