"""Where labelled images come from: folders, zips, scikit-learn's digits, torchvision's data sets."""

import inspect
import shutil
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tailstack.errors import UserError
from tailstack.files import make_folder
from tailstack.progress import track

_NOT_IMAGES = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Source:
    """Image files by class: paths relative to `root`, by class name. `test` is None where there is no such split."""

    root: Path
    train: dict[str, list[str]]
    test: dict[str, list[str]] | None


def open_source(source: str, folder: Path) -> Source:
    """Find the images of `source`; what isn't a folder is first written into `folder`.

    Raises:
        UserError: there is no such source, or it has no images of two classes.
    """
    if source == "digits":
        return read_folder(_write_digits(folder))
    if source.startswith("torchvision:"):
        return read_folder(_write_torchvision(source.removeprefix("torchvision:"), folder))
    path = Path(source)
    if path.is_dir():
        if folder.resolve().is_relative_to(path.resolve()):
            raise UserError(f"output {folder} lies inside the source, where it would be taken for a class")
        return read_folder(path)
    if zipfile.is_zipfile(path):
        return read_folder(_extract(path, folder))
    if path.exists():
        raise UserError(f"{source} is neither a folder nor a zip file")
    raise UserError(f"{source} doesn't exist; a source is a folder, a zip, `digits` or `torchvision:NAME`")


def read_folder(path: Path) -> Source:
    """List the images of a folder with `train/` and `test/`, or of one with class folders alone."""
    if (path / "train").is_dir():
        test = _classes(path, path / "test") if (path / "test").is_dir() else None
        return Source(path, _classes(path, path / "train"), test)
    entries = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    # A zip often has its data one folder down.
    if len(entries) == 1 and entries[0].is_dir() and any(entry.is_dir() for entry in entries[0].iterdir()):
        return read_folder(entries[0])
    return Source(path, _classes(path, path), None)


def _classes(root: Path, folder: Path) -> dict[str, list[str]]:
    """Return the image files of each class folder, both sorted by name."""
    names = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__"))
    )
    if len(names) < 2:
        raise UserError(
            f"{folder} has {len(names)} class folder(s); it needs one folder of images a class, two or more"
        )
    return {name: sorted(_files(root, folder / name)) for name in names}


def _files(root: Path, folder: Path) -> Iterable[str]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.name.startswith(".") and path.name.lower() not in _NOT_IMAGES:
            yield path.relative_to(root).as_posix()


def _empty_images(folder: Path) -> Path:
    """Return the empty folder for a datastore's own images; those of an earlier `prepare` are removed."""
    target = folder / "images"
    if target.exists() and any(target.iterdir()):
        if not (folder / "train.json").exists():
            raise UserError(f"{target} has files, and {folder} is no datastore: choose another --output")
        shutil.rmtree(target)
    return make_folder(target)


def _extract(path: Path, folder: Path) -> Path:
    target = _empty_images(folder)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.namelist()
            for member in track(members, f"Extracting {path.name}", len(members)):
                archive.extract(member, target)
    except (zipfile.BadZipFile, OSError, RuntimeError) as error:
        raise UserError(f"{path} can't be extracted into {target}: {error}") from error
    return target


def _write_digits(folder: Path) -> Path:
    from sklearn.datasets import load_digits  # noqa: PLC0415 (takes a second to import)

    digits = load_digits()
    # 17 grey levels, 0 to 16, become 0 to 255.
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    pairs = ((Image.fromarray(image), str(label)) for image, label in zip(images, digits.target, strict=True))
    target = _empty_images(folder)
    _write_images(pairs, target, len(images))
    return target


def _write_torchvision(name: str, folder: Path) -> Path:
    import torchvision  # noqa: PLC0415 (takes seconds to import)

    kind = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(kind):
        raise UserError(f"torchvision has no data set {name!r}; try CIFAR10, CIFAR100, Flowers102, Food101, …")
    target = _empty_images(folder)
    for split in ("train", "test"):
        data = _download(kind, folder / "download", split)
        names = [str(label) for label in getattr(data, "classes", [])]
        pairs = ((image.convert("RGB"), names[label] if names else f"{label:04d}") for image, label in data)
        _write_images(pairs, target / split, len(data))
    return target


def _download(kind: type, root: Path, split: str) -> Any:
    parameters = inspect.signature(kind).parameters
    choice: dict[str, Any] = {"train": split == "train"} if "train" in parameters else {"split": split}
    if "split" not in parameters and "train" not in parameters:
        raise UserError(f"torchvision's {kind.__name__} has no training and test split: give a folder of its images")
    try:
        return kind(root=str(make_folder(root)), download=True, **choice)
    # Each data set downloads in its own way; without a network they raise URLError, RuntimeError, OSError, …
    except Exception as error:
        raise UserError(f"torchvision's {kind.__name__} can't be downloaded ({error}): is there a network?") from error


def _write_images(pairs: Iterable[tuple[Image.Image, str]], target: Path, count: int) -> None:
    for index, (image, label) in enumerate(track(pairs, "Writing images", count)):
        path = target / label.replace("/", "-") / f"{index:06d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
