"""What the server takes from its environment: each field of `ServerSettings` has a variable `TAILSTACK_<FIELD>`."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from serving.tuning import Setup
from tailstack.engine import Runtime
from tailstack.errors import UserError
from tailstack.remote import local
from tailstack.session import Device

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

PREFIX = "TAILSTACK_"
METRICS_DIRECTORY = "TAILSTACK_METRICS_DIR"
"""Set by the server itself, for its workers."""
TUNED = "TAILSTACK_TUNED"
"""Set by the server itself, for its workers: a `Setup` as JSON."""
_ROOT = Path(__file__).parent.parent
_COMMENT = re.compile(r"(^|\s)#.*")


def _words(text: object) -> object:
    return tuple(word.strip() for word in text.split(",") if word.strip()) if isinstance(text, str) else text


def _not_empty(keys: tuple[str, ...]) -> tuple[str, ...]:
    # A secret that failed to arrive must not open the server.
    if not keys:
        raise ValueError("it has no key; leave it unset to serve without keys")
    return keys


Words = Annotated[tuple[str, ...], BeforeValidator(_words)]
"""Comma-separated in the environment."""
KeyWords = Annotated[Words, AfterValidator(_not_empty)]
"""Keys, of which there is one at least where the variable is set."""


class ServerSettings(BaseModel):
    """Settings of the server."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Path = _ROOT / "models" / "ensemble.onnx"
    """The file to serve, which may lie in an object store."""
    device: Device = "auto"
    """`cuda` and `tensorrt` fail where they don't really work; `auto` takes CUDA where it does, else the CPU."""
    runtime: Runtime = "onnxruntime"
    """What runs the file; `openvino` needs the extra of that name, and runs on CPUs."""
    workers: int = Field(default=1, ge=1)
    """Processes, each with the model."""
    threads: int = Field(default=0, ge=0)
    """Threads of one inference on the CPU; 0 shares the cores among the workers."""
    tune: Literal["on", "off"] = "on"
    """Whether ONNX Runtime's settings on the CPU are measured at the first start with a model."""
    max_batch: int = Field(default=8, ge=1)
    """Images that one inference takes at most. On a CPU larger batches only take more memory; a GPU wants more."""
    max_queue: int = Field(default=128, ge=1)
    """Images that wait or are worked on; above it a request is told to come back."""
    max_images: int = Field(default=64, ge=1)
    """Images in one request; more than `max_queue` never fit."""
    max_bytes: int = Field(default=20_000_000, ge=1)
    """Bytes of one request's body."""
    max_buffered_bytes: int = Field(default=200_000_000, ge=1)
    """Bytes of all bodies that are being received or worked on."""
    max_pixels: int = Field(default=50_000_000, ge=1)
    """Height times width of an image that is decoded."""
    max_connections: int = Field(default=1000, ge=1)
    """Open connections of one worker."""
    timeout: float = Field(default=30.0, gt=0)
    """Seconds from a complete request to its answer; above it, 504."""
    receive_timeout: float = Field(default=30.0, gt=0)
    """Seconds in which a client sends its request: the headers, and then the body. In as many it has to read some of an
    answer that waits for it."""
    drain: float = Field(default=1.0, ge=0)
    """Seconds between SIGTERM, when /readyz begins to fail, and the refusal of new requests."""
    grace: float = Field(default=25.0, gt=0)
    """Seconds between SIGTERM and the end, whatever has not been answered by then."""
    reload_interval: float = Field(default=2.0, ge=0)
    """Seconds between looks at the model file for a new version; 0 doesn't look, and needs a single worker."""
    api_keys: KeyWords = ()
    api_keys_file: Path | None = None
    """One key a line. Without any key, whoever reaches the server may use it."""
    admin_keys: KeyWords = ()
    admin_keys_file: Path | None = None
    """Keys of `POST /model/reload`, which is closed without one."""
    class_prior_file: Path | None = None
    """Class mix for which answers are right where a request names none: JSON, weights by label."""
    public_key: Path | None = None
    """PEM file: only a model that was signed with the private part of this key is served."""
    cors_origins: Words = ()
    """Origins whose pages may call the server from a browser, or `*`."""
    request_log: Literal["all", "errors"] = "all"
    """Which requests get a line in the log; `errors` suits a server behind a proxy that logs them all."""
    otlp_endpoint: str | None = None
    """Where OpenTelemetry traces go, such as `http://collector:4318/v1/traces`."""

    @classmethod
    def from_environment(cls) -> "ServerSettings":
        """Read the settings.

        Raises:
            UserError: naming each variable whose value can't be used.
        """
        values = {
            name: os.environ[PREFIX + name.upper()] for name in cls.model_fields if PREFIX + name.upper() in os.environ
        }
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError("; ".join(map(_problem, error.errors()))) from error

    @model_validator(mode="after")
    def _check_reloads(self) -> "ServerSettings":
        if self.workers > 1 and not self.reload_interval:
            # `POST /model/reload` reaches one worker; the others see the new file.
            raise ValueError(f"{PREFIX}RELOAD_INTERVAL 0 needs {PREFIX}WORKERS 1")
        return self

    @model_validator(mode="after")
    def _check_end(self) -> "ServerSettings":
        if self.drain >= self.grace:
            raise ValueError(
                f"{PREFIX}DRAIN is {self.drain:g}, and has to be less than {PREFIX}GRACE, which is {self.grace:g}"
            )
        return self

    @property
    def model_file(self) -> Path:
        """The file on this machine: `model`, or its copy if that lies in an object store."""
        return local(self.model)

    @property
    def images_per_request(self) -> int:
        """Images that one request may have."""
        return min(self.max_images, self.max_queue)

    @property
    def threads_per_worker(self) -> int:
        """Threads of one inference, once the cores are shared among the workers."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // self.workers)

    def setup(self) -> Setup:
        """Return how a batch that has the cores to itself is run: as was measured, or on all threads."""
        measured = os.environ.get(TUNED)
        return Setup.model_validate_json(measured) if measured else Setup(threads=self.threads_per_worker)

    def keys(self) -> tuple[str, ...]:
        """Return the API keys of the variable and of the file.

        Raises:
            UserError: the file can't be read.
        """
        return self.api_keys + _read_keys(self.api_keys_file)

    def all_admin_keys(self) -> tuple[str, ...]:
        """Return the admin keys of the variable and of the file.

        Raises:
            UserError: the file can't be read.
        """
        return self.admin_keys + _read_keys(self.admin_keys_file)


def _problem(error: "ErrorDetails") -> str:
    if not error["loc"]:
        return error["msg"]
    return f"{PREFIX}{str(error['loc'][0]).upper()} is {error['input']!r}: {error['msg']}"


def _read_keys(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"keys file {path} can't be read: {error}") from error
    keys = tuple(key for line in lines if (key := _COMMENT.sub("", line).strip()))
    if not keys:
        raise UserError(f"keys file {path} has no key")
    return keys
