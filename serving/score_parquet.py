"""Parquet that has images, as bytes or as URIs."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tailstack.errors import UserError

_URI = "uri"
_BATCH = 64
"""Rows that are held at a time, with their images."""
_BUFFER = 1 << 20
"""Bytes of a column that are read at a time. Without it a whole row group is, which may be the whole file."""


@dataclass(frozen=True)
class ParquetFile:
    """One file."""

    uri: str
    path: str
    rows: int
    size: int


@dataclass(frozen=True)
class ParquetRows:
    """The rows of one or more files, in the files' order."""

    system: Any
    """The file system of fsspec that has them."""
    files: list[ParquetFile]
    column: str
    has_bytes: bool
    """Whether the column has the images themselves, not their URIs."""
    has_uris: bool
    """Whether the images' names stand in a column `uri` beside them."""

    def __len__(self) -> int:
        return sum(file.rows for file in self.files)

    def rows(self, start: int, stop: int) -> Iterator[tuple[str, bytes]]:
        """Yield name and bytes of rows `start` to `stop`, without the last; a row without an image has no bytes.

        The name is that in the column `uri`, or else the file's with the row's number in it: `photos.parquet#17`.
        """
        begin = 0
        for file in self.files:
            end = begin + file.rows
            if start < end and stop > begin:
                yield from self._rows_of(file, max(start - begin, 0), min(stop, end) - begin)
            begin = end

    def texts(self) -> list[str]:
        """Return the column's values, without those that are missing."""
        values: list[str] = []
        for file in self.files:
            with self.system.open(file.path) as stream:
                values += pq.read_table(stream, columns=[self.column]).column(0).drop_null().to_pylist()
        return values

    def _rows_of(self, file: ParquetFile, start: int, stop: int) -> Iterator[tuple[str, bytes]]:
        columns = [self.column, _URI] if self.has_uris else [self.column]
        with self.system.open(file.path) as stream:
            reader = pq.ParquetFile(stream, pre_buffer=False, buffer_size=_BUFFER)
            groups, row = _row_groups(reader.metadata, start, stop)
            for batch in reader.iter_batches(_BATCH, row_groups=groups, columns=columns):
                images = batch.column(self.column)
                for index in range(max(start - row, 0), min(stop - row, len(batch))):
                    name = batch.column(_URI)[index].as_py() if self.has_uris else None
                    yield name or f"{file.uri}#{row + index}", images[index].as_py() or b""
                row += len(batch)
                if row >= stop:
                    return


def open_parquet(paths: Mapping[str, str], system: Any, column: str | None) -> ParquetRows:
    """Look at files that have the same columns.

    Args:
        paths: path within the file system, by URI.
        system: a file system of fsspec.
        column: that of the images; None takes the only one of bytes, else `uri`, else the only one of text.

    Raises:
        UserError: there is no such column, or it can't be told which.
    """
    files = []
    schema = None
    for uri, path in paths.items():
        with system.open(path) as stream:
            reader = pq.ParquetFile(stream)
            schema = schema or reader.schema_arrow
            files.append(ParquetFile(uri, path, reader.metadata.num_rows, system.size(path)))
    kinds = {field.name: field.type for field in schema or ()}
    chosen = column or _choose(files[0].uri, kinds)
    if not (_is_bytes(kinds.get(chosen)) or _is_text(kinds.get(chosen))):
        raise UserError(f"{files[0].uri} has no column {chosen!r} of bytes or of text; it has: {_listed(kinds)}")
    has_bytes = _is_bytes(kinds[chosen])
    return ParquetRows(system, files, chosen, has_bytes, _is_text(kinds.get(_URI)))


def _row_groups(metadata: Any, start: int, stop: int) -> tuple[list[int], int]:
    """Return the row groups that have rows `start` to `stop`, and the first row that they have."""
    groups: list[int] = []
    first = row = 0
    for index in range(metadata.num_row_groups):
        end = row + metadata.row_group(index).num_rows
        if start < end and stop > row:
            first = first if groups else row
            groups.append(index)
        row = end
    return groups, first


def _choose(uri: str, kinds: Mapping[str, Any]) -> str:
    binary = [name for name, kind in kinds.items() if _is_bytes(kind)]
    text = [name for name, kind in kinds.items() if _is_text(kind)]
    if len(binary) == 1:
        return binary[0]
    if not binary and _URI in text:
        return _URI
    if not binary and len(text) == 1:
        return text[0]
    raise UserError(
        f"{uri} has more than one column that may have the images, or none: name it with --column. "
        f"It has: {_listed(kinds)}"
    )


def _is_bytes(kind: Any) -> bool:
    return kind is not None and (pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    return kind is not None and (pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _listed(kinds: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items()) or "no columns"
