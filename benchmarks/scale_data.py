"""A datastore of iNaturalist's shape, of as many files as images but next to no content."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

from tailstack.datastore import Labels, save_split
from tailstack.files import make_folder

IMBALANCE = 0.002
"""Smallest class / largest class; iNaturalist 2018 has 2 and 1,000 images."""
TESTED = 3
"""Test images a class, as iNaturalist 2018 has them."""
_LINKS = 50_000
"""A file system allows 65,000 links to a file."""
_SIZE = (48, 64)


def make_datastore(folder: Path, images: int, num_classes: int) -> None:
    """Write a datastore whose images are links to a few small JPEGs: a million files in a minute or two."""
    names = [f"{label:05d}_Animalia_Chordata_Aves_Genus_species" for label in range(num_classes)]
    number = 0
    for split, counts in (("test", np.full(num_classes, TESTED)), ("train", _counts(images, num_classes))):
        paths = []
        for name, count in zip(names, counts, strict=True):
            (folder / "images" / split / name).mkdir(parents=True)
            for _ in range(count):
                # As long as iNaturalist's own names.
                paths.append(f"{split}/{name}/{number:08x}-5a7c-4d1b-9c60-1a2b3c4d5e6f.jpg")
                os.link(_content(folder, number // _LINKS), folder / "images" / paths[-1])
                number += 1
        save_split(folder / f"{split}.json", folder / "images", names, paths, np.repeat(np.arange(num_classes), counts))


def _counts(images: int, num_classes: int) -> Labels:
    """Return the training images of each class: an exponential profile, and what rounding leaves to the first."""
    profile = IMBALANCE ** (np.arange(num_classes) / num_classes)
    wanted = images - TESTED * num_classes
    counts: Labels = np.maximum((profile * wanted / profile.sum()).astype(np.int64), 2)
    counts[0] += wanted - counts.sum()
    return counts


def _content(folder: Path, number: int) -> Path:
    path = make_folder(folder / "contents") / f"{number}.jpg"
    if not path.exists():
        pixels = np.random.default_rng(number).integers(0, 256, (*_SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return path
