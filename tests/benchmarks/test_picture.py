"""The pictures that servers are sent: all of one size, and photos that a model takes for what they were."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.picture import PHOTOS, PICTURE, choose_pictures, photo_pictures, synthetic_picture
from benchmarks.predictors import OnnxModel
from tailstack import datastore as datastores
from tailstack.artifact import CascadeCard
from tailstack.datastore import Split
from tailstack.errors import UserError
from tailstack.images import decode
from tailstack.names import Names
from tests.conftest import SIZE


def test_photos_are_sent_as_jpegs_of_one_size(tiny_datastore: Path) -> None:
    test = datastores.load(tiny_datastore).test
    pictures = photo_pictures(test)
    assert len(pictures) == PHOTOS
    assert len(set(pictures)) >= len(test)
    for picture in (*pictures, synthetic_picture()):
        image = Image.open(io.BytesIO(picture))
        assert (image.format, image.size) == ("JPEG", PICTURE)
    difference = decode(pictures[0], (SIZE, SIZE)).astype(int) - test.decode(0)
    assert abs(difference).mean() < 8


@pytest.mark.parametrize("size", [(900, 500), (500, 900), (800, 600)])
def test_a_model_sees_of_a_picture_what_it_sees_of_the_photo(size: tuple[int, int], tmp_path: Path) -> None:
    coarse = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(tmp_path / "photo.png")
    split = Split(tmp_path, Names(["photo.png"]), np.zeros(1, np.int64))
    difference = decode(photo_pictures(split)[0], (96, 96)).astype(int) - split.decode(0, (96, 96))
    assert abs(difference).mean() < 3


def test_a_cascade_is_asked_about_photos_only(tiny_model: Path, tiny_datastore: Path) -> None:
    plain = OnnxModel.load(tiny_model, threads=1).artifact
    cascade = plain.model_copy(update={"cascade": CascadeCard(order=[0, 1], thresholds=[0.5])})
    assert len(choose_pictures(None, plain)) == 1
    assert len(choose_pictures(tiny_datastore, cascade)) == PHOTOS
    with pytest.raises(UserError, match="name photos with --datastore"):
        choose_pictures(None, cascade)
