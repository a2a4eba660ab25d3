"""The image decoder: what it reads, what it makes of odd pictures, and what it refuses."""

import io
import math
import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from tailstack import images
from tailstack.images import (
    FORMATS,
    MAX_EXIF,
    MAX_PIXELS,
    BrokenImageError,
    ImageError,
    ImageTooLargeError,
    UnsupportedImageError,
    decode,
    peek_size,
)

HEIGHT, WIDTH = 24, 40


def gradient(height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint8]:
    """A smooth picture, which lossy formats keep nearly as it is."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 200 // width, y * 200 // height, np.full_like(x, 90)], axis=-1).astype(np.uint8)


def encode(image: Image.Image | npt.NDArray[Any], kind: str = "PNG", **options: Any) -> bytes:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("kind", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True})]
)
def test_lossless_formats_give_the_very_pixels(kind: str, options: dict[str, Any]) -> None:
    pixels = decode(encode(gradient(), kind, **options))
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, gradient())


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_come_near(kind: str) -> None:
    pixels = decode(encode(gradient(), kind, quality=95)).astype(int)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert abs(pixels - gradient()).mean() < 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_an_animation_gives_its_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")]
    pixels = decode(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert pixels.shape == (6, 8, 3)
    assert (abs(pixels.astype(int) - (255, 0, 0)) <= 1).all()  # WebP rounds colours


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    turned = {
        1: lambda p: p,
        2: np.fliplr,
        3: lambda p: np.rot90(p, 2),
        4: np.flipud,
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, -1),
        7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation](gradient())
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient(), kind, exif=exif)
    np.testing.assert_array_equal(decode(data), turned)
    assert peek_size(data) == turned.shape[:2]
    # A size of the upright picture's shape only scales it: nothing is cropped away.
    half = (turned.shape[0] // 2, turned.shape[1] // 2)
    scaled = np.asarray(Image.fromarray(np.ascontiguousarray(turned)).resize(half[::-1], Image.Resampling.BILINEAR))
    assert abs(decode(data, half).astype(int) - scaled).max() <= 1


def test_the_orientation_counts_when_a_large_jpeg_is_scaled_down() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(gradient(240, 400), "JPEG", exif=exif, quality=95)
    upright = np.rot90(gradient(240, 400), -1)
    assert peek_size(data) == (400, 240)
    expected = np.asarray(Image.fromarray(upright).resize((24, 40), Image.Resampling.BOX))
    assert abs(decode(data, (40, 24)).astype(int) - expected).mean() < 3


def test_damaged_exif_is_no_reason_to_refuse_the_pixels() -> None:
    data = encode(gradient(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert decode(data).shape == (HEIGHT, WIDTH, 3)


def _exif(*tags: tuple[int, int, int, int], content: bytes = b"") -> bytes:
    """EXIF of tags, which have a number, a type, a count and a value each; the content is at offset 8."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = b"Exif\0\0II*\0" + struct.pack("<I", 8 + len(content))
    return head + content + struct.pack("<H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_orientation_turns_the_pixels_as_pillow_does(kind: str, orientation: int) -> None:
    data = encode(gradient(), kind, exif=_exif((274, 3, 1, orientation)))
    turned = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(decode(data), np.asarray(turned))


def test_a_tag_of_the_wrong_type_leaves_the_orientation_as_it_is() -> None:
    data = encode(gradient(), "JPEG", exif=_exif((259, 4, 1, 70_000), (274, 3, 1, 6)))
    np.testing.assert_array_equal(decode(data), np.rot90(decode(encode(gradient(), "JPEG")), -1))


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_exif_of_endless_numbers_is_not_parsed(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    count = MAX_EXIF // 8
    exif = _exif((274, 5, count, 8), content=struct.pack("<II", 6, 1) * count)
    data = encode(gradient(), kind, exif=exif)
    monkeypatch.setattr(ImageFileDirectory_v2, "load", lambda *_: pytest.fail("parsed"))
    assert decode(data).shape == (HEIGHT, WIDTH, 3)


def test_the_exif_directory_of_a_tiff_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    tags = ImageFileDirectory_v2()
    tags[274] = 6
    tags[34665] = {33434: 0.5}
    data = encode(gradient(), "TIFF", tiffinfo=tags)
    assert Image.open(io.BytesIO(data)).getexif().get_ifd(34665)
    monkeypatch.setattr(Image.Exif, "_get_ifd_dict", lambda *_: pytest.fail("parsed"))
    np.testing.assert_array_equal(decode(data), np.rot90(gradient(), -1))


def test_grey_becomes_three_equal_channels() -> None:
    grey = gradient()[..., 0]
    np.testing.assert_array_equal(decode(encode(grey)), np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_upper_eight_bits(kind: str) -> None:
    samples = np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype=np.uint16)
    assert decode(encode(samples, kind))[0].tolist() == [[v] * 3 for v in (0, 0, 1, 0x12, 255)]


@pytest.mark.parametrize("kind", [">u2", "<u2", "<i4"])
def test_a_tiff_of_samples_in_either_byte_order(kind: str) -> None:
    samples = np.array([[0, 255, 256, 0x1234, 0xFFFF]], dtype=kind)
    assert decode(_grey_tiff(samples))[0].tolist() == [[v] * 3 for v in (0, 0, 1, 0x12, 255)]


def _grey_tiff(samples: npt.NDArray[Any]) -> bytes:
    order = ">" if samples.dtype.byteorder == ">" else "<"
    height, width = samples.shape
    data = samples.tobytes()
    signed = 2 if samples.dtype.kind == "i" else 1
    tags = {256: width, 257: height, 258: 8 * samples.itemsize, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: signed}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


def test_black_and_white() -> None:
    bits = Image.fromarray(np.array([[True, False]]))
    assert bits.mode == "1"
    assert decode(encode(bits))[0].tolist() == [[255] * 3, [0] * 3]


def test_transparency_is_laid_over_white() -> None:
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], dtype=np.uint8)
    assert decode(encode(rgba))[0].tolist() == [[255, 0, 0], [255, 255, 255], [204, 204, 204]]
    grey = Image.fromarray(np.array([[[10, 255], [10, 0]]], dtype=np.uint8), "LA")
    assert decode(encode(grey))[0].tolist() == [[10] * 3, [255] * 3]


@pytest.mark.parametrize(("mode", "options"), [("RGBA", {}), ("LA", {}), ("P", {"transparency": 7}), ("I;16", {})])
def test_what_is_converted_part_by_part_has_no_seams(
    monkeypatch: pytest.MonkeyPatch, mode: str, options: dict[str, Any]
) -> None:
    bands = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 2 if mode in {"LA", "I;16"} else 4), np.uint8)
    if mode == "I;16":
        picture = Image.fromarray(bands.view(np.uint16)[..., 0])
    else:
        picture = Image.fromarray(bands, "LA" if mode == "LA" else "RGBA")
    data = encode(picture.convert("RGB").quantize(50) if mode == "P" else picture, **options)
    whole = decode(data)
    monkeypatch.setattr(images, "_PART", 7)
    np.testing.assert_array_equal(decode(data), whole)


def test_no_more_than_a_part_is_converted_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    areas: list[int] = []
    composite = Image.alpha_composite
    monkeypatch.setattr(images, "_PART", 16)
    monkeypatch.setattr(
        Image, "alpha_composite", lambda one, other: (areas.append(one.width * one.height), composite(one, other))[1]
    )
    decode(encode(Image.new("RGBA", (WIDTH, HEIGHT), (1, 2, 3, 4))))
    assert sum(areas) == HEIGHT * WIDTH
    assert max(areas) == 16 * 16


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_palette_with_a_transparent_colour(kind: str) -> None:
    picture = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), "P")
    picture.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200])
    assert decode(encode(picture, kind))[0].tolist() == [[200, 0, 0], [0, 200, 0], [0, 0, 200]]
    assert decode(encode(picture, kind, transparency=1))[0].tolist() == [[200, 0, 0], [255] * 3, [0, 0, 200]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    pixels = decode(encode(Image.fromarray(gradient()).convert("CMYK"), kind)).astype(int)
    assert abs(pixels - gradient()).mean() < 4


def test_floating_point_samples_are_refused() -> None:
    with pytest.raises(UnsupportedImageError, match="floating-point"):
        decode(encode(np.zeros((4, 4), dtype=np.float32), "TIFF"))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_a_picture_that_is_cut_short_is_broken(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = encode(noise, kind)
    with pytest.raises(BrokenImageError):
        decode(data[: int(len(data) * share)])


def test_an_empty_file_is_broken() -> None:
    for function in (decode, peek_size):
        with pytest.raises(BrokenImageError, match="0 bytes"):
            function(b"")


@pytest.mark.parametrize(
    "data", [b"plain text", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7\n", encode(gradient(), "PPM")]
)
def test_what_is_no_image_that_is_read_here_is_unsupported(data: bytes) -> None:
    for function in (decode, peek_size):
        with pytest.raises(UnsupportedImageError, match="JPEG, PNG"):
            function(data)


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    data = encode(np.zeros((100, 101, 3), dtype=np.uint8))
    header_alone = data[:60]  # nothing to decode: only the header can have been looked at
    for function in (decode, peek_size):
        with pytest.raises(ImageTooLargeError, match="101x100 pixels; at most 10000"):
            function(header_alone, max_pixels=10_000)
    assert decode(data, max_pixels=10_100).shape == (100, 101, 3)


def test_the_limit_holds_without_being_asked_for() -> None:
    side = math.isqrt(MAX_PIXELS) + 1
    bomb = encode(Image.new("1", (side, side)))
    assert len(bomb) < 100_000
    with pytest.raises(ImageTooLargeError):
        decode(bomb)


def test_a_size_is_covered_and_its_centre_kept() -> None:
    # Three upright stripes: a square crop of the middle third sees the green one alone.
    stripes = np.repeat(np.eye(3, dtype=np.uint8)[None] * 255, 10, axis=0).repeat(10, axis=1)
    assert stripes.shape == (10, 30, 3)
    assert np.unique(decode(encode(stripes), (10, 10)).reshape(-1, 3), axis=0).tolist() == [[0, 255, 0]]
    upright = encode(stripes.transpose(1, 0, 2))
    assert np.unique(decode(upright, (10, 10)).reshape(-1, 3), axis=0).tolist() == [[0, 255, 0]]


@settings(deadline=None)
@given(height=st.integers(1, 40), width=st.integers(1, 40), to_height=st.integers(1, 40), to_width=st.integers(1, 40))
def test_any_size_is_reached_and_one_colour_stays_one(height: int, width: int, to_height: int, to_width: int) -> None:
    pixels = decode(encode(Image.new("RGB", (width, height), (10, 120, 250))), (to_height, to_width))
    assert pixels.shape == (to_height, to_width, 3)
    assert (pixels == (10, 120, 250)).all()


def test_its_own_size_leaves_an_image_as_it_is() -> None:
    np.testing.assert_array_equal(decode(encode(gradient()), (HEIGHT, WIDTH)), gradient())


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=200), st.sampled_from(FORMATS), st.data())
def test_damage_anywhere_is_an_image_error_or_pixels(noise: bytes, kind: str, data: st.DataObject) -> None:
    whole = encode(gradient(), kind)
    start = data.draw(st.integers(0, len(whole) - 1))
    damaged = whole[:start] + noise + whole[start + len(noise) :]
    try:
        pixels = decode(damaged, max_pixels=1_000_000)
    except ImageError:
        return
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert pixels.dtype == np.uint8
