"""Large images take turns, where they take memory of their full size."""

from typing import Any

import pytest
from PIL.PngImagePlugin import PngImageFile, PngInfo

from serving import decoding
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
        (encoded("WEBP"), False),
        (encoded("GIF"), False),
        (b"", False),
    ],
)
def test_what_is_surely_quick(data: bytes, quick: bool) -> None:
    assert decoding.is_quick(data) == quick
