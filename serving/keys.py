"""API keys: who may use the server, and who may administer it."""

import hashlib
import hmac
import ipaddress
import logging
import re
from http import HTTPStatus

import psutil
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from serving.errors import RequestError
from serving.settings import ServerSettings

logger = logging.getLogger("tailstack")

OPEN_PATHS = frozenset({"/", "/livez", "/readyz", "/healthz", "/v2/health/live", "/v2/health/ready"})
"""Health, and the page with its files (`/static/…`), which asks for a key itself."""
ADMIN_PATHS = frozenset({"/model/reload"})
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def is_open(path: str) -> bool:
    """Return whether a path needs no key."""
    return path in OPEN_PATHS or path.startswith("/static/")


class Keys:
    """Several keys, compared in constant time."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        # Digests have one length, so that a comparison doesn't tell the length of a key either.
        self._digests = [_digest(key.encode(errors="surrogateescape")) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def admit(self, key: str) -> bool:
        """Return whether `key` is one of them."""
        # Starlette reads headers as Latin-1, which gives any bytes back.
        given = _digest(key.encode("latin-1"))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return any(matches)


class Guard:
    """Decides whether a request may go on."""

    def __init__(self, settings: ServerSettings) -> None:
        self._users = Keys(settings.keys() + settings.all_admin_keys() if settings.keys() else ())
        self._admins = Keys(settings.all_admin_keys())

    @property
    def locked(self) -> bool:
        """Whether the server asks for keys."""
        return bool(self._users)

    def check(self, path: str, headers: Headers) -> None:
        """Let a request pass.

        Raises:
            RequestError: it has no key, a wrong one, or what it asks for is closed, or can't be.
        """
        # A route's pattern fits the path with a line's end behind it too, which what is compared here doesn't.
        if _CONTROL.search(path):
            raise RequestError(HTTPStatus.NOT_FOUND, "not_found", "there is no path with such characters")
        if path in ADMIN_PATHS:
            self._check_admin(headers)
        elif self._users and not is_open(path):
            _check_key(self._users, headers)

    def _check_admin(self, headers: Headers) -> None:
        if not self._admins:
            raise RequestError(
                HTTPStatus.FORBIDDEN, "closed", "there is no admin key: set TAILSTACK_ADMIN_KEYS to open this"
            )
        _check_key(self._admins, headers)

    def warn_if_open(self) -> None:
        """Log a warning where anyone on a network may use the server."""
        if not self._users and (addresses := [ip for ip in _listening() if not ipaddress.ip_address(ip).is_loopback]):
            logger.warning(
                "listening on %s without API keys: whoever reaches it may use it. Set TAILSTACK_API_KEYS or "
                "TAILSTACK_API_KEYS_FILE, or serve on --host 127.0.0.1",
                ", ".join(addresses),
            )


class Gate:
    """The layer that asks the guard. It lies inside CORS, so that a page of another origin may read what it answers."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it."""
        if scope["type"] == "http":
            try:
                self._guard.check(scope["path"], Headers(scope=scope))
            except RequestError as error:
                await error.response(scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _check_key(keys: Keys, headers: Headers) -> None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    key = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
    if not key or not keys.admit(key):
        what = "the API key is wrong" if key else "an API key is needed: Authorization: Bearer KEY, or X-API-Key"
        raise RequestError(HTTPStatus.UNAUTHORIZED, "unauthorized", what)


def _listening() -> list[str]:
    """Return the addresses that this process listens on: BentoML tells a worker its socket, not its host."""
    connections = psutil.Process().net_connections("tcp")
    return sorted({connection.laddr.ip for connection in connections if connection.status == psutil.CONN_LISTEN})


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
