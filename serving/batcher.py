"""Requests that wait become one batch: as soon as an inference slot is free, it takes what has come in meanwhile.

On an idle server a single image is run at once, on all threads, and batches grow by themselves under load. An image
waits for company only where that is at hand already: others that are being decoded. Without that, a slot that gets free
as the clients of its last batch come back takes the first of them alone, and the others wait for a batch of one.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from serving.metrics import METRICS
from serving.runtime import Answer, Model, Vector
from tailstack.images import Pixels

PATIENCE_S = 0.005
"""About what it takes to decode the pictures of a batch."""


@dataclass(frozen=True)
class Result:
    """One image's part of an `Answer`."""

    probabilities: Vector
    """float32 `[classes]`."""
    votes: Vector
    """float32 `[learners, classes]`."""
    order: npt.NDArray[np.int64]
    """Classes, the most probable first, `[classes]`."""
    choices: list[int | None]
    """Each learner's most probable class; None for one that a cascade didn't ask."""


@dataclass(frozen=True)
class _Item:
    model: Model
    pixels: Pixels
    future: "asyncio.Future[Result]"
    since: float


class Batcher:
    """Batches of images, run in threads of their own.

    Args:
        max_batch: images of one inference.
        slots: inferences at a time.
        patience: seconds that the first image of a batch waits for those that are being decoded.
    """

    def __init__(self, max_batch: int, slots: int, patience: float = PATIENCE_S) -> None:
        self._max_batch = max_batch
        self._patience = patience
        self._slots = self._free = slots
        self._waiting: deque[_Item] = deque()
        self._coming = self._running = 0
        self._timer: asyncio.TimerHandle | None = None
        self._executor = ThreadPoolExecutor(slots, "inference")

    @contextmanager
    def expect(self) -> Iterator[None]:
        """Let the next batch wait, for a moment, until the block has submitted an image, or failed to."""
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            self._dispatch()

    @property
    def idle(self) -> bool:
        """Whether no image runs, waits or is being decoded."""
        return not self._running and not self._waiting and not self._coming

    def run_here(self, model: Model, image: Pixels) -> Result:
        """Run an image, uint8 `[height, width, 3]` of the model's size, in the caller's thread: on an idle batcher."""
        METRICS.queue_seconds.observe(0)
        [result] = _run(model, image[None], alone=True)
        return result

    def submit(self, model: Model, *images: Pixels) -> "list[asyncio.Future[Result]]":
        """Queue images, uint8 `[height, width, 3]` of the model's size; cancel the future of one to leave it out."""
        loop, now = asyncio.get_running_loop(), time.perf_counter()
        items = [_Item(model, pixels, loop.create_future(), now) for pixels in images]
        self._waiting += items
        self._dispatch()
        return [item.future for item in items]

    def close(self) -> None:
        """End the threads, once what they are at is done."""
        self._executor.shutdown(wait=False)

    def _dispatch(self) -> None:
        while self._free and self._waiting and self._is_due() and (batch := self._take()):
            alone = self._is_alone()
            self._free -= 1
            self._running += len(batch)
            run = asyncio.get_running_loop().run_in_executor(self._executor, _run_batch, batch, alone)
            run.add_done_callback(partial(self._deliver, batch))

    def _is_due(self) -> bool:
        """Return whether the next batch needs no more patience; if it does, look again when that is at its end."""
        left = self._waiting[0].since + self._patience - time.perf_counter()
        if not self._coming or len(self._waiting) >= self._fair_share() or left <= 0:
            return True
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(left, self._look_again)
        return False

    def _is_alone(self) -> bool:
        """Return whether the batch that was just taken is all there is: none runs, and no other image is on its way.

        What `expect` announced is coming until its block ends, so one that comes may be of this batch.
        """
        return self._free == self._slots and not self._waiting and self._coming <= 1

    def _fair_share(self) -> int:
        """Return how many images one slot takes: with more, it would leave the others without work."""
        images = len(self._waiting) + self._coming + self._running
        return min(self._max_batch, -(-images // self._slots))

    def _look_again(self) -> None:
        self._timer = None
        self._dispatch()

    def _take(self) -> list[_Item]:
        """Take the next images that are for the same model, and that somebody still waits for."""
        batch: list[_Item] = []
        most = self._fair_share()
        while self._waiting and len(batch) < most:
            if self._waiting[0].future.done():
                self._waiting.popleft()
                continue
            # Around a reload the queue holds images of two models, of two sizes perhaps.
            if batch and self._waiting[0].model is not batch[0].model:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _deliver(self, batch: list[_Item], run: "asyncio.Future[list[Result]]") -> None:
        self._free += 1
        self._running -= len(batch)
        self._dispatch()
        error = run.exception()
        for index, item in enumerate(batch):
            if item.future.done():
                continue
            if error is not None:
                item.future.set_exception(error)
            else:
                item.future.set_result(run.result()[index])


def _run_batch(batch: list[_Item], alone: bool) -> list[Result]:
    start = time.perf_counter()
    for item in batch:
        METRICS.queue_seconds.observe(start - item.since)
    return _run(batch[0].model, np.stack([item.pixels for item in batch]), alone)


def _run(model: Model, images: Pixels, alone: bool) -> list[Result]:
    start = time.perf_counter()
    answer = model.classify(images, alone=alone)
    METRICS.batch_size.observe(len(images))
    METRICS.inference_seconds.observe(time.perf_counter() - start)
    return split(answer)


def split(answer: Answer) -> list[Result]:
    """Split a batch's answer. What takes numpy is done for all images at once: a call costs more than its work."""
    orders = np.argsort(-answer.probabilities, axis=1, kind="stable")
    choices = answer.votes.argmax(axis=2)
    asked = answer.votes.any(axis=2)
    if not asked.all():
        choices = np.where(asked, choices.astype(object), None)
    return [Result(*parts) for parts in zip(answer.probabilities, answer.votes, orders, choices.tolist(), strict=True)]
