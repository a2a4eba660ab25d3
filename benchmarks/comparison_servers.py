"""Our server and the peers': installed, started, and asked once whether they do the same work.

A peer that fails, at whatever point, is left out from there on, and the page says why: the others' minutes aren't lost.
"""

import http.client
import json
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import tailstack
from benchmarks.http_load import OK, Body, form
from benchmarks.peer_server import Running, install, serve_peer, version
from benchmarks.peers.registry import PEERS
from benchmarks.served import serve
from tailstack.errors import UserError
from tailstack.progress import track

OURS, CHEAPER = "tailstack", "tailstack, cheaper file"
_PATIENCE_S = 60
_FAILURES = (UserError, OSError, http.client.HTTPException, psutil.Error, subprocess.SubprocessError)
_SHOWN = 300
"""Characters of a reason on the page."""


@dataclass(frozen=True)
class Contestant:
    """One server, and how it is asked."""

    name: str
    version: str
    serve: Callable[[], AbstractContextManager[Running]]
    path: str
    bodies: list[Body]
    """What it is sent, in turn."""

    def bodies_from(self, share: float) -> list[Body]:
        """Return the bodies in turn, beginning after a share of them.

        A turn of a slow server is over before the last one: were the first the same in each, it would see few.
        """
        first = round(share * len(self.bodies)) % len(self.bodies)
        return [*self.bodies[first:], *self.bodies[:first]]


@dataclass(frozen=True)
class Server:
    """A contestant that has been started."""

    contestant: Contestant
    running: Running
    restless: bool
    """Whether it is paused but for its turns."""
    stop: Callable[[], None]
    """Ends it."""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Let it run until the block ends."""
        if self.restless:
            self.running.resume()
        try:
            yield
        finally:
            if self.restless:
                self.running.pause()


@dataclass
class Absent:
    """Those that have failed, and why."""

    names: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    """For the page."""

    @contextmanager
    def unless_ours(self, name: str) -> Iterator[None]:
        """Note it and go on where something fails in the block, but for our own server.

        Raises:
            UserError: ours fails.
        """
        try:
            yield
        except _FAILURES as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if name == OURS:
                raise UserError(f"{OURS}: {reason}") from error
            print(f"{name} is left out from here on: {reason}", flush=True)
            self.names.add(name)
            # The end of a log says more than its beginning.
            shown = reason if len(reason) <= _SHOWN else f"{reason[: _SHOWN // 3]} … {reason[-_SHOWN * 2 // 3 :]}"
            # As code: a traceback's underscores are no Markdown.
            literal = shown.replace("`", "'")
            self.notes.append(f"**{name} failed, and is left out from there on:** `{literal}`")

    def among(self, servers: Sequence[Server]) -> list[Server]:
        """Return the others."""
        return [server for server in servers if server.contestant.name not in self.names]


def contestants(
    names: Sequence[str],
    model: Path,
    cheaper: Path | None,
    pictures: Sequence[bytes],
    environments: Path,
    threads: int,
    cache: Path,
    absent: Absent,
) -> list[Contestant]:
    """Return the servers in question, ours first; what isn't installed yet is.

    Args:
        names: peers, of `PEERS`.
        model: the file that all serve.
        cheaper: a file that ours serves besides.
        pictures: JPEGs.
        environments: folder of the peers' virtual environments.
        threads: threads of one inference in ours; peers take what they take.
        cache: folder in which ours keeps what it measures of itself at its start.
        absent: takes the peers that can't be installed.
    """
    ours = {OURS: model, **({CHEAPER: cheaper} if cheaper else {})}
    found: list[Contestant] = []
    for name, file in ours.items():
        # No server logs requests here, where that can be set.
        running = partial(serve_ours, file, threads, TAILSTACK_REQUEST_LOG="errors", XDG_CACHE_HOME=str(cache))
        bodies = [form(picture) for picture in pictures]
        found.append(Contestant(name, tailstack.__version__, running, "/classify", bodies))
    for name in names:
        with absent.unless_ours(name):
            peer = PEERS[name]
            environment = install(peer, environments)
            serving = partial(serve_peer, peer, environment, model)
            bodies = [peer.body(picture) for picture in pictures]
            found.append(Contestant(name, version(peer, environment), serving, peer.path, bodies))
    return found


@contextmanager
def start(found: Sequence[Contestant], absent: Absent) -> Iterator[list[Server]]:
    """Start all servers, until the block ends; the restless ones are paused.

    Raises:
        UserError: ours doesn't get ready.
    """
    with ExitStack() as stack:
        servers = []
        for contestant in track(found, "Starting the servers", len(found)):
            own = stack.enter_context(ExitStack())
            with absent.unless_ours(contestant.name):
                servers.append(_started(contestant, own))
            if contestant.name in absent.names:
                own.close()
        yield servers


def _started(contestant: Contestant, stack: ExitStack) -> Server:
    running = stack.enter_context(contestant.serve())
    server = Server(contestant, running, running.is_restless(), stack.close)
    if server.restless:
        running.pause()
        # One that is paused would not end.
        stack.callback(running.resume)
    return server


@contextmanager
def serve_ours(model: Path, threads: int, workers: int = 1, **variables: str) -> Iterator[Running]:
    """Run our server until the block ends; arguments and errors are those of `benchmarks.served.serve`."""
    with serve(model, threads, workers, **variables) as served:
        yield Running(served.port, psutil.Process(served.process.pid))


def check_answers(servers: Sequence[Server], absent: Absent) -> list[Server]:
    """Return the servers that give each picture the same label as ours; the one of the cheaper file need not.

    Raises:
        UserError: ours doesn't answer.
    """
    ours: list[str] = []
    for server in servers:
        contestant = server.contestant
        with absent.unless_ours(contestant.name), server.turn():
            labels = [_label(server.running.port, contestant, body) for body in contestant.bodies]
            ours = ours or labels
            if contestant.name != CHEAPER:
                _compare(labels, ours)
    return stop_absent(servers, absent)


def stop_absent(servers: Sequence[Server], absent: Absent) -> list[Server]:
    """End the servers that have failed, so that they take no time from the others, which are returned."""
    for server in servers:
        if server.contestant.name in absent.names:
            server.stop()
    return absent.among(servers)


def _compare(labels: Sequence[str], ours: Sequence[str]) -> None:
    others = [(own, expected) for own, expected in zip(labels, ours, strict=True) if own != expected]
    if others:
        raise UserError(
            f"it gives {len(others)} of {len(ours)} pictures another label than {OURS}, such as {others[0][0]!r} "
            f"instead of {others[0][1]!r}: it doesn't do the same work"
        )


def _label(port: int, server: Contestant, body: Body) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_S)
    try:
        connection.request("POST", server.path, body.content, {"content-type": body.content_type})
        response = connection.getresponse()
        text = response.read().decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"it can't be reached: {error or type(error).__name__}") from error
    finally:
        connection.close()
    found = first_label(text)
    if response.status != OK or found is None:
        raise UserError(f"it answered {response.status}: {text[:300]}")
    return found


def first_label(answer: Any) -> str | None:
    """Return the first `label` in an answer, whose JSON may have JSON as text in it; None if it has none."""
    if isinstance(answer, str):
        try:
            return first_label(json.loads(answer))
        except ValueError:
            return None
    if isinstance(answer, dict) and isinstance(answer.get("label"), str):
        return str(answer["label"])
    parts = answer.values() if isinstance(answer, dict) else answer if isinstance(answer, list) else ()
    return next((found for part in parts if (found := first_label(part)) is not None), None)
