"""The capacity plan: its queueing model beside a simulation, and its thresholds beside the manifests."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from benchmarks import capacity_plan
from benchmarks.capacity_check import ROUNDS
from benchmarks.capacity_plan import (
    QUEUE_SHARE,
    CapacitySettings,
    delay,
    largest_load,
    measured_before,
    measured_beside_model,
    plan,
    run_capacity,
)
from benchmarks.http_load import Load, due_times
from benchmarks.queueing import Replica, simulate
from serving.settings import ServerSettings
from tailstack.errors import UserError
from tailstack.files import read_json, write_json

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


@pytest.mark.parametrize(
    "rates", [(100.0,), (100.0, 200.0), (103.0, 140.0, 150.0, 180.0, 180.0, 205.0), (50.0,) * 8 + (90.0,)]
)
@pytest.mark.parametrize("use", [0.3, 0.5, 0.7, 0.9])
def test_the_model_agrees_with_a_simulation(rates: tuple[float, ...], use: float) -> None:
    replica = Replica(rates)
    load = use * replica.rate
    taken = simulate(replica, load, 500_000, seed=0)
    assert replica.mean(load) == pytest.approx(taken.mean(), rel=0.05)
    for share in (0.5, 0.99):
        assert replica.quantile(load, share) == pytest.approx(np.quantile(taken, share), rel=0.06)


def test_one_core_is_erlangs_queue() -> None:
    # M/M/1: delays are exponential, with the mean 1 / (rate - load).
    replica = Replica((100.0,))
    assert replica.mean(80.0) == pytest.approx(0.05, rel=1e-4)
    assert replica.quantile(80.0, 0.99) == pytest.approx(0.05 * math.log(100), rel=1e-4)


def test_two_cores_are_erlangs_queue() -> None:
    # M/M/2 at a use of 0.5: a third waits, and an image takes 1 / (1 - 0.25) of its service of 0.01 s.
    assert Replica((100.0, 200.0)).mean(100.0) == pytest.approx(0.01 / 0.75, rel=1e-4)


def test_between_two_measurements_lies_a_line_that_never_falls() -> None:
    assert Replica.measured({4: 180.0, 1: 100.0, 2: 140.0}).rates == (100.0, 140.0, 160.0, 180.0)
    assert Replica.measured({1: 100.0, 2: 90.0, 4: 120.0}).rates == (100.0, 100.0, 105.0, 120.0)


def test_there_is_no_delay_to_tell_at_a_load_that_never_ends() -> None:
    for load in (0.0, 100.0, 120.0):
        with pytest.raises(ValueError, match="at most 100"):
            Replica((50.0, 100.0)).mean(load)


@pytest.mark.parametrize(("most", "found"), [(0.0, 0.0), (42.0, 42.0), (98.9, 98.9), (100.0, 98.9)])
def test_the_largest_load_that_fits(most: float, found: float) -> None:
    assert largest_load(Replica((100.0,)), lambda load: load <= most + 1e-9) == pytest.approx(found)


def test_the_plan_keeps_to_what_was_measured_where_that_is_slower_than_the_model() -> None:
    loads = [(0.3, 0.7, 70.0), (0.4, 0.9, 200.0), (0.5, 3.0, 250.0)]
    rows = [{"use": use, "p99_ratio": ratio, "p99_ms": ms, "p99_ms_model": 100.0} for use, ratio, ms in loads]
    beside = measured_beside_model({"loads": rows})
    assert beside == [(0.0, 1.0), (0.3, 1.0), (0.4, 2.0), (0.5, 3.0)]
    replica = Replica((100.0,))
    for use, times in ((0.2, 1.0), (0.4, 2.0), (0.5, 3.0), (0.9, 3.0)):
        assert delay(replica, 100 * use, beside) == pytest.approx(times * replica.quantile(100 * use, 0.99))


def manifests(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / "kubernetes" / f"{name}.yaml").read_text()))


@pytest.fixture(scope="module")
def planned() -> dict[str, Any]:
    settings = CapacitySettings()
    return plan(settings, read_json(ROOT / settings.output / "capacity.json")["check"])


def test_the_thresholds_are_those_of_the_manifests(planned: dict[str, Any]) -> None:
    for name in ("cpu", "gpu"):
        deployment, scaler = manifests(name)
        (metric,) = scaler["spec"]["metrics"]
        assert metric["pods"]["target"]["averageValue"] == f"{1000 * QUEUE_SHARE:.0f}m"
        assert scaler["spec"]["maxReplicas"] == 10
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        assert not [variable for variable in container["env"] if variable["name"] == "TAILSTACK_MAX_QUEUE"]
        limits = container["resources"]["limits"]
        cores = {"cpu": planned["cost"]["cores"], "gpu": planned["assumptions"]["gpu_cores"]}
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
            assert load["autoscaler"] * replicas["autoscaler"]["load"] >= load["rate"]


def test_the_command_checks_the_real_server_and_writes_the_page(tiny_model: Path, tmp_path: Path) -> None:
    line = [sys.executable, "benchmarks/capacity.py", "--check=true", f"--model={tiny_model}", "--seconds=1"]
    # However slow the machine is.
    line += ["--p99_ms=1e5", f"--output={tmp_path}", f"--page={tmp_path / 'capacity.md'}"]
    environment = {**os.environ, "TAILSTACK_TUNE": "off"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check = json.loads((tmp_path / "capacity.json").read_text())["check"]
    assert all(row["rate_without_load"] >= row["rate"] > 0 for row in check["inside"])
    assert check["inference_ms"] > 0
    assert all(row["server_ms"] > 0 for row in check["inside"])
    assert all(row["images"] > 0 for row in check["loads"])
    # In each round, as many requests were sent as one rate and the use say, rounded down: none is forgotten.
    sent = {row["use"]: row["images"] + row["failures"] for row in check["loads"]}
    assert max(count / use for use, count in sent.items()) < min((count + ROUNDS) / use for use, count in sent.items())
    page = (tmp_path / "capacity.md").read_text()
    assert f"{check['inside'][-1]['rate']:.1f} images/s" in page
    assert (tmp_path / "capacity.png").stat().st_size > 1000


def test_what_was_measured_is_kept_where_the_plan_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = read_json(ROOT / CapacitySettings().output / "capacity.json")["check"]
    monkeypatch.setattr(capacity_plan, "check_server", lambda *_: check)
    (tmp_path / "taken").touch()
    for output, page, says in (
        (tmp_path / "taken", tmp_path / "capacity.md", "taken can't be made"),
        (tmp_path, tmp_path / "taken" / "capacity.md", "taken can't be made"),
        (tmp_path, tmp_path / "docs" / "capacity.md", "is less than one image takes alone"),
    ):
        with pytest.raises(UserError, match=says):
            run_capacity(CapacitySettings(check=True, p99_ms=1e-3, output=output, page=page))
    assert measured_before(tmp_path / "capacity.json") == check
    page = tmp_path / "docs" / "capacity.md"
    assert page.parent.is_dir()
    assert run_capacity(CapacitySettings(output=tmp_path, page=page)) == page.read_text()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rates": []}, "--rates"),
        ({"rates": [10.0, 0.0]}, "--rates"),
        ({"gpu_rate": 0.0}, "--gpu_rate"),
        ({"gpu_cores": 0}, "--gpu_cores"),
        ({"seconds": 0.0}, "--seconds"),
    ],
)
def test_settings_with_nothing_to_plan_for_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        CapacitySettings(**changes).validate()


@pytest.mark.parametrize("report", [[], {}, {"check": None}, {"check": {"rate": 200.0, "loads": []}}])
def test_a_report_of_another_version_is_refused(report: Any, tmp_path: Path) -> None:
    path = tmp_path / "capacity.json"
    with pytest.raises(UserError, match="isn't there yet"):
        measured_before(path)
    write_json(path, report)
    with pytest.raises(UserError, match="--check true"):
        measured_before(path)


def test_a_load_may_come_at_random() -> None:
    even, random, again, other = (due_times(Load(1, "", seconds=2000, rate=10, seed=seed)) for seed in (None, 0, 0, 1))
    assert even == pytest.approx(np.arange(20_000) / 10)
    assert random == again != other
    gaps = np.diff(random)
    assert gaps.mean() == pytest.approx(0.1, rel=0.05)
    # Of an exponential distribution, mean and deviation are the same.
    assert gaps.std() == pytest.approx(0.1, rel=0.05)
