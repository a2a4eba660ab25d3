"""Learners on a Ray cluster of two nodes, which are processes of this machine, and what the loss of one costs."""

import csv
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from ray.cluster_utils import Cluster

from tailstack.run import WEIGHTS_FILE
from training.compare import compare
from training.learner import CHECKPOINT, METRICS
from training.settings import CompareSettings, FitSettings

pytestmark = pytest.mark.ray
TECHNIQUES = ["stacking"]
TINY: dict[str, Any] = {
    "architectures": ["lcnet_035", "mobilenetv3_small_050"],
    "pretrained": False,
    "resolution": 32,
    "epochs": 6,
    "num_workers": 0,
}


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    """A head without cores, and two nodes of one core each: learners run on either, and the head is never lost."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def alone(tiny_datastore: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The comparison in this process, on one thread, as a learner has on a node."""
    folder, threads = tmp_path_factory.mktemp("alone"), torch.get_num_threads()
    torch.set_num_threads(1)
    run_compare(tiny_datastore, folder)
    torch.set_num_threads(threads)
    return folder


def run_compare(datastore: Path, folder: Path, **values: Any) -> None:
    settings = CompareSettings(
        output=folder / "results", runs=folder / "runs", datastores=[datastore], techniques=TECHNIQUES
    )
    compare(settings, FitSettings(datastore=datastore, output=folder / "unused", **TINY, **values))


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "results" / "table.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(folder: Path) -> dict[str, bytes]:
    paths = sorted((folder / "runs").rglob(WEIGHTS_FILE))
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def in_the_middle(nodes: list[psutil.Process], folder: Path) -> list[psutil.Process]:
    """Return the nodes that train, once each of their learners has a checkpoint; else none."""
    training = [node for node in nodes if any("ray::_train" in name for name in commands(node))]
    begun = {path.parent for path in (folder / "runs").rglob(CHECKPOINT)}
    finished = {path.parent for path in (folder / "runs").rglob(WEIGHTS_FILE)}
    return training if len(begun - finished) == len(training) else []


def commands(node: psutil.Process) -> list[str]:
    found = []
    for process in node.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found.append(" ".join(process.cmdline()))
    return found


def epochs(folder: Path) -> list[list[str]]:
    found = []
    for path in sorted((folder / "runs").rglob(METRICS)):
        with path.open(newline="") as file:
            found.append([row["epoch"] for row in csv.DictReader(file)])
    return found


def test_two_nodes_give_the_same_table(cluster: Cluster, alone: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    run_compare(tiny_datastore, tmp_path, cluster=cluster.address)
    assert table(tmp_path) == table(alone)
    assert weights(tmp_path) == weights(alone)


def test_a_node_that_is_killed_costs_time_only(
    cluster: Cluster, alone: Path, tiny_datastore: Path, tmp_path: Path
) -> None:
    nodes = [psutil.Process(node.all_processes["raylet"][0].process.pid) for node in cluster.worker_nodes]
    lost: list[psutil.Process] = []
    done = threading.Event()

    def kill() -> None:
        """Kill a node in the middle of its learner, and all that runs on it."""
        while not lost and not done.wait(0.02):
            lost.extend(in_the_middle(nodes, tmp_path)[:1])
        for node in lost:
            for process in (node, *node.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        run_compare(tiny_datastore, tmp_path, cluster=cluster.address)
    finally:
        done.set()
        killer.join()
    assert len(lost) == 1
    assert table(tmp_path) == table(alone)
    assert weights(tmp_path) == weights(alone)
    assert epochs(tmp_path) == [[str(epoch) for epoch in range(1, 7)]] * 2
