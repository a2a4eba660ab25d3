"""The command `prepare`: labelled images of any origin become a datastore, and bad ones are named all at once."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from tailstack import datastore as datastores
from tailstack.datastore import Datastore
from tailstack.errors import UserError
from training.fit import fit
from training.prepare import prepare, variant_path
from training.settings import FitSettings, PrepareSettings

ROOT = Path(__file__).parents[2]


def picture(path: Path, seed: int, size: int = 6) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def fill(folder: Path, counts: dict[str, int], seed: int = 0) -> Path:
    """Write `counts` different pictures of each class into class folders."""
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            picture(folder / name / f"{i}.png", seed=10_000 * seed + 100 * c + i)
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train/ and test/ with two classes: 10 and 4 to train on, 3 and 2 to test."""
    fill(tmp_path / "photos" / "train", {"cat": 10, "dog": 4}, seed=1)
    fill(tmp_path / "photos" / "test", {"cat": 3, "dog": 2}, seed=2)
    return tmp_path / "photos"


def run(source: Path | str, output: Path, **values: Any) -> Datastore:
    prepare(PrepareSettings(source=str(source), output=output, **values))
    return datastores.load(output)


def refused(source: Path | str, output: Path, **values: Any) -> str:
    with pytest.raises(UserError) as caught:
        run(source, output, **values)
    assert not list(output.glob("*.json"))
    return str(caught.value)


def command(*words: object) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "training", "prepare", *map(str, words)]
    return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False)


def counts(store: Datastore, split: str) -> list[int]:
    chosen = dict(store.splits())[split]
    return chosen.counts(len(store.classes)).tolist()


def test_a_folder_with_train_and_test(photos: Path, tmp_path: Path) -> None:
    store = run(photos, tmp_path / "store")
    assert store.classes == ["cat", "dog"]
    assert (counts(store, "train"), counts(store, "test")) == ([10, 4], [3, 2])
    # Nothing is copied: the datastore points at the folder.
    assert store.train.path(0).samefile(photos / "train" / "cat" / "0.png")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["test.json", "train.json"]


def test_class_folders_alone_are_split(tmp_path: Path) -> None:
    source = fill(tmp_path / "photos", {"cat": 20, "dog": 8})
    store = run(source, tmp_path / "store", test_fraction=0.25)
    assert (counts(store, "train"), counts(store, "test")) == ([15, 6], [5, 2])
    assert not set(store.train.images) & set(store.test.images)
    again = run(source, tmp_path / "again", test_fraction=0.25)
    assert again.test.images == store.test.images
    assert run(source, tmp_path / "other", test_fraction=0.25, seed=1).test.images != store.test.images


@pytest.mark.parametrize("inside", ["", "data/"])
def test_a_zip(photos: Path, tmp_path: Path, inside: str) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in photos.rglob("*.png"):
            archive.write(path, inside + path.relative_to(photos).as_posix())
        archive.writestr("__MACOSX/._0.png", "rubbish that a Mac adds")
    store = run(tmp_path / "photos.zip", tmp_path / "store")
    assert (counts(store, "train"), counts(store, "test")) == ([10, 4], [3, 2])
    assert store.train.decode(0).shape == (6, 6, 3)


def test_files_that_are_no_images_by_their_name_are_passed_over(photos: Path, tmp_path: Path) -> None:
    for name in ("Thumbs.db", "desktop.ini", ".DS_Store"):
        (photos / "train" / "cat" / name).write_text("rubbish")
    (photos / ".git").mkdir()
    assert counts(run(photos, tmp_path / "store"), "train") == [10, 4]


def test_digits(tmp_path: Path) -> None:
    store = run("digits", tmp_path / "digits", classes=3)
    assert store.classes == ["0", "1", "2"]
    # scikit-learn has 178, 182 and 177 of them, a few the same to the pixel.
    total = np.array(counts(store, "train")) + counts(store, "test")
    assert (abs(total - (178, 182, 177)) <= 3).all()
    pixels = np.stack([store.train.decode(i) for i in range(20)])
    assert pixels.shape == (20, 8, 8, 3)
    assert (pixels.min(), pixels.max()) == (0, 255)


class Downloaded:
    """What torchvision's data sets have in common: pictures with labels, by index."""

    def __init__(self, split: str) -> None:
        self.pixels = np.random.default_rng(len(split)).integers(0, 256, (6, 5, 5), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]), index % 2


class WithTrain(Downloaded):
    classes = ("b/w", "colour")

    def __init__(self, root: str, train: bool, download: bool) -> None:
        super().__init__("train" if train else "test")


class WithSplit(Downloaded):
    def __init__(self, root: str, split: str, download: bool) -> None:
        super().__init__(split)


class Unreachable(WithTrain):
    def __init__(self, root: str, train: bool, download: bool) -> None:
        raise OSError("no route to host")


@pytest.mark.parametrize(("kind", "classes"), [(WithTrain, ["b-w", "colour"]), (WithSplit, ["0000", "0001"])])
def test_a_torchvision_data_set(
    kind: type, classes: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "Tiny", kind, raising=False)
    store = run("torchvision:Tiny", tmp_path / "store")
    assert store.classes == classes
    assert (counts(store, "train"), counts(store, "test")) == ([3, 3], [3, 3])
    assert store.train.decode(0)[..., 0].tolist() == Downloaded("train").pixels[0].tolist()


def test_a_torchvision_data_set_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "Tiny", Unreachable, raising=False)
    message = refused("torchvision:Tiny", tmp_path / "store")
    assert "Unreachable can't be downloaded (no route to host)" in message


def test_variants_are_long_tailed_and_share_the_images(tmp_path: Path, photos: Path) -> None:
    source = tmp_path / "balanced"
    fill(source / "train", {"a": 20, "b": 20, "c": 20}, seed=1)
    fill(source / "test", {"a": 2, "b": 2, "c": 2}, seed=2)
    whole = run(source, tmp_path / "store", imbalance=[0.5, 0.1])
    assert variant_path(tmp_path / "store", 0.1) == tmp_path / "store-imbalance-0.1"
    for ratio, expected in ((0.5, [20, 14, 10]), (0.1, [20, 6, 2])):
        variant = datastores.load(variant_path(tmp_path / "store", ratio))
        assert counts(variant, "train") == expected
        assert set(variant.train.images) < set(whole.train.images)
        assert variant.test.images == whole.test.images
        assert variant.train.path(0).samefile(source / variant.train.images[0])
        assert sorted(path.name for path in variant.path.iterdir()) == ["test.json", "train.json"]


def test_copies_of_test_images_are_left_out_of_train(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    original = photos / "test" / "cat" / "1.png"
    # The same pixels in another file format, under another class.
    Image.open(original).save(photos / "train" / "dog" / "copy.bmp")
    store = run(photos, tmp_path / "store")
    assert counts(store, "train") == [10, 4]
    assert counts(store, "test") == [3, 2]
    output = capsys.readouterr().out
    assert "1 image(s) are exact copies of a test image" in output
    assert "train/dog/copy.bmp" in output


@pytest.fixture
def spoilt(photos: Path) -> Path:
    """Three images that can't be read: a text, a cut one and an empty one."""
    (photos / "train" / "cat" / "0.png").write_text("no image")
    cut = photos / "train" / "dog" / "1.png"
    cut.write_bytes(cut.read_bytes()[:80])
    (photos / "test" / "dog" / "0.png").write_bytes(b"")
    return photos


UNREADABLE = ("train/cat/0.png", "train/dog/1.png", "test/dog/0.png")


def test_bad_images_and_empty_classes_are_listed_at_once(spoilt: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (spoilt / split / "owl").mkdir()
    message = refused(spoilt, tmp_path / "store")
    assert "5 problem(s)" in message
    assert all(image in message for image in UNREADABLE)
    assert "class 'owl' has no image in train" in message
    assert "class 'owl' has no image in test" in message
    assert "--skip_unreadable" in message


def test_bad_images_can_be_left_out(spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = run(spoilt, tmp_path / "store", skip_unreadable=True)
    assert (counts(store, "train"), counts(store, "test")) == ([9, 3], [3, 1])
    output = capsys.readouterr().out
    assert "3 image(s) can't be read and are left out" in output
    assert all(image in output for image in UNREADABLE)


def test_a_class_of_bad_images_alone_is_empty(photos: Path, tmp_path: Path) -> None:
    for path in (photos / "test" / "dog").iterdir():
        path.write_text("no image")
    assert "class 'dog' has no image in test" in refused(photos, tmp_path / "store", skip_unreadable=True)


def odd_pictures(folder: Path) -> None:
    """Write eight pictures into `folder`, of nine by six pixels, each of another kind."""
    rng = np.random.default_rng(5)
    colours = Image.fromarray(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    colours.convert("L").save(folder / "grey.jpg")
    colours.convert("RGBA").save(folder / "alpha.webp", lossless=True)
    colours.convert("LA").save(folder / "grey-alpha.png")
    colours.convert("P").save(folder / "palette.gif", transparency=0)
    colours.convert("CMYK").save(folder / "print.jpg")
    colours.save(folder / "camera.JPEG", exif=exif)
    Image.fromarray(rng.integers(0, 65536, (6, 9), dtype=np.uint16)).save(folder / "scan.tiff")
    (folder / "no-suffix").write_bytes((folder / "scan.tiff").read_bytes())


def test_odd_pictures_are_welcome(photos: Path, tmp_path: Path) -> None:
    odd_pictures(photos / "train" / "dog")
    store = run(photos, tmp_path / "store")
    assert counts(store, "train") == [10, 4 + 8]
    shapes = {name: store.train.decode(i).shape for i, name in enumerate(store.train.images)}
    assert shapes["train/dog/camera.JPEG"] == (9, 6, 3)
    assert shapes["train/dog/scan.tiff"] == shapes["train/dog/no-suffix"] == (6, 9, 3)


def test_odd_pictures_are_trained_on(photos: Path, tmp_path: Path) -> None:
    odd_pictures(photos / "train" / "dog")
    run(photos, tmp_path / "store")
    chosen = FitSettings(
        datastore=tmp_path / "store",
        output=tmp_path / "run",
        technique="baseline",
        architectures=["lcnet_035"],
        pretrained=False,
        resolution=32,
        epochs=1,
        num_workers=0,
    )
    record = fit(chosen)
    # Pictures of several sizes enter at the learner's own.
    assert record.image_size == (32, 32)
    assert record.class_counts == [10, 4 + 8]


def test_a_class_with_one_image_is_listed_with_all_others(tmp_path: Path, photos: Path) -> None:
    # Class folders alone: its one image can't be both trained on and tested.
    alone = fill(tmp_path / "alone", {"cat": 20, "owl": 1, "fox": 2})
    message = refused(alone, tmp_path / "store")
    assert "class 'owl' has 1 image in train, and needs 2 or more: add images or remove its folder" in message
    assert "class 'owl' has no image in test" in message
    assert "class 'fox' has 1 image in train" in message
    # With a test split, `fit` could not validate it.
    fill(photos / "train", {"owl": 1}, seed=3)
    fill(photos / "test", {"owl": 2}, seed=4)
    assert "1 problem(s) in the source:\n  class 'owl' has 1 image in train" in refused(photos, tmp_path / "store")


def test_a_test_class_that_train_lacks(photos: Path, tmp_path: Path) -> None:
    picture(photos / "test" / "owl" / "0.png", seed=9)
    assert "test/ has classes that train/ lacks: owl" in refused(photos, tmp_path / "store")


def test_class_folders_without_any_image(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    message = refused(tmp_path / "photos", tmp_path / "store")
    assert "class 'cat' has no image in train" in message
    assert "class 'dog' has no image in train" in message


def test_sources_that_are_none(tmp_path: Path) -> None:
    output = tmp_path / "store"
    assert "doesn't exist; a source is a folder, a zip" in refused(tmp_path / "none", output)
    (tmp_path / "text").write_text("text")
    assert "neither a folder nor a zip" in refused(tmp_path / "text", output)
    (tmp_path / "one" / "cat").mkdir(parents=True)
    (tmp_path / "one" / "readme.txt").touch()
    assert "has 1 class folder(s)" in refused(tmp_path / "one", output)
    assert "no data set 'MNISTT'" in refused("torchvision:MNISTT", output)
    assert "no training and test split" in refused("torchvision:FakeData", output)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"imbalance": [0.0]}, "--imbalance 0.0"),
        ({"imbalance": [0.1, 1.5]}, "--imbalance 1.5"),
        ({"test_fraction": 0.0}, "--test_fraction"),
        ({"test_fraction": 1.0}, "--test_fraction"),
        ({"classes": 1}, "--classes"),
    ],
)
def test_settings_that_make_no_sense(photos: Path, tmp_path: Path, values: dict[str, Any], named: str) -> None:
    assert named in refused(photos, tmp_path / "store", **values)


def test_the_command_line(photos: Path, tmp_path: Path) -> None:
    result = command(photos, "--output", tmp_path / "store", "--imbalance", "0.5", "0.4")
    assert result.returncode == 0, result.stderr
    assert "2 classes, 14 training images (10 in the largest class, 4 in the smallest), 5 test images" in result.stdout
    assert counts(datastores.load(tmp_path / "store-imbalance-0.4"), "train") == [10, 4]
    assert (tmp_path / "store-imbalance-0.5" / "train.json").exists()


def test_the_command_line_reports_mistakes_in_clear_words(spoilt: Path, tmp_path: Path) -> None:
    missing = command(tmp_path / "none", "--output", tmp_path / "store")
    assert missing.returncode == 1
    assert missing.stderr.startswith("error: ")
    assert len(missing.stderr.splitlines()) == 1
    bad = command(spoilt, "--output", tmp_path / "store")
    assert bad.returncode == 1
    assert all(image in bad.stderr for image in UNREADABLE)
    skipped = command(spoilt, "--output", tmp_path / "store", "--skip_unreadable", "true")
    assert skipped.returncode == 0, skipped.stderr
    for result in (missing, bad, skipped):
        assert "Traceback" not in result.stderr


def test_an_output_inside_the_source(photos: Path) -> None:
    assert "inside the source" in refused(photos, photos / "datastore")


@pytest.mark.parametrize("output", [".", "inside/.."])
def test_variants_lie_beside_the_present_folder(
    output: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here" / "inside").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    run(photos, Path(output), imbalance=[0.5])
    assert counts(datastores.load(tmp_path / "here-imbalance-0.5"), "train") == [10, 4]


def test_an_output_behind_a_symbolic_link(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "disk" / "far" / "away").mkdir(parents=True)
    (tmp_path / "store").symlink_to(tmp_path / "disk" / "far" / "away")
    store = run(photos, tmp_path / "store", imbalance=[0.5])
    prepare(PrepareSettings(source=str(store.path), output=store.path, imbalance=[0.4]))
    for path in (store.path, *(variant_path(store.path, ratio) for ratio in (0.5, 0.4))):
        assert datastores.load(path).train.path(0).samefile(photos / "train" / "cat" / "0.png")


def test_names_that_are_not_utf_8(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in ((b"caf\xe9.png", b""), (b"th\xe9.png", (photos / "train" / "cat" / "0.png").read_bytes())):
        (photos / "train" / "dog" / os.fsdecode(name)).write_bytes(content)
    store = run(photos, tmp_path / "store", skip_unreadable=True)
    assert r"train/dog/caf\udce9.png" in capsys.readouterr().out
    assert counts(store, "train") == [10, 5]
    assert store.train.images[14] == os.fsdecode(b"train/dog/th\xe9.png")
    assert store.train.decode(14).shape == (6, 6, 3)
