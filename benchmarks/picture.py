"""The picture that servers are sent where the user names none."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

PICTURE = (500, 375)
"""Width and height: what photos in collections have."""


def make_picture(folder: Path) -> Path:
    """Write a JPEG with as much detail, and so as many bytes, as a photo of its size (28 KB)."""
    rng = np.random.default_rng(0)
    width, height = PICTURE
    coarse = rng.integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(PICTURE, Image.Resampling.BICUBIC))
    pixels = smooth + rng.normal(0, 4, smooth.shape)
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=75)
    path = folder / "picture.jpg"
    path.write_bytes(stream.getvalue())
    return path
