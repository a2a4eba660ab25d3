"""Bytes to pixels: the one image decoder of training, export, serving and benchmarks.

What an image is, is decided by its content, never by its name. Its size is checked before any pixel is decoded.
"""

import warnings
from collections.abc import Callable
from itertools import product

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from tailstack.containers import as_file
from tailstack.errors import UserError

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]
"""Height and width in pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 100_000_000
MAX_EXIF = 1_000_000
"""Bytes. A camera's has up to 64 kB; each that is parsed costs up to half a microsecond, and 20 bytes more."""
_DRAFTED = ("JPEG", "MPO")
_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_EXIF_KEYS = ("exif", "Raw profile type exif")
_TILE_SIZE = (0x0142, 0x0143)
_PART = 1024

# The limit is checked in `open_image`, with an error that says what the limit is.
Image.MAX_IMAGE_PIXELS = None


class ImageError(UserError):
    """Bytes that can't be turned into pixels."""


class UnsupportedImageError(ImageError):
    """The bytes are not of a kind of image that is read here."""


class ImageTooLargeError(ImageError):
    """The image has more pixels than allowed."""


class BrokenImageError(ImageError):
    """The image says what it is, but its content is damaged or cut short."""


def decode(data: bytes, size: Size | None = None, *, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode an encoded image.

    The EXIF orientation is applied, an animation gives its first frame, transparency is laid over white, and 16-bit
    samples keep their upper 8 bits.

    Args:
        data: the encoded image: JPEG, PNG, WebP, GIF, BMP or TIFF.
        size: height and width to return. The image is scaled to cover it and cropped to its centre. None keeps the
            image's own size.
        max_pixels: the largest height times width that is decoded.

    Returns:
        uint8 `[height, width, 3]`, RGB.

    Raises:
        UnsupportedImageError, ImageTooLargeError, BrokenImageError
    """
    return to_pixels(open_image(data, max_pixels=max_pixels), size)


def to_pixels(image: Image.Image, size: Size | None = None) -> Pixels:
    """Decode what `open_image` returned; all else is as for `decode`.

    Raises:
        UnsupportedImageError, ImageTooLargeError, BrokenImageError
    """
    if size is not None and image.format in _DRAFTED:
        # At 1/2, 1/4 or 1/8 of its size, where that still covers the size asked for.
        image.draft(image.mode, _as_stored(image, size)[::-1])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if image.format == "TIFF":
                _forget_directories(image)
            image.load()
            # Not by Pillow's `exif_transpose`, which writes the EXIF anew: slowly, and not where a tag's type is wrong.
            if (method := _UPRIGHT.get(_orientation(image))) is not None:
                image = image.transpose(method)
        image = _to_rgb(image)
        if size is not None and size != (image.height, image.width):
            image = ImageOps.fit(image, size[::-1], Image.Resampling.BILINEAR)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageTooLargeError("the image does not fit into memory") from error
    # Pillow's decoders raise nearly anything on damaged input (OSError, SyntaxError, ValueError, struct.error, …).
    except Exception as error:
        raise BrokenImageError(f"the image is damaged or cut short ({error})") from error
    return np.asarray(image)


def peek_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Size:
    """Return the height and width that `decode` would give.

    A PNG is read to its end, where its orientation may be; of the others, the header is enough.

    Raises:
        UnsupportedImageError, ImageTooLargeError, BrokenImageError
    """
    image = open_image(data, max_pixels=max_pixels)
    return _as_stored(image, (image.height, image.width))


def open_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image's header, and no pixel.

    Raises:
        UnsupportedImageError, ImageTooLargeError, BrokenImageError
    """
    if not data:
        raise BrokenImageError("the image is empty: 0 bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(as_file(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UnsupportedImageError(f"not an image that is read here (these are: {', '.join(FORMATS)})") from error
    except Exception as error:
        raise BrokenImageError(f"the image's header is damaged ({error})") from error
    if (pixels := count_pixels(image)) > max_pixels:
        has = (
            f"{image.width}x{image.height} pixels"
            if pixels == image.width * image.height
            else f"tiles of {pixels} pixels"
        )
        raise ImageTooLargeError(f"the image has {has}; at most {max_pixels} are read")
    if image.width == 0 or image.height == 0:
        raise BrokenImageError("the image has no pixels")
    return image


def count_pixels(image: Image.Image) -> int:
    """Return how many pixels are decoded at once: a TIFF's tile may be larger than the image."""
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    tile = [tags.get(tag, 0) for tag in _TILE_SIZE]
    if not all(isinstance(length, int) for length in tile):
        raise BrokenImageError("the image's header is damaged (the size of its tiles)")
    return int(max(image.width * image.height, tile[0] * tile[1]))


def _forget_directories(image: Image.Image) -> None:
    """Keep Pillow from parsing the directories in a TIFF's own, of EXIF and GPS data, as it does after the pixels."""
    exif = image.getexif()
    for tag in ExifTags.IFD:
        if tag in exif:
            del exif[tag]


def _orientation(image: Image.Image) -> int:
    if any(len(image.info.get(key, "")) > MAX_EXIF for key in _EXIF_KEYS):
        return 1
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    # A damaged EXIF block is no reason to refuse the pixels.
    except Exception:
        return 1


def _as_stored(image: Image.Image, size: Size) -> Size:
    """Swap height and width where the EXIF orientation turns the stored image on its side."""
    # Pillow turns a TIFF itself, and tells the size that it will have.
    sideways = image.format != "TIFF" and _orientation(image) in _SIDEWAYS
    return size[::-1] if sideways else size


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise UnsupportedImageError("images with floating-point samples are not read here")
    if image.mode.startswith("I"):
        return _part_by_part(image, _upper_bits)
    if image.has_transparency_data:
        return _part_by_part(image, _over_white)
    return image.convert("RGB")


def _part_by_part(image: Image.Image, convert: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Convert an image to RGB in squares: all at once, what lies in between would take several times its memory."""
    result = Image.new("RGB", image.size)
    for left, top in product(range(0, image.width, _PART), range(0, image.height, _PART)):
        part = (left, top, min(left + _PART, image.width), min(top + _PART, image.height))
        result.paste(convert(image.crop(part)), part)
    return result


def _upper_bits(image: Image.Image) -> Image.Image:
    samples = np.asarray(image).clip(0, 65535).astype(np.uint16)
    return Image.fromarray((samples >> 8).astype(np.uint8)).convert("RGB")


def _over_white(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
