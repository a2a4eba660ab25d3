"""Scoring from and to an object store: a real S3 protocol on loopback."""

from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.score import ScoreSettings, score
from tailstack.errors import UserError


def rows(folder: str) -> pa.Table:
    system, path = fsspec.url_to_fs(folder)
    return pa.concat_tables(pq.read_table(system.open(part)) for part in sorted(system.glob(f"{path}/*.parquet")))


def test_the_rows_are_those_of_the_same_files_here(
    machine: pytest.MonkeyPatch, tiny_datastore: Path, tiny_model: Path, tmp_path: Path
) -> None:
    here = tiny_datastore / "images" / "test"
    fsspec.filesystem("s3").put(str(here), "s3://bucket/photos", recursive=True)
    # As consoles make them for a folder.
    for folder in ("photos/", "photos/disc/"):
        fsspec.filesystem("s3").call_s3("put_object", Bucket="bucket", Key=folder)
    score(ScoreSettings(str(here), str(tmp_path / "out"), tiny_model, part_size=20))
    fsspec.filesystem("s3").put(str(tiny_model), "s3://bucket/ensemble.onnx")
    model = Path("s3://bucket/ensemble.onnx")
    done = score(ScoreSettings("s3://bucket/photos", "s3://bucket/out", model, part_size=20))
    expected, found = rows(str(tmp_path / "out")), rows("s3://bucket/out")
    assert done.images == len(found) == 48
    assert found.drop(["uri"]) == expected.drop(["uri"])
    names = [str(Path(path).relative_to(here)) for path in expected["uri"].to_pylist()]
    assert found["uri"].to_pylist() == [f"s3://bucket/photos/{name}" for name in names]
    fsspec.filesystem("s3").rm("s3://bucket/out/part-000000000020-000000000040.parquet")
    again = score(ScoreSettings("s3://bucket/photos", "s3://bucket/out", model, part_size=20))
    assert (again.images, again.kept) == (20, 28)
    assert rows("s3://bucket/out") == found


def test_a_list_may_name_what_is_not_there(machine: pytest.MonkeyPatch, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("s3://bucket/nothing.png\ns3://other/nothing.png\n")
    done = score(ScoreSettings(str(tmp_path / "list.txt"), str(tmp_path / "out"), tiny_model))
    assert (done.images, done.errors) == (2, 2)
    assert all(error.startswith("can't be read: ") for error in rows(str(tmp_path / "out"))["error"].to_pylist())


def test_a_mistake_is_told(machine: pytest.MonkeyPatch, tiny_datastore: Path, tiny_model: Path) -> None:
    with pytest.raises(UserError, match="s3://nowhere/photos doesn't exist"):
        score(ScoreSettings("s3://nowhere/photos", "out", tiny_model))
    with pytest.raises(UserError, match=r"s3://nowhere/out.* can't be written: .*bucket does not exist"):
        score(ScoreSettings(str(tiny_datastore / "images"), "s3://nowhere/out", tiny_model))
