"""Folders of labelled images: which of them are splits, which are classes, and which files are images."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tailstack.errors import UserError
from tailstack.names import printable

_NOT_IMAGES = {"thumbs.db", "desktop.ini"}
_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What folders of splits are called, in any case -> the split."""
_LISTED = 10


@dataclass(frozen=True)
class Source:
    """Image files by split (`train`, and `val` and `test` where there are such) and class: paths relative to `root`."""

    root: Path
    splits: dict[str, dict[str, list[str]]]


def read_folder(path: Path, name: str) -> Source:
    """List the images of a folder with `train/`, and `val/` or `test/`, or of one with class folders alone.

    Args:
        path: where it lies.
        name: what its user knows it by.

    Raises:
        UserError: it has no folders of two classes, or it can't be told which of its folders are classes.
    """
    folders = _folders(path)
    if _has_splits(folders):
        splits = _splits(folders, name)
        return Source(path, {split: _classes(path, each, f"{name}/{each.name}") for split, each in splits.items()})
    entries = [entry for entry in path.iterdir() if not entry.name.startswith((".", "__MACOSX"))]
    # A zip often has its data one folder down.
    if len(entries) == 1 and entries[0].is_dir() and _folders(entries[0]):
        return read_folder(entries[0], f"{name}/{entries[0].name}")
    return Source(path, {"train": _classes(path, path, name)})


def image_files(root: Path, folder: Path) -> Iterator[str]:
    """Yield what may be an image in `folder` and the folders in it, relative to `root`."""
    for path in folder.rglob("*"):
        if _may_be_image(path):
            yield path.relative_to(root).as_posix()


def _split_of(folder: Path) -> str | None:
    return _SPLITS.get(folder.name.casefold())


def _has_splits(folders: list[Path]) -> bool:
    """Tell folders of splits from class folders, of which one may be called `train` too."""
    if all(_split_of(folder) for folder in folders):
        return len(folders) > 1 or any(_split_of(folder) == "train" for folder in folders)
    return any(_split_of(folder) == "train" and _folders(folder) for folder in folders)


def _splits(folders: list[Path], name: str) -> dict[str, Path]:
    """Return the folder of each split, in a datastore's order; without a test split, `val/` is that."""
    found: dict[str, Path] = {}
    for folder in folders:
        split = _split_of(folder)
        if split in found:
            raise UserError(f"{name} has both {found[split].name}/ and {folder.name}/: keep one of them there")
        if split:
            found[split] = folder
    if "train" not in found:
        raise UserError(f"{name} has {_listed(folders)} and no train/")
    others = [folder for folder in folders if not _split_of(folder)]
    if others and len(found) == 1:
        raise UserError(
            f"{name} has {found['train'].name}/, with folders in it, beside {_listed(others)}: which are classes can't "
            "be told. Give a folder of class folders alone, or of train/ with test/ or val/"
        )
    if others:
        print(f"{printable(name)}: left out, as none of train/, val/ and test/: {_listed(others)}")
    if "test" not in found and "val" in found:
        print(f"{printable(name)} has no test/: {found['val'].name}/ is the test split")
        found["test"] = found.pop("val")
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _classes(root: Path, folder: Path, name: str) -> dict[str, list[str]]:
    """Return the image files of each class folder, both sorted by name."""
    folders = _folders(folder)
    if len(folders) < 2:
        raise UserError(
            f"{name} has {len(folders)} class folder(s); it needs one folder of images a class, two or more"
        )
    # Class names travel into JSON, ONNX and HTTP.
    if odd := [each for each in folders if printable(each.name) != each.name]:
        raise UserError(f"{name} has class folders whose names aren't UTF-8: {_listed(odd)}; rename them")
    if nested := [each for each in folders if not any(map(_may_be_image, each.iterdir())) and _folders(each)]:
        raise UserError(
            f"{name} has folders with nothing but folders in them, where images of a class should be: {_listed(nested)}"
        )
    return {each.name: sorted(image_files(root, each)) for each in folders}


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith((".", "__")))


def _may_be_image(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower() not in _NOT_IMAGES


def _listed(folders: list[Path]) -> str:
    names = [f"{printable(folder.name)}/" for folder in folders[:_LISTED]]
    return ", ".join(names) + (f" and {len(folders) - _LISTED} more" if len(folders) > _LISTED else "")
