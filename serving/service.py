"""The BentoML service: `bentoml serve` starts, watches and stops the workers, and each serves our app.

BentoML's own app around a service is left out: it answers bad images with 500, follows URLs, counts unknown paths in
/metrics without bound, and puts a third party's script on its page. `docs/serving.md` lists what was found.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import bentoml
from _bentoml_sdk import Service
from starlette.types import ASGIApp

from serving import logs
from serving.connections import guard_connections
from serving.memory import give_back_memory
from serving.prior import load_prior
from serving.runtime import CheckedModel, check_model, fetch_model
from serving.settings import METRICS_DIRECTORY, TUNED, ServerSettings
from serving.tuning import is_worthwhile, tuned
from tailstack.engine import open_engine
from tailstack.errors import UserError

if TYPE_CHECKING:
    from serving.server import Server

T = TypeVar("T")
_MALLOC = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": "1000000"}
"""For glibc in the workers: give the pixels of large images back at once, instead of keeping some for each thread."""


class TailstackService(Service[Any]):
    """A BentoML service whose workers serve `serving.app`."""

    def to_asgi(self, is_main: bool = True) -> ASGIApp:
        """Return the app of one worker."""
        logs.configure()
        return _or_exit(_worker_app)


def _worker_app() -> ASGIApp:
    from serving.app import build_app  # noqa: PLC0415 (its metrics decide at import how a worker keeps figures)

    settings = ServerSettings.from_environment()
    guard_connections(settings)
    logs.silence_libtiff()

    def when_started(server: "Server") -> None:
        server.drain_on_sigterm()
        server.guard.warn_if_open()

    return build_app(settings, when_started)


def _check(settings: ServerSettings) -> CheckedModel:
    """Find mistakes before any worker starts, and return the model.

    Found by a worker, they would end that worker, with a traceback, and BentoML would start the next one.
    """
    settings.keys(), settings.all_admin_keys()
    model = check_model(fetch_model(settings.model), settings.runtime, settings.public_key)
    if settings.class_prior_file:
        load_prior(settings.class_prior_file, model.artifact)
    if settings.device in ("cuda", "tensorrt"):
        open_engine(settings.model_file, settings.runtime, settings.device, content=model.content)
    return model


def _or_exit(work: Callable[[], T]) -> T:
    try:
        return work()
    except UserError as error:
        raise SystemExit(f"error: {error}") from error


@bentoml.service(
    name="tailstack",
    workers=_or_exit(ServerSettings.from_environment).workers,
    service_class=TailstackService,
)
class Tailstack:
    """Classifies images with the ensemble in one ONNX file."""

    @bentoml.on_deployment
    def before_workers() -> None:
        """Check the settings and the model, and prepare what the workers share. Called by BentoML, without a self."""
        # BentoML doesn't bring back a killed worker where this says that it runs in a container.
        os.environ.pop("BENTOML_CONTAINERIZED", None)
        for name, value in _MALLOC.items():
            os.environ.setdefault(name, value)
        settings = _or_exit(ServerSettings.from_environment)
        model = _or_exit(lambda: _check(settings))
        logs.configure()
        _or_exit(lambda: _share_tuning(settings, model.content))
        if settings.workers > 1:
            _share_metrics()


def _share_tuning(settings: ServerSettings, content: bytes) -> None:
    """Measure once what all workers take: side by side they would measure each other."""
    os.environ.pop(TUNED, None)
    threads = settings.threads_per_worker
    if settings.tune == "on" and is_worthwhile(settings.runtime, settings.device, threads):
        os.environ[TUNED] = tuned(settings.model_file, content, threads).model_dump_json()
        give_back_memory()


def _share_metrics() -> None:
    """Make the folder in which the workers of this server add up their figures.

    BentoML's own folder is the same for all servers of a user, and each start empties it.
    """
    folder = tempfile.mkdtemp(prefix="tailstack-metrics-")
    os.environ[METRICS_DIRECTORY] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
