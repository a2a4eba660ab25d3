"""A datastore's mistakes are named, with their entry, before anything else happens."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tailstack import datastore as datastores
from tailstack.errors import UserError
from tailstack.files import sha256


def annotation(image: str, label: Any) -> dict[str, Any]:
    return {"image": image, "label": label}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes, two training images and one test image each."""
    for name in ("a0", "a1", "b0", "b1", "ta", "tb"):
        Image.new("RGB", (4, 4), (ord(name[0]), ord(name[1]), 0)).save(tmp_path / f"{name}.png")
    train = [annotation("a0.png", 0), annotation("a1.png", 0), annotation("b0.png", 1), annotation("b1.png", 1)]
    write(tmp_path, "train", annotations=train)
    write(tmp_path, "test", annotations=[annotation("ta.png", 0), annotation("tb.png", 1)])
    return tmp_path


def write(folder: Path, split: str, **content: Any) -> None:
    value = {"root": ".", "classes": ["a", "b"], "annotations": [], **content}
    (folder / f"{split}.json").write_text(json.dumps(value))


def change(folder: Path, split: str, index: int, **entry: Any) -> None:
    path = folder / f"{split}.json"
    value = json.loads(path.read_text())
    value["annotations"][index].update(entry)
    path.write_text(json.dumps(value))


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        datastores.load(folder)
    return str(caught.value)


def test_a_sound_datastore_is_read(folder: Path) -> None:
    store = datastores.load(folder)
    assert store.classes == ["a", "b"]
    assert store.train.counts(2).tolist() == [2, 2]
    assert store.train.labels.dtype == np.int64
    assert [name for name, _ in store.splits()] == ["train", "test"]
    assert store.digests() == {split: sha256(folder / f"{split}.json") for split in ("train", "test")}
    assert store.test.decode(1).tolist() == [[[ord("t"), ord("b"), 0]] * 4] * 4


def test_the_tiny_datastore_is_long_tailed(tiny_datastore: Path) -> None:
    store = datastores.load(tiny_datastore)
    counts = store.train.counts(len(store.classes))
    assert counts.max() / counts.min() == 30
    assert store.train.decode(0).shape == (32, 32, 3)


def test_a_validation_split_is_read_where_there_is_one(folder: Path) -> None:
    write(folder, "train", annotations=[annotation("a0.png", 0), annotation("b0.png", 1)])
    write(folder, "val", annotations=[annotation("a1.png", 0), annotation("b1.png", 1)])
    store = datastores.load(folder)
    assert store.val is not None
    assert list(store.val.images) == ["a1.png", "b1.png"]
    assert set(store.digests()) == {"train", "val", "test"}


def test_root_is_relative_to_the_file(folder: Path, tmp_path: Path) -> None:
    variant = tmp_path / "variant"
    store = datastores.load(folder)
    for name, split in store.splits():
        datastores.save_split(variant / f"{name}.json", split.root, store.classes, split.images, split.labels)
    assert json.loads((variant / "train.json").read_text())["root"] == ".."
    assert datastores.load(variant).train.path(0).samefile(folder / "a0.png")


@pytest.mark.parametrize("linked", ["datastore", "images"])
def test_root_is_found_through_symbolic_links(linked: str, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "far" / "deep" / "down").mkdir(parents=True)
    link = tmp_path / "a" / "link"
    link.parent.mkdir()
    link.symlink_to(tmp_path / "far" / "deep" / "down" if linked == "datastore" else folder)
    store = datastores.load(folder)
    variant, root = (link, folder) if linked == "datastore" else (tmp_path, link)
    for name, split in store.splits():
        datastores.save_split(variant / f"{name}.json", root, store.classes, split.images, split.labels)
    assert datastores.load(variant).train.path(0).samefile(folder / "a0.png")
    # Where the way through a link is right, it is written as it is.
    expected = "../../.." if linked == "datastore" else "a/link"
    assert json.loads((variant / "train.json").read_text())["root"] == expected


def test_a_subset_keeps_order_and_labels(folder: Path) -> None:
    subset = datastores.load(folder).train.subset(np.array([2, 0]))
    assert list(subset.images) == ["b0.png", "a0.png"]
    assert subset.labels.tolist() == [1, 0]


def test_no_folder(tmp_path: Path) -> None:
    message = refused(tmp_path / "none")
    assert "doesn't exist" in message
    assert "python -m training prepare" in message


@pytest.mark.parametrize("split", ["train", "test"])
def test_no_file(folder: Path, split: str) -> None:
    (folder / f"{split}.json").unlink()
    assert f"{split}.json doesn't exist" in refused(folder)


def test_not_json(folder: Path) -> None:
    (folder / "train.json").write_text('{"root": ".", "classes')
    assert "train.json isn't readable JSON" in refused(folder)


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"root": ".", "classes": ["a"], "annotations": [{"file": "a0.png"}]}', '{"root": 3, "classes": []}'],
)
def test_another_form(folder: Path, content: str) -> None:
    (folder / "train.json").write_text(content)
    assert "train.json is not a datastore file" in refused(folder)


def test_no_annotations(folder: Path) -> None:
    write(folder, "test")
    assert "test.json has no annotations" in refused(folder)


@pytest.mark.parametrize("label", [2, -1, 1.0, "a", None, True])
def test_a_label_that_is_no_class(folder: Path, label: Any) -> None:
    change(folder, "train", 2, label=label)
    message = refused(folder)
    assert f"annotation 2 (b0.png): label {label!r} is not an integer from 0 to 1" in message


def test_a_class_named_twice(folder: Path) -> None:
    write(folder, "train", classes=["a", "a"], annotations=[annotation("a0.png", 0)])
    assert "names a class twice: a" in refused(folder)


def test_splits_with_other_classes(folder: Path) -> None:
    write(folder, "test", classes=["b", "a"], annotations=[annotation("ta.png", 0)])
    assert "test.json lists other classes" in refused(folder)


def test_a_class_with_one_image(folder: Path) -> None:
    write(folder, "train", annotations=[annotation("a0.png", 0), annotation("a1.png", 0), annotation("b0.png", 1)])
    assert "class 'b' has 1 training image(s), and needs 2" in refused(folder)


def test_a_missing_image(folder: Path) -> None:
    (folder / "tb.png").unlink()
    assert "test.json annotation 1 (tb.png): there is no such file" in refused(folder)


@pytest.mark.parametrize("image", ["a0.png", "./a0.png", "../{folder}/a0.png"])
def test_an_image_listed_twice(folder: Path, image: str) -> None:
    change(folder, "train", 1, image=image.format(folder=folder.name))
    assert "the same image as train.json annotation 0 (a0.png)" in refused(folder)


def test_a_test_image_that_leaked_into_train(folder: Path) -> None:
    change(folder, "test", 0, image="a1.png")
    assert "test.json annotation 0 (a1.png): the same image as train.json annotation 1 (a1.png)" in refused(folder)


def test_all_problems_are_listed_at_once(folder: Path) -> None:
    (folder / "a0.png").unlink()
    (folder / "tb.png").unlink()
    change(folder, "train", 3, image="b0.png")
    message = refused(folder)
    assert "3 problem(s)" in message
    assert all(
        entry in message for entry in ("annotation 0 (a0.png)", "annotation 1 (tb.png)", "annotation 3 (b0.png)")
    )


def test_a_long_list_of_problems_stays_readable(folder: Path) -> None:
    write(folder, "train", annotations=[annotation(f"{i}.png", i % 2) for i in range(1000)])
    message = refused(folder)
    assert "1000 problem(s)" in message
    assert "and 980 more" in message
    assert len(message.splitlines()) < 30


def test_an_unreadable_image_is_named(folder: Path) -> None:
    (folder / "a1.png").write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"a1\.png \(annotation 1\) can't be read"):
        datastores.load(folder).train.decode(1)
