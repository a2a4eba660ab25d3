"""The command `prepare`: labelled images -> a datastore and its imbalanced variants; or a datastore -> variants."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from tailstack import datastore as datastores
from tailstack.datastore import Split, save_split
from tailstack.errors import UserError
from tailstack.files import make_folder
from tailstack.names import Names, printable
from tailstack.progress import track
from tailstack.remote import fetch, is_remote, local, push, spelled
from training.layouts import Source
from training.longtail import imbalanced_subset, stratified_split
from training.own_images import OwnImages, own_images
from training.screening import check, look_at, report, without_copies
from training.settings import PrepareSettings
from training.sources import open_source


def prepare(settings: PrepareSettings) -> None:
    """Write the datastore, and a variant for each ratio; what was there before stays if anything is wrong.

    Raises:
        UserError: listing every unreadable image and empty class, all at once.
    """
    _check(settings)
    folder = local(settings.output)
    given = fetch(Path(settings.source))
    if (given / "train.json").is_file():
        _vary(settings)
        return
    with own_images(make_folder(folder)) as own:
        source = open_source(str(given) if is_remote(Path(settings.source)) else settings.source, folder, own)
        classes = sorted(source.splits["train"])[: settings.classes]
        splits = _good_splits(source, classes, settings)
        there = source.root.is_relative_to(folder) or not is_remote(settings.output)
        root = own.keep(source.root if there else _gathered(splits, own))
    splits = {name: replace(split, root=root) for name, split in splits.items()}
    _write(settings.output, classes, splits)
    _write_variants(settings, classes, splits)


def _vary(settings: PrepareSettings) -> None:
    """Write variants of a datastore, whose images were looked at when it was made."""
    if not settings.imbalance or settings.classes is not None:
        raise UserError(f"{settings.source} is a datastore already, of which --imbalance makes variants, and no more")
    if is_remote(settings.output) and not is_remote(Path(settings.source)):
        raise UserError(f"--output {spelled(settings.output)} is not where the images of {settings.source} are")
    store = datastores.load(Path(settings.source))
    _write_variants(settings, store.classes, dict(store.splits()))


def _write_variants(settings: PrepareSettings, classes: list[str], splits: dict[str, Split]) -> None:
    train = splits["train"]
    for ratio in settings.imbalance:
        kept = imbalanced_subset(train.labels, len(classes), ratio, settings.seed)
        _write(variant_path(settings.output, ratio), classes, {**splits, "train": train.subset(kept)})


def variant_path(output: Path, ratio: float) -> Path:
    """Return the folder of the imbalanced variant of datastore `output`."""
    named = output.resolve() if output.name in {"", ".."} else output
    return named.with_name(f"{named.name}-imbalance-{ratio:g}")


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


def _good_splits(source: Source, classes: list[str], settings: PrepareSettings) -> dict[str, Split]:
    """Return the splits without what is left out; where the source has no test split, it is drawn from train."""
    for name, files in source.splits.items():
        if unknown := sorted(files.keys() - source.splits["train"].keys()):
            raise UserError(f"{name}/ has classes that train/ lacks: {', '.join(unknown)}")
    seen, unreadable = look_at({name: _labelled(source.root, files, classes) for name, files in source.splits.items()})
    if "test" not in seen:
        train = seen["train"]
        stay, held = stratified_split(train.split.labels, settings.test_fraction, settings.seed, at_least=1)
        seen = {"train": train.subset(stay), "test": train.subset(held)}
    splits, copies = without_copies(seen)
    check(splits, classes, unreadable, skip_unreadable=settings.skip_unreadable)
    report(unreadable, copies)
    return splits


def _labelled(root: Path, files: dict[str, list[str]], classes: list[str]) -> Split:
    images = Names(image for name in classes for image in files.get(name, []))
    labels = [label for label, name in enumerate(classes) for _ in files.get(name, [])]
    return Split(root, images, np.array(labels, dtype=np.int64))


def _gathered(splits: dict[str, Split], own: OwnImages) -> Path:
    """Copy the images into a datastore that goes to an object store, and return where they start."""
    root = own.begin()
    for name, split in splits.items():
        for image in track(split.images, f"Copying {name}", len(split)):
            (root / image).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(split.root / image, root / image)
    return root


def _write(place: Path, classes: list[str], splits: dict[str, Split]) -> None:
    path = make_folder(local(place))
    if "val" not in splits:
        (path / "val.json").unlink(missing_ok=True)  # of a datastore that was here before
    for name, split in splits.items():
        save_split(path / f"{name}.json", split.root, classes, split.images, split.labels)
    push(place)
    counts = splits["train"].counts(len(classes))
    held = ", ".join(
        f"{len(splits[name])} {kind} images"
        for name, kind in (("val", "validation"), ("test", "test"))
        if name in splits
    )
    print(
        f"{printable(spelled(place))}: {len(classes)} classes, {len(splits['train'])} training images "
        f"({counts.max()} in the largest class, {counts.min()} in the smallest), {held}"
    )
