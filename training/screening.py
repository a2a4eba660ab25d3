"""Which images of a source a datastore gets: those that can be read, and that no later split has too."""

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from tailstack.datastore import Split
from tailstack.errors import UserError, listing
from tailstack.images import ImageError, decode
from tailstack.names import printable
from tailstack.progress import track
from training.longtail import Indices


@dataclass(frozen=True)
class Seen:
    """A split of images that can be read, with a digest of each one's pixels."""

    split: Split
    digests: list[bytes]

    def subset(self, indices: Indices) -> "Seen":
        """Return the images at `indices`, in that order."""
        return Seen(self.split.subset(indices), [self.digests[i] for i in indices])


def look_at(splits: dict[str, Split]) -> tuple[dict[str, Seen], list[str]]:
    """Return what of each split can be read, and a line for each image that can't, with the reason."""
    seen, unreadable = {}, []
    for name, split in splits.items():
        digests = list(_digests(split, name))
        unreadable += [f"{split.images[i]}: {d}" for i, d in enumerate(digests) if isinstance(d, ImageError)]
        readable = np.array([i for i, d in enumerate(digests) if isinstance(d, bytes)], dtype=np.int64)
        seen[name] = Seen(split.subset(readable), [d for d in digests if isinstance(d, bytes)])
    return seen, unreadable


def without_copies(seen: dict[str, Seen]) -> tuple[dict[str, Split], dict[str, list[str]]]:
    """Leave out what a later split has too, to the pixel.

    Args:
        seen: train, val where there is one, and test, in this order.

    Returns:
        The splits, and the names of what is left out of each.
    """
    later: set[bytes] = set()
    splits, left_out = {}, {}
    for name, one in reversed(seen.items()):
        copies = np.array([digest in later for digest in one.digests], dtype=bool)
        splits[name] = one.split.subset(np.flatnonzero(~copies))
        left_out[name] = list(one.split.subset(np.flatnonzero(copies)).images)
        later.update(one.digests)
    return {name: splits[name] for name in seen}, {name: left_out[name] for name in seen}


def check(splits: dict[str, Split], classes: list[str], unreadable: list[str], *, skip_unreadable: bool) -> None:
    """Refuse splits that nothing can be trained or tested on.

    Raises:
        UserError: listing every unreadable image, unless they may be skipped, and every empty class, all at once.
    """
    problems = [*([] if skip_unreadable else unreadable), *_small_classes(splits, classes)]
    if problems:
        mend = "\nMend or remove the images, or leave them out with --skip_unreadable true"
        hint = mend if unreadable and not skip_unreadable else ""
        raise UserError(f"{len(problems)} problem(s) in the source:\n{listing(problems)}{hint}")


def report(unreadable: list[str], copies: dict[str, list[str]]) -> None:
    """Say which images are left out."""
    _say("can't be read and are left out", unreadable)
    names = list(copies)
    for position, name in enumerate(names):
        later = " or ".join(names[position + 1 :])
        _say(f"are exact copies of a {later} image and are left out of {name}", copies[name])


def _digests(split: Split, name: str) -> Iterator[bytes | ImageError]:
    """Yield a digest of each image's pixels, or why it has none."""

    def digest(index: int) -> bytes | ImageError:
        try:
            pixels = decode(split.read(index))
        except ImageError as error:
            return error
        except OSError as error:
            return ImageError(error.strerror or str(error))
        return hashlib.blake2b(pixels.tobytes(), digest_size=16, key=repr(pixels.shape).encode()).digest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from track(pool.map(digest, range(len(split)), chunksize=64), f"Checking {name}", len(split))


def _small_classes(splits: dict[str, Split], classes: list[str]) -> list[str]:
    """Name the classes that nothing can be trained or tested on, and a validation split of nothing.

    Without such a split, `fit` needs one image of a class to train on, and one to validate.
    """
    train, test = (splits[name].counts(len(classes)).tolist() for name in ("train", "test"))
    needed = 1 if "val" in splits else 2
    problems = []
    for name, trained, tested in zip(classes, train, test, strict=True):
        if trained == 0:
            problems.append(f"class {name!r} has no image in train")
        elif trained < needed:
            problems.append(
                f"class {name!r} has 1 image in train, and needs 2 or more: add images or remove its folder"
            )
        if tested == 0:
            problems.append(f"class {name!r} has no image in test")
    if "val" in splits and not len(splits["val"]):
        problems.append("val has no image of its own")
    return problems


def _say(what: str, images: list[str]) -> None:
    if images:
        print(f"{len(images)} image(s) {what}:\n{listing([printable(image) for image in images])}")
