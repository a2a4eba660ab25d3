"""Where labelled images come from: folders, zips, scikit-learn's digits, torchvision's data sets."""

import inspect
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tailstack.errors import UserError
from tailstack.files import make_folder
from tailstack.progress import track
from training.archives import extract
from training.layouts import Source, read_folder
from training.own_images import OwnImages


def open_source(source: str, folder: Path, own: OwnImages) -> Source:
    """Find the images of `source`; what isn't a folder is first written to the datastore's own images.

    Args:
        source: as the user gives it.
        folder: the datastore's.
        own: its images, in the making.

    Raises:
        UserError: there is no such source, or it has no images of two classes.
    """
    if source == "digits":
        return read_folder(_write_digits(own.begin()), source)
    if source.startswith("torchvision:"):
        return read_folder(_write_torchvision(source.removeprefix("torchvision:"), folder, own), source)
    path = Path(source)
    if path.is_dir():
        if folder.resolve().is_relative_to(path.resolve()):
            raise UserError(f"output {folder} lies inside the source, where it would be taken for a class")
        return read_folder(path, str(path))
    if zipfile.is_zipfile(path):
        images = own.begin()
        extract(path, images)
        return read_folder(images, source)
    if path.exists():
        raise UserError(f"{source} is neither a folder nor a zip file")
    raise UserError(f"{source} doesn't exist; a source is a folder, a zip, `digits` or `torchvision:NAME`")


def _write_digits(target: Path) -> Path:
    from sklearn.datasets import load_digits  # noqa: PLC0415 (takes a second to import)

    digits = load_digits()
    # 17 grey levels, 0 to 16, become 0 to 255.
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    pairs = ((Image.fromarray(image), str(label)) for image, label in zip(images, digits.target, strict=True))
    _write_images(pairs, target, len(images))
    return target


def _write_torchvision(name: str, folder: Path, own: OwnImages) -> Path:
    import torchvision  # noqa: PLC0415 (takes seconds to import)

    kind = getattr(torchvision.datasets, name, None)
    if not inspect.isclass(kind):
        raise UserError(f"torchvision has no data set {name!r}; try CIFAR10, CIFAR100, Flowers102, Food101, …")
    target = own.begin()
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
