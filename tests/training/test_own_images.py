"""The images that `prepare` writes take the place of its own earlier ones, once they are good, never of a user's."""

import zipfile
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torchvision

from tailstack import datastore as datastores
from tailstack.errors import UserError
from tests.training.test_prepare import Unreachable, fill, picture, refused, run
from training.prepare import prepare
from training.settings import PrepareSettings


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A zip of two classes."""
    return zipped(fill(tmp_path / "folder", {"cat": 10, "dog": 5}))


def zipped(folder: Path) -> Path:
    """Zip a folder, and return where the zip is: beside it."""
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for path in folder.rglob("*.*"):
            archive.write(path, path.relative_to(folder))
    return folder.with_suffix(".zip")


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_prepared_again_a_datastore_has_the_new_images_alone(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "store")
    other = zipped(fill(tmp_path / "other", {"cat": 3, "owl": 3}))
    assert run(other, tmp_path / "store").classes == ["cat", "owl"]
    assert not (tmp_path / "store" / "images" / "dog").exists()
    assert {path.name for path in (tmp_path / "store").iterdir()} == {"images", "test.json", "train.json"}


@pytest.mark.parametrize("kind", ["zip", "digits"])
def test_originals_in_a_datastore_are_never_removed(kind: str, photos: Path, tmp_path: Path) -> None:
    fill(tmp_path / "mine" / "images", {"cat": 10, "dog": 5})
    run(tmp_path / "mine" / "images", tmp_path / "mine")
    before = files(tmp_path)
    with pytest.raises(UserError, match="images has files that this command didn't write"):
        run(photos if kind == "zip" else kind, tmp_path / "mine")
    assert files(tmp_path) == before
    datastores.load(tmp_path / "mine")


def test_a_users_files_among_its_own_are_never_removed(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "store")
    picture(tmp_path / "store" / "images" / "cat" / "holiday.png", seed=1)
    with pytest.raises(UserError, match="choose another --output, or move them away"):
        run(photos, tmp_path / "store")
    assert (tmp_path / "store" / "images" / "cat" / "holiday.png").exists()


def test_images_that_are_no_datastore_are_left_alone(tmp_path: Path) -> None:
    picture(tmp_path / "mine" / "images" / "holiday.png", seed=1)
    assert "didn't write" in refused("digits", tmp_path / "mine")
    assert files(tmp_path) == {"mine/images/holiday.png"}
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "images").symlink_to(tmp_path / "mine")
    assert "didn't write" in refused("digits", tmp_path / "linked")


@pytest.mark.parametrize("bad", ["damaged", "unreachable", "unreadable"])
def test_a_source_that_is_no_good_leaves_what_there_was(
    bad: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision.datasets, "Tiny", Unreachable, raising=False)
    before = run(photos, tmp_path / "store").digests()
    other = fill(tmp_path / "other", {"cat": 3, "owl": 3})
    (other / "owl" / "9.png").write_text("no image")
    source = {"damaged": zipped(other), "unreachable": "torchvision:Tiny", "unreadable": zipped(other)}[bad]
    if bad == "damaged":
        content = bytearray(zipped(other).read_bytes())
        content[60] ^= 0xFF  # inside a stored image: its checksum is wrong now
        zipped(other).write_bytes(content)
    with pytest.raises(UserError):
        run(source, tmp_path / "store")
    assert datastores.load(tmp_path / "store").digests() == before


def test_the_same_command_again_after_mistakes_were_named(tmp_path: Path) -> None:
    folder = fill(tmp_path / "folder", {"cat": 10, "dog": 5, "owl": 1})
    (folder / "dog" / "0.png").write_text("no image")
    assert "--skip_unreadable" in refused(zipped(folder), tmp_path / "store")
    assert "class 'owl' has 1 image in train" in refused(zipped(folder), tmp_path / "store", skip_unreadable=True)
    fill(folder, {"owl": 4})
    assert run(zipped(folder), tmp_path / "store", skip_unreadable=True).classes == ["cat", "dog", "owl"]


def test_the_same_command_again_after_a_stop(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extract = zipfile.ZipFile.extract

    def stop(archive: zipfile.ZipFile, member: Any, *rest: Any) -> str:
        if "dog" in str(member):
            raise KeyboardInterrupt
        return extract(archive, member, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(zipfile.ZipFile, "extract", stop)
        run(photos, tmp_path / "store")
    assert files(tmp_path / "store") == set()
    # A process that was killed has no time to clear up.
    picture(tmp_path / "store" / ".prepare.part" / "images" / "cow" / "0.png", seed=1)
    assert run(photos, tmp_path / "store").classes == ["cat", "dog"]
    assert not (tmp_path / "store" / ".prepare.part").exists()


def test_a_store_has_the_new_images_alone_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, place = fsspec.filesystem("memory"), Path("memory://bucket/store")
    for classes in ({"cat": 10, "dog": 5}, {"cat": 3, "owl": 3}):
        prepare(PrepareSettings(source=str(fill(tmp_path / "-".join(classes), classes)), output=place))
        datastores.load(place)
    assert {path.split("/")[4] for path in store.find("/bucket/store/images")} == {"cat", "owl", ".prepared.json"}
    store.rm("/bucket", recursive=True)
