"""Training beside timm's script, in whose place a stand-in of the same command line runs here."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import training_contest
from benchmarks.machine import describe_machine
from benchmarks.timm_script import (
    Job,
    accuracy_of,
    epochs_within,
    find_checkout,
    lay_out,
    run_script,
    save_weights,
    settings_of,
)
from benchmarks.training_contest import TrainingPeersSettings, run_contest
from benchmarks.training_contest_report import Row, draw, markdown
from tailstack import datastore as datastores
from tailstack.errors import UserError
from tailstack.metrics import evaluate
from tailstack.network import Learner
from tests.conftest import CLASSES, SIZE, TEST_IMAGES

ROOT = Path(__file__).parents[2]
ARCHITECTURE = "test_efficientnet"
SECONDS = 90.0
STAND_IN = """
import argparse, json, pathlib, torch
from safetensors.torch import load_file

parser = argparse.ArgumentParser()
for name in ("data-dir", "class-map", "initial-checkpoint", "output", "experiment", "val-split", "model", "epochs"):
    parser.add_argument(f"--{name}", required=True)
args, others = parser.parse_known_args()
if "--fail" in others:
    raise SystemExit("no such optimizer")
data = pathlib.Path(args.data_dir)
names = pathlib.Path(args.class_map).read_text().split()
splits = ("train", args.val_split)
seen = {split: [len(list((data / split / name).glob("*.png"))) for name in names] for split in splits}
folder = pathlib.Path(args.output, args.experiment)
folder.mkdir(parents=True)
(folder / "seen.json").write_text(json.dumps({**seen, "epochs": args.epochs}))
torch.save({"state_dict": load_file(args.initial_checkpoint), "args": args}, folder / "model_best.pth.tar")
"""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    checkout = tmp_path / "checkout"
    (checkout / "timm").mkdir(parents=True)
    (checkout / "train.py").write_text(STAND_IN)
    (checkout / "timm" / "version.py").write_text("__version__ = '1.2.3'\n")
    weights = tmp_path / "weights.safetensors"
    torch.manual_seed(0)
    save_weights(ARCHITECTURE, len(CLASSES), SIZE, weights, pretrained=False)
    return Job(checkout, ARCHITECTURE, len(CLASSES), SIZE, 16, weights)


def test_the_script_sees_every_photo_under_its_class(job: Job, tiny_datastore: Path, tmp_path: Path) -> None:
    store = datastores.load(tiny_datastore)
    val = store.train.subset(np.array([0, 1]))
    photos = lay_out({"train": store.train, "val": val}, job.classes, tmp_path / "photos")
    checkpoint, seconds = run_script(job, ["--opt", "adamw"], photos, 3, tmp_path / "out")
    seen = json.loads((checkpoint.parent / "seen.json").read_text())
    assert seen == {"train": store.train.counts(6).tolist(), "val": [2, 0, 0, 0, 0, 0], "epochs": "3"}
    assert seconds > 0
    assert find_checkout(job.checkout) == "1.2.3"
    with pytest.raises(UserError, match="no such optimizer"):
        run_script(job, ["--fail"], photos, 3, tmp_path / "other")


def test_a_checkpoint_is_worth_what_our_own_learner_of_its_weights_is(
    job: Job, tiny_datastore: Path, tmp_path: Path
) -> None:
    store = datastores.load(tiny_datastore)
    learner = Learner(ARCHITECTURE, job.classes, SIZE).eval()
    torch.nn.init.normal_(learner.backbone.get_classifier().weight)
    checkpoint = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": learner.backbone.state_dict()}, checkpoint)
    images = torch.from_numpy(np.stack([store.test.decode(index) for index in range(len(store.test))]))
    with torch.inference_mode():
        answers = torch.softmax(learner(images), dim=1).numpy()
    expected = evaluate(answers, store.test.labels, store.classes, store.train.counts(job.classes))
    found = accuracy_of(checkpoint, job, store)
    assert found["top1"] == expected["top1"]
    assert found["nll"] == pytest.approx(expected["nll"], rel=1e-4)


@pytest.mark.parametrize(("seconds", "expected"), [(300.0, 6), (60.0, 1), (5.0, 1)])
def test_the_script_gets_the_epochs_that_its_speed_allows(seconds: float, expected: int) -> None:
    # A step of half a second and a start of ten; an epoch of 90 steps takes 45 seconds.
    assert epochs_within(seconds, 14.0, 22.0, (8, 24), 90.0) == expected


def test_all_are_trained_for_as_long_and_shown(
    job: Job, tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[int, int]] = []

    def run(job: Job, settings: list[str], photos: Path, epochs: int, output: Path) -> tuple[Path, float]:
        """Train as the stand-in does, in times of a machine whose steps take a second."""
        checkpoint, _ = run_script(job, settings, photos, epochs, output)
        count = len(list((photos / "train").rglob("*.png")))
        trained.append((count, epochs))
        return checkpoint, SECONDS if epochs > 1 else 1.0 + count / job.batch_size

    monkeypatch.setattr(training_contest, "run_script", run)
    settings = TrainingPeersSettings(
        datastore=tiny_datastore,
        budget=f"{SECONDS:.0f}s",
        architecture=ARCHITECTURE,
        resolution=SIZE,
        batch_size=job.batch_size,
        val_fraction=0.25,
        own_choice=False,
        pretrained=False,
        timm=job.checkout,
    )
    rows = list(run_contest(settings, tmp_path / "contest"))
    most = (226 - 56) // 16
    assert [count for count, epochs in trained if epochs == 1] == [16 * (most // 3), 16 * most] * 2
    theirs, ours = rows[:-1], rows[-1]
    assert [row["system"] for row in theirs] == list(settings_of(16, 0.0007))
    assert ours["system"] == "tailstack, the same learner"
    assert {tuple(row["architectures"]) for row in rows} == {(ARCHITECTURE,)}
    for row in rows:
        assert row["images_per_second"] == pytest.approx(row["images"] / row["seconds"], rel=0.05)
        assert round(row["top1"] * TEST_IMAGES * len(CLASSES), 6).is_integer()
    assert "--budget 90s" in ours["settings"]
    page = markdown(rows, {**describe_machine("torch", 1), "cores_of_others": 0.0})
    assert all(f"| {row['system']} | {row['version']} |" in page for row in rows)
    draw(rows, tmp_path / "training_peers.png")
    assert (tmp_path / "training_peers.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads(json.dumps(rows)) == rows


def test_fit_is_asked_whether_the_time_suffices_before_anything_is_trained(
    job: Job, tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_contest, "run_script", lambda *_: pytest.fail("the script was trained"))
    settings = TrainingPeersSettings(
        datastore=tiny_datastore,
        budget="1s",
        architecture=ARCHITECTURE,
        batch_size=job.batch_size,
        pretrained=False,
        timm=job.checkout,
    )
    with pytest.raises(UserError, match="--budget is too short"):
        next(run_contest(settings, tmp_path / "contest"))


def test_rows_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def contest(*_: object) -> Iterator[Row]:
        figures = {"top1": 0.5, "balanced": 0.5, "many": None, "medium": None, "few": None}
        yield training_contest._row("timm", "1", [ARCHITECTURE], 96, 100, 10.0, figures, ["--lr"])
        raise UserError("fit failed")

    monkeypatch.setattr(training_contest, "run_contest", contest)
    monkeypatch.setattr(sys, "argv", ["training_peers.py", "--datastore", "data", "--output", str(tmp_path)])
    with pytest.raises(UserError, match="fit failed"):
        training_contest.main()
    assert [row["system"] for row in json.loads((tmp_path / "training_peers.json").read_text())] == ["timm"]
    assert "| timm | 1 |" in (tmp_path / "training_peers.md").read_text()


def test_mistakes_are_named(tiny_datastore: Path, job: Job, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/training_peers.py", "--datastore", str(tiny_datastore)]
    command += ["--budget", "soon", "--timm", str(job.checkout), "--output", str(tmp_path / "results")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "--budget soon is no length of time" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_checkout_that_cannot_be_had_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.timm_script.REPOSITORY", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="name one with --timm"):
        find_checkout(tmp_path / "timm")
