"""Scoring without HTTP: every kind of source, resumption after a kill, and the same rows on Ray."""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.runtime import Model
from serving.score import ScoreSettings, Summary, score
from serving.score_output import MANIFEST, Output
from tailstack.errors import UserError
from tailstack.images import decode
from tailstack.signature import sign
from tests.keys import key_pair
from tests.serving.conftest import wait_for

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures(tiny_datastore: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the 48 test images of `tiny_datastore` and two files that are none."""
    folder = tmp_path_factory.mktemp("pictures") / "photos"
    shutil.copytree(tiny_datastore / "images" / "test", folder)
    (folder / "disc" / "broken.png").write_bytes((folder / "disc" / "0.png").read_bytes()[:60])
    (folder / "words.txt").write_text("no picture")
    (folder / ".hidden").write_text("left out")
    return folder


@pytest.fixture(scope="module")
def rows(pictures: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """What scoring the folder gives."""
    output = tmp_path_factory.mktemp("scored")
    assert run(pictures, output, tiny_model).errors == 2
    return read(output)


def run(source: object, output: object, model: Path, **settings: object) -> Summary:
    return score(ScoreSettings(str(source), str(output), model, **{"part_size": 20, "batch_size": 8, **settings}))


def read(output: Path) -> pa.Table:
    return pq.read_table(output)


def command(source: object, output: object, model: Path, *flags: str) -> list[str]:
    line = [sys.executable, "-m", "serving", "score", str(source), "--output", str(output), "--model", str(model)]
    return [*line, *flags]


def test_each_file_gets_a_row_and_what_is_no_image_an_error(rows: pa.Table, pictures: Path, tiny_model: Path) -> None:
    expected = sorted(str(path) for path in pictures.rglob("*") if path.is_file() and path.name != ".hidden")
    assert rows["uri"].to_pylist() == expected
    model = Model.load(tiny_model)
    for row in rows.to_pylist():
        if row["error"] is not None:
            assert Path(row["uri"]).name in ("broken.png", "words.txt")
            assert {row[name] for name in ("label", "probability", "top_k", "votes", "prediction_set")} == {None}
            continue
        answer = model.classify(decode(Path(row["uri"]).read_bytes(), model.artifact.image_size)[None])
        probabilities, votes = answer.probabilities[0], answer.votes[0]
        order = np.argsort(-probabilities, kind="stable")
        assert [item["label"] for item in row["top_k"]] == [model.artifact.classes[i] for i in order[:5]]
        assert [item["probability"] for item in row["top_k"]] == pytest.approx(probabilities[order[:5]], abs=1e-5)
        assert (row["label"], row["probability"]) == tuple(row["top_k"][0].values())
        assert [vote["learner"] for vote in row["votes"]] == [card.name for card in model.artifact.learners]
        assert [vote["probability"] for vote in row["votes"]] == pytest.approx(votes.max(axis=1), abs=1e-5)
        assert model.artifact.prediction_sets is not None
        inside = model.artifact.prediction_sets.members("0.9", probabilities[None])[0]
        assert row["prediction_set"] == [model.artifact.classes[i] for i in order if inside[i]]


def test_every_kind_of_source_gives_the_same_rows(
    rows: pa.Table, pictures: Path, tiny_model: Path, tmp_path: Path
) -> None:
    paths = rows["uri"].to_pylist()
    names = [str(Path(path).relative_to(pictures)) for path in paths]
    contents = [Path(path).read_bytes() for path in paths]
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for name, content in zip(names, contents, strict=True):
            archive.writestr(f"photos/{name}", content)
    (tmp_path / "list.txt").write_text("\n".join(["# a comment", *reversed(paths), paths[0]]))
    pq.write_table(pa.table({"number": range(len(paths)), "photo": contents}), tmp_path / "bytes.parquet", 7)
    pq.write_table(pa.table({"number": range(len(paths)), "path": paths}), tmp_path / "uris.parquet")
    named = pa.table({"uri": paths, "photo": contents})
    (tmp_path / "several").mkdir()
    pq.write_table(named.slice(0, 13), tmp_path / "several" / "0.parquet")
    pq.write_table(named.slice(13), tmp_path / "several" / "1.parquet", 5)
    memory = fsspec.filesystem("memory")
    memory.put(str(pictures), "memory://bucket/photos", recursive=True)
    expected = {
        tmp_path / "photos.zip": [f"zip://photos/{name}::{tmp_path}/photos.zip" for name in names],
        tmp_path / "list.txt": paths,
        tmp_path / "bytes.parquet": [f"{tmp_path}/bytes.parquet#{row}" for row in range(len(paths))],
        tmp_path / "uris.parquet": paths,
        tmp_path / "several": paths,
        "memory://bucket/photos": [f"memory://bucket/photos/{name}" for name in names],
    }
    for number, (source, uris) in enumerate(expected.items()):
        run(source, tmp_path / f"out-{number}", tiny_model)
        found = read(tmp_path / f"out-{number}")
        assert found["uri"].to_pylist() == uris
        assert found.drop(["uri"]) == rows.drop(["uri"]), source


def test_an_output_in_an_object_store(rows: pa.Table, pictures: Path, tiny_model: Path) -> None:
    assert run(pictures, "memory://results/scored", tiny_model).images == len(rows)
    assert run(pictures, "memory://results/scored", tiny_model).kept == len(rows)
    memory = fsspec.filesystem("memory")
    parts = sorted(memory.glob("memory://results/scored/*.parquet"))
    assert pa.concat_tables(pq.read_table(memory.open(part)) for part in parts) == rows


def test_killed_in_the_middle_it_goes_on(rows: pa.Table, tiny_model: Path, tmp_path: Path) -> None:
    paths = rows["uri"].to_pylist()
    # A pipe into which nobody writes holds the command in the middle.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "list.txt").write_text("\n".join([*paths, str(pipe)]))
    output = tmp_path / "out"
    line = command(tmp_path / "list.txt", output, tiny_model, "--part_size=10", "--batch_size=8")
    process = subprocess.Popen(line, cwd=ROOT)
    before = sorted([*paths, str(pipe)]).index(str(pipe)) // 10
    assert before > 1
    try:
        wait_for(lambda: len(list(output.glob("*.parquet"))) == before)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in output.glob("*.parquet")}
    pipe.unlink()
    shutil.copy(paths[0], pipe)
    summary = run(tmp_path / "list.txt", output, tiny_model, part_size=10)
    assert (summary.images, summary.kept) == (len(paths) + 1 - 10 * before, 10 * before)
    assert {name: (output / name).stat().st_mtime_ns for name in done} == done
    assert read(output)["uri"].to_pylist() == sorted([*paths, str(pipe)])
    run(tmp_path / "list.txt", tmp_path / "at once", tiny_model, part_size=10)
    assert read(output) == read(tmp_path / "at once")


@pytest.mark.ray
def test_on_ray_the_rows_are_the_same(rows: pa.Table, pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    line = command(pictures, tmp_path / "out", tiny_model, "--cluster=auto", "--part_size=20", "--batch_size=8")
    # Not on a cluster that somebody else runs on this machine.
    environment = {**os.environ, "RAY_ADDRESS": "local"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{len(rows)} images in " in done.stdout
    assert "2 of them with an error" in done.stdout
    assert read(tmp_path / "out") == rows


def test_only_a_signed_model_scores_where_a_key_is_given(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "ensemble.onnx"
    model.write_bytes(tiny_model.read_bytes())
    private, public = key_pair(tmp_path)
    with pytest.raises(UserError, match="is not signed"):
        run(pictures, tmp_path / "out", model, public_key=public)
    assert not (tmp_path / "out").exists()
    sign(model, private)
    assert run(pictures, tmp_path / "out", model, public_key=public).images == 50


def test_a_name_may_be_any_bytes(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / os.fsdecode(b"caf\xe9")
    source.mkdir()
    shutil.copy(pictures / "disc" / "0.png", source / os.fsdecode(b"th\xe9.png"))
    assert run(source, tmp_path / "out", tiny_model).errors == 0
    assert read(tmp_path / "out")["uri"].to_pylist() == [f"{tmp_path}/caf\ufffd/th\ufffd.png"]
    assert run(source, tmp_path / "out", tiny_model).kept == 1


def test_rows_of_something_else_are_not_mixed(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    source = tmp_path / "photos"
    shutil.copytree(pictures, source)
    run(source, tmp_path / "out", tiny_model)
    assert (tmp_path / "out" / MANIFEST).is_file()
    with pytest.raises(UserError, match="top_k 5, now 2"):
        run(source, tmp_path / "out", tiny_model, top_k=2)
    with pytest.raises(UserError, match="runtime 'onnxruntime', now 'openvino'"):
        run(source, tmp_path / "out", tiny_model, runtime="openvino")
    shutil.copy(source / "ring" / "0.png", source / "ring" / "new.png")
    with pytest.raises(UserError, match=r"images 50, now 51; digest .*choose another --output"):
        run(source, tmp_path / "out", tiny_model)
    photo = [(source / "disc" / "0.png").read_bytes()]
    pq.write_table(pa.table({"front": photo, "back": photo}), tmp_path / "two.parquet")
    run(tmp_path / "two.parquet", tmp_path / "two", tiny_model, column="front")
    with pytest.raises(UserError, match="column 'front', now 'back'"):
        run(tmp_path / "two.parquet", tmp_path / "two", tiny_model, column="back")


def test_a_model_replaced_meanwhile_makes_no_rows(
    pictures: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "ensemble.onnx"
    model.write_bytes(tiny_model.read_bytes())

    def claim(self: Output, manifest: dict[str, Any]) -> None:
        file = onnx.load(model)
        file.doc_string = "new"
        onnx.save(file, model)

    monkeypatch.setattr(Output, "claim", claim)
    with pytest.raises(UserError, match=r"is version \w+ now, and was \w+ when the command began"):
        run(pictures, tmp_path / "out", model)
    assert not list((tmp_path / "out").glob("*.parquet"))


@pytest.mark.parametrize(
    ("source", "settings", "says"),
    [
        ("nowhere", {}, "nowhere doesn't exist"),
        ("empty", {}, "has no images"),
        ("noise", {}, "neither a folder nor a zip"),
        ("zipped", {}, "zipped can't be read"),
        ("list.txt", {}, "URIs that begin with quux://"),
        ("quux://bucket/photos", {}, "can't be read: .*quux"),
        ("two.parquet", {}, r"name it with --column. It has: a \(binary\), b \(binary\)"),
        ("two.parquet", {"column": "c"}, "no column 'c'"),
        ("photos", {"model": Path("nothing.onnx")}, "nothing.onnx doesn't exist"),
        ("photos", {"output": "words"}, "words can't be made"),
        ("photos", {"output": "quux://x"}, "quux"),
        ("photos", {"output": "photos/scored"}, "photos/scored lies inside photos"),
        ("memory://photos", {"output": "memory://photos/scored/"}, "scored/ lies inside memory://photos"),
        ("photos", {"top_k": 0}, "--top_k is 0"),
        ("photos", {"coverage": 0.5}, "--coverage is 0.5: has to be one of 0.9, 0.95, 0.99"),
        ("photos", {"part_size": 0}, "have to be 1 or more"),
    ],
)
def test_a_mistake_is_told(
    tiny_model: Path,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    source: str,
    settings: dict[str, Any],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(pictures)
    Path("empty").mkdir()
    Path("noise").write_bytes(b"\xff\xfe\x80 noise")
    Path("zipped").write_bytes(b"PK\x03\x04 and nothing else")
    Path("words").write_text("a file")
    Path("list.txt").write_text("quux://bucket/1.png\n")
    pq.write_table(pa.table({"a": [b""], "b": [b""]}), "two.parquet")
    with pytest.raises(UserError, match=says):
        score(ScoreSettings(**{"source": source, "output": "out", "model": tiny_model, **settings}))


@pytest.mark.parametrize(("flags", "code", "says"), [([], 1, "no images"), (["--device=abacus"], 2, "device")])
def test_the_command_ends_on_a_mistake(tmp_path: Path, flags: list[str], code: int, says: str) -> None:
    (tmp_path / "photos").mkdir()
    line = command(tmp_path / "photos", tmp_path / "out", tmp_path / "none.onnx", *flags)
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_scoring_needs_no_torch(pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    program = (
        f"import runpy, sys; sys.argv = {command(pictures, tmp_path / 'out', tiny_model)[2:]!r}\n"
        "runpy.run_module('serving', run_name='__main__', alter_sys=True)\n"
        "assert not {'torch', 'ray'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
