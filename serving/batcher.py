"""Requests that wait become one batch: as soon as an inference slot is free, it takes what has come in meanwhile.

Nobody waits for company: on an idle server a single image is run at once, and batches grow by themselves under load.
"""

import asyncio
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from serving.metrics import METRICS
from serving.runtime import Answer, Model, Vector
from tailstack.images import Pixels


@dataclass(frozen=True)
class Result:
    """One image's part of an `Answer`."""

    probabilities: Vector
    """float32 `[classes]`."""
    votes: Vector
    """float32 `[learners, classes]`."""


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
    """

    def __init__(self, max_batch: int, slots: int) -> None:
        self._max_batch = max_batch
        self._free = slots
        self._waiting: deque[_Item] = deque()
        self._executor = ThreadPoolExecutor(slots, "inference")

    def submit(self, model: Model, pixels: Pixels) -> "asyncio.Future[Result]":
        """Queue one image, uint8 `[height, width, 3]` of the model's size; cancel the future to leave it out."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(_Item(model, pixels, future, time.perf_counter()))
        self._dispatch()
        return future

    def close(self) -> None:
        """End the threads, once what they are at is done."""
        self._executor.shutdown(wait=False)

    def _dispatch(self) -> None:
        while self._free and (batch := self._take()):
            self._free -= 1
            run = asyncio.get_running_loop().run_in_executor(self._executor, _run, batch)
            run.add_done_callback(partial(self._deliver, batch))

    def _take(self) -> list[_Item]:
        """Take the next images that are for the same model, and that somebody still waits for."""
        batch: list[_Item] = []
        while self._waiting and len(batch) < self._max_batch:
            if self._waiting[0].future.done():
                self._waiting.popleft()
                continue
            # Around a reload the queue holds images of two models, of two sizes perhaps.
            if batch and self._waiting[0].model is not batch[0].model:
                break
            batch.append(self._waiting.popleft())
        return batch

    def _deliver(self, batch: list[_Item], run: "asyncio.Future[Answer]") -> None:
        self._free += 1
        self._dispatch()
        error = run.exception()
        for index, item in enumerate(batch):
            if item.future.done():
                continue
            if error is not None:
                item.future.set_exception(error)
            else:
                answer = run.result()
                item.future.set_result(Result(answer.probabilities[index], answer.votes[index]))


def _run(batch: list[_Item]) -> Answer:
    start = time.perf_counter()
    for item in batch:
        METRICS.queue_seconds.observe(start - item.since)
    answer = batch[0].model.classify(np.stack([item.pixels for item in batch]))
    METRICS.batch_size.observe(len(batch))
    METRICS.inference_seconds.observe(time.perf_counter() - start)
    return answer
