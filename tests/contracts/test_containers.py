"""What a file is made of: many pieces of little are refused before Pillow builds something for each."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tailstack import containers
from tailstack.images import BrokenImageError, ImageError, UnsupportedImageError, decode, open_image

SIZE = 40
LONG, RATIONAL, UNDEFINED = 4, 5, 7
TIFFS = [(b"II*\0", "<", "I"), (b"MM\0*", ">", "I"), (b"II\0*", "<", "I"), (b"MM*\0", ">", "I"), (b"II+\0", "<", "Q")]
"""How each begins, its byte order, and what its offsets are."""


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))


def encode(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    noise().save(file, kind, **options)
    return file.getvalue()


def tiff(form: tuple[bytes, str, str], tags: dict[int, tuple[int, int, int]], content: bytes) -> bytes:
    """A TIFF of tags, which have a type, a count and a value each. The content is at offset 16."""
    magic, order, offset = form
    wide = offset == "Q"
    head = magic + (
        struct.pack(f"{order}HHQ", 8, 0, 16 + len(content)) if wide else struct.pack(f"{order}I", 16 + len(content))
    )
    count = struct.pack(order + ("Q" if wide else "H"), len(tags))
    entries = b"".join(struct.pack(f"{order}HH{offset}{offset}", tag, *value) for tag, value in sorted(tags.items()))
    return head.ljust(16, b"\0") + content + count + entries + bytes(8)


def grey_tiff(form: tuple[bytes, str, str], content: bytes, **of_tags: tuple[int, int, int]) -> bytes:
    values = {256: SIZE, 257: SIZE, 258: 8, 259: 1, 262: 1, 273: 16, 277: 1, 278: SIZE}
    tags = {tag: (LONG, 1, value) for tag, value in values.items()}
    return tiff(form, tags | {int(tag[1:]): value for tag, value in of_tags.items()}, content)


def refused_unseen(monkeypatch: pytest.MonkeyPatch, data: bytes, match: str) -> None:
    """Check that an image is refused before Pillow has a look at it."""
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(BrokenImageError, match=match):
        open_image(data)


@pytest.mark.parametrize("form", TIFFS)
@pytest.mark.parametrize(("tag", "kind"), [("t273", LONG), ("t324", LONG), ("t282", RATIONAL), ("t33434", RATIONAL)])
def test_a_tiff_of_endless_numbers(
    monkeypatch: pytest.MonkeyPatch, form: tuple[bytes, str, str], tag: str, kind: int
) -> None:
    count = containers.MAX_NUMBERS
    content = bytes(count * (4 if kind == LONG else 8))
    refused_unseen(monkeypatch, grey_tiff(form, content, **{tag: (kind, count, 16)}), "numbers in its tags")


@pytest.mark.parametrize("form", TIFFS)
def test_a_tiff_of_endless_tags(monkeypatch: pytest.MonkeyPatch, form: tuple[bytes, str, str]) -> None:
    tags = {f"t{1000 + i}": (LONG, 1, 0) for i in range(containers.MAX_TAGS)}
    refused_unseen(monkeypatch, grey_tiff(form, bytes(SIZE * SIZE), **tags), "more than 4000 tags")


@pytest.mark.parametrize("form", TIFFS)
def test_a_tiff_of_many_strips_and_of_large_contents_is_read(form: tuple[bytes, str, str]) -> None:
    pixels = np.asarray(noise())[..., 0].tobytes()
    order = form[1]
    places = struct.pack(f"{order}{SIZE}I", *range(16, 16 + SIZE * SIZE, SIZE))
    profile = bytes(2 * containers.MAX_NUMBERS)
    data = grey_tiff(
        form,
        pixels + places + profile,
        t273=(LONG, SIZE, 16 + len(pixels)),
        t278=(LONG, 1, 1),
        t34675=(UNDEFINED, len(profile), 16 + len(pixels) + len(places)),
        # One that says to be larger than the file is skipped.
        t65000=(LONG, 2**31, 0),
    )
    np.testing.assert_array_equal(decode(data)[..., 0].tobytes(), pixels)


def test_a_tiff_in_tiles_is_read() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16), dtype=np.uint8)
    places = struct.pack("<4I", *range(16, 16 + 1024, 256))
    tags = {256: 32, 257: 32, 258: 8, 259: 1, 262: 1, 277: 1, 322: 16, 323: 16}
    entries = {tag: (LONG, 1, value) for tag, value in tags.items()} | {324: (LONG, 4, 16 + 1024)}
    data = tiff(TIFFS[0], entries, picture.tobytes() + places)
    np.testing.assert_array_equal(decode(data)[..., 0], picture.transpose(0, 2, 1, 3).reshape(32, 32))


def test_a_tiff_that_pillow_takes_for_another_is_no_way_round() -> None:
    # A big-endian BigTIFF. Where Pillow comes to read it, its tags have to be counted.
    with pytest.raises(UnsupportedImageError):
        open_image(grey_tiff((b"MM\0+", ">", "Q"), bytes(SIZE * SIZE)))


@pytest.mark.parametrize("length", range(40))
def test_a_tiff_that_is_cut_short(length: int) -> None:
    for form in TIFFS:
        with pytest.raises(ImageError):
            open_image(grey_tiff(form, b"")[:length])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(before: bytes = b"", data_length: int = 2**20, after: bytes = b"") -> bytes:
    """A PNG with the chunks given before and after those of its data, which have a length each."""
    rows = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(noise())), 0)
    data = b"".join(chunk(b"IDAT", rows[start : start + data_length]) for start in range(0, len(rows), data_length))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + data + after + chunk(b"IEND", b"")


def gif(before: bytes) -> bytes:
    """A GIF with something before its image."""
    data = encode("GIF")
    start = 13 + (3 << (data[10] % 8 + 1))
    return data[:start] + before + data[start:]


ENDLESS = 30_000
FEW = 3000
EMPTY = chunk(b"prVt", b"")
PIECES = [(png, EMPTY), (gif, b"!\xfe\0"), (gif, b"!\1\0\0"), (gif, b"\0\0")]


@pytest.mark.parametrize(("build", "piece"), PIECES)
def test_endless_pieces_before_the_pixels(build: Any, piece: bytes) -> None:
    with pytest.raises(BrokenImageError, match="too many pieces"):
        open_image(build(piece * ENDLESS))
    np.testing.assert_array_equal(decode(build(piece * FEW)), decode(build(b"")))


def test_endless_blocks_of_a_comment() -> None:
    with pytest.raises(BrokenImageError, match="too many pieces"):
        open_image(gif(b"!\xfe" + b"\1a" * ENDLESS + b"\0"))
    assert open_image(gif(b"!\xfe" + b"\1a" * FEW + b"\0")).info["comment"] == b"a" * FEW


def test_endless_pieces_after_the_pixels() -> None:
    with pytest.raises(BrokenImageError, match="too many pieces"):
        decode(png(after=EMPTY * ENDLESS))
    np.testing.assert_array_equal(decode(png(after=EMPTY * FEW)), noise())


def test_pixels_in_endless_chunks() -> None:
    empty = chunk(b"IDAT", b"")
    with pytest.raises(BrokenImageError, match="too many pieces"):
        decode(png(before=empty * ENDLESS))


@pytest.mark.parametrize("length", [10, 100, 4096])
def test_pixels_in_many_chunks_are_read(length: int) -> None:
    np.testing.assert_array_equal(decode(png(data_length=length)), noise())


def test_a_large_photo_in_small_chunks_is_read() -> None:
    # 20 MB in chunks of 2 kB: more than the reads that are free, but each brings its own.
    side = 2600
    rows = zlib.compress(np.zeros((side, 1 + 3 * side), np.uint8), 0)
    pieces = b"".join(chunk(b"IDAT", rows[start : start + 2048]) for start in range(0, len(rows), 2048))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + pieces + chunk(b"IEND", b"")
    assert len(data) > 20_000_000
    assert decode(data, (8, 8)).shape == (8, 8, 3)
