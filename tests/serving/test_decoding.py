"""Large images take turns, where they take memory of their full size."""

import struct
import zlib
from typing import Any

import pytest
from PIL.PngImagePlugin import PngImageFile, PngInfo

from serving import decoding
from tailstack.images import BrokenImageError, ImageTooLargeError
from tests.serving.conftest import encoded

CASES: list[tuple[str, dict[str, Any], bool]] = [
    ("PNG", {}, True),
    ("JPEG", {"progressive": True}, True),
    ("JPEG", {}, False),
]


class Turns:
    """Stands in for the lock, and counts."""

    taken = 0

    def __enter__(self) -> None:
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(("kind", "options", "waits"), CASES)
def test_what_has_to_wait_its_turn(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, Any], waits: bool
) -> None:
    turns = Turns()
    monkeypatch.setattr(decoding, "_one_large_image", turns)
    data = encoded(kind, (64, 48), **options)
    decoding.decode_safely(data, (8, 8), 10_000)
    assert turns.taken == 0
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 64 * 48)
    assert decoding.decode_safely(data, (8, 8), 10_000).shape == (8, 8, 3)
    assert turns.taken == int(waits)


def test_no_pixel_of_a_large_image_is_decoded_before_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[bool] = []

    class Turn(Turns):
        within = False

        def __enter__(self) -> None:
            self.within = True

        def __exit__(self, *_: object) -> None:
            self.within = False

    turn = Turn()
    load = PngImageFile.load_prepare
    monkeypatch.setattr(PngImageFile, "load_prepare", lambda image: (loads.append(turn.within), load(image)))
    monkeypatch.setattr(decoding, "_one_large_image", turn)
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 64 * 48)
    decoding.decode_safely(encoded("PNG", (64, 48)), (8, 8), 10_000)
    assert loads
    assert all(loads)


def _png_with(chunk: str) -> bytes:
    info = PngInfo()
    if chunk == "iTXt":
        info.add_itxt("key", "value")
    else:
        info.add_text("key", "value", zip=chunk == "zTXt")
    return encoded("PNG", pnginfo=info)


def _with_chunks(png: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """Put chunks, of a kind and content each, right after the header."""
    between = b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )
    return png[:33] + between + png[33:]


def _tiled_tiff(size: int, tile: int) -> bytes:
    """A grey TIFF of `size` pixels squared, in one compressed tile of `tile` squared."""
    data = zlib.compress(bytes(tile * tile))
    tags = {256: size, 257: size, 258: 8, 259: 8, 262: 1, 277: 1, 322: tile, 323: tile, 324: 8, 325: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<I", 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + entries + bytes(4)


LARGE_HEADER = encoded("PNG", (1000, 501))[16:29]


def test_a_jpeg_of_endless_segments_is_refused() -> None:
    data = encoded("JPEG")
    comments = b"\xff\xfe\x00\x02" * (decoding.MAX_SEGMENTS + 1)
    assert not decoding.is_quick(data[:2] + comments + data[2:])
    with pytest.raises(BrokenImageError, match="segments"):
        decoding.decode_safely(data[:2] + comments + data[2:], (8, 8), 10_000)
    some = b"\xff\xfe\x00\x02" * (decoding.MAX_SEGMENTS - 100)
    assert decoding.decode_safely(data[:2] + some + data[2:], (8, 8), 10_000).shape == (8, 8, 3)


def test_a_tile_larger_than_its_image_waits_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = Turns()
    monkeypatch.setattr(decoding, "_one_large_image", turns)
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 64 * 64)
    data = _tiled_tiff(size=16, tile=64)
    decoding.decode_safely(data, (8, 8), 10_000)
    assert turns.taken == 1
    with pytest.raises(ImageTooLargeError, match="tiles of 4096 pixels"):
        decoding.decode_safely(data, (8, 8), 1000)


@pytest.mark.parametrize(
    ("data", "quick"),
    [
        (encoded("JPEG"), True),
        (encoded("JPEG", (1000, 500)), True),
        (encoded("JPEG", (1000, 501)), False),
        (encoded("JPEG", progressive=True), False),
        (encoded("JPEG")[:100], False),
        (encoded("PNG"), True),
        (encoded("PNG", (1000, 500)), True),
        (encoded("PNG", (1000, 501)), False),
        (_png_with("tEXt"), True),
        (_png_with("zTXt"), False),
        (_png_with("iTXt"), False),
        (encoded("PNG", icc_profile=b"profile"), False),
        (_with_chunks(encoded("PNG"), (b"IHDR", LARGE_HEADER)), False),
        (_with_chunks(encoded("PNG"), *[(b"tEXt", b"a\0b")] * decoding.MAX_QUICK_CHUNKS), False),
        (b"\x89PNG\r\n\x1a\n", False),
        (encoded("WEBP"), False),
        (encoded("GIF"), False),
        (b"", False),
    ],
)
def test_what_is_surely_quick(data: bytes, quick: bool) -> None:
    assert decoding.is_quick(data) == quick
