"""One thread for one piece of work at a time: what an executor does, on a shorter way there and back.

An executor's future is mirrored by one of asyncio's, and each of its steps wakes the event loop once more: 160 us a
request instead of 110.
"""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class _Order:
    work: Callable[[], Any]
    then: Callable[[], None]
    loop: asyncio.AbstractEventLoop
    future: "asyncio.Future[Any]"

    def fill(self) -> None:
        """Do the work, and tell the loop. Called in the thread."""
        result, error = None, None
        try:
            result = self.work()
        # Whatever it is, it belongs to whoever waits for the result.
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self.loop.call_soon_threadsafe(self._deliver, result, error)

    def _deliver(self, result: Any, error: BaseException | None) -> None:
        self.then()
        if self.future.done():
            return  # whoever waited has given up
        if error is not None:
            self.future.set_exception(error)
        else:
            self.future.set_result(result)


class LoneThread:
    """A thread that waits for work. It is always the same, so that its core has what it needs at hand."""

    def __init__(self) -> None:
        self._orders: SimpleQueue[_Order | None] = SimpleQueue()
        threading.Thread(target=self._serve, name="lone", daemon=True).start()

    def run(self, work: Callable[[], T], then: Callable[[], None]) -> "asyncio.Future[T]":
        """Do `work` in the thread; called on an event loop.

        Args:
            work: returns the result, or raises what waiting for it raises.
            then: called on the loop once the work is done, also where nobody waits for it any more.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._orders.put(_Order(work, then, loop, future))
        return future

    def close(self) -> None:
        """End the thread, once it has done what it was given."""
        self._orders.put(None)

    def _serve(self) -> None:
        while (order := self._orders.get()) is not None:
            order.fill()
