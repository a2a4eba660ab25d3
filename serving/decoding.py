"""Decoding for strangers: limits on the time and the memory that one small file can take."""

import re
import threading

from tailstack.images import BrokenImageError, Pixels, Size, open_image, to_pixels

MAX_SCANS = 100
"""Encoders write about ten. Each costs a pass over all pixels, and as little as 50 bytes."""
LARGE_PIXELS = 10_000_000
_JPEG = b"\xff\xd8"
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])")
_START_OF_IMAGE, _END_OF_IMAGE, _START_OF_SCAN = 0xD8, 0xD9, 0xDA
_one_large_image = threading.Lock()


def decode_safely(data: bytes, size: Size, max_pixels: int) -> Pixels:
    """Decode an image as `tailstack.images.decode` does, but for what would cost too much.

    Raises:
        UnsupportedImageError, ImageTooLargeError, BrokenImageError
    """
    scans = _scans(data) if data.startswith(_JPEG) else 0
    if scans > MAX_SCANS:
        raise BrokenImageError(f"the JPEG has more than {MAX_SCANS} scans")
    image = open_image(data, max_pixels=max_pixels)
    # Only a JPEG of one scan is decoded at a reduced scale all along. The others take buffers of their full size.
    if scans == 1 or image.width * image.height < LARGE_PIXELS:
        return to_pixels(image, size)
    with _one_large_image:
        return to_pixels(image, size)


def _scans(jpeg: bytes) -> int:
    """Count the scans of a JPEG, by its markers."""
    count, position = 0, 2
    while match := _MARKER.search(jpeg, position):
        position = match.end()
        marker = match[1][0]
        if marker == _END_OF_IMAGE:
            break
        count += marker == _START_OF_SCAN
        if marker != _START_OF_IMAGE:
            position += int.from_bytes(jpeg[position : position + 2])
    return count
