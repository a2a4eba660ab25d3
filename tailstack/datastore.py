"""The datastore: a folder with `train.json`, `test.json` and optionally `val.json` that name images and their labels.

Each file is `{"root": ".", "classes": ["apple", …], "annotations": [{"image": "train/apple/1.png", "label": 0}, …]}`.
`root` is where image paths start, relative to the file, so that an imbalanced variant is two small files beside the
same images.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tailstack.errors import UserError, listing
from tailstack.files import read_json, sha256, write_json
from tailstack.images import ImageError, Pixels, Size, decode
from tailstack.names import Names
from tailstack.remote import fetch, is_remote, origin, spelled

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Images of one split: paths relative to `root`, and int64 labels `[images]`."""

    root: Path
    images: Names
    labels: Labels

    def __len__(self) -> int:
        return len(self.images)

    def path(self, index: int) -> Path:
        """Return where image `index` lies."""
        return self.root / self.images[index]

    def read(self, index: int) -> bytes:
        """Return the encoded bytes of image `index`.

        Raises:
            OSError: it can't be read any more.
        """
        return self.path(index).read_bytes()

    def decode(self, index: int, size: Size | None = None) -> Pixels:
        """Return image `index`, decoded by `tailstack.images.decode`: uint8 `[height, width, 3]`.

        Raises:
            UserError: naming the image, if it can't be read.
        """
        try:
            return decode(self.read(index), size)
        except (ImageError, OSError) as error:
            raise UserError(f"image {self.path(index)} (annotation {index}) can't be read: {error}") from error

    def decode_batch(self, indices: Iterable[int], size: Size) -> Pixels:
        """Return the images at `indices`, decoded to one size: uint8 `[images, *size, 3]`.

        Raises:
            UserError: naming the image, if one can't be read.
        """
        return np.stack([self.decode(int(index), size) for index in indices])

    def spread(self, count: int) -> npt.NDArray[np.int64]:
        """Return the places of `count` images, evenly spaced over the split, whose classes lie one after the other.

        A split with fewer gives some of them more than once.
        """
        return np.linspace(0, len(self) - 1, count).astype(np.int64)

    def counts(self, num_classes: int) -> Labels:
        """Return the number of images of each class, int64 `[num_classes]`."""
        return np.bincount(self.labels, minlength=num_classes)

    def subset(self, indices: npt.NDArray[np.int64]) -> "Split":
        """Return the images at `indices`, in that order."""
        return Split(self.root, Names(self.images[i] for i in indices), self.labels[indices])


@dataclass(frozen=True)
class Datastore:
    """A labelled data set: class names in label order, and its splits."""

    path: Path
    classes: list[str]
    train: Split
    test: Split
    val: Split | None = None

    def digests(self) -> dict[str, str]:
        """Return the SHA-256 of each split's file, by split name.

        Raises:
            OSError: one can't be read any more.
        """
        return {name: sha256(self.path / f"{name}.json") for name, _ in self.splits()}

    def splits(self) -> list[tuple[str, Split]]:
        """Return the splits that there are, with their names."""
        splits = [("train", self.train), ("val", self.val), ("test", self.test)]
        return [(name, split) for name, split in splits if split is not None]


def load(path: Path) -> Datastore:
    """Read and check the datastore in folder `path`, fetched first if that lies in an object store.

    Raises:
        UserError: naming every entry that is wrong: a missing file, a label out of range, a class with fewer than two
            training images (or without one, where there is a val.json), an image that is listed twice or in two splits.
    """
    place, path = spelled(path), fetch(path, missing_ok=True)
    if not path.is_dir():
        raise UserError(
            f"datastore {place} doesn't exist; make one with: python -m training prepare SOURCE --output {place}"
        )
    classes, train = _read_split(path / "train.json")
    _, test = _read_split(path / "test.json", classes)
    val = _read_split(path / "val.json", classes)[1] if (path / "val.json").exists() else None
    datastore = Datastore(path, classes, train, test, val)
    _fetch_roots(datastore)
    problems = [*_class_problems(datastore), *_image_problems(datastore)]
    if problems:
        raise UserError(f"datastore {path} has {len(problems)} problem(s):\n{listing(problems)}")
    return datastore


def save_split(path: Path, root: Path, classes: Sequence[str], images: Iterable[str], labels: Labels) -> None:
    """Write one split's JSON file to `path`, with `root` written relative to it.

    Raises:
        UserError: `path` can't be written.
    """
    annotations = [{"image": image, "label": int(label)} for image, label in zip(images, labels, strict=True)]
    content = {"root": _relative(root, path.parent), "classes": list(classes), "annotations": annotations}
    write_json(path, content, indent=None)


def _relative(root: Path, folder: Path) -> str:
    """Return the way from `folder` to `root`."""
    spelled_out = os.path.relpath(root, folder)
    # From behind a symbolic link, `..` leads elsewhere than it reads.
    if os.path.realpath(folder / spelled_out) == os.path.realpath(root):
        return spelled_out
    return os.path.relpath(os.path.realpath(root), os.path.realpath(folder))


def _read_split(path: Path, expected_classes: list[str] | None = None) -> tuple[list[str], Split]:
    content = read_json(path)
    try:
        classes = [str(name) for name in content["classes"]]
        images = [str(entry["image"]) for entry in content["annotations"]]
        labels = [entry["label"] for entry in content["annotations"]]
        root = path.parent / content["root"]
    except (KeyError, TypeError) as error:
        raise UserError(
            f'{path} is not a datastore file: it needs "root", "classes" and "annotations" with "image" and "label" '
            f"(missing or wrong: {error})"
        ) from error
    _check_labels(path, classes, images, labels)
    if expected_classes is not None and classes != expected_classes:
        raise UserError(f"{path} lists other classes than train.json")
    return classes, Split(root, Names(images), np.array(labels, dtype=np.int64))


def _fetch_roots(datastore: Datastore) -> None:
    """Fetch the images of a variant in an object store: they lie beside it."""
    for root in {Path(os.path.normpath(split.root)) for _, split in datastore.splits()}:
        if not root.is_relative_to(datastore.path) and is_remote(origin(root)):
            fetch(origin(root))


def _check_labels(path: Path, classes: list[str], images: list[str], labels: list[Any]) -> None:
    if not labels:
        raise UserError(f"{path} has no annotations")
    repeated = [name for name, count in Counter(classes).items() if count > 1]
    if repeated:
        raise UserError(f"{path} names a class twice: {', '.join(repeated)}")
    wrong = [
        f"annotation {i} ({images[i]}): label {label!r} is not an integer from 0 to {len(classes) - 1}"
        for i, label in enumerate(labels)
        if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(classes)
    ]
    if wrong:
        raise UserError(f"{path} has labels out of range:\n{listing(wrong)}")


def _class_problems(datastore: Datastore) -> list[str]:
    counts = datastore.train.counts(len(datastore.classes))
    # One image can't be in the training and the validation split, so a class needs two.
    needed = 1 if datastore.val is not None else 2
    return [
        f"class {name!r} has {count} training image(s), and needs {needed} or more: add images or remove the class"
        for name, count in zip(datastore.classes, counts, strict=True)
        if count < needed
    ]


def _image_problems(datastore: Datastore) -> list[str]:
    problems = []
    seen: dict[str, str] = {}
    for name, split in datastore.splits():
        root = os.path.realpath(split.root)
        for index, image in enumerate(split.images):
            path = os.path.normpath(f"{root}/{image}")
            entry = f"{name}.json annotation {index} ({image})"
            if path in seen:
                problems.append(f"{entry}: the same image as {seen[path]}")
            elif not os.path.isfile(path):  # noqa: PTH113 (pathlib takes two to five times as long, on a million images)
                problems.append(f"{entry}: there is no such file under {split.root}")
            seen.setdefault(path, entry)
    return problems
