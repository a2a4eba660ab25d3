"""Decoding for strangers: limits on the time and the memory that one small file can take."""

import re
import threading

from tailstack.images import BrokenImageError, Pixels, Size, count_pixels, open_image, to_pixels

MAX_SCANS = 100
"""Encoders write about ten. Each costs a pass over all pixels, and as little as 50 bytes."""
MAX_SEGMENTS = 2000
"""Of a JPEG. A file of the largest kind has some hundred; each costs a step in Python, and as little as 4 bytes."""
MAX_QUICK_CHUNKS = 100
"""Of a PNG. One of half a megapixel has about ten; each costs a step in Python, and as little as 12 bytes."""
LARGE_PIXELS = 10_000_000
QUICK_PIXELS = 500_000
"""A smooth PNG of as many, which is decoded whole, takes 2 ms."""
_JPEG = b"\xff\xd8"
_PNG = b"\x89PNG\r\n\x1a\n"
_HEADER = b"IHDR"
_COMPRESSED_CHUNKS = {b"zTXt", b"iTXt", b"iCCP"}
"""Of a PNG, with up to a thousand times their size in memory."""
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_STARTS_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_one_large_image = threading.Lock()


def decode_safely(data: bytes, size: Size, max_pixels: int) -> Pixels:
    """Decode an image as `tailstack.images.decode` does, but for what would cost too much.

    Raises:
        UnsupportedImageError, ImageTooLargeError, BrokenImageError
    """
    scans = _walk(data)[0] if data.startswith(_JPEG) else 0
    if scans > MAX_SCANS:
        raise BrokenImageError(f"the JPEG has more than {MAX_SCANS} scans")
    image = open_image(data, max_pixels=max_pixels)
    # Only a JPEG of one scan is decoded at a reduced scale all along. The others take buffers of their full size.
    if scans == 1 or count_pixels(image) < LARGE_PIXELS:
        return to_pixels(image, size)
    with _one_large_image:
        return to_pixels(image, size)


def is_quick(data: bytes) -> bool:
    """Return whether a small file is surely decoded in a few milliseconds, by what its header says."""
    if data.startswith(_JPEG):
        try:
            scans, pixels = _walk(data)
        except BrokenImageError:
            return False
        return scans == 1 and pixels <= QUICK_PIXELS
    if data.startswith(_PNG):
        chunks = _chunks(data)
        # The first chunk is the header, and begins with width and height. Of two, the second would count.
        plain = len(chunks) <= MAX_QUICK_CHUNKS and chunks[0] == _HEADER and chunks.count(_HEADER) == 1
        pixels = int.from_bytes(data[16:20]) * int.from_bytes(data[20:24])
        return plain and not _COMPRESSED_CHUNKS.intersection(chunks) and pixels <= QUICK_PIXELS
    return False


def _chunks(png: bytes) -> list[bytes]:
    """Return the kinds of a PNG's chunks, and no more of them than is worth while."""
    kinds: list[bytes] = []
    position = len(_PNG)
    while position < len(png) and len(kinds) <= MAX_QUICK_CHUNKS:
        kinds.append(png[position + 4 : position + 8])
        position += 12 + int.from_bytes(png[position : position + 4])
    return kinds or [b""]


def _walk(jpeg: bytes) -> tuple[int, int]:
    """Return the scans and the pixels of a JPEG, by its markers.

    Raises:
        BrokenImageError: it has too many markers.
    """
    scans = pixels = segments = 0
    position = 2
    while match := _MARKER.search(jpeg, position):
        position = match.end()
        marker = match[1][0]
        if marker == _END_OF_IMAGE:
            break
        segments += 1
        if segments > MAX_SEGMENTS:
            raise BrokenImageError(f"the JPEG has more than {MAX_SEGMENTS} segments")
        scans += marker == _START_OF_SCAN
        if marker in _STARTS_OF_FRAME:
            height, width = jpeg[position + 3 : position + 5], jpeg[position + 5 : position + 7]
            pixels = max(pixels, int.from_bytes(height) * int.from_bytes(width))
        if marker != _START_OF_IMAGE:
            position += int.from_bytes(jpeg[position : position + 2])
    return scans, pixels
