"""From encoded images to results: admission, decoding in threads, inference in batches, and a deadline.

A lone image that takes a few milliseconds in all is decoded and run on the event loop itself. Each change of threads
wakes one that sleeps, and moves the work to another core: without them one client alone gets a tenth more answers.
What comes in meanwhile waits for those milliseconds, as it would for the cores; then it is seen, all of it, before any
other image is run so.
"""

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from http import HTTPStatus
from typing import TypeVar

from serving.batcher import Batcher, Result
from serving.body import Upload
from serving.decoding import decode_safely, is_quick
from serving.errors import RequestError, overloaded
from serving.live import LiveModel
from serving.metrics import METRICS
from serving.runtime import Model
from serving.settings import ServerSettings
from tailstack.images import ImageError, Pixels

T = TypeVar("T")
QUICK_BYTES = 256_000
"""Of a body. What takes time in decoding goes by bytes too: some 50 MB/s."""
QUICK_S = 0.02
"""Of the model, for one image."""


class Classifier:
    """What every route that classifies shares."""

    def __init__(self, settings: ServerSettings, live: LiveModel) -> None:
        self._settings = settings
        self._live = live
        self._admitted = 0
        self._decoders = ThreadPoolExecutor(max(2, settings.threads_per_worker), "decode")
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

    async def classify_image(
        self, model: Model, read: Callable[[], tuple[T, Upload]], body_bytes: int
    ) -> tuple[T, Result]:
        """Read a request's image, decode it, and run it.

        Args:
            model: what runs it.
            read: returns what goes with the result, and the image.
            body_bytes: length of the body that it reads.

        Raises:
            RequestError: `read` did, or the image can't be decoded.
        """
        # What came in at the same moment is counted in the loop's next round.
        await asyncio.sleep(0)
        # Perhaps it is wanted here, and then in a thread.
        read = functools.cache(read)
        if self._is_alone() and body_bytes <= QUICK_BYTES and model.seconds <= QUICK_S:
            beside, upload = read()
            if is_quick(upload.data):
                pixels = self._decode(model, upload)
                return beside, self._recorded(model, self._batcher.run_here(model, pixels))
        with self._batcher.expect():
            beside, pixels = await self.in_thread(self._prepare, model, read)
            [answer] = self._batcher.submit(model, pixels)
        return beside, self._recorded(model, await answer)

    async def classify_pixels(self, model: Model, images: Pixels) -> list[Result]:
        """Run images, uint8 `[images, height, width, 3]` of the model's size."""
        results = await asyncio.gather(*self._batcher.submit(model, *images))
        return [self._recorded(model, result) for result in results]

    def close(self) -> None:
        """End the threads."""
        self._decoders.shutdown(wait=False)
        self._batcher.close()

    def _is_alone(self) -> bool:
        """Return whether there is nothing to do but the one image that is asked for."""
        return self._admitted == 1 and self._batcher.idle

    def _prepare(self, model: Model, read: Callable[[], tuple[T, Upload]]) -> tuple[T, Pixels]:
        beside, upload = read()
        return beside, self._decode(model, upload)

    def _decode(self, model: Model, upload: Upload) -> Pixels:
        start = time.perf_counter()
        try:
            return decode_safely(upload.data, model.artifact.image_size, self._settings.max_pixels)
        except ImageError as error:
            raise RequestError.of_image(error, upload.name) from error
        finally:
            METRICS.decode_seconds.observe(time.perf_counter() - start)

    def _recorded(self, model: Model, result: Result) -> Result:
        # In the loop's next round: the client waits for the answer, which goes out at the end of this one.
        asyncio.get_running_loop().call_soon(_record, model, result)
        return result

    def _count(self, images: int) -> None:
        self._admitted += images
        METRICS.queue_images.set(self._admitted)


def _record(model: Model, result: Result) -> None:
    """Count what shows drift: classes, confidence, and learners at odds with the ensemble."""
    first = int(result.order[0])
    METRICS.predictions.labels(model.artifact.classes[first]).inc()
    METRICS.confidence.observe(float(result.probabilities[first]))
    if not {first, None}.issuperset(result.choices):
        METRICS.disagreements.inc()
