"""What a source has, and how much of it is in memory: no model runs here."""

import io
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving import score_source
from serving.score_parquet import open_parquet
from serving.score_source import open_source
from tailstack.errors import UserError

LARGE = 20_000_000


class Counting:
    """A file system that counts the bytes which are read."""

    def __init__(self) -> None:
        self.count = 0

    def size(self, path: str) -> int:
        return Path(path).stat().st_size

    def open(self, path: str) -> io.FileIO:
        system = self

        class File(io.FileIO):
            def read(self, size: int | None = -1, /) -> bytes:
                content = super().read(-1 if size is None else size)
                system.count += len(content)
                return content

        return File(path)


def lie(archive: Path) -> None:
    """Say in both of a zip's headers that its member has 100 bytes."""
    content, true = archive.read_bytes(), LARGE.to_bytes(4, "little")
    assert content.count(true) == 2
    archive.write_bytes(content.replace(true, (100).to_bytes(4, "little")))


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("folder", "more than 1,000,000 bytes"),
        ("list.txt", "more than 1,000,000 bytes"),
        ("honest.zip", "more than 1,000,000 bytes"),
        ("lying.zip", "Bad CRC-32"),
        ("bzip2.zip", "another method than deflate"),
    ],
)
def test_a_large_file_is_not_read_whole(kind: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_source, "MAX_BYTES", 1_000_000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "large.png").write_bytes(bytes(LARGE))
    (tmp_path / "list.txt").write_text(f"{tmp_path}/folder/large.png")
    for name in ("honest.zip", "lying.zip", "bzip2.zip"):
        method = zipfile.ZIP_BZIP2 if name == "bzip2.zip" else zipfile.ZIP_DEFLATED
        with zipfile.ZipFile(tmp_path / name, "w", method) as archive:
            archive.write(tmp_path / "folder" / "large.png", "large.png")
    for name in ("lying.zip", "bzip2.zip"):
        lie(tmp_path / name)
    [item] = open_source(str(tmp_path / kind)).items(0, 1)
    tracemalloc.start()
    try:
        with pytest.raises((UserError, zipfile.BadZipFile), match=says):
            item.read()
        assert tracemalloc.get_traced_memory()[1] < LARGE / 4
    finally:
        tracemalloc.stop()


def test_a_large_value_in_parquet_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_source, "MAX_BYTES", 10)
    pq.write_table(pa.table({"photo": [bytes(10), bytes(11)]}), tmp_path / "photos.parquet")
    small, large = open_source(str(tmp_path / "photos.parquet")).items(0, 2)
    assert small.read() == bytes(10)
    with pytest.raises(UserError, match="more than 10 bytes"):
        large.read()


def test_a_row_group_is_not_read_whole(tmp_path: Path) -> None:
    path = str(tmp_path / "photos.parquet")
    random = np.random.default_rng(0)
    pq.write_table(pa.table({"photo": [random.bytes(3000) for _ in range(4096)]}), path)
    system = Counting()
    table = open_parquet({path: path}, system, None)
    assert len(list(table.rows(0, 10))) == 10
    assert system.count < Path(path).stat().st_size / 2


def test_a_list_may_begin_as_a_zip_does(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("PKLot/2012-09-11.jpg\n")
    assert [item.uri for item in open_source(str(tmp_path / "list.txt")).items(0, 1)] == ["PKLot/2012-09-11.jpg"]
