"""Variants that `prepare` makes of a datastore, without a look at its images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailstack import datastore as datastores
from tests.training.test_prepare import fill, refused, run
from training.prepare import prepare, variant_path
from training.settings import PrepareSettings


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """train/ and test/ with two classes."""
    fill(tmp_path / "photos" / "train", {"cat": 10, "dog": 4}, seed=1)
    fill(tmp_path / "photos" / "test", {"cat": 3, "dog": 2}, seed=2)
    return tmp_path / "photos"


def test_a_datastore_is_a_source_of_variants(tmp_path: Path, photos: Path) -> None:
    """They are the ones that are made with it, and no image is looked at."""
    store = run(photos, tmp_path / "store", imbalance=[0.5])
    for image in store.test.images:
        (store.test.root / image).write_bytes(b"no image")
    prepare(PrepareSettings(source=str(store.path), output=tmp_path / "again", imbalance=[0.5]))
    assert not (tmp_path / "again").exists()
    first, second = (datastores.load(variant_path(tmp_path / name, 0.5)) for name in ("store", "again"))
    assert first.digests() == second.digests()


def test_variants_of_a_datastore_keep_its_validation(tmp_path: Path, photos: Path) -> None:
    store = run(photos, tmp_path / "store")
    parts = {"val": store.train.subset(np.array([0, 10])), "train": store.train.subset(np.array([*range(1, 10), 11]))}
    for name, split in parts.items():
        datastores.save_split(store.path / f"{name}.json", split.root, store.classes, split.images, split.labels)
    prepare(PrepareSettings(source=str(store.path), output=store.path, imbalance=[0.2]))
    variant = datastores.load(variant_path(store.path, 0.2))
    assert variant.val is not None
    assert variant.val.images == parts["val"].images
    assert set(variant.train.images) <= set(parts["train"].images)


@pytest.mark.parametrize("values", [{}, {"imbalance": [0.5], "classes": 2}])
def test_a_datastore_is_a_source_of_nothing_else(tmp_path: Path, photos: Path, values: dict[str, Any]) -> None:
    store = run(photos, tmp_path / "store")
    assert "is a datastore already" in refused(store.path, tmp_path / "again", **values)
