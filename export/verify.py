"""The command `verify`: the release gate's checks once more, on a file that is there."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from export.card import beside
from export.gate import headline
from export.parity import check_graph
from export.validation import file_answers
from tailstack import datastore as datastores
from tailstack.artifact import Artifact, ValidationCard
from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError
from tailstack.files import sha256
from tailstack.remote import fetch, spelled
from tailstack.session import open_session

TOLERANCE = 0.002
"""Of figures: other processors round differently, and an image or two in a thousand may change sides."""


@dataclass(frozen=True)
class Check:
    """One thing that a file says of itself, and what it is."""

    name: str
    said: str
    found: str
    passed: bool


def verify(path: Path, datastore: Path | None = None) -> None:
    """Check a file, and print a table.

    Args:
        path: the file; it and its data set may lie in an object store.
        datastore: folder of the data set that it was made of; None takes the one that it names.

    Raises:
        UserError: naming what differs, or the file or its data set is missing or can't be read.
    """
    table = Table("", "said", "found", "", title=f"Is {path.name} what it says of itself?", title_justify="left")
    failed = []
    for check in checks(path, datastore):
        table.add_row(*map(escape, (check.name, check.said, check.found)), "✓" if check.passed else "differs")
        if not check.passed:
            failed.append(check.name)
    Console().print(table)
    if failed:
        raise UserError(f"{spelled(path)} is not what it says of itself: {', '.join(failed)}")


def checks(path: Path, datastore: Path | None = None) -> Iterator[Check]:
    """Yield each check of a file; arguments and errors are those of `verify`."""
    place, path = spelled(path), _fetched(path)
    if not path.is_file():
        raise UserError(f"model {place} doesn't exist; make one with: python -m export RUN --output {place}")
    yield _sidecar(path)
    yield _passes("onnx's check", lambda: check_graph(path))
    artifact = Artifact.from_properties(open_session(path, "cpu").get_modelmeta().custom_metadata_map, path)
    if artifact.validation is None:
        yield Check("figures on validation", "none", "none", passed=True)
        return
    store = datastores.load(datastore or _place_of_data(place, artifact))
    same = list(_same_data(artifact, store))
    yield from same
    if all(check.passed for check in same):
        yield from _figures(path, artifact, artifact.validation, _images(artifact.validation, store))


def _fetched(place: Path) -> Path:
    """Return where the file is on this machine, with its sidecar beside it."""
    fetch(beside(place, "sha256"), missing_ok=True)
    return fetch(place, missing_ok=True)


def _place_of_data(file: str, artifact: Artifact) -> Path:
    place = Path(artifact.provenance["datastore"]["path"])
    if not fetch(place, missing_ok=True).is_dir():
        raise UserError(f"{file} was made of the data set in {spelled(place)}, which doesn't exist: add --datastore")
    return place


def _sidecar(path: Path) -> Check:
    sidecar = beside(path, "sha256")
    said = sidecar.read_text(encoding="utf-8", errors="replace").split()[:1] if sidecar.is_file() else []
    found = sha256(path)
    return Check("SHA-256", said[0][:12] if said else f"no {sidecar.name}", found[:12], said == [found])


def _passes(name: str, check: Callable[[], None]) -> Check:
    try:
        check()
    except UserError as error:
        return Check(name, "passes", str(error), passed=False)
    return Check(name, "passes", "passes", passed=True)


def _same_data(artifact: Artifact, store: Datastore) -> Iterator[Check]:
    """Compare the data set with the one that the file was made of; of its splits only the one that validates counts."""
    assert artifact.validation is not None
    classes = len(artifact.classes), len(store.classes)
    yield Check("classes", f"{classes[0]}", f"{classes[1]}", artifact.classes == store.classes)
    split = artifact.validation.split
    said, found = (digests.get(split, "none") for digests in (artifact.provenance["datastore"], store.digests()))
    yield Check(f"{split}.json", said[:12], found[:12], said == found)


def _images(card: ValidationCard, store: Datastore) -> Split:
    if card.split == "val":
        assert store.val is not None
        return store.val
    return store.train if card.indices is None else store.train.subset(np.array(card.indices))


def _figures(path: Path, artifact: Artifact, card: ValidationCard, images: Split) -> Iterator[Check]:
    answers, _ = file_answers(path, images, artifact.image_size, "Validation")
    measured = headline(answers, images.labels, artifact.classes, np.array(artifact.class_counts))
    for name, said in card.figures.items():
        found = measured[name]
        # A figure that the images can't give is None in both.
        near = said == found if said is None or found is None else abs(said - found) <= TOLERANCE
        yield Check(f"{name} on {len(images)} images", _number(said), _number(found), near)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
