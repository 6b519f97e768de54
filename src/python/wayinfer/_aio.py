"""What blocks, done beside an event loop: on a thread for each call, so that as many can be under way as there are."""

from __future__ import annotations

import asyncio
import threading
from typing import AsyncIterator, Callable, Iterable, Tuple, TypeVar, Union

T = TypeVar("T")


class _End:
    def __init__(self, error: Union[BaseException, None] = None) -> None:
        self.error = error


async def iterate(
    start: Callable[[], Tuple[Iterable[T], Callable[[], None]]], *, ahead: bool = True
) -> AsyncIterator[T]:
    """Iterates over what `start` gives, which blocks. Where nobody waits any more, what `start` gives beside it ends
    it. Unless it may be `ahead`, an item is asked for when somebody waits for it."""
    loop = asyncio.get_running_loop()
    items: asyncio.Queue[Union[Tuple[T], _End]] = asyncio.Queue()
    closes = []
    gone = threading.Event()
    asked = threading.Semaphore(0)

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
                each = iter(source)
                while True:
                    while not ahead and not asked.acquire(timeout=1):
                        if loop.is_closed():
                            return
                    if gone.is_set():
                        return
                    try:
                        item = next(each)
                    except StopIteration:
                        break
                    put((item,))
            finally:
                close()
            put(_End())
        except BaseException as error:
            put(_End(error))

    threading.Thread(target=work, name="wayinfer", daemon=True).start()
    try:
        while True:
            asked.release()
            item = await items.get()
            if isinstance(item, _End):
                if item.error is not None:
                    raise item.error
                return
            yield item[0]
    finally:
        gone.set()
        asked.release()
        for close in closes:
            close()
