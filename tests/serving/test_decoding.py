"""Large images take turns, where they take memory of their full size."""

import struct
import zlib
from typing import Any

import pytest
from PIL import BmpImagePlugin, Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from serving import decoding
from tailstack.images import MAX_EXIF, BrokenImageError, ImageTooLargeError
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


def _with_segments(*segments: tuple[int, bytes]) -> bytes:
    """A JPEG with segments, of a marker and content each, right after its start."""
    jpeg = encoded("JPEG")
    between = b"".join(
        bytes([0xFF, marker]) + struct.pack(">H", 2 + len(content)) + content for marker, content in segments
    )
    return jpeg[:2] + between + jpeg[2:]


def _run_length_bmp(width: int, height: int) -> bytes:
    """A grey BMP of one pixel and then nothing but the end of a line."""
    runs = b"\x01\x00\x00\x00\x00\x01"
    palette = b"".join(bytes([grey, grey, grey, 0]) for grey in range(256))
    start = 54 + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start)
    head += struct.pack("<IiiHHIIIIII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return head + palette + runs


LARGE_HEADER = encoded("PNG", (1000, 501))[16:29]


def test_a_jpeg_of_endless_segments_is_refused() -> None:
    data = encoded("JPEG")
    comments = b"\xff\xfe\x00\x02" * (decoding.MAX_SEGMENTS + 1)
    assert not decoding.is_quick(data[:2] + comments + data[2:])
    with pytest.raises(BrokenImageError, match="segments"):
        decoding.decode_safely(data[:2] + comments + data[2:], (8, 8), 10_000)
    some = b"\xff\xfe\x00\x02" * (decoding.MAX_SEGMENTS - 100)
    assert decoding.decode_safely(data[:2] + some + data[2:], (8, 8), 10_000).shape == (8, 8, 3)


COMMENTS = b"\xff\xfe\x00\x02" * (decoding.MAX_SEGMENTS + 1)


@pytest.mark.parametrize(
    "before",
    [
        b"\xff\xd9" + COMMENTS,
        b"\xff\xc8" + struct.pack(">H", 2 + len(COMMENTS)) + COMMENTS,
        b"\xff\xf0" + struct.pack(">H", 2 + len(COMMENTS)) + COMMENTS,
    ],
)
def test_no_marker_hides_the_segments_that_pillow_sees(monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    jpeg = encoded("JPEG")
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(BrokenImageError, match="segments"):
        decoding.decode_safely(jpeg[:2] + before + jpeg[2:], (8, 8), 10_000)


@pytest.mark.parametrize("junk", [b"\x00", b"\xff", b"\xff\xd0"])
@pytest.mark.parametrize("rest", [encoded("JPEG")[20:], b""])
def test_junk_between_the_segments_of_a_jpeg(monkeypatch: pytest.MonkeyPatch, junk: bytes, rest: bytes) -> None:
    start = encoded("JPEG")[:20]
    some = start + junk * 1000 + encoded("JPEG")[20:]
    assert decoding.decode_safely(some, (8, 8), 10_000).shape == (8, 8, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(BrokenImageError, match="between its segments"):
        decoding.decode_safely(start + junk * (decoding.MAX_JUNK + 1) + rest, (8, 8), 10_000)


def test_a_jpeg_of_endless_exif(monkeypatch: pytest.MonkeyPatch) -> None:
    part = (0xE1, b"Exif\0\0".ljust(60_000, b"\0"))
    assert decoding.decode_safely(_with_segments(*[part] * 2), (8, 8), 10_000).shape == (8, 8, 3)
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
    with pytest.raises(BrokenImageError, match="bytes of EXIF"):
        decoding.decode_safely(_with_segments(*[part] * (MAX_EXIF // 60_000 + 1)), (8, 8), 10_000)


def test_a_large_bmp_of_runs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert decoding.decode_safely(_run_length_bmp(1000, 1), (8, 8), 10**8).shape == (8, 8, 3)
    assert decoding.decode_safely(encoded("BMP", (1001, 1000)), (8, 8), 10**8).shape == (8, 8, 3)
    monkeypatch.setattr(BmpImagePlugin.BmpRleDecoder, "decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ImageTooLargeError, match="1000001x1 pixels; at most 1000000"):
        decoding.decode_safely(_run_length_bmp(1_000_001, 1), (8, 8), 10**8)


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
        (_with_chunks(encoded("PNG"), (b"eXIf", b"MM\0*")), False),
        (_with_chunks(encoded("PNG"), (b"tEXt", b"exif\0MM\0*")), False),
        (_with_chunks(encoded("PNG"), (b"tEXt", b"Raw profile type exif\0\n\n\n\n")), False),
        (_with_segments((0xE1, b"Exif\0\0MM\0*".ljust(10_000, b"\0"))), True),
        (_with_segments((0xE1, b"Exif\0\0MM\0*".ljust(20_000, b"\0"))), False),
        (_with_segments((0xE2, b"MPF\0MM\0*".ljust(20_000, b"\0"))), False),
        (_with_segments((0xE2, b"ICC_PROFILE\0\1\1".ljust(20_000, b"\0"))), True),
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
