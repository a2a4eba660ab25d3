"""The peers' virtual environments and processes, without installing one."""

import importlib.metadata
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import peer_server
from benchmarks.peer_server import DONE, install, requirements, serve_peer, version
from benchmarks.peers.registry import PEERS, RUNTIME
from tailstack.errors import UserError

PEER = PEERS["fastapi"]


def test_an_environment_of_other_versions_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[list[str]] = []

    def run(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, "")

    monkeypatch.setattr(subprocess, "run", run)
    (tmp_path / "fastapi").mkdir()
    done = tmp_path / "fastapi" / DONE
    done.write_text("fastapi\nonnxruntime==1.0")
    assert install(PEER, tmp_path) == tmp_path / "fastapi"
    assert [calls[0][-2], *calls[1][-len(requirements(PEER)) :]] == ["--clear", *requirements(PEER)]
    assert install(PEER, tmp_path) == tmp_path / "fastapi"
    assert len(calls) == 2


def test_a_version_tells_what_else_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = [importlib.metadata.version(name) for name in RUNTIME]
    monkeypatch.setattr(peer_server, "_call", lambda *_: " ".join(["0.9", *here]))
    assert version(PEER, tmp_path) == "0.9"
    monkeypatch.setattr(peer_server, "_call", lambda *_: " ".join(["0.9", here[0], "1.0", here[2]]))
    assert version(PEER, tmp_path) == f"0.9 with {RUNTIME[1]} 1.0"


def test_a_damaged_environment_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is damaged"):
        version(PEER, tmp_path)
    with pytest.raises(UserError, match="fastapi can't be started"), serve_peer(PEER, tmp_path, tmp_path / "model"):
        pass


def test_a_server_that_ends_is_told_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    broken = replace(PEER, command=("python", "-c", "print('no such model')"))
    with pytest.raises(UserError, match="did not get ready: no such model"), serve_peer(broken, tmp_path, tmp_path):
        pass
