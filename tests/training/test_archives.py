"""Zips that are damaged, encrypted or ambiguous are refused in a line; none writes outside its folder."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tailstack.errors import UserError
from training.archives import extract

MEMBER = "cat/0.png"
CONTENT = b"compressible " * 1000


def spoil(path: Path, change: Callable[[bytearray], None]) -> None:
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


def refused(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        extract(path, path.parent / "target")
    return str(caught.value)


def overwritten(content: bytearray) -> None:
    start = 30 + len(MEMBER)
    content[start + 4 : start + 24] = b"\xff" * 20


def cut(content: bytearray) -> None:
    """Let the index state far more bytes than there are."""
    entry = content.index(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = (10**6).to_bytes(4, "little") * 2


def encrypted(content: bytearray) -> None:
    content[content.index(b"PK\x01\x02") + 8] |= 1


def misnamed(content: bytearray) -> None:
    """Let the index call a name UTF-8 that isn't."""
    entry = content.index(b"PK\x01\x02")
    content[entry + 9] |= 8
    content[entry + 46] = 0xE9


@pytest.mark.parametrize(
    ("method", "change", "message"),
    [
        (zipfile.ZIP_STORED, overwritten, f"can't be extracted, at {MEMBER}: Bad CRC-32"),
        (zipfile.ZIP_DEFLATED, overwritten, f"can't be extracted, at {MEMBER}: Error -3"),
        (zipfile.ZIP_BZIP2, overwritten, f"can't be extracted, at {MEMBER}: Invalid data"),
        (zipfile.ZIP_LZMA, overwritten, f"can't be extracted, at {MEMBER}: "),
        (zipfile.ZIP_STORED, cut, f"can't be extracted, at {MEMBER}: it ends too early"),
        (zipfile.ZIP_STORED, encrypted, "is encrypted: unpack it and give the folder"),
        (zipfile.ZIP_STORED, misnamed, "can't be extracted, at its index: "),
    ],
)
def test_a_damaged_zip(method: int, change: Callable[[bytearray], None], message: str, tmp_path: Path) -> None:
    path = tmp_path / "photos.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(MEMBER, CONTENT)
    spoil(path, change)
    assert f"photos.zip {message}" in refused(path)


def test_names_that_lead_elsewhere_stay_inside(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name in ("/cat/0.png", "../../dog/0.png", "cat/"):
            archive.writestr(zipfile.ZipInfo(name), "" if name.endswith("/") else name)
    (tmp_path / "target").mkdir()
    extract(tmp_path / "photos.zip", tmp_path / "target")
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"photos.zip", "target/cat/0.png", "target/dog/0.png"}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["cat/0.png", "../cat/0.png", "/cat/0.png"])
def test_two_files_for_one_place(second: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("cat/0.png", "one")
        archive.writestr(zipfile.ZipInfo(second), "two")
    assert f"has two files for {second}" in refused(tmp_path / "photos.zip")
