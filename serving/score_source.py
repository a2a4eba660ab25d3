"""Where images to score come from: a folder, a zip, Parquet, or a text file of URIs, local or in an object store.

What a file is, is decided by its content. A source has an order that doesn't change, so that a range of it is the same
images tomorrow and on another machine.
"""

import hashlib
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from serving.score_parquet import ParquetRows, open_parquet
from tailstack.errors import UserError

MAX_BYTES = 100_000_000
"""Of one image, as it is read whole, by each thread. A JPEG of `tailstack.images.MAX_PIXELS` has less."""
_PARQUET = b"PAR1"
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
"""With members, and without. Two letters alone may begin a text."""
_BOUNDED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""What `zipfile` unpacks a part at a time. Others it unpacks by whole blocks, whatever size the headers state."""
_NOT_IMAGES = {"thumbs.db", "desktop.ini"}


@dataclass(frozen=True)
class Item:
    """One image."""

    uri: str
    read: Callable[[], bytes]
    """Returns the encoded bytes; raises UserError if they are too many, and what the file system raises."""


class Source(Protocol):
    """Images in an order of their own. It can be sent to another process."""

    @property
    def digest(self) -> str:
        """What tells it from another source, or from itself after a change: hexadecimal digits."""

    @property
    def column(self) -> str | None:
        """Column of Parquet that it was found in."""

    def __len__(self) -> int: ...

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Yield the images at positions `start` to `stop`, without the last."""


@dataclass(frozen=True)
class Uris:
    """Images by their URIs."""

    uris: list[str]
    digest: str
    column: str | None = None

    def __len__(self) -> int:
        return len(self.uris)

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Yield images, which are read when they are asked for their bytes."""
        return (Item(uri, partial(_read, uri)) for uri in self.uris[start:stop])


@dataclass(frozen=True)
class Zip:
    """Members of a zip file; the URIs are those by which fsspec opens them."""

    uri: str
    members: list[str]
    digest: str
    column: str | None = None

    def __len__(self) -> int:
        return len(self.members)

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Yield images, which are read when they are asked for their bytes."""
        archive = _archive(self.uri)
        for member in self.members[start:stop]:
            yield Item(f"zip://{member}::{self.uri}", partial(_unpack, archive, member))


@dataclass(frozen=True)
class Rows:
    """Images whose bytes stand in Parquet."""

    table: ParquetRows
    digest: str

    @property
    def column(self) -> str:
        """Column that has the bytes."""
        return self.table.column

    def __len__(self) -> int:
        return len(self.table)

    def items(self, start: int, stop: int) -> Iterator[Item]:
        """Yield images, whose bytes are read already."""
        for uri, data in self.table.rows(start, stop):
            yield Item(uri, partial(_checked, data))


def open_source(source: str, column: str | None = None) -> Source:
    """Find the images of `source`.

    Args:
        source: path or URI of a folder, a zip, a Parquet file, a folder of those, or a text file with a URI a line.
        column: the column of Parquet that has the images, as bytes or as URIs.

    Raises:
        UserError: there is no such source, it has no images, or its kind or scheme isn't known.
    """
    try:
        found = _open(source, column)
    except UserError:
        raise
    # fsspec's file systems raise errors of their own libraries: ImportError, ClientError, NoCredentialsError, …
    except Exception as error:
        raise UserError(f"{source} can't be read: {_reason(error)}") from error
    if not len(found):
        raise UserError(f"{source} has no images")
    return found


def _open(source: str, column: str | None) -> Source:
    system, path = url_to_fs(source)
    if not system.exists(path):
        raise UserError(f"{source} doesn't exist; a source is a folder, a zip, Parquet or a text file of URIs")
    if system.isdir(path):
        return _open_folder(source, system, path, column)
    with system.open(path) as file:
        start = file.read(4)
    if start == _PARQUET:
        return _open_table({source: path}, system, column)
    if start.startswith(_ZIP):
        return _open_zip(source)
    return _open_list(source, system.cat_file(path))


def _open_folder(source: str, system: Any, path: str, column: str | None) -> Source:
    base = PurePosixPath(path)
    sizes = {str(PurePosixPath(name).relative_to(base)): info["size"] for name, info in _files(system, path)}
    names = sorted(name for name in sizes if _may_be_image(name))
    if names and all(name.endswith(".parquet") for name in names):
        return _open_table({_join(source, name): str(base / name) for name in names}, system, column)
    uris = [_join(source, name) for name in names]
    return Uris(uris, _digest(f"{uri}\t{sizes[name]}" for uri, name in zip(uris, names, strict=True)))


def _files(system: Any, path: str) -> Iterable[tuple[str, dict[str, Any]]]:
    found: dict[str, dict[str, Any]] = system.find(path, detail=True)
    # Tools that show a store as folders make an empty object for each, whose key ends in a slash.
    return [(name, info) for name, info in found.items() if not name.endswith("/")]


def _open_zip(source: str) -> Zip:
    members = sorted(_archive(source).infolist(), key=lambda info: info.filename)
    members = [info for info in members if not info.is_dir() and _may_be_image(info.filename)]
    digest = _digest(f"{info.filename}\t{info.CRC}" for info in members)
    return Zip(source, [info.filename for info in members], digest)


def _open_table(paths: dict[str, str], system: Any, column: str | None) -> Source:
    table = open_parquet(paths, system, column)
    if table.has_bytes:
        return Rows(table, _digest(f"{file.uri}\t{file.size}\t{file.rows}" for file in table.files))
    return _by_uris(next(iter(paths)), table.texts(), table.column)


def _open_list(source: str, content: bytes) -> Uris:
    try:
        lines = [line.strip() for line in content.decode().splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"{source} is neither a folder nor a zip, Parquet or a text file of URIs") from error
    return _by_uris(source, [line for line in lines if line and not line.startswith("#")])


def _by_uris(source: str, uris: Iterable[str], column: str | None = None) -> Uris:
    """Take each URI once. A scheme that can't be read is found here, not a million times later."""
    once = sorted(set(uris))
    for scheme in sorted({uri.split("://")[0] for uri in once if "://" in uri}):
        try:
            fsspec.get_filesystem_class(scheme.rpartition("::")[2])
        except (ValueError, ImportError) as error:
            raise UserError(f"{source} has URIs that begin with {scheme}://: {error}") from error
    return Uris(once, _digest(once), column)


def _read(uri: str) -> bytes:
    """Read a byte more than there may be, at most: to ask for the size would cost a store one more call an image."""
    system, path = url_to_fs(uri)
    end = MAX_BYTES + 1
    if isinstance(system, LocalFileSystem):
        # Python takes memory for `end` bytes, which costs more time than reading a small file does.
        end = min(end, system.size(path))
    return _checked(system.cat_file(path, end=end))


def _unpack(archive: zipfile.ZipFile, member: str) -> bytes:
    info = archive.getinfo(member)
    _check_size(info.file_size)
    if info.compress_type not in _BOUNDED:
        raise UserError("its zip compresses it by another method than deflate")
    with archive.open(info) as file:
        # That size may be a lie: without an end, all that there is would be inflated.
        return file.read(MAX_BYTES)


def _checked(content: bytes) -> bytes:
    _check_size(len(content))
    return content


def _check_size(size: int) -> None:
    if size > MAX_BYTES:
        raise UserError(f"it has more than {MAX_BYTES:,} bytes")


@lru_cache(maxsize=1)
def _archive(uri: str) -> zipfile.ZipFile:
    """Open a zip once a process. Threads may read from it side by side."""
    return zipfile.ZipFile(fsspec.open(uri).open())


def _may_be_image(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return parts[-1].lower() not in _NOT_IMAGES and not any(part.startswith((".", "__MACOSX")) for part in parts)


def _join(source: str, name: str) -> str:
    return f"{source.rstrip('/')}/{name}" if "://" in source else str(Path(source) / name)


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        # The names of files may be any bytes.
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
