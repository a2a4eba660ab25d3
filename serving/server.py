"""What the routes share: settings, limits, the model, and whether requests are still welcome."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType

from serving.body import Receiver
from serving.classifier import Classifier
from serving.errors import draining
from serving.keys import Guard
from serving.live import LiveModel
from serving.settings import ServerSettings

logger = logging.getLogger("tailstack")
_LOOK_S = 0.05


class Server:
    """One worker. Its model is loaded when the app starts."""

    live: LiveModel
    classifier: Classifier

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self.draining = False
        self.receiver = Receiver(settings)
        self.guard = Guard(settings)

    def check_ready(self) -> None:
        """Pass while requests are welcome.

        Raises:
            RequestError: the server is going down.
        """
        if self.draining:
            raise draining()

    def drain_on_sigterm(self) -> None:
        """Fail /readyz first, so that load balancers look elsewhere; then refuse requests; end when all are answered.

        Until then connections are accepted: BentoML holds the listening socket too, so that a worker that has left it
        leaves clients waiting on it, without an answer.
        """
        loop = asyncio.get_running_loop()
        stop = signal.getsignal(signal.SIGTERM)

        def drain(number: int, frame: FrameType | None) -> None:
            if not self.draining:
                self.draining = True
                loop.call_soon_threadsafe(begin, partial(stop, number, frame) if callable(stop) else loop.stop)

        def begin(end: Callable[[], object]) -> None:
            self._leaving = loop.create_task(self._leave(end))

        signal.signal(signal.SIGTERM, drain)

    async def _leave(self, end: Callable[[], object]) -> None:
        settings = self.settings
        logger.info("SIGTERM: not ready any more, and no new requests in %g s", settings.drain)
        last = threading.Timer(settings.grace, os._exit, [1])
        last.daemon = True
        last.start()
        await asyncio.sleep(settings.drain)
        self.receiver.close()
        while self.receiver.busy:
            await asyncio.sleep(_LOOK_S)
        end()
