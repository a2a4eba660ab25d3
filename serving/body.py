"""The body of a request: received within its limits, and taken apart into images and parameters."""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.message import Message
from email.utils import collapse_rfc2231_value
from http import HTTPStatus

from starlette.requests import Request

from serving.errors import RequestError, draining, malformed, overloaded
from serving.metrics import METRICS
from serving.multipart import MultipartError, split_form
from serving.settings import ServerSettings

_MAX_FIELD_BYTES = 1_000_000
"""A `class_prior` for 8,000 classes takes half of it."""
_MAX_FIELDS = 16
_MAX_HEADER = 1000
_MAX_JSON_VALUES = 50_000
_PLAIN_PARAMETER = re.compile(r';\s*([\w-]+)=(?:"([^"\\]*)"|([\w.+/-]+))', re.ASCII)
_PLAIN_HEADER = re.compile(rf"[\w.+/ -]+(?:{_PLAIN_PARAMETER.pattern})*", re.ASCII)
"""With nothing that `_PLAIN_PARAMETER` doesn't read: no escapes, and no encodings or parts of RFC 2231."""


@dataclass
class Upload:
    """One image as it came."""

    name: str
    """What the client calls it; may be empty."""
    data: bytes


@dataclass
class Content:
    """A body, taken apart."""

    images: list[Upload] = field(default_factory=list)
    parameters: dict[str, str] = field(default_factory=dict)


class Receiver:
    """Receives bodies, with a limit on each and on what all of them hold in memory."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._buffered = 0
        self._open = 0
        self._closed = False

    @property
    def busy(self) -> bool:
        """Whether any body is being received or worked on."""
        return self._open > 0

    def close(self) -> None:
        """Refuse bodies from now on."""
        self._closed = True

    @asynccontextmanager
    async def receive(self, request: Request) -> AsyncIterator[bytes]:
        """Yield the body, which counts as held until the block ends.

        Raises:
            RequestError: it is too large, too slow, compressed, there is no room for it, or the server is going down.
        """
        if self._closed:
            raise draining()
        body = bytearray()
        self._open += 1
        try:
            await self._fill(body, request)
            yield bytes(body)
        finally:
            self._open -= 1
            self._buffered -= len(body)

    async def _fill(self, body: bytearray, request: Request) -> None:
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding", "compressed bodies are not read here"
            )
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._settings.max_bytes:
            raise self._too_large()
        limit = self._settings.receive_timeout
        try:
            async with asyncio.timeout(limit):
                async for chunk in request.stream():
                    self._buffered += len(chunk)
                    body += chunk
                    if len(body) > self._settings.max_bytes:
                        raise self._too_large()
                    if self._buffered > self._settings.max_buffered_bytes:
                        METRICS.rejected.labels("memory").inc()
                        raise overloaded("memory for bodies")
        except TimeoutError as error:
            raise RequestError(
                HTTPStatus.REQUEST_TIMEOUT, "body_too_slow", f"the body did not arrive within {limit:g} s"
            ) from error

    def _too_large(self) -> RequestError:
        limit = self._settings.max_bytes
        return RequestError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "body_too_large", f"the body is larger than {limit} bytes"
        )


def parse(body: bytes, content_type: str, image_field: str, max_images: int) -> Content:
    """Take a body apart: a multipart form, JSON with base64, or else an image itself.

    Args:
        body: the body.
        content_type: its header.
        image_field: the name of the form's or the JSON's images.
        max_images: more are refused.

    Raises:
        RequestError: it is malformed, or has no image or too many.
    """
    content_type = content_type[:_MAX_HEADER]
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        content = _parse_form(body, _parameters(content_type).get("boundary", ""), image_field, max_images)
    elif kind == "application/json":
        content = _parse_json(body, image_field)
    else:
        content = Content([Upload("", body)] if body else [])
    if not content.images:
        what = f"the body has no `{image_field}`" if body else "the request has no body: send an image"
        raise malformed("no_image", what)
    if len(content.images) > max_images:
        raise too_many(max_images)
    return content


def too_many(limit: int) -> RequestError:
    """Return the error of a request with more than `limit` images."""
    return malformed("too_many_images", f"the request has more than {limit} image(s)")


def _parameters(header: str) -> dict[str, str]:
    """Return the parameters of a header by name, such as the boundary of a content type; the first of a name counts."""
    # `email` reads all that RFC 2231 allows, in ten times the time.
    if _PLAIN_HEADER.fullmatch(header):
        return {name.lower(): quoted or bare for name, quoted, bare in reversed(_PLAIN_PARAMETER.findall(header))}
    message = Message()
    message["content-type"] = header
    try:
        found = message.get_params([])
        return {name.lower(): _encodable(collapse_rfc2231_value(value)) for name, value in reversed(found)}
    # Of RFC 2231: a number that is too long or missing, or an encoding that doesn't fit.
    except (ValueError, TypeError):
        return {}


def _encodable(text: str) -> str:
    """Return a text that can be sent: some encodings of RFC 2231 give half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _parse_form(body: bytes, boundary: str, image_field: str, max_images: int) -> Content:
    if not boundary:
        raise malformed("malformed_multipart", "the multipart body has no boundary in its content type")
    content = Content()
    try:
        for part in split_form(body, boundary, max_images + _MAX_FIELDS):
            # `email` takes time by the square of a header's length.
            parameters = _parameters(part.disposition[:_MAX_HEADER])
            name = parameters.get("name", "")
            if name == image_field:
                if len(content.images) == max_images:
                    raise too_many(max_images)
                content.images.append(Upload(parameters.get("filename", "")[:200], part.data))
            else:
                if len(part.data) > _MAX_FIELD_BYTES:
                    raise malformed("too_long", f"a field of the form is longer than {_MAX_FIELD_BYTES} bytes")
                content.parameters[name] = part.data.decode("utf-8", "replace")
    except MultipartError as error:
        raise malformed("malformed_multipart", str(error)) from error
    return content


def _parse_json(body: bytes, image_field: str) -> Content:
    # Base64 has none of these. As Python's objects, 20 MB of `[],` take nearly 500 MB.
    if body.count(b",") + body.count(b"[") + body.count(b"{") > _MAX_JSON_VALUES:
        raise malformed("malformed_json", f"the body has more than {_MAX_JSON_VALUES} values")
    try:
        value = json.loads(body)
    # Deep nesting is a RecursionError.
    except (ValueError, RecursionError) as error:
        raise malformed("malformed_json", "the body is not JSON") from error
    if not isinstance(value, dict):
        raise malformed("malformed_json", "the body is not a JSON object")
    images = value.pop(image_field, None)
    content = Content()
    for text in images if isinstance(images, list) else [images] if images is not None else []:
        content.images.append(Upload("", _from_base64(text, image_field)))
    content.parameters = {name: _as_text(parameter) for name, parameter in value.items()}
    return content


def _from_base64(text: object, image_field: str) -> bytes:
    if not isinstance(text, str):
        raise malformed("malformed_json", f"`{image_field}` is not a base64 text")
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise malformed("malformed_base64", f"`{image_field}` is not base64 (URLs are not fetched)") from error


def _as_text(value: object) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
