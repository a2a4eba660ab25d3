"""Which folders of a source are splits and which are classes; what is left out is told."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest

from tailstack import datastore as datastores
from tests.training.test_prepare import counts, fill, refused, run

CLASSES = {"cat": 6, "dog": 4}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("train", "test", "inside"),
    [("Training", "Testing", "."), ("train", "test", "data"), ("TRAIN", "test", "."), ("Train", "Val", "a/b")],
)
def test_splits_by_their_usual_names(source: Path, tmp_path: Path, train: str, test: str, inside: str) -> None:
    fill(source / inside / train, CLASSES, seed=1)
    fill(source / inside / test, {"cat": 2, "dog": 1}, seed=2)
    store = run(source, tmp_path / "store")
    assert store.classes == ["cat", "dog"]
    assert (counts(store, "train"), counts(store, "test"), store.val) == ([6, 4], [2, 1], None)


@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_a_validation_split_is_one_of_the_datastore(source: Path, tmp_path: Path, val: str) -> None:
    for seed, split in enumerate(("train", val, "test")):
        fill(source / split, {"cat": 6 - seed, "dog": 1}, seed=seed)
    store = run(source, tmp_path / "store", imbalance=[0.5])
    # With images that validate, one to train on is enough.
    assert [counts(store, split) for split in ("train", "val", "test")] == [[6, 1], [5, 1], [4, 1]]
    variant = tmp_path / "store-imbalance-0.5"
    assert datastores.load(variant).val is not None
    # What is made in its place without validation has none.
    shutil.rmtree(source / val)
    fill(source / "train", {"dog": 2}, seed=9)
    assert run(source, tmp_path / "store", imbalance=[0.5]).val is None
    assert datastores.load(variant).val is None


def test_validation_without_test_is_the_test_split(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As ImageNet has it, and Imagenette."""
    fill(source / "train", CLASSES, seed=1)
    fill(source / "val", {"cat": 2, "dog": 1}, seed=2)
    assert counts(run(source, tmp_path / "store"), "test") == [2, 1]
    assert f"{source} has no test/: val/ is the test split\n" in capsys.readouterr().out


def test_copies_are_left_to_the_later_split(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, split in enumerate(("train", "val", "test")):
        fill(source / split, {"cat": 6, "dog": 4}, seed=seed)
    for origin, copy in (("test", "val"), ("test", "train"), ("val", "train")):
        shutil.copyfile(source / origin / "cat" / "0.png", source / copy / "cat" / f"of-{origin}.png")
    store = run(source, tmp_path / "store")
    assert [counts(store, split) for split in ("train", "val", "test")] == [[6, 4]] * 3
    output = capsys.readouterr().out
    assert "2 image(s) are exact copies of a val or test image and are left out of train" in output
    assert "1 image(s) are exact copies of a test image and are left out of val" in output


def test_a_validation_split_without_images(source: Path, tmp_path: Path) -> None:
    for seed, split in enumerate(("train", "test")):
        fill(source / split, CLASSES, seed=seed)
    shutil.copytree(source / "test", source / "val")
    assert "val has no image of its own" in refused(source, tmp_path / "store")


@pytest.mark.parametrize("name", ["train", "Test", "validation"])
def test_a_class_may_be_called_as_a_split(source: Path, tmp_path: Path, name: str) -> None:
    fill(source, {"bus": 5, "car": 5, name: 5})
    assert run(source, tmp_path / "store").classes == sorted(["bus", "car", name])


def test_other_folders_beside_splits_are_told(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, split in enumerate(("train", "test")):
        fill(source / split, CLASSES, seed=seed)
    fill(source, {"unlabelled": 2}, seed=3)
    assert run(source, tmp_path / "store").classes == ["cat", "dog"]
    assert "left out, as none of train/, val/ and test/: unlabelled/" in capsys.readouterr().out


def test_folders_that_are_neither_splits_nor_classes(source: Path, tmp_path: Path) -> None:
    for kind in ("bus", "train", "test"):
        fill(source / kind / "deep", {"red": 2, "blue": 2})
    shutil.move(source / "test", source / "boat")
    assert "train/, with folders in it, beside boat/, bus/" in refused(source, tmp_path / "store")
    shutil.move(source / "train", source / "tram")
    assert "nothing but folders in them, where images of a class should be: boat/, bus/, tram/" in refused(
        source, tmp_path / "store"
    )


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["train", "Training", "test"], "has both Training/ and train/"),
        (["val", "test"], "has test/, val/ and no train/"),
        (["train", "test"], "train has 0 class folder(s)"),
    ],
)
def test_splits_that_are_not_whole(source: Path, tmp_path: Path, folders: list[str], message: str) -> None:
    for seed, split in enumerate(folders):
        fill(source / split, {"cat": 2, "dog": 2}, seed=seed)
    if "class folder" in message:
        for split in folders:
            fill(source / split, {".": 4})
            for name in CLASSES:
                shutil.rmtree(source / split / name)
    assert message in refused(source, tmp_path / "store")


def test_mistakes_in_a_zip_are_told_by_its_own_name(source: Path, tmp_path: Path) -> None:
    fill(source / "train", {"cat": 2})
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in source.rglob("*.png"):
            archive.write(path, path.relative_to(source))
    message = refused(tmp_path / "photos.zip", tmp_path / "store")
    assert message.startswith(f"{tmp_path / 'photos.zip'}/train has 1 class folder(s)")


def test_a_class_name_that_is_not_utf_8(source: Path, tmp_path: Path) -> None:
    fill(source, {**CLASSES, os.fsdecode(b"caf\xe9"): 3})
    assert r"names aren't UTF-8: caf\udce9/; rename" in refused(source, tmp_path / "store")
