"""The serving benchmark on a small model: its figures belong together, and its load tells failures from answers."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks import serving_soak
from benchmarks.http_load import Load, LoadReport, run_answered_load, run_load
from benchmarks.machine import describe_machine
from benchmarks.served import Served, serve
from benchmarks.serving_report import soak_markdown
from benchmarks.serving_speed import ServingSettings, measure_serving
from tailstack.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    return str(path)


@pytest.fixture(scope="module")
def served(tiny_model: Path) -> Iterator[Served]:
    with serve(tiny_model, threads=1) as server:
        yield server


def test_a_load_sends_so_many_requests(served: Served, picture: str) -> None:
    report = run_load(Load(served.port, picture, requests=50, concurrency=4))
    assert (len(report.answers), report.failures) == (50, [])
    assert 0 < report.cpu_seconds < report.seconds
    assert 0 < report.median_ms() <= report.milliseconds().max()


def test_a_load_keeps_its_rate(served: Served, picture: str) -> None:
    report = run_load(Load(served.port, picture, seconds=2, rate=20))
    assert (len(report.answers), report.failures) == (40, [])
    began = sorted(at for at, _ in report.answers)
    assert began == pytest.approx([number / 20 for number in range(40)], abs=1e-6)


def test_failures_are_counted_by_kind(served: Served, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    report = run_load(Load(served.port, str(broken), requests=5))
    assert (report.answers, report.failed()) == ([], {"415": 5})
    nobody = run_load(Load(1, str(broken), requests=3))
    assert nobody.failed() == {"ConnectionRefusedError": 3}
    with pytest.raises(UserError, match=r"answered none of 3 requests: .*ConnectionRefusedError"):
        run_answered_load(Load(1, str(broken), requests=3))


def test_a_server_tells_its_memory_and_processor_time(served: Served, picture: str) -> None:
    before = served.cpu_seconds()
    run_load(Load(served.port, picture, requests=50))
    assert served.cpu_seconds() > before
    (size,) = served.memory_mib().values()
    assert size > 20
    assert "tailstack_requests_total" in served.metrics()


def test_the_load_is_taken_out_of_the_rate() -> None:
    report = LoadReport(seconds=10.0, cpu_seconds=4.0, answers=[(0.0, 0.1)] * 80)
    assert report.rate == 8.0
    assert report.rate_without_load(cores=2) == 10.0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"rounds": 0}, "--rounds"),
        ({"seconds": 0.0}, "--seconds"),
        ({"threads": -1}, "--threads"),
        ({"image": Path("none.jpg")}, "none.jpg doesn't exist"),
        ({"image": Path("none.jpg"), "datastore": Path("none")}, "choose one"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        measure_serving(ServingSettings(**changes), None)


def measure(model: Path, output: Path, *more: str) -> None:
    command = [sys.executable, "benchmarks/serving.py", "--model", str(model), "--output", str(output)]
    command += ["--rounds", "2", "--seconds", "0.5", "--requests", "200", "--starts", "1", "--concurrency", "4"]
    environment = {**os.environ, "TAILSTACK_RELOAD_INTERVAL": "0.2"}
    done = subprocess.run([*command, *more], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_reports_figures_belong_together(tiny_model: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    measure(tiny_model, report, "--datastore", str(tiny_datastore))
    figures = json.loads((report / "serving.json").read_text())
    speed = figures["throughput"]
    for name in ("http", "http_without_load"):
        suffix = name.removeprefix("http")
        shares = np.divide(speed["rounds"][name], speed["rounds"]["in_process"])
        assert speed[f"ratio{suffix}"] == pytest.approx(np.median(shares))
    assert speed["ratio"] <= speed["ratio_without_load"]
    assert figures["memory_mib"]["requests"] >= 200
    assert figures["failures"] == 0
    assert len(figures["memory_mib"]["workers"]) == len(figures["ready_s"]) == 1
    page = (report / "serving.md").read_text()
    assert f"| {speed['ratio']:.3f} |" in page
    assert f"64 test photos of {figures['image_bytes']} bytes on average" in page
    assert f"{figures['latency_ms']['above']:.2f}" in page


class NoWorkers:
    """A server of which nothing lives any more."""

    def workers(self) -> list[psutil.Process]:
        """Return none."""
        return []

    def memory_mib(self) -> dict[int, float]:
        """Return none."""
        return {}

    def metrics(self) -> str:
        """Answer nobody."""
        raise ConnectionRefusedError


def test_a_soak_in_which_all_goes_wrong_is_reported(tmp_path: Path) -> None:
    model, gone = tmp_path / "model.onnx", cast(Served, NoWorkers())
    model.write_bytes(b"")
    watch = serving_soak._watch(gone, model, 0.3)
    watch.shift(0.1)
    answered = LoadReport(seconds=0.3, failures=[(0.0, "ConnectionRefusedError"), (0.2, "ConnectionRefusedError")])
    serving_soak._draw(answered, watch, tmp_path / "soak.png")
    soak = serving_soak._summary(answered, watch) | {"models_loaded": serving_soak._reloads_loaded(gone)}
    assert (soak["failures_by_kill"], soak["failures_else"], soak["workers_at_the_end"]) == (0, 2, 0)
    assert soak["killed_at_s"] is None
    pictures = {"image_bytes": 1, "images": 1, "model": {"file": "model.onnx"}, "minutes": 1, "rate": 8, "capacity": 10}
    machine = {**describe_machine("CPUExecutionProvider", 1), "cores_of_others": 0.0}
    page = soak_markdown({**soak, **pictures, "machine": machine})
    assert "| median, 99 % in ms | -, - |" in page
    assert "loaded - times by the workers" in page
    assert "| MiB of the other worker, first and last tenth | -, - |" in page


def test_the_soak_replaces_models_and_loses_a_worker(tiny_model: Path, tmp_path: Path) -> None:
    report = tmp_path / "report"
    # Of twelve seconds.
    measure(tiny_model, report, "--soak", "0.2")
    soak = json.loads((report / "soak.json").read_text())
    assert soak["reloads"] == 10
    assert soak["models_loaded"] >= 1
    assert soak["killed_at_s"] is not None
    assert soak["requests"] == pytest.approx(soak["rate"] * 60 * soak["minutes"], abs=1)
    assert sum(soak["failures"].values()) == soak["failures_by_kill"] + soak["failures_else"]
    assert Image.open(report / "soak.png").format == "PNG"
