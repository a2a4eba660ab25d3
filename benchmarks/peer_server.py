"""A peer under measurement: its own virtual environment, made once, and its own process."""

import contextlib
import importlib.metadata
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.peers.registry import RUNTIME, Peer
from benchmarks.served import START_LIMIT_S, free_port, get_status
from tailstack.errors import UserError

FOLDER = Path(__file__).with_name("peers")
"""Working directory of the peers, and where they find their modules."""
RESTLESS_CORES = 0.02
_REST_S = 1.0
DONE = ".installed"
"""File in a virtual environment with what was asked for in it."""
_LOOK_S = 0.1


@dataclass(frozen=True)
class Running:
    """A server that is ready."""

    port: int
    process: psutil.Process

    def cpu_seconds(self) -> float:
        """Return the processor time so far of the server and of all that it started."""
        total = 0.0
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def pause(self) -> None:
        """Stop the server's processes, so that they take no time from others."""
        self._send(psutil.Process.suspend)

    def resume(self) -> None:
        """Let them go on."""
        self._send(psutil.Process.resume)

    def is_restless(self) -> bool:
        """Return whether the server takes time while nobody asks it anything."""
        time.sleep(_REST_S)
        before = self.cpu_seconds()
        time.sleep(_REST_S)
        return self.cpu_seconds() - before > RESTLESS_CORES * _REST_S

    def _send(self, change: Callable[[psutil.Process], None]) -> None:
        for process in self._family():
            with contextlib.suppress(psutil.NoSuchProcess):
                change(process)

    def _family(self) -> list[psutil.Process]:
        """Return the server and all that it started; nothing where it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [self.process, *self.process.children(recursive=True)]
        return []


def requirements(peer: Peer) -> list[str]:
    """Return what is installed for a peer: its own packages, and `RUNTIME` of the versions installed here."""
    return [*peer.packages, *(f"{name}=={importlib.metadata.version(name)}" for name in RUNTIME)]


def install(peer: Peer, environments: Path) -> Path:
    """Return the folder of the peer's virtual environment, made where there is none yet, or one of other versions.

    A peer that can't be installed beside `RUNTIME` of the versions installed here gets others; `version` says so.

    Raises:
        UserError: pip can't install it.
    """
    folder = environments / peer.environment
    packages = requirements(peer)
    done, wanted = folder / DONE, "\n".join(packages)
    if done.exists() and done.read_text() == wanted:
        return folder
    print(f"Installing {peer.environment} into {folder} …", flush=True)
    _call([sys.executable, "-m", "venv", "--clear", str(folder)], f"{folder} can't be made")
    pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, *packages], check=False, capture_output=True).returncode:
        _call([*pip, *peer.packages, *RUNTIME], f"{peer.environment} can't be installed")
    done.write_text(wanted)
    return folder


def version(peer: Peer, environment: Path) -> str:
    """Return the version of the peer that is installed, and those of `RUNTIME` that aren't the ones installed here.

    Raises:
        UserError: its environment can't be read.
    """
    names = [peer.packages[0].partition("[")[0], *RUNTIME]
    code = f"from importlib.metadata import version; print(*map(version, {names!r}))"
    own, *found = _call([str(environment / "bin" / "python"), "-c", code], f"{environment} is damaged").split()
    here = map(importlib.metadata.version, RUNTIME)
    others = [f"{name} {there}" for name, there, ours in zip(RUNTIME, found, here, strict=True) if there != ours]
    return f"{own} with {', '.join(others)}" if others else own


@contextmanager
def serve_peer(peer: Peer, environment: Path, model: Path) -> Iterator[Running]:
    """Run a peer until the block ends.

    Raises:
        UserError: it doesn't get ready; the message has the end of its log.
    """
    port = free_port()
    ports = {"port": port, "other_port": free_port(), "third_port": free_port()}
    program, *arguments = (part.format(port=port) for part in peer.command)
    # It runs in another folder, and a link there leads out of the environment.
    environment = environment.absolute()
    with tempfile.TemporaryDirectory() as home, tempfile.TemporaryFile("w+") as log:
        variables = {
            **os.environ,
            "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(FOLDER),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MODEL": str(model.resolve()),
            "PORT": str(port),
            **{name: value.format(home=home, **ports) for name, value in peer.variables.items()},
        }
        command = [str(environment / "bin" / program), *arguments]
        try:
            # In a session of its own: what is left of it can be ended, and Ctrl-C is for the measurement alone.
            process = subprocess.Popen(
                command, cwd=FOLDER, env=variables, stdout=log, stderr=log, start_new_session=True
            )
        except OSError as error:
            raise UserError(f"{peer.packages[0]} can't be started: {error}") from error
        running = Running(port, psutil.Process(process.pid))
        try:
            if not _gets_ready(process, port, peer.ready):
                log.seek(0)
                raise UserError(f"{peer.packages[0]} did not get ready: {log.read()[-1500:]}")
            yield running
        finally:
            _stop(running.process)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _call(command: list[str], failing: str) -> str:
    """Return what a command prints, without the spaces around it.

    Raises:
        UserError: beginning with `failing`, where it isn't there or fails.
    """
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"{failing}: {error}") from error
    if done.returncode:
        raise UserError(f"{failing}: {(done.stderr or done.stdout).strip()[-500:]}")
    return done.stdout.strip()


def _gets_ready(process: "subprocess.Popen[bytes]", port: int, path: str) -> bool:
    end = time.perf_counter() + START_LIMIT_S
    while time.perf_counter() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            if get_status(port, path) == 200:
                return True
        time.sleep(_LOOK_S)
    return False


def _stop(process: psutil.Process) -> None:
    """End a server and all that it started, gently first."""
    with contextlib.suppress(psutil.NoSuchProcess):
        family = [*process.children(recursive=True), process]
        process.terminate()
        _, left = psutil.wait_procs(family, timeout=10)
        for survivor in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                survivor.kill()
        psutil.wait_procs(left, timeout=5)
