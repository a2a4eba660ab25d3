"""Large images take turns, where they take memory of their full size."""

from typing import Any

import pytest

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
