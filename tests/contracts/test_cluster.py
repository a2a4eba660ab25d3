"""Connecting to a Ray cluster, and what a task may ask of its machines; Ray itself isn't started."""

from typing import Any

import pytest
import ray

from tailstack.cluster import connect, share_of_machine
from tailstack.errors import UserError


def machines(monkeypatch: pytest.MonkeyPatch, *resources: dict[str, float]) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": found} for found in resources])


def test_auto_takes_the_ray_of_this_machine_and_starts_one_if_none_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(ray, "init", lambda address, **_: asked.append(address))
    for address in ("auto", None, "ray://head:10001"):
        connect(address)
    assert asked == [None, None, "ray://head:10001"]


def test_no_cluster_at_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: object, **__: object) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(UserError, match="there is no Ray cluster at head:1: nobody answers"):
        connect("head:1")


def test_all_of_a_machine_is_what_ray_has_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 64)  # the host's, of which a container has two
    machines(monkeypatch, {"CPU": 1.0}, {"CPU": 2.0, "memory": 1e9}, {})
    assert share_of_machine("--cores", 0) == (2, 0)
    assert share_of_machine("--cores", 1) == (1, 0)
    with pytest.raises(UserError, match=r"--cores is 3, and the cluster's largest machine has 2 core\(s\)"):
        share_of_machine("--cores", 3)


def test_cores_and_gpu_are_of_one_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machines(monkeypatch, {"CPU": 32.0}, {"CPU": 8.0, "GPU": 1.0})
    assert share_of_machine("--cores", 0) == (8, 1)
    with pytest.raises(UserError, match=r"--cores is 16"):
        share_of_machine("--cores", 16)


@pytest.mark.parametrize("alive", [True, False])
def test_no_machine_has_a_core(monkeypatch: pytest.MonkeyPatch, alive: bool) -> None:
    resources = {} if alive else {"CPU": 4.0}
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": alive, "Resources": resources}])
    with pytest.raises(UserError, match=r"largest machine has 0 core\(s\)"):
        share_of_machine("--cores", 0)
