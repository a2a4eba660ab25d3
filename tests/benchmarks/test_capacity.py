"""The capacity plan: its queueing model beside a simulation, and its thresholds beside the manifests."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks.capacity_plan import QUEUE_SHARE, CapacitySettings, plan
from benchmarks.http_load import Load, due_times
from benchmarks.queueing import Replica, simulate
from serving.settings import ServerSettings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize("servers", [1, 2, 4, 16])
@pytest.mark.parametrize("use", [0.3, 0.5, 0.7, 0.9])
def test_the_model_agrees_with_a_simulation(servers: int, use: float) -> None:
    replica = Replica(rate=100.0 * servers, servers=servers, latency=0.01)
    load = use * replica.rate
    waits = simulate(replica, load, 2_000_000, seed=0)
    assert replica.wait(load) == pytest.approx(waits.mean(), rel=0.03, abs=0.001 * replica.service)
    delay = replica.latency + np.percentile(waits, 99)
    # The tail of a wait for one core is shorter than an exponential one: a plan errs on the safe side.
    assert 0.98 * delay < replica.quantile(load, 0.99) < 1.2 * delay


def test_a_simulation_of_one_server_has_the_exact_mean() -> None:
    # Pollaczek and Khinchine's: use * service / (2 * (1 - use)).
    waits = simulate(Replica(10.0, 1, 0.1), 8.0, 2_000_000, seed=1)
    assert waits.mean() == pytest.approx(0.8 * 0.1 / (2 * 0.2), rel=0.02)
    assert waits.min() == pytest.approx(0, abs=1e-9)


def test_there_is_no_wait_to_tell_at_a_load_that_never_ends() -> None:
    for load in (0.0, 100.0, 120.0):
        with pytest.raises(ValueError, match="at most 100"):
            Replica(100.0, 2, 0.01).wait(load)


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / f"{name}.yaml").read_text()))


@pytest.fixture(scope="module")
def planned() -> dict[str, Any]:
    settings = CapacitySettings()
    settings.serving, settings.inference = ROOT / settings.serving, ROOT / settings.inference
    return plan(settings)


def test_the_thresholds_are_those_of_the_manifests(planned: dict[str, Any]) -> None:
    for name in ("cpu", "gpu"):
        deployment, scaler = manifests(name)
        (metric,) = scaler["spec"]["metrics"]
        assert metric["pods"]["target"]["averageValue"] == f"{1000 * QUEUE_SHARE:.0f}m"
        assert scaler["spec"]["maxReplicas"] == 10
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert not [variable for variable in container["env"] if variable["name"] == "TAILSTACK_MAX_QUEUE"]
        limits = container["resources"]["limits"]
        cores = {"cpu": planned["replicas"]["cpu"]["servers"], "gpu": planned["assumptions"]["gpu_cores"]}
        assert int(limits["cpu"]) == cores[name]
    assert planned["max_queue"] == ServerSettings().max_queue


def test_what_the_autoscaler_is_content_with_raises_no_alert(planned: dict[str, Any]) -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"][0]["rules"]
    limits = {rule["alert"]: float(rule["expr"].rsplit(">", 1)[1]) for rule in rules if ">" in rule["expr"][-8:]}
    for replicas in planned["replicas"].values():
        assert replicas["autoscaler"]["queue_share"] < limits["TailstackQueueFills"]
        assert replicas["autoscaler"]["p99_ms"] < 1e3 * limits["TailstackSlow"]
        assert replicas["in_time"]["queue_share"] < limits["TailstackQueueFills"]


def test_replicas_follow_the_load(planned: dict[str, Any]) -> None:
    for replicas in planned["replicas"].values():
        assert replicas["in_time"]["p99_ms"] <= planned["p99_ms"]
        few, some, many = replicas["loads"]
        assert few["replicas"] == 2
        for load in (some, many):
            assert load["replicas"] * replicas["in_time"]["load"] >= load["rate"]
            assert load["replicas"] == 2 or (load["replicas"] - 1) * replicas["in_time"]["load"] < load["rate"]
            assert load["autoscaler"] <= load["replicas"]


def test_the_command_checks_the_real_server_and_writes_the_page(tiny_model: Path, tmp_path: Path) -> None:
    line = [sys.executable, "benchmarks/capacity.py", "--check=true", f"--model={tiny_model}", "--seconds=1"]
    line += [f"--output={tmp_path}", f"--page={tmp_path / 'capacity.md'}"]
    environment = {**os.environ, "TAILSTACK_TUNE": "off"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check = json.loads((tmp_path / "capacity.json").read_text())["check"]
    assert check["rate"] > 0
    assert all(row["images"] > 0 and row["failures"] == 0 for row in check["loads"])
    page = (tmp_path / "capacity.md").read_text()
    assert f"{check['rate']:.1f} images/s" in page
    assert (tmp_path / "capacity.png").stat().st_size > 1000


def test_a_load_may_come_at_random() -> None:
    even, random, again, other = (due_times(Load(1, "", seconds=2000, rate=10, seed=seed)) for seed in (None, 0, 0, 1))
    assert even == pytest.approx(np.arange(20_000) / 10)
    assert random == again != other
    gaps = np.diff(random)
    assert gaps.mean() == pytest.approx(0.1, rel=0.05)
    # Of an exponential distribution, mean and deviation are the same.
    assert gaps.std() == pytest.approx(0.1, rel=0.05)
