"""The command `distill`: what a student learns, what it starts from, and that it goes on where it stopped."""

import shutil
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.special import log_softmax, rel_entr, softmax

from tailstack import datastore as datastores
from tailstack.errors import UserError
from tailstack.files import read_json, write_json
from tailstack.network import load_ensemble, load_learner
from tailstack.run import SPLIT_FILE, RunRecord, learner_folder
from training import learner, losses
from training.compare import compare
from training.distill import distill, gain_kept, student_settings
from training.evaluation import predict
from training.fit import fit
from training.learner import CHECKPOINT, Journal
from training.losses import with_teacher
from training.settings import CompareSettings, FitSettings
from training.teacher import Teacher
from training.techniques import TECHNIQUES, plan_learners

TINY: dict[str, Any] = {"pretrained": False, "resolution": 32, "epochs": 2, "batch_size": 32, "num_workers": 0}
STUDENT = "lcnet_035"


@pytest.fixture(scope="module")
def teacher(tiny_datastore: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of two learners, one of them of the student's network."""
    run = tmp_path_factory.mktemp("runs") / "teacher"
    architectures = [STUDENT, "mobilenetv3_small_050"]
    fit(
        FitSettings(
            tiny_datastore, run, technique="stacking", architectures=architectures, val_fraction=0.3, seed=4, **TINY
        )
    )
    return run


def pixels(split: datastores.Split) -> np.ndarray:
    return np.stack([split.decode(index) for index in range(len(split))])


def train_split(run: Path, datastore: Path) -> datastores.Split:
    return datastores.load(datastore).train.subset(np.array(read_json(run / SPLIT_FILE)["train"]))


def test_the_loss_by_hand() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(5, 3)).astype(np.float32)
    answers = softmax(rng.normal(size=(5, 3)), axis=1).astype(np.float32)
    flat = answers**0.25 / (answers**0.25).sum(axis=1, keepdims=True)
    divergence = rel_entr(flat, softmax(logits / 4, axis=1)).sum(axis=1).mean()
    mixed = with_teacher(torch.tensor(2.0), torch.from_numpy(logits), torch.from_numpy(answers))
    assert float(mixed) == pytest.approx(0.1 * 2 + 0.9 * 16 * divergence, rel=1e-4)
    # Whoever answers as the teacher does has nothing left to learn of it; certainty has no logarithm to fear.
    own = np.exp(log_softmax(logits, axis=1))
    assert float(with_teacher(torch.tensor(0.0), torch.from_numpy(logits), torch.from_numpy(own))) < 1e-5
    certain = torch.eye(3)[[0, 1, 2, 0, 1]]
    assert torch.isfinite(with_teacher(torch.tensor(0.0), torch.from_numpy(logits), certain))


def test_a_student_is_an_ordinary_run_of_one_learner(teacher: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    output = tmp_path / "student"
    made = distill(teacher, STUDENT, output, {"epochs": 1, "lr": 1e-4})
    assert made == RunRecord.load(output)
    assert (made.technique, [learner.architecture for learner in made.learners]) == ("student", [STUDENT])
    assert made.learners[0].loss == "logit_adjusted"
    assert made.prior == RunRecord.load(teacher).prior
    config = made.config
    assert (config["teacher"], config["epochs"], config["lr"]) == (str(teacher), 1, 1e-4)
    assert (config["seed"], config["val_fraction"], config["batch_size"]) == (4, 0.3, 32)
    # What validates the student was new to its teacher.
    assert read_json(output / SPLIT_FILE) == read_json(teacher / SPLIT_FILE)
    (cache,) = output.glob("answers-*.npy")
    images = torch.from_numpy(pixels(train_split(teacher, tiny_datastore)))
    with torch.inference_mode():
        expected = load_ensemble(teacher, RunRecord.load(teacher))(images)[0].numpy()
    np.testing.assert_allclose(np.load(cache), expected, atol=1e-5)
    assert np.load(cache).dtype == np.float32


def test_it_learns_the_answers_and_not_only_the_labels(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_datastore: Path
) -> None:
    # A teacher that takes every class for the one after it: whoever learns from the labels moves away from it.
    split = train_split(small_run, tiny_datastore)
    images = pixels(split)
    classes = len(datastores.load(tiny_datastore).classes)
    answers = np.full((len(split), classes), 0.1 / classes, np.float32)
    answers[np.arange(len(split)), (split.labels + 1) % classes] += 0.9
    monkeypatch.setattr(Teacher, "answers", lambda *_: answers)
    distances = {}
    for share in (0.0, 1.0):
        monkeypatch.setattr(losses, "TEACHER_SHARE", share)
        output = tmp_path / str(share)
        record = distill(small_run, STUDENT, output, {**TINY, "epochs": 12, "augment": "none", "lr": 3e-3})
        own = predict(load_learner(output, record.learners[0], 6), images, len(images))
        distances[share] = rel_entr(answers, own).sum(axis=1).mean()
    assert distances[1.0] < distances[0.0]


def test_it_starts_from_the_teachers_learner_of_its_network(teacher: Path, tmp_path: Path) -> None:
    def first(architecture: str, epochs: int) -> dict[str, torch.Tensor]:
        folder = tmp_path / architecture
        # So small a rate moves nothing: what is left is what it started from.
        distill(teacher, architecture, folder, {"lr": 1e-12, "epochs": epochs, "weight_decay": 0.0})
        return load_file(folder / "learners" / f"0-{architecture}" / "weights.safetensors")

    head = "classifier.weight"
    own = load_file(teacher / "learners" / f"0-{STUDENT}" / "weights.safetensors")
    (name,) = [key for key in own if key.endswith(head)]
    torch.testing.assert_close(first(STUDENT, 1)[name], own[name], atol=1e-6, rtol=0)
    plans = plan_learners(student_settings(teacher, "test_resnet", None, {}), np.zeros(4, np.int64))
    assert Teacher.load(teacher).start(plans[0], 32) is None


def test_a_share_of_what_it_started_from_is_kept(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path("learners") / f"0-{STUDENT}" / "weights.safetensors"
    before = load_file(teacher / weights)
    made = {}
    for share in (0.0, 0.3, 1.0):
        monkeypatch.setattr("training.fit.START_SHARE", share)
        distill(teacher, STUDENT, tmp_path / str(share), {"epochs": 1})
        made[share] = load_file(tmp_path / str(share) / weights)
    moved = 0.0
    for name, trained in made[0.0].items():
        if not trained.is_floating_point():
            continue
        moved += float((trained - before[name]).abs().sum())
        torch.testing.assert_close(made[1.0][name], before[name])
        torch.testing.assert_close(made[0.3][name], 0.3 * before[name] + 0.7 * trained)
    assert moved > 0
    # Who starts from weights that others trained keeps none of them.
    monkeypatch.setattr(learner, "averaged", None)
    distill(teacher, "test_resnet", tmp_path / "other", {"epochs": 1})


def test_a_stopped_student_reaches_the_same_weights(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = distill(teacher, None, tmp_path / "whole", {})
    write = Journal.on_train_epoch_end

    def stop(journal: Journal, trainer: Any, module: Any) -> None:
        write(journal, trainer, module)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "on_train_epoch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            distill(teacher, None, tmp_path / "stopped", {})
    folder = Path("learners") / whole.learners[0].name
    assert (tmp_path / "stopped" / folder / CHECKPOINT).exists()
    monkeypatch.setattr(Teacher, "_answer", None)  # the teacher isn't asked again
    resumed = distill(teacher, None, tmp_path / "stopped", {})
    assert resumed.results == whole.results
    made, expected = (tmp_path / run / folder / "weights.safetensors" for run in ("stopped", "whole"))
    assert made.read_bytes() == expected.read_bytes()
    with pytest.raises(UserError, match=r"other settings \(architectures"):
        distill(teacher, "mobilenetv3_small_050", tmp_path / "stopped", {})


def test_a_teacher_that_takes_images_of_another_size(teacher: Path, tmp_path: Path, tiny_datastore: Path) -> None:
    train = train_split(teacher, tiny_datastore)
    known = Teacher.load(teacher)
    smaller = np.zeros((len(train), 16, 16, 3), np.uint8)
    expected = known.answers(train, pixels(train), (32, 32), tmp_path / "whole")
    np.testing.assert_array_equal(known.answers(train, smaller, (16, 16), tmp_path / "small"), expected)


def test_what_is_refused(teacher: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="technique student needs a --teacher"):
        fit(FitSettings(tiny_datastore, tmp_path / "run", technique="student", **TINY))
    with pytest.raises(UserError, match="technique tailstack takes no --teacher"):
        fit(FitSettings(tiny_datastore, tmp_path / "run", teacher=teacher, **TINY))
    with pytest.raises(UserError, match="doesn't plan for a student"):
        FitSettings(tiny_datastore, tmp_path / "run", technique="student", teacher=teacher, budget="5m")
    with pytest.raises(UserError, match="needs a --teacher"):
        chosen = CompareSettings(tmp_path / "c", tmp_path / "runs", [tiny_datastore], ["baseline", "student"])
        compare(chosen, FitSettings(tiny_datastore, tmp_path / "run", **TINY))
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="doesn't exist"):
        distill(tmp_path / "nowhere", STUDENT, None, {})
    assert not (tmp_path / "run").exists()
    other = tmp_path / "other"
    other.mkdir()
    for name in ("config.yaml", "ensemble.json"):
        (other / name).write_bytes((teacher / name).read_bytes())
    write_json(other / SPLIT_FILE, {**read_json(teacher / SPLIT_FILE), "datastore_sha256": {}})
    with pytest.raises(UserError, match=f"has changed since {other} was begun"):
        distill(other, STUDENT, tmp_path / "student", {})


def test_all_techniques_of_a_comparison_are_those_without_a_teacher(
    tiny_datastore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(chosen: FitSettings, **_: object) -> None:
        trained.append(chosen.technique)
        if len(trained) == len(TECHNIQUES) - 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("training.compare.fit", train)
    monkeypatch.setattr("training.compare.Cell", MagicMock())
    with pytest.raises(KeyboardInterrupt):
        compare(
            CompareSettings(tmp_path / "c", tmp_path / "runs", [tiny_datastore]), FitSettings(tiny_datastore, tmp_path)
        )
    assert trained == [name for name in TECHNIQUES if name not in ("student", "taught")]


def test_the_others_stay_beside_a_student(teacher: Path, tiny_datastore: Path, tmp_path: Path) -> None:
    before = RunRecord.load(teacher)
    made = distill(teacher, None, tmp_path / "taught", {"epochs": 1}, keep_others=True)
    assert made == RunRecord.load(tmp_path / "taught")
    assert made.technique == "taught"
    assert [learner.name for learner in made.learners] == [learner.name for learner in before.learners]
    weights = [
        [
            learner_folder(run, learner.name).joinpath("weights.safetensors").read_bytes()
            for run in (teacher, tmp_path / "taught")
        ]
        for learner in before.learners
    ]
    # The smallest is the student's network; the other one is what it was, also in what is said of it.
    small = min(range(2), key=lambda place: before.learners[place].parameters)
    assert [old == new for old, new in weights] == [place != small for place in range(2)]
    assert made.learners[1 - small] == before.learners[1 - small]
    # The student is that of a run of its own.
    alone = distill(teacher, None, tmp_path / "student", {"epochs": 1})
    assert made.learners[small].results == alone.learners[0].results
    assert distill(teacher, None, tmp_path / "taught", {"epochs": 1}, keep_others=True) == made
    # What it would be made of isn't in its own settings.
    with pytest.raises(UserError, match="has a student of another run in it"):
        distill(tmp_path / "taught", None, tmp_path / "twice", {"epochs": 1}, keep_others=True)


def test_a_student_with_and_without_the_others_is_trained_once(
    teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(shutil.copytree(teacher, tmp_path / "run"))
    changes = {"epochs": 1, "seed": 5}
    alone = distill(run, None, None, changes)
    assert "taken from another run" not in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "_answer", None)  # the teacher isn't asked again
        taught = distill(run, None, None, changes, keep_others=True)
    assert f"{alone.learners[0].name}: taken from another run" in capsys.readouterr().out
    [student] = [learner for learner in taught.learners if learner.architecture == STUDENT]
    assert student.results == alone.learners[0].results
    # In a folder of the user's own, what is there is what was asked for.
    distill(run, None, tmp_path / "run-own", changes)
    assert "taken from another run" not in capsys.readouterr().out


def test_where_no_others_can_stay(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no test_resnet whose place the student could take, but"):
        distill(teacher, "test_resnet", tmp_path / "a", {}, keep_others=True)
    with pytest.raises(UserError, match="--resolution 64 is not that of the learners"):
        distill(teacher, None, tmp_path / "b", {"resolution": 64}, keep_others=True)


def test_how_much_of_the_gain_is_kept(teacher: Path) -> None:
    record = RunRecord.load(teacher)
    record.results["top1"], record.learners[0].results["top1"] = 0.8, 0.7

    def of(top1: float, architecture: str = STUDENT, others: int = 0, ensemble: float = 0.0) -> RunRecord:
        changes = {"architecture": architecture, "results": {"top1": top1}}
        learners = [record.learners[0].model_copy(update=changes), *record.learners[1 : 1 + others]]
        config = {"architectures": [architecture]}
        return record.model_copy(update={"learners": learners, "results": {"top1": ensemble}, "config": config})

    told = gain_kept(record, of(0.775))
    assert told.endswith(f"{STUDENT} without a teacher 0.7000, 75% of the ensemble's gain")
    told = gain_kept(record, of(0.775, others=1, ensemble=0.81))
    assert told.endswith("75% of the ensemble's gain; the ensemble with the student in its place 0.8100")
    assert gain_kept(record, of(0.775, "other")) == "top-1 on test: the ensemble 0.8000, the student 0.7750"
    record.learners[0].results["top1"] = 0.8
    assert gain_kept(record, of(0.775)).endswith("without a teacher 0.8000")
