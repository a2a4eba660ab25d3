"""The pictures that servers are sent: photos of a datastore, or a synthetic one where the user names none.

All are JPEGs of 500x375, so that receiving and decoding cost what they cost with photos in collections.
"""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from tailstack import datastore as datastores
from tailstack.artifact import Artifact
from tailstack.datastore import Split
from tailstack.errors import UserError
from tailstack.images import Pixels

PHOTOS = 64
"""Test photos, spread over the split, that are asked about in turn: a cascade takes longer for some than for others."""
PICTURE = (500, 375)
"""Width and height: what photos in collections have."""
_NOISE = 4.0
"""Deviation of what is added to pixels that were enlarged: smooth ones would take few bytes. Scaled down again, it is
hardly seen."""
_QUALITY, _PHOTO_QUALITY = 75, 85
"""Of a JPEG. Photos of 32x32 take 21 KB, and as much time to decode as the synthetic picture."""


def synthetic_picture() -> bytes:
    """Return a JPEG with as much detail, and so as many bytes, as a photo of its size (28 KB)."""
    rng = np.random.default_rng(0)
    width, height = PICTURE
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(PICTURE, Image.Resampling.BICUBIC))
    return _encode(smooth + rng.normal(0, _NOISE, smooth.shape), _QUALITY)


def photo_pictures(test: Split) -> list[bytes]:
    """Return `PHOTOS` photos as JPEGs of the size of `PICTURE`, in whose centre a model sees what it sees of the photo.

    Raises:
        UserError: naming the photo, if one can't be read.
    """
    rng = np.random.default_rng(0)
    return [_photo_picture(test.decode(int(index)), rng) for index in test.spread(PHOTOS)]


def choose_pictures(datastore: Path | None, card: Artifact) -> list[bytes]:
    """Return the test photos of `datastore` as JPEGs; where that is None, a synthetic picture.

    Raises:
        UserError: the datastore can't be read, or there is none for a cascade, whose cost depends on the photo.
    """
    if datastore:
        return photo_pictures(datastores.load(datastore).test)
    if card.cascade:
        raise UserError("what a cascade costs depends on the photo: name photos with --datastore")
    return [synthetic_picture()]


def _photo_picture(photo: Pixels, rng: np.random.Generator) -> bytes:
    width, height = PICTURE
    enlarged = min(photo.shape[:2]) < min(PICTURE)
    cover = ImageOps.cover(Image.fromarray(photo), (min(PICTURE), min(PICTURE)), Image.Resampling.BICUBIC)
    left, top = (cover.width - width) // 2, (cover.height - height) // 2
    # What lies beyond the photo's sides is black.
    pixels = np.asarray(cover.crop((left, top, left + width, top + height)))
    return _encode(pixels + rng.normal(0, _NOISE, pixels.shape) * enlarged, _PHOTO_QUALITY)


def _encode(pixels: npt.NDArray[np.float64], quality: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()
