"""Files that appear whole or not at all."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tailstack.errors import UserError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to, and rename it to `path` once the block ends without an error.

    A reader, or a run that was killed, never sees half a file.

    Raises:
        UserError: `path` can't be written.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # there is no folder that it could lie in, or no file
            part.unlink()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all.

    Raises:
        UserError: `path` can't be written.
    """
    with whole_file(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write `value` as JSON to `path`, whole or not at all.

    Raises:
        UserError: `path` can't be written.
    """
    try:
        write_text(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
    # Of a file's name that isn't UTF-8, Python makes lone surrogates, which nothing but JSON's escapes can hold.
    except UnicodeEncodeError:
        write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json(path: Path) -> Any:
    """Return the JSON value in `path`.

    Raises:
        UserError: the file is missing or isn't JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} doesn't exist") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} isn't readable JSON: {error}") from error


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, as hexadecimal digits.

    Raises:
        OSError: it can't be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Return where this user keeps what can be had again."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "tailstack"
    try:
        return Path.home() / ".cache" / "tailstack"
    # A container's user may have no home.
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "tailstack"


def make_folder(path: Path) -> Path:
    """Create the output folder `path` if need be and return it.

    Raises:
        UserError: it can't be created or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output folder {path} can't be made: {error.strerror or error}") from error
    if not os.access(path, os.W_OK):
        raise UserError(f"output folder {path} is not writable")
    return path
