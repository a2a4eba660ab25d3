"""Where rows go: Parquet parts, each whole or not there, and a manifest that says what they are the rows of."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from tailstack.errors import UserError
from tailstack.files import make_folder, whole_file, write_json

MANIFEST = "_score.json"
"""Readers of Parquet folders pass over names that begin so."""


@dataclass(frozen=True)
class Part:
    """The images at positions `start` to `stop` of a source, without the last."""

    start: int
    stop: int

    @property
    def name(self) -> str:
        """Of its file."""
        return f"part-{self.start:012d}-{self.stop:012d}.parquet"

    def __len__(self) -> int:
        return self.stop - self.start


class Output:
    """A folder of parts, local or in an object store, where a file appears whole by itself.

    Raises:
        UserError: it can't be written to.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._local = None if "://" in folder else make_folder(Path(folder))
        try:
            self._system, self._path = url_to_fs(folder)
        except (ValueError, ImportError) as error:
            raise UserError(f"--output {folder}: {error}") from error

    def claim(self, manifest: dict[str, Any]) -> None:
        """Say what the parts are of.

        Raises:
            UserError: the folder has parts of something else.
        """
        there = self._manifest()
        if there is None:
            self._write_manifest(manifest)
            return
        others = [
            f"{key} {there.get(key)!r}, now {value!r}" for key, value in manifest.items() if there.get(key) != value
        ]
        if others:
            raise UserError(f"{self.folder} has rows of something else ({'; '.join(others)}): choose another --output")

    def missing(self, rows: int, part_size: int) -> list[Part]:
        """Return the parts of `rows` images that aren't there."""
        parts = [Part(start, min(start + part_size, rows)) for start in range(0, rows, part_size)]
        names = {name.rpartition("/")[2] for name in self._system.ls(self._path, detail=False)}
        return [part for part in parts if part.name not in names]

    def write(self, part: Part, rows: pa.Table) -> None:
        """Write a part.

        Raises:
            UserError: it can't be written.
        """
        if self._local is not None:
            with whole_file(self._local / part.name) as file:
                pq.write_table(rows, file)
            return
        stream = io.BytesIO()
        pq.write_table(rows, stream)
        self._put(part.name, stream.getvalue())

    def _manifest(self) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = json.loads(self._system.cat_file(f"{self._path}/{MANIFEST}"))
        except FileNotFoundError:
            return None
        # Besides a damaged file, each store's client raises errors of its own.
        except Exception as error:
            raise UserError(f"{self.folder}/{MANIFEST} can't be read: {error}") from error
        return found

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        if self._local is not None:
            write_json(self._local / MANIFEST, manifest)
        else:
            self._put(MANIFEST, json.dumps(manifest, indent=2).encode())

    def _put(self, name: str, content: bytes) -> None:
        try:
            self._system.pipe_file(f"{self._path}/{name}", content)
        # Each store's client raises errors of its own.
        except Exception as error:
            raise UserError(f"{self.folder}/{name} can't be written: {error}") from error
