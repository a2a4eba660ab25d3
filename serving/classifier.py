"""From encoded images to results: admission, decoding in threads, inference in batches, and a deadline."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import Any, TypeVar

from serving.batcher import Batcher, Result
from serving.body import Upload
from serving.decoding import decode_safely
from serving.errors import RequestError, overloaded
from serving.live import LiveModel
from serving.metrics import METRICS
from serving.runtime import Model
from serving.settings import ServerSettings
from tailstack.images import ImageError, Pixels

T = TypeVar("T")


class Classifier:
    """What every route that classifies shares."""

    def __init__(self, settings: ServerSettings, live: LiveModel) -> None:
        self._settings = settings
        self._live = live
        self._admitted = 0
        self._decoders = ThreadPoolExecutor(max(2, len(os.sched_getaffinity(0)) // settings.workers), "decode")
        self._batcher = Batcher(settings.max_batch, live.current.slots)
        METRICS.queue_capacity.set(settings.max_queue)

    @property
    def model(self) -> Model:
        """The model that answers now. A request keeps the one it began with."""
        return self._live.current

    def check_room(self, images: int) -> None:
        """Pass while there is room for `images`. Asked before a body is received, it tells a client at once.

        Raises:
            RequestError: there is none.
        """
        if self._admitted + images > self._settings.max_queue:
            METRICS.rejected.labels("queue_full").inc()
            raise overloaded(f"{self._admitted} images are waiting")

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Hold room for `images` until the block ends.

        Raises:
            RequestError: there is none.
        """
        self.check_room(images)
        self._count(images)
        try:
            yield
        finally:
            self._count(-images)

    def due(self) -> float:
        """Return when what comes in now has to be answered, on the event loop's clock."""
        return asyncio.get_running_loop().time() + self._settings.timeout

    @asynccontextmanager
    async def deadline(self, due: float | None = None) -> AsyncIterator[None]:
        """Give up on a block that takes too long.

        Args:
            due: what `due` returned when the request came in; None counts from now.

        Raises:
            RequestError: it did.
        """
        try:
            async with asyncio.timeout_at(self.due() if due is None else due):
                yield
        except TimeoutError as error:
            METRICS.rejected.labels("deadline").inc()
            raise RequestError(
                HTTPStatus.GATEWAY_TIMEOUT, "too_slow", f"no answer within {self._settings.timeout:g} s"
            ) from error

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """Run what takes the processor's time off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, work, *arguments)

    def expect(self) -> AbstractContextManager[None]:
        """Let batches wait, for a moment, for the image that the block is about to queue."""
        return self._batcher.expect()

    def classify_pixels(self, model: Model, *images: Pixels) -> list[Coroutine[Any, Any, Result]]:
        """Queue images, uint8 `[height, width, 3]` of the model's size; their results are awaited."""
        return [_recorded(model, answer) for answer in self._batcher.submit(model, *images)]

    async def classify_image(self, model: Model, upload: Upload) -> Result:
        """Decode and run one image.

        Raises:
            RequestError: the image can't be decoded.
        """
        with self.expect():
            pixels = await self.in_thread(self.decode, model, upload)
            [result] = self.classify_pixels(model, pixels)
        return await result

    def decode(self, model: Model, upload: Upload) -> Pixels:
        """Decode one image to the model's size.

        Raises:
            RequestError: it can't be.
        """
        start = time.perf_counter()
        try:
            return decode_safely(upload.data, model.artifact.image_size, self._settings.max_pixels)
        except ImageError as error:
            raise RequestError.of_image(error, upload.name) from error
        finally:
            METRICS.decode_seconds.observe(time.perf_counter() - start)

    def close(self) -> None:
        """End the threads."""
        self._decoders.shutdown(wait=False)
        self._batcher.close()

    def _count(self, images: int) -> None:
        self._admitted += images
        METRICS.queue_images.set(self._admitted)


async def _recorded(model: Model, answer: "asyncio.Future[Result]") -> Result:
    """Count what shows drift: classes, confidence, and learners at odds with the ensemble."""
    result = await answer
    first = int(result.order[0])
    METRICS.predictions.labels(model.artifact.classes[first]).inc()
    METRICS.confidence.observe(float(result.probabilities[first]))
    if not {first, None}.issuperset(result.choices):
        METRICS.disagreements.inc()
    return result
