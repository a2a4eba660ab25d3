"""The model that answers, and its exchange for a new version of the file while requests go on."""

import asyncio
import logging
import math
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from serving.memory import give_back_memory
from serving.metrics import METRICS
from serving.runtime import Model, fetch_model, sidecar
from serving.settings import ServerSettings
from tailstack.errors import UserError
from tailstack.signature import signature_file

logger = logging.getLogger("tailstack")
_PARTS_FREED_S = 1.0
"""By then a model's session is surely gone, once nothing holds the model."""
_LONGEST_DELAY_S = 300.0
T = TypeVar("T")
Look = tuple[tuple[int, int, int] | None, ...]


class LiveModel:
    """Holds the model; a new one is loaded beside it, checked, warmed up and only then put in its place.

    Raises:
        UserError: the first model can't be served.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._loading = asyncio.Lock()
        self._loader = ThreadPoolExecutor(1, "load")
        self._seen = self._look()
        self._delay, self._retry_at = 0.0, math.inf
        self.current = self._load()
        _show(self.current, 1)

    async def reload(self) -> bool:
        """Load the file again; return whether the model that answers is another one now.

        Raises:
            UserError: the file can't be served; the old model goes on.
        """
        async with self._loading:
            try:
                self._seen = await self._in_loader(self._look)
                return await self._exchange()
            finally:
                await self._in_loader(give_back_memory)

    async def _exchange(self) -> bool:
        delay, self._delay, self._retry_at = self._delay, 0.0, math.inf
        try:
            new = await self._in_loader(self._load)
        except Exception as error:
            METRICS.reloads.labels("refused").inc()
            logger.warning("new model refused, %s goes on: %s", self.current.version, error)
            if isinstance(error, UserError):
                raise
            # Memory, or a disk, that may be back soon; or never, so it is tried ever more rarely.
            self._delay = min(max(2 * delay, self._settings.reload_interval), _LONGEST_DELAY_S)
            self._retry_at = time.monotonic() + self._delay
            raise UserError(f"the file can't be served: {type(error).__name__}") from error
        if new.answers_as(self.current):
            METRICS.reloads.labels("unchanged").inc()
            return False
        old, self.current = self.current, new
        _show(old, 0)
        _show(new, 1)
        METRICS.reloads.labels("loaded").inc()
        mix = " with another class prior" * (new.version == old.version)
        logger.info("model %s replaces %s%s", new.version, old.version, mix)
        # Requests that began with the old model still hold it; under load that is for seconds.
        weakref.finalize(old, self._clean_up).atexit = False
        return True

    async def watch(self) -> None:
        """Reload whenever the file, its sidecar, its signature or the class prior changes, for ever."""
        while True:
            await asyncio.sleep(self._settings.reload_interval)
            # A copy in progress changes from look to look: wait until it holds still.
            try:
                before = await self._in_loader(self._look)
            except UserError as error:
                logger.warning("no look at the model file, %s goes on: %s", self.current.version, error)
                continue
            known = before == self._seen and time.monotonic() < self._retry_at
            if known or before[0] is None:
                continue
            await asyncio.sleep(min(1.0, self._settings.reload_interval))
            # A refusal is logged already; the next change of the file is the next try.
            with suppress(UserError):
                if await self._in_loader(self._look) == before:
                    await self.reload()

    def close(self) -> None:
        """End the loading thread."""
        self._loader.shutdown(wait=False)

    def _clean_up(self) -> None:
        # RuntimeError: the server closed meanwhile, and its memory goes as a whole.
        with suppress(RuntimeError):
            # Python calls this before it frees the model's parts, its session above all.
            self._loader.submit(time.sleep, _PARTS_FREED_S)
            self._loader.submit(give_back_memory)

    def _load(self) -> Model:
        settings = self._settings
        threads = settings.threads_per_worker
        return Model.load(
            settings.model_file,
            settings.device,
            threads,
            settings.max_batch,
            settings.runtime,
            settings.setup(),
            settings.class_prior_file,
            settings.public_key,
        )

    async def _in_loader(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loader, work)

    def _look(self) -> Look:
        """Return what the file looks like now, fetched anew if it lies in an object store.

        Raises:
            UserError: it can't be fetched.
        """
        fetch_model(self._settings.model)
        return self._stats()

    def _stats(self) -> Look:
        model, prior = self._settings.model_file, self._settings.class_prior_file
        files = (model, sidecar(model), signature_file(model), *([prior] if prior else []))
        return tuple(_stat(path) for path in files)


def _stat(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _show(model: Model, value: int) -> None:
    METRICS.model.labels(model.artifact.name, model.version, model.engine.provider).set(value)
