"""The command `prepare`: labelled images -> a datastore and its imbalanced variants; or a datastore -> variants."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tailstack import datastore as datastores
from tailstack.datastore import Split, save_split
from tailstack.errors import UserError, listing
from tailstack.files import make_folder
from tailstack.images import ImageError, decode
from tailstack.names import Names
from tailstack.progress import track
from tailstack.remote import fetch, is_remote, local, push, spelled
from training.longtail import imbalanced_subset, stratified_split
from training.settings import PrepareSettings
from training.sources import Source, open_source


def prepare(settings: PrepareSettings) -> None:
    """Write the datastore, and a variant for each ratio.

    Raises:
        UserError: listing every unreadable image and empty class, all at once.
    """
    _check(settings)
    folder = local(settings.output)
    given = fetch(Path(settings.source))
    if (given / "train.json").is_file():
        _vary(settings)
        return
    source = open_source(str(given) if is_remote(Path(settings.source)) else settings.source, make_folder(folder))
    classes = sorted(source.train)[: settings.classes]
    train, test = _without_bad_images(*_splits(source, classes, settings), classes, settings.skip_unreadable)
    if is_remote(settings.output):
        train, test = (_gathered(split, folder) for split in (train, test))
    _write(settings.output, classes, train, test)
    _write_variants(settings, classes, train, test)


def _vary(settings: PrepareSettings) -> None:
    """Write variants of a datastore, whose images were looked at when it was made."""
    if not settings.imbalance or settings.classes is not None:
        raise UserError(f"{settings.source} is a datastore already, of which --imbalance makes variants, and no more")
    if is_remote(settings.output) and not is_remote(Path(settings.source)):
        raise UserError(f"--output {spelled(settings.output)} is not where the images of {settings.source} are")
    store = datastores.load(Path(settings.source))
    _write_variants(settings, store.classes, store.train, store.test, store.val)


def _write_variants(
    settings: PrepareSettings, classes: list[str], train: Split, test: Split, val: Split | None = None
) -> None:
    for ratio in settings.imbalance:
        kept = imbalanced_subset(train.labels, len(classes), ratio, settings.seed)
        _write(variant_path(settings.output, ratio), classes, train.subset(kept), test, val)


def variant_path(output: Path, ratio: float) -> Path:
    """Return the folder of the imbalanced variant of datastore `output`."""
    return output.with_name(f"{output.name}-imbalance-{ratio:g}")


def _check(settings: PrepareSettings) -> None:
    for ratio in settings.imbalance:
        if not 0 < ratio <= 1:
            raise UserError(f"--imbalance {ratio} is not a ratio of smallest to largest class: above 0, at most 1")
    if not 0 < settings.test_fraction < 1:
        raise UserError(f"--test_fraction is {settings.test_fraction}, and has to lie between 0 and 1")
    if settings.seed < 0:
        raise UserError(f"--seed is {settings.seed}, and has to be 0 or more")
    if settings.classes is not None and settings.classes < 2:
        raise UserError(f"--classes is {settings.classes}: a classifier needs two or more")


def _splits(source: Source, classes: list[str], settings: PrepareSettings) -> tuple[Split, Split]:
    train = _labelled(source.root, source.train, classes)
    if source.test is not None:
        unknown = sorted(set(source.test) - set(source.train))
        if unknown:
            raise UserError(f"test/ has classes that train/ lacks: {', '.join(unknown)}")
        return train, _labelled(source.root, source.test, classes)
    stay, held = stratified_split(train.labels, settings.test_fraction, settings.seed, at_least=1)
    return train.subset(stay), train.subset(held)


def _labelled(root: Path, files: dict[str, list[str]], classes: list[str]) -> Split:
    images = Names(image for name in classes for image in files.get(name, []))
    labels = [label for label, name in enumerate(classes) for _ in files.get(name, [])]
    return Split(root, images, np.array(labels, dtype=np.int64))


def _without_bad_images(train: Split, test: Split, classes: list[str], skip: bool) -> tuple[Split, Split]:
    """Leave out what can't be decoded (or stop with the list), and training images that equal a test image."""
    train_digests, test_digests = list(_digests(train, "train")), list(_digests(test, "test"))
    unreadable = [
        f"{image}: {digest}"
        for split, digests in ((train, train_digests), (test, test_digests))
        for image, digest in zip(split.images, digests, strict=True)
        if isinstance(digest, ImageError)
    ]
    problems = [] if skip else list(unreadable)
    readable = [
        np.array([not isinstance(d, ImageError) for d in split], dtype=bool) for split in (train_digests, test_digests)
    ]
    tested = {digest for digest in test_digests if isinstance(digest, bytes)}
    copies = np.array([digest in tested for digest in train_digests], dtype=bool)
    kept_train = train.subset(np.flatnonzero(readable[0] & ~copies))
    kept_test = test.subset(np.flatnonzero(readable[1]))
    problems += _small_classes(kept_train, kept_test, classes)
    if problems:
        hint = (
            ""
            if skip or not unreadable
            else "\nMend or remove the images, or leave them out with --skip_unreadable true"
        )
        raise UserError(f"{len(problems)} problem(s) in the source:\n{listing(problems)}{hint}")
    _report("can't be read and are left out", unreadable)
    _report(
        "are exact copies of a test image and are left out of train",
        list(train.subset(np.flatnonzero(copies)).images),
    )
    return kept_train, kept_test


def _gathered(split: Split, folder: Path) -> Split:
    """Copy the images into a datastore that goes to an object store, unless they are there already."""
    if split.root.is_relative_to(folder):
        return split
    root = folder / "images"
    for image in track(split.images, "Copying images", len(split)):
        (root / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(split.root / image, root / image)
    return Split(root, split.images, split.labels)


def _small_classes(train: Split, test: Split, classes: list[str]) -> list[str]:
    """Name the classes that nothing can be trained or tested on: `fit` needs one image to train on, one to validate."""
    counts = [split.counts(len(classes)).tolist() for split in (train, test)]
    problems = []
    for name, trained, tested in zip(classes, *counts, strict=True):
        if trained == 0:
            problems.append(f"class {name!r} has no image in train")
        elif trained == 1:
            problems.append(
                f"class {name!r} has 1 image in train, and needs 2 or more: add images or remove its folder"
            )
        if tested == 0:
            problems.append(f"class {name!r} has no image in test")
    return problems


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


def _report(what: str, images: list[str]) -> None:
    if images:
        print(f"{len(images)} image(s) {what}:\n{listing(images)}")


def _write(place: Path, classes: list[str], train: Split, test: Split, val: Split | None = None) -> None:
    path = make_folder(local(place))
    for name, split in (("train", train), ("val", val), ("test", test)):
        if split is not None:
            save_split(path / f"{name}.json", split.root, classes, split.images, split.labels)
    push(place)
    counts = train.counts(len(classes))
    print(
        f"{spelled(place)}: {len(classes)} classes, {len(train)} training images ({counts.max()} in the largest class, "
        f"{counts.min()} in the smallest), {len(test)} test images"
    )
