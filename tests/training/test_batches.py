"""From images to batches: sizes, decoding, augmentation, and the order of an epoch."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tailstack.datastore import Datastore, Split
from tailstack.errors import UserError
from tailstack.names import Names
from training import dataset
from training.dataset import (
    Batches,
    BatchKey,
    ShuffledKeys,
    StreamedPixels,
    common_image_size,
    load_pixels,
    ordered_keys,
)


def make_split(folder: Path, sizes: list[tuple[int, int]]) -> Split:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for index, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    names = [f"{index}.png" for index in range(len(sizes))]
    return Split(folder, Names(names), np.arange(len(sizes)) % 2)


def test_an_epoch_deals_each_sample_once_into_even_batches() -> None:
    keys = ShuffledKeys(np.arange(100, 203), batch_size=25, seed=1)
    batches = [key.indices for key in keys]
    assert len(batches) == len(keys) == 4
    assert sorted(np.concatenate(batches)) == list(range(100, 203))
    assert {len(batch) for batch in batches} == {25, 26}


def test_an_epoch_is_decided_by_seed_and_number() -> None:
    def deal(seed: int, epoch: int) -> list[tuple[list[int], int]]:
        keys = ShuffledKeys(np.arange(50), 10, seed)
        keys.set_epoch(epoch)
        return [(key.indices.tolist(), key.seed) for key in keys]

    assert deal(1, 3) == deal(1, 3)
    assert deal(1, 3) != deal(1, 4)
    assert deal(1, 3) != deal(2, 3)


def test_ordered_keys_are_every_image_in_order() -> None:
    keys = ordered_keys(10, 4)
    assert [key.indices.tolist() for key in keys] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("augment", ["reference", "flip", "light"])
def test_augmentation_is_decided_by_the_key(augment: dataset.Augment) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    labels = np.arange(20)
    key = BatchKey(np.array([3] * 15 + [7]), seed=5)
    images, got_labels = Batches(pixels, labels, augment)[key]
    again, _ = Batches(pixels, labels, augment)[key]
    other, _ = Batches(pixels, labels, augment)[BatchKey(key.indices, seed=6)]
    assert images.shape == (16, 16, 16, 3)
    assert got_labels.tolist() == [3] * 15 + [7]
    assert images.equal(again)
    assert not images.equal(other)
    # Copies of an image in a batch differ by augmentation (all but the eighth that it leaves alone).
    assert len({image.numpy().tobytes() for image in images[:15]}) > 8


def test_without_augmentation_pixels_stay() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    images, _ = Batches(pixels, np.arange(4))[BatchKey(np.array([2, 0]), 0)]
    np.testing.assert_array_equal(images.numpy(), pixels[[2, 0]])


@pytest.mark.parametrize(
    ("sizes", "resolution", "expected"),
    [
        ([(32, 32)] * 3, 96, (32, 32)),
        ([(24, 32)] * 3, 96, (24, 32)),
        ([(32, 32), (40, 32)], 96, (96, 96)),
        ([(200, 200)] * 3, 96, (96, 96)),
    ],
)
def test_the_size_at_which_images_enter(
    tmp_path: Path, sizes: list[tuple[int, int]], resolution: int, expected: tuple[int, int]
) -> None:
    split = make_split(tmp_path / "s", sizes)
    store = Datastore(tmp_path, ["a", "b"], split, split)
    assert common_image_size(store, resolution) == expected


def test_every_unreadable_image_is_listed_at_once(tmp_path: Path) -> None:
    split = make_split(tmp_path / "s", [(8, 8)] * 6)
    (tmp_path / "s" / "1.png").write_text("no image")
    (tmp_path / "s" / "4.png").unlink()
    other = make_split(tmp_path / "t", [(8, 8)])
    (tmp_path / "t" / "0.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        load_pixels({"train": split, "test": other}, (8, 8))
    assert "3 image(s)" in str(error.value)
    for name in ("train image 1.png", "train image 4.png", "test image 0.png"):
        assert name in str(error.value)


def test_pixels_too_many_for_memory_are_decoded_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_split(tmp_path / "s", [(8, 8)] * 6)
    kept = load_pixels({"train": split}, (8, 8))["train"]
    monkeypatch.setattr(dataset, "IN_MEMORY", 100)
    streamed = load_pixels({"train": split}, (8, 8))["train"]
    assert isinstance(streamed, StreamedPixels)
    indices = np.array([5, 0, 3])
    np.testing.assert_array_equal(kept[indices], streamed[indices])
