"""A place in a store and its copy: what travels, and when. The store is fsspec's, in memory."""

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from tailstack.errors import UserError
from tailstack.remote import fetch, is_remote, local, origin, push, refuse_remote, spelled

PLACE = Path("memory://bucket/run")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fsspec.AbstractFileSystem]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = fsspec.filesystem("memory")
    yield files
    files.rm("/bucket", recursive=True)


def put(store: fsspec.AbstractFileSystem, **contents: str) -> None:
    for name, text in contents.items():
        store.pipe(f"/bucket/run/{name.replace('__', '/')}", text.encode())


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def another_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


@pytest.mark.parametrize("place", ["s3://b/k", "gs://b/k/x.onnx", "memory://b/k"])
def test_a_place_survives_pathlib(place: str) -> None:
    assert is_remote(Path(place))
    assert spelled(Path(place)) == place
    assert origin(local(Path(place))) == Path(place)


@pytest.mark.parametrize("place", ["runs/a", "/tmp/x", "c:/data", "."])
def test_what_lies_here_is_left_alone(place: str) -> None:
    assert not is_remote(Path(place))
    assert spelled(Path(place)) == str(Path(place))
    assert local(Path(place)) == fetch(Path(place)) == origin(Path(place)) == Path(place)
    push(Path(place))
    refuse_remote("--output", Path(place))


def test_no_place_leads_out_of_the_copies() -> None:
    with pytest.raises(UserError, match=r"s3://b/\.\./\.\./x has \.\."):
        local(Path("s3://b/../../x"))


def test_only_this_machine_will_do() -> None:
    with pytest.raises(UserError, match="--output is memory://bucket/run"):
        refuse_remote("--output", PLACE)


def test_a_folder_there_and_back(
    store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put(store, config="a", learners__0__weights="b")
    run = fetch(PLACE)
    assert names(run) == ["config", "learners/0/weights"]
    (run / "learners/0/weights").write_text("new")
    (run / "learners/1").mkdir()
    (run / "learners/1/weights").write_text("c")
    (run / "config").unlink()
    push(PLACE)
    another_machine(monkeypatch, tmp_path / "other")
    assert names(fetch(PLACE)) == ["learners/0/weights", "learners/1/weights"]
    assert (fetch(PLACE) / "learners/0/weights").read_text() == "new"


def test_only_what_changed_travels(store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, a="1", b="1")
    run = fetch(PLACE)
    seen: list[str] = []
    get, put_file = type(store).get, type(store).put_file
    monkeypatch.setattr(type(store), "get", lambda self, keys, *rest: [seen.extend(keys), get(self, keys, *rest)])
    monkeypatch.setattr(type(store), "put_file", lambda self, path, key: [seen.append(key), put_file(self, path, key)])
    fetch(PLACE)
    push(PLACE)
    assert seen == []
    put(store, a="2")
    (run / "b").write_text("22")
    push(PLACE)
    assert seen == ["/bucket/run/b"]
    fetch(PLACE)
    assert seen == ["/bucket/run/b", "/bucket/run/a"]


def test_the_store_is_the_truth(store: fsspec.AbstractFileSystem) -> None:
    """What a killed process left in its copy is not mixed with what another one has made meanwhile."""
    put(store, a="1", b="1")
    run = fetch(PLACE)
    (run / "a").write_text("never sent")
    (run / "c").write_text("never sent")
    store.rm("/bucket/run/b")
    assert names(fetch(PLACE)) == ["a"]
    assert (run / "a").read_text() == "1"


def test_a_file_is_a_place_too(store: fsspec.AbstractFileSystem) -> None:
    put(store, model="1", model2="2")
    file = fetch(PLACE / "model")
    assert file.read_text() == "1"
    assert not (file.parent / "model2").exists()
    file.write_text("new")
    push(PLACE / "model")
    assert store.cat("/bucket/run/model") == b"new"
    store.rm("/bucket/run/model")
    assert not fetch(PLACE / "model", missing_ok=True).exists()


def test_the_last_file_comes_last(store: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    run = local(PLACE)
    (run / "learners").mkdir(parents=True)
    for name in ("first", "ensemble", "learners/weights"):
        (run / name).write_text(name)
    order: list[str] = []
    put_file = type(store).put_file

    def noting(self: object, path: str, key: str, **options: object) -> None:
        order.append(key)
        put_file(self, path, key, **options)

    monkeypatch.setattr(type(store), "put_file", noting)
    push(PLACE)
    assert order == ["/bucket/run/learners/weights", "/bucket/run/first", "/bucket/run/ensemble"]


def test_no_such_place(store: fsspec.AbstractFileSystem) -> None:
    put(store, a="1")
    with pytest.raises(UserError, match="memory://bucket/none doesn't exist"):
        fetch(Path("memory://bucket/none"))


def test_a_store_that_fsspec_does_not_know() -> None:
    with pytest.raises(UserError, match=r"nowhere://b/k can't be read: .*nowhere"):
        fetch(Path("nowhere://b/k"))
