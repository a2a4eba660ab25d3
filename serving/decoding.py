"""Decoding for strangers: limits on the time and the memory that one small file can take."""

import re
import threading
from typing import NamedTuple

from PIL import Image

from tailstack.images import (
    MAX_EXIF,
    BrokenImageError,
    ImageTooLargeError,
    Pixels,
    Size,
    count_pixels,
    open_image,
    to_pixels,
)

MAX_SCANS = 100
"""Encoders write about ten. Each costs a pass over all pixels, and as little as 50 bytes."""
MAX_SEGMENTS = 2000
"""Of a JPEG. A file of the largest kind has some hundred; each costs a step in Python, and as little as 4 bytes."""
MAX_JUNK = 100_000
"""Bytes between a JPEG's segments, before its pixels. Honest padding is a few; each costs a step in Python."""
MAX_RLE_PIXELS = 1_000_000
"""Of a run-length coded BMP, which is decoded in Python: a file of 1 kB may take a quarter of a second for as many."""
MAX_QUICK_CHUNKS = 100
"""Of a PNG. One of half a megapixel has about ten; each costs a step in Python, and as little as 12 bytes."""
MAX_QUICK_EXIF = 16_000
"""Bytes of a JPEG's directories of EXIF and of further pictures. A photo's are mostly its thumbnail; 12 bytes may cost
11 µs."""
LARGE_PIXELS = 10_000_000
QUICK_PIXELS = 500_000
"""A smooth PNG of as many, which is decoded whole, takes 2 ms."""
_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_HEADER = b"IHDR"
_TEXT, _EXIF = b"tEXt", b"eXIf"
_SLOW_CHUNKS = {b"zTXt", b"iTXt", b"iCCP", _EXIF}
"""Of a PNG: compressed ones, with up to a thousand times their size in memory, and EXIF, which is parsed in Python."""
_EXIF_TEXTS = (b"exif\0", b"Raw profile type exif\0")
"""How a PNG's text begins that is taken for EXIF."""
_DIRECTORIES = (b"Exif\0\0", b"MPF\0")
_RLE = (1, 2)
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_WITHOUT_CONTENT = {0xC8, 0xD8, 0xD9, *range(0xF0, 0xFE)}
"""As Pillow has it: another view would hide segments from the one that counts them."""
_STARTS_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_one_large_image = threading.Lock()


def decode_safely(data: bytes, size: Size, max_pixels: int) -> Pixels:
    """Decode an image as `tailstack.images.decode` does, but for what would cost too much.

    Raises:
        UnsupportedImageError, ImageTooLargeError, BrokenImageError
    """
    scans = _checked_scans(data) if data.startswith(_JPEG) else 0
    image = open_image(data, max_pixels=max_pixels)
    _check_runs(image)
    # Only a JPEG of one scan is decoded at a reduced scale all along. The others take buffers of their full size.
    if scans == 1 or count_pixels(image) < LARGE_PIXELS:
        return to_pixels(image, size)
    with _one_large_image:
        return to_pixels(image, size)


def is_quick(data: bytes) -> bool:
    """Return whether a small file is surely decoded in a few milliseconds, by what its header says."""
    if data.startswith(_JPEG):
        try:
            jpeg = _walk(data)
        except BrokenImageError:
            return False
        return jpeg.scans == 1 and jpeg.pixels <= QUICK_PIXELS and jpeg.exif_bytes <= MAX_QUICK_EXIF
    if data.startswith(_PNG):
        chunks = _chunks(data)
        # The first chunk is the header, and begins with width and height. Of two, the second would count.
        plain = len(chunks) <= MAX_QUICK_CHUNKS and chunks[0] == _HEADER and chunks.count(_HEADER) == 1
        pixels = int.from_bytes(data[16:20]) * int.from_bytes(data[20:24])
        return plain and not _SLOW_CHUNKS.intersection(chunks) and pixels <= QUICK_PIXELS
    return False


def _chunks(png: bytes) -> list[bytes]:
    """Return the kinds of a PNG's chunks, and no more of them than is worth while."""
    kinds: list[bytes] = []
    position = len(_PNG)
    while position < len(png) and len(kinds) <= MAX_QUICK_CHUNKS:
        kind = png[position + 4 : position + 8]
        kinds.append(_EXIF if kind == _TEXT and png.startswith(_EXIF_TEXTS, position + 8) else kind)
        position += 12 + int.from_bytes(png[position : position + 4])
    return kinds or [b""]


def _check_runs(image: Image.Image) -> None:
    if image.format == "BMP" and image.info["compression"] in _RLE and count_pixels(image) > MAX_RLE_PIXELS:
        has = f"{image.width}x{image.height} pixels"
        raise ImageTooLargeError(f"the run-length coded BMP has {has}; at most {MAX_RLE_PIXELS} are read")


def _checked_scans(jpeg: bytes) -> int:
    structure = _walk(jpeg)
    if structure.scans > MAX_SCANS:
        raise BrokenImageError(f"the JPEG has more than {MAX_SCANS} scans")
    if structure.exif_bytes > MAX_EXIF:
        raise BrokenImageError(f"the JPEG has more than {MAX_EXIF} bytes of EXIF")
    return structure.scans


class _Structure(NamedTuple):
    scans: int
    pixels: int
    exif_bytes: int
    """With what there is on further pictures."""


def _walk(jpeg: bytes) -> _Structure:
    """Return what a JPEG is made of, by its markers.

    Raises:
        BrokenImageError: it has too many markers, or too much between them.
    """
    scans = pixels = exif_bytes = segments = junk = 0
    position = 2
    while match := _MARKER.search(jpeg, position):
        if scans == 0:
            junk += match.start() - position
        position = match.end()
        marker = match[1][0]
        # One that comes before the pixels doesn't stop Pillow.
        if marker == _END_OF_IMAGE and scans:
            break
        segments += 1
        if segments > MAX_SEGMENTS:
            raise BrokenImageError(f"the JPEG has more than {MAX_SEGMENTS} segments")
        length = int.from_bytes(jpeg[position : position + 2])
        scans += marker == _START_OF_SCAN
        if marker in _STARTS_OF_FRAME:
            height, width = jpeg[position + 3 : position + 5], jpeg[position + 5 : position + 7]
            pixels = max(pixels, int.from_bytes(height) * int.from_bytes(width))
        if jpeg.startswith(_DIRECTORIES, position + 2):
            exif_bytes += length
        if marker not in _WITHOUT_CONTENT:
            position += length
    if scans == 0:
        junk += len(jpeg) - position
    if junk > MAX_JUNK:
        raise BrokenImageError(f"the JPEG has more than {MAX_JUNK} bytes between its segments")
    return _Structure(scans, pixels, exif_bytes)
