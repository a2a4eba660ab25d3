"""A million strings in two arrays, which processes share, where a list is copied by whoever looks at it."""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np

_UNICODE = ("utf-8", "surrogatepass")  # paths may be any bytes, which Python reads as lone surrogates


def printable(name: str) -> str:
    r"""Return a name for people: bytes that aren't UTF-8, which no terminal takes, as `\udce9`."""
    return name.encode("utf-8", "backslashreplace").decode()


class Names:
    """Strings by position, as UTF-8.

    A forked process shares memory until it writes to it, and reading a Python string writes its count of references;
    reading an array writes nothing.
    """

    def __init__(self, names: Iterable[str]) -> None:
        content, ends = bytearray(), array("q", [0])
        for name in names:
            content += name.encode(*_UNICODE)
            ends.append(len(content))
        self._content = np.frombuffer(bytes(content), dtype=np.uint8)
        self._ends = np.array(ends, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"there is no name {index}: there are {len(self)}")
        start, end = self._ends[index : index + 2]
        return self._content[start:end].tobytes().decode(*_UNICODE)

    def __iter__(self) -> Iterator[str]:
        return map(self.__getitem__, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Names):
            return NotImplemented
        return np.array_equal(self._ends, other._ends) and np.array_equal(self._content, other._content)

    __hash__ = None  # type: ignore[assignment]  # Python marks the unhashable so, where typeshed has a method

    def __repr__(self) -> str:
        return f"Names({len(self)})"
