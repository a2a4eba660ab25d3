"""Limits on what a file is made of: Pillow builds something for each piece, before anyone knows the image's size."""

import io
from typing import Literal

MAX_READS = 50_000
"""Of a PNG or GIF, and one more for each `BYTES_PER_READ`. A chunk or sub-block takes two or three, of up to 3 µs each,
and as little as 2 bytes."""
BYTES_PER_READ = 1000
"""A PNG in chunks of 8 kB, as most are, has three reads in as many bytes."""
MAX_TAGS = 4000
"""Of a TIFF. Photos have less than a hundred; each costs several µs, and in a BigTIFF there may be millions."""
MAX_NUMBERS = 250_000
"""In a TIFF's tags. Most say where its strips are; 16-bit samples may bring a curve of 196,608. Each costs up to
3 µs and 270 bytes."""
_TIFF = (b"II*\0", b"MM\0*", b"II\0*", b"MM*\0", b"II+\0", b"MM\0+")
_IN_PIECES = (b"\x89PNG\r\n\x1a\n", b"GIF8")
_NUMBER_BYTES = {3: 2, 4: 4, 5: 8, 6: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
"""By the type of a TIFF's tag. The other types stay bytes, and are cheap."""


class _Rationed(io.BytesIO):
    """A file that is read in a limited number of steps."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = MAX_READS + len(data) // BYTES_PER_READ

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise ValueError("it is in too many pieces")
        return io.BytesIO.read(self, size)


def as_file(data: bytes) -> io.BytesIO:
    """Return an encoded image as a file whose structure Pillow can read at a bounded cost.

    Raises:
        ValueError: at once for a TIFF, and for a PNG or GIF while it is read: it is made of too many pieces.
    """
    if data.startswith(_TIFF):
        _check_tags(data)
    return _Rationed(data) if data.startswith(_IN_PIECES) else io.BytesIO(data)


def _check_tags(tiff: bytes) -> None:
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"

    def number(start: int, length: int) -> int:
        return int.from_bytes(tiff[start : start + length], order)

    # As Pillow has it, which takes a big-endian BigTIFF for a plain one.
    width, head, entry = (8, 8, 20) if tiff[2] == 43 else (4, 2, 12)
    start = number(width, width)
    tags = number(start, head)
    if tags > MAX_TAGS:
        raise ValueError(f"it has more than {MAX_TAGS} tags")
    numbers = 0
    for place in range(start + head, start + head + tags * entry, entry):
        count = number(place + 4, width)
        size = count * _NUMBER_BYTES.get(number(place + 2, 2), 0)
        # One that is larger than its file is skipped.
        if 0 < size <= len(tiff):
            numbers += count
    if numbers > MAX_NUMBERS:
        raise ValueError(f"it has more than {MAX_NUMBERS} numbers in its tags")
