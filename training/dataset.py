"""From encoded images to batches: decoded once, kept as one uint8 array, augmented a batch at a time.

A batch is decided by the seed, the epoch and its place in it alone, whichever process makes it, so that a run that was
stopped goes on with the very batches it would have had.
"""

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

import cv2
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tailstack.progress import track

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import asks the network for newer versions otherwise
import albumentations as A

from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError, listing
from tailstack.images import ImageError, Pixels, Size, decode, peek_size
from tailstack.metrics import Probabilities
from training.longtail import Indices

T = TypeVar("T")
Augment = Literal["none", "reference", "flip", "light"]
IN_MEMORY = 2 << 30
"""A split whose pixels take more bytes than this is decoded anew for each batch."""


class PixelSource(Protocol):
    """Pixels by position: an array, or what decodes on demand."""

    def __getitem__(self, indices: Indices) -> Pixels:
        """Return uint8 `[len(indices), height, width, 3]`."""
        ...


class StreamedPixels:
    """Decodes the images of a split that is too large for memory, each time they are asked for."""

    def __init__(self, split: Split, size: Size) -> None:
        self._split = split
        self._size = size

    def __getitem__(self, indices: Indices) -> Pixels:
        """Return uint8 `[len(indices), height, width, 3]`.

        Raises:
            UserError: naming an image that can't be read any more.
        """
        return np.stack([self._split.decode(i, self._size) for i in indices])


def common_image_size(datastore: Datastore, resolution: int) -> Size:
    """Return the height and width at which images enter the ensemble.

    That is their own where all share one that is no larger than `resolution` pixels, else `resolution` squared.
    """
    sizes: set[Size] = set()
    for name, split in datastore.splits():
        sizes.update(size for size in _for_each(split, f"Reading sizes of {name}", _try_peek) if size is not None)
    size = sizes.pop() if len(sizes) == 1 else (resolution, resolution)
    return size if max(size) <= resolution else (resolution, resolution)


def load_pixels(splits: Mapping[str, Split], size: Size) -> dict[str, PixelSource]:
    """Decode every image of the named splits, and keep a split's pixels if they take no more than `IN_MEMORY` bytes.

    Raises:
        UserError: listing every image that can't be read, of all splits at once.
    """
    problems: list[str] = []
    sources = {name: _load_split(name, split, size, problems) for name, split in splits.items()}
    if problems:
        raise UserError(f"{len(problems)} image(s) can't be read:\n{listing(problems)}")
    return sources


def _load_split(name: str, split: Split, size: Size, problems: list[str]) -> PixelSource:
    keep = len(split) * size[0] * size[1] * 3 <= IN_MEMORY
    pixels = np.empty((len(split) if keep else 0, *size, 3), dtype=np.uint8)

    def read(split: Split, index: int) -> str | None:
        try:
            decoded = decode(split.read(index), size)
        except (ImageError, OSError) as error:
            return f"{name} image {split.images[index]}: {error}"
        if keep:
            pixels[index] = decoded
        return None

    problems += [problem for problem in _for_each(split, f"Decoding {name}", read) if problem]
    return pixels if keep else StreamedPixels(split, size)


def augmentation(kind: Augment) -> A.Compose | None:
    """Return the augmentation of one uint8 `[height, width, 3]` image, or None.

    `reference` is the pipeline of the course project that Tailstack is compared with, in today's spelling
    (its ShiftScaleRotate is now Affine); `flip` adds mirror images, which suits photos and not digits; `light` mirrors
    and shifts only, which is enough for a few epochs.
    """
    if kind == "none":
        return None
    cv2.setNumThreads(0)  # images are small; threads would only fight with torch's
    mirror = A.HorizontalFlip(p=0.5)
    if kind == "light":
        shift = A.Affine(translate_percent=(-0.125, 0.125), border_mode=cv2.BORDER_REFLECT_101, p=1)
        return A.Compose([mirror, shift])
    steps: list[A.BasicTransform] = [
        A.Affine(
            translate_percent=(-0.05, 0.05),
            scale=(0.85, 1.15),
            rotate=(-15, 15),
            keep_ratio=True,
            border_mode=cv2.BORDER_REFLECT_101,
            p=0.5,
        ),
        A.RGBShift((-15, 15), (-15, 15), (-15, 15), p=0.5),
        A.RandomBrightnessContrast(p=0.5),
    ]
    return A.Compose([mirror, *steps] if kind == "flip" else steps)


@dataclass(frozen=True)
class TrainingData:
    """The pixels and int64 labels of the training and the validation split."""

    train_pixels: PixelSource
    train_labels: Indices
    val_pixels: PixelSource
    val_labels: Indices
    digest: str = ""
    """SHA-256 of what says which images these are."""
    answers: Probabilities | None = None
    """A teacher's, to the training images: float32 `[images, classes]`."""


@dataclass(frozen=True)
class BatchKey:
    """Which images make a batch, and the seed of their augmentation."""

    indices: Indices
    seed: int


class Batches(Dataset[tuple[Tensor, ...]]):
    """Whole batches by key: uint8 `[batch, height, width, 3]` images, int64 `[batch]` labels, and a teacher's answers.

    The latter, float32 `[batch, classes]`, only where there are any.
    """

    def __init__(
        self,
        pixels: PixelSource,
        labels: Indices,
        augment: Augment = "none",
        answers: Probabilities | None = None,
    ) -> None:
        self._pixels = pixels
        self._targets = (labels,) if answers is None else (labels, answers)
        self._augment = augmentation(augment)

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, ...]:
        """Read and augment one batch."""
        images = self._pixels[key.indices]
        if self._augment is not None:
            # Shared generators: set_random_seed would give each transform one of its own with the same seed, and so
            # apply all of them or none.
            self._augment.set_random_state(np.random.default_rng(key.seed), random.Random(key.seed))
            images = np.stack([self._augment(image=image)["image"] for image in images])
        return torch.from_numpy(images), *(torch.from_numpy(targets[key.indices]) for targets in self._targets)


class ShuffledKeys(Sampler[BatchKey]):
    """Deals the samples out anew each epoch, into batches that differ in size by one at most.

    A last batch of one or two images would spoil batch normalisation.
    """

    def __init__(self, samples: Indices, batch_size: int, seed: int) -> None:
        self._samples = samples
        self._batches = max(1, round(len(samples) / batch_size))
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches are dealt; the trainer calls it."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[BatchKey]:
        """Yield the keys of one epoch; each process of a group gets its share of every batch."""
        rng = np.random.default_rng([self._seed, self._epoch])
        order = rng.permutation(self._samples)
        rank, processes = place_in_group()
        for indices in np.array_split(order, self._batches):
            yield BatchKey(indices[rank::processes], int(rng.integers(1 << 31)) + rank)


def place_in_group() -> tuple[int, int]:
    """Return this process's rank among those that train one learner together, and how many they are."""
    if not dist.is_available() or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def ordered_keys(count: int, batch_size: int) -> list[BatchKey]:
    """Return the keys of images 0 to `count` in order."""
    return [BatchKey(np.arange(i, min(i + batch_size, count)), 0) for i in range(0, count, batch_size)]


def batch_loader(
    batches: Batches, keys: Sequence[BatchKey] | ShuffledKeys, num_workers: int
) -> DataLoader[tuple[Tensor, ...]]:
    """Load the batches of `keys` in `num_workers` processes (0: in this one)."""
    # batch_size=None: the data set already makes whole batches.
    return DataLoader(
        batches,
        sampler=keys,
        batch_size=None,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def _try_peek(split: Split, index: int) -> Size | None:
    try:
        return peek_size(split.read(index))
    except (ImageError, OSError):
        return None  # `load_pixels` reports it, with all the others


def _for_each(split: Split, title: str, function: Callable[[Split, int], T]) -> Iterator[T]:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = pool.map(lambda index: function(split, index), range(len(split)), chunksize=64)
        yield from track(results, title, len(split))
