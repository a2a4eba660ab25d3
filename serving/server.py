"""What the routes share: settings, limits, the model, and whether requests are still welcome."""

import asyncio
import logging
import signal
from http import HTTPStatus
from types import FrameType

from serving.body import Receiver
from serving.classifier import Classifier
from serving.errors import RequestError
from serving.keys import Guard
from serving.live import LiveModel
from serving.settings import ServerSettings

logger = logging.getLogger("tailstack")


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
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, "draining", "the server is going down")

    def drain_on_sigterm(self, seconds: float) -> None:
        """Fail /readyz first, so that load balancers look elsewhere, and stop accepting connections `seconds` later.

        uvicorn, whose handler this comes before, answers what it has accepted and then ends.
        """
        loop = asyncio.get_running_loop()
        stop = signal.getsignal(signal.SIGTERM)

        def drain(number: int, frame: FrameType | None) -> None:
            if self.draining:
                return
            self.draining = True
            logger.info("SIGTERM: not ready any more, and no new connections in %g s", seconds)
            if callable(stop):
                loop.call_soon_threadsafe(loop.call_later, seconds, stop, number, frame)

        signal.signal(signal.SIGTERM, drain)
