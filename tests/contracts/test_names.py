"""Many strings in two arrays read as the list that they were made of, and hold nothing else."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailstack.names import Names, printable


@given(st.lists(st.text(st.characters())))
def test_names_are_those_that_they_were_made_of(names: list[str]) -> None:
    ours = Names(names)
    assert list(ours) == names
    assert len(ours) == len(names)
    assert [ours[i] for i in range(len(names))] == names


def test_a_path_of_any_bytes_survives() -> None:
    assert list(Names(["\udcff.png", "ä/ß.png", ""])) == ["\udcff.png", "ä/ß.png", ""]


def test_names_are_compared_by_content() -> None:
    assert Names(["a", "bc"]) == Names(["a", "bc"])
    assert Names(["a", "bc"]) != Names(["ab", "c"])
    assert Names([]) == Names([])


def test_a_name_of_any_bytes_can_be_printed() -> None:
    assert printable("ä/\udcff.png") == r"ä/\udcff.png"


@pytest.mark.parametrize("index", [-1, 2])
def test_no_such_name(index: int) -> None:
    with pytest.raises(IndexError, match=f"no name {index}"):
        Names(["a", "b"])[index]


def test_there_is_no_object_a_name() -> None:
    """What is not in the arrays' own buffers, which processes share, is as small for 10,000 names as for one."""
    rests = []
    for count in (1, 10_000):
        names = Names(f"folder/{i}.jpg" for i in range(count))
        buffers: list[pickle.PickleBuffer] = []
        rests.append(len(pickle.dumps(names, protocol=5, buffer_callback=buffers.append)))
        assert sum(len(buffer.raw()) for buffer in buffers) >= 8 * count
        assert pickle.loads(pickle.dumps(names)) == names
    assert rests[1] <= rests[0] + 16
