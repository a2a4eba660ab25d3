"""How cost grows, on tiny untrained networks: every value of every axis is measured, and by a file of its own."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import growth_http
from benchmarks.comparison_servers import Contestant
from benchmarks.comparison_turns import Turn
from benchmarks.growth_axes import GrowthSettings, run_growth
from benchmarks.growth_files import Built, Plan, build_files
from benchmarks.growth_process import BATCHES
from benchmarks.growth_report import draw, markdown
from benchmarks.growth_rows import Row
from benchmarks.peer_server import Running
from benchmarks.wrk import Closed
from tailstack.artifact import LEARNER_PROBABILITIES
from tailstack.engine import open_engine
from tailstack.errors import UserError

ROOT = Path(__file__).parents[2]
PLAN = Plan("test_efficientnet", learners=(1, 3), classes=(2, 5), pixels=(32, 48))
needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk makes the load: apt-get install wrk")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Built]:
    return build_files(PLAN, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def measured(
    files: dict[tuple[str, int], Built], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Row], dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.growth_axes.build_files", lambda *_: files)
        output, http = tmp_path_factory.mktemp("growth"), shutil.which("wrk") is not None
        settings = GrowthSettings(tiny_model, rounds=1, seconds=1.0, http=http, output=output)
        return run_growth(settings, PLAN, batches=(1, 4), concurrencies=(1, 4))


def test_each_file_differs_in_one_thing(files: dict[tuple[str, int], Built]) -> None:
    shapes = {}
    for key, built in files.items():
        images = np.random.default_rng(0).integers(0, 256, (2, built.pixels, built.pixels, 3), dtype=np.uint8)
        votes = open_engine(built.path, threads=1).run(images, (LEARNER_PROBABILITIES,))[0]
        shapes[key] = (*votes.shape[1:], built.pixels)
        for one in range(1, votes.shape[1]):
            assert not np.allclose(votes[:, 0], votes[:, one])
    assert shapes == {
        ("learners", 1): (1, 5, 48),
        ("learners", 3): (3, 5, 48),
        ("classes", 2): (1, 2, 48),
        ("classes", 5): (1, 5, 48),
        ("pixels", 32): (1, 5, 32),
        ("pixels", 48): (1, 5, 48),
    }


def test_every_value_of_every_axis_is_measured(measured: tuple[list[Row], dict[str, Any]]) -> None:
    rows, _ = measured
    found = [(row["axis"], row["batch"], row["value"]) for row in rows if row["where"] == "in process"]
    axes = {"learners": PLAN.learners, "classes": PLAN.classes, "pixels": PLAN.pixels}
    expected = [(axis, batch, value) for axis, values in axes.items() for batch in BATCHES for value in values]
    assert found == [*expected, ("batch", 1, 1), ("batch", 4, 4)]
    for row in rows:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        assert row["images_per_second"] > 0
    firsts = [
        row for row in rows if row["value"] == min(other["value"] for other in rows if other["axis"] == row["axis"])
    ]
    assert {row["relative_to_first"] for row in firsts} == {1.0}


@needs_wrk
def test_http_is_measured_with_one_worker_and_with_two(measured: tuple[list[Row], dict[str, Any]]) -> None:
    rows = [row for row in measured[0] if row["where"] == "http"]
    assert [(row["workers"], row["value"]) for row in rows] == [(1, 1), (1, 4), (2, 1), (2, 4)]
    assert all(row["server_cpu_ms_per_request"] and row["load_cores"] and row["refused"] == 0 for row in rows)


def test_a_turn_in_which_the_server_fails_is_not_the_end(
    idle: Running, monkeypatch: pytest.MonkeyPatch, measured: tuple[list[Row], dict[str, Any]], tmp_path: Path
) -> None:
    running: list[dict[str, str]] = []

    @contextlib.contextmanager
    def serve(_model: Path, _threads: int, _workers: int, **variables: str) -> Iterator[Running]:
        running.append(variables)
        if len(running) == 3:
            raise UserError("the server did not get ready")
        yield idle

    def turn(_running: Running, _server: Contestant, concurrency: int, _seconds: float) -> Turn:
        if concurrency == 256 or (concurrency == 4 and len(running) == 1):
            raise UserError("it answered no request")
        return Turn(Closed(50.0, np.full(50, 5.0), 0, 1.0, 0.1), 2.0)

    monkeypatch.setattr(growth_http, "serve_ours", serve)
    monkeypatch.setattr(growth_http, "closed_turn", turn)
    rows = growth_http.measure_concurrency(Path("model"), b"picture", (1, 4, 256), 3, 1.0)
    assert [row["images_per_second"] for row in rows] == [50, 50, 0, 50, 50, 0]
    assert [row["p99_ms"] for row in rows] == [5, 5, None, 5, 5, None]
    assert {row["server_cpu_ms_per_request"] for row in rows if row["value"] < 256} == {2.0}
    assert [row["refused"] > 0 for row in rows] == [False, True, True, True, True, True]
    assert {int(variables["TAILSTACK_TIMEOUT"]) for variables in running} == {600}
    in_process, machine = [row for row in measured[0] if row["where"] == "in process"], measured[1]
    draw([*in_process, *rows], tmp_path / "growth.png")
    assert "| 256 | 0.0 | 0.00 | - | - | 1 | 0.0 | 100.0% | 0.00 |" in markdown(rows + in_process, "any", machine)


def test_what_is_measured_in_process_is_written_before_http(
    files: dict[tuple[str, int], Built], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[Path] = []

    def measure(model: Path, *_: Any) -> list[Row]:
        served.append(model)
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.wrk.shutil.which", lambda _: "wrk")
    monkeypatch.setattr("benchmarks.growth_axes.build_files", lambda *_: files)
    monkeypatch.setattr("benchmarks.growth_axes.cores_of_others", lambda: 0.0)
    monkeypatch.setattr("benchmarks.growth_axes.measure_concurrency", measure)
    monkeypatch.setattr("benchmarks.predictors.fetch", lambda _: tiny_model)
    settings = GrowthSettings(Path("s3://bucket/model.onnx"), rounds=1, seconds=0.1, output=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_growth(settings, PLAN, batches=(1, 4))
    assert served == [tiny_model]
    assert {row["where"] for row in json.loads((tmp_path / "growth.json").read_text())} == {"in process"}
    assert "# How cost grows" in (tmp_path / "growth.md").read_text()


def test_without_wrk_nothing_is_measured_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.wrk.shutil.which", lambda _: None)
    with pytest.raises(UserError, match="wrk, which isn't installed"):
        run_growth(GrowthSettings(Path("none.onnx")))


def test_the_page_and_the_figure_show_every_row(measured: tuple[list[Row], dict[str, Any]], tmp_path: Path) -> None:
    rows, machine = measured
    page = markdown(rows, PLAN.architecture, machine)
    assert "one learner, 5 classes, 48 pixels" in page
    assert page.count("\n| ") == len(rows) + 2 * len({row["axis"] for row in rows})
    draw(rows, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--rounds", "0"], "--rounds"), (["--architecture", "tf_efficientnet_lite9"], "did you mean")],
)
def test_mistakes_are_named(flags: list[str], message: str, tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/growth.py", "--model", str(tiny_model), "--output", str(tmp_path)]
    done = subprocess.run([*command, *flags], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
