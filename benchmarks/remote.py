"""A server that runs somewhere: asked over HTTP as its clients ask it, with errors that say what a user can do."""

import http.client
import json
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from benchmarks.http_load import OK
from benchmarks.wrk import KEY
from serving.protocol import ModelDescription
from tailstack.errors import UserError

PATIENCE_S = 60.0
_UNAUTHORIZED = 401


@dataclass(frozen=True)
class Answered:
    """What a server answered for one image."""

    probabilities: npt.NDArray[np.float32]
    """float32 `[classes]`."""
    sets: dict[str, npt.NDArray[np.bool_]]
    """Which classes are in the prediction set, bool `[classes]`, by coverage."""


@dataclass(frozen=True)
class Remote:
    """The address of a server. Each thread keeps a connection of its own."""

    host: str
    port: int
    prefix: str
    """Path before those of the routes; empty, or begins with a slash."""
    key: str = field(default="", repr=False)
    _threads: threading.local = field(default_factory=threading.local, repr=False, compare=False)

    @classmethod
    def parse(cls, url: str, key: str = "") -> "Remote":
        """Take an address apart.

        Raises:
            UserError: it isn't one of plain HTTP.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port or 80
        except ValueError as error:
            raise UserError(f"--url {url!r} isn't an address: {error}") from error
        if parts.scheme == "https":
            raise UserError(f"--url {url!r}: TLS is the work of what stands in front; measure the server over http://")
        if parts.scheme != "http" or not host or parts.query or parts.fragment:
            raise UserError(f"--url {url!r} isn't an address such as http://localhost:3000")
        return cls(host, port, parts.path.rstrip("/"), key)

    @property
    def url(self) -> str:
        """The address without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.prefix}"

    def describe(self) -> ModelDescription:
        """Return what `GET /model` says.

        Raises:
            UserError: nobody answers, a key is missing, or it isn't a server of ours.
        """
        status, body = self._ask("GET", "/model")
        if status == _UNAUTHORIZED:
            what = "refuses the key" if self.key else "asks for a key"
            raise UserError(f"{self.url} {what}: give one with --key or the variable {KEY}")
        if status != OK:
            raise UserError(f"{self.url} is no Tailstack server: GET /model is answered with {status}")
        try:
            return ModelDescription.model_validate_json(body)
        except ValidationError as error:
            raise UserError(
                f"{self.url} is no Tailstack server: GET /model doesn't describe a model of ours"
            ) from error

    def classify(self, image: bytes, card: ModelDescription) -> Answered:
        """Classify one encoded image; one request for each coverage that the server offers, or a single one.

        Raises:
            UserError: it is refused, or the server is gone.
        """
        answers = {str(coverage): self._classify(image, len(card.classes), coverage) for coverage in card.coverages}
        first = next(iter(answers.values())) if answers else self._classify(image, len(card.classes), None)
        probabilities = np.zeros(len(card.classes), dtype=np.float32)
        for prediction in first["predictions"]:
            probabilities[prediction["index"]] = prediction["probability"]
        sets = {name: np.isin(card.classes, _members(answer)) for name, answer in answers.items()}
        return Answered(probabilities, sets)

    def settle(self, image: bytes) -> None:
        """Wait until the server has done what a load before left behind: until one more image, behind it, is answered.

        Raises:
            UserError: the server is gone.
        """
        self._connection().close()  # it may have been idle for longer than the server keeps it
        self._ask("POST", "/classify", image)

    def _classify(self, image: bytes, classes: int, coverage: float | None) -> dict[str, Any]:
        query = f"top_k={classes}&learners=false" + (f"&coverage={coverage}" if coverage is not None else "")
        status, body = self._ask("POST", f"/classify?{query}", image)
        if status != OK:
            raise UserError(f"{self.url} answers {status}: {_message(body)}")
        answer: dict[str, Any] = json.loads(body)
        return answer

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
        headers = {"X-API-Key": self.key} if self.key else {}
        if body is not None:
            headers["Content-Type"] = "application/octet-stream"
        connection = self._connection()
        try:
            connection.request(method, self.prefix + path, body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise UserError(f"{self.url} can't be reached: {error or type(error).__name__}") from error

    def _connection(self) -> http.client.HTTPConnection:
        if not hasattr(self._threads, "connection"):
            self._threads.connection = http.client.HTTPConnection(self.host, self.port, timeout=PATIENCE_S)
        connection: http.client.HTTPConnection = self._threads.connection
        return connection


def _members(answer: dict[str, Any]) -> list[str]:
    members: list[str] = answer["uncertainty"]["prediction_set"]
    return members


def _message(body: bytes) -> str:
    """Return the text of an error; what isn't ours is shown by its beginning."""
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return body[:100].decode(errors="replace")
