"""Folders and files in an object store, such as s3://bucket/key, through fsspec and a copy on this machine.

The store is the truth: `fetch` makes the copy equal to what lies there, and `push` sends what has changed in the copy
since. Nothing is locked: one process at a time writes to one place.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tailstack.errors import UserError
from tailstack.files import cache_folder, read_json, whole_file, write_json

_REMOTE = re.compile(r"([a-z][a-z0-9+.-]+):/+(.+)")
"""One slash is what pathlib leaves of two. A single letter is a drive."""
_TAGS = ("ETag", "etag", "mtime", "LastModified", "created")
"""What stores call that which changes with a file."""
_MANIFEST = ".remote.json"
"""Lies beside a copy and says what is known of it."""
Token = list[int | str]


def is_remote(place: Path) -> bool:
    """Return whether a place lies in an object store."""
    return _REMOTE.fullmatch(str(place)) is not None


def spelled(place: Path) -> str:
    """Return a place as its user writes it: pathlib makes `s3:/` of `s3://`."""
    found = _REMOTE.fullmatch(str(place))
    return f"{found[1]}://{found[2]}" if found else str(place)


def local(place: Path) -> Path:
    """Return where a place lies on this machine: itself, or its copy in `files.cache_folder`.

    Raises:
        UserError: it has `..` in it.
    """
    found = _REMOTE.fullmatch(str(place))
    if found is None:
        return place
    if ".." in place.parts:
        raise UserError(f"{spelled(place)} has .. in it: name the place itself")
    return _copies() / found[1] / found[2]


def fetch(place: Path, *, missing_ok: bool = False) -> Path:
    """Make the copy of a folder or file equal to what lies in the store, and return where it is.

    What lies on this machine is returned as it is, a copy's own folders included.

    Raises:
        UserError: there is no such place (unless `missing_ok`), or the store can't be read.
    """
    target = local(place)
    if not is_remote(place):
        return target
    with _store(place, "read") as (files, root):
        there = _listing(files, root)
        if not there and not missing_ok:
            raise UserError(f"{spelled(place)} doesn't exist")
        known = _known(target)
        wanted = [name for name, token in there.items() if known.get(name) != [token, _stamp(target / name)]]
        for path in _copied(target) if "" not in there else []:
            if path.relative_to(target).as_posix() not in there:
                path.unlink()
        _download(files, root, target, wanted)
        _note(target, there)
    return target


def push(place: Path) -> None:
    """Send what has changed in the copy of `place` to the store, and remove there what is gone here.

    Files of folders inside go first, then the others by age: whoever finds the last one finds all. Does nothing for
    what lies on this machine.

    Raises:
        UserError: the store can't be written.
    """
    if not is_remote(place):
        return
    target = local(place)
    with _store(place, "written") as (files, root):
        known = _known(target)
        paths = {path.relative_to(target).as_posix() if path != target else "": path for path in _copied(target)}
        changed = [name for name, path in paths.items() if known.get(name, [None, None])[1] != _stamp(path)]
        inner = [name for name in changed if "/" in name]
        if inner:
            files.put([str(paths[name]) for name in inner], [_key(root, name) for name in inner])
        for name in sorted(set(changed) - set(inner), key=lambda name: paths[name].stat().st_mtime_ns):
            files.put_file(str(paths[name]), _key(root, name))
        for name in known.keys() - paths.keys():
            files.rm_file(_key(root, name))
        there = _listing(files, root)
        # What others have changed meanwhile is not what lies here: it keeps the token that it was fetched with.
        kept = {name: entry[0] for name, entry in known.items() if name in paths}
        _note(target, kept | {name: there[name] for name in changed})


def origin(copy: Path) -> Path:
    """Return the place in a store of which a folder on this machine is the copy; the folder itself, if it isn't one."""
    folder = Path(os.path.normpath(copy))
    if not folder.is_relative_to(_copies()):
        return copy
    scheme, *rest = folder.relative_to(_copies()).parts
    return Path(f"{scheme}:/{'/'.join(rest)}")


def refuse_remote(flag: str, place: Path | None) -> None:
    """Refuse a place in a store where only this machine's will do.

    Raises:
        UserError: naming the flag.
    """
    if place is not None and is_remote(place):
        raise UserError(f"{flag} is {spelled(place)}, and has to be a folder of this machine")


def _copies() -> Path:
    return cache_folder() / "remote"


@contextmanager
def _store(place: Path, verb: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of a place and the path in it, and put what goes wrong there into one line."""
    uri = spelled(place)
    try:
        import fsspec  # noqa: PLC0415 (an extra)

        yield fsspec.url_to_fs(uri, use_listings_cache=False)
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{uri} needs more packages ({error}): pip install 'tailstack[remote]'") from error
    # Each store raises errors of its own, of its client's and of its network's.
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{uri} can't be {verb}: {reason}") from error


def _listing(files: Any, root: str) -> dict[str, Token]:
    """Return what lies under `root`: size and tag by relative name, which is empty if `root` is a file itself."""
    try:
        found: dict[str, dict[str, Any]] = files.find(root, detail=True)
    except FileNotFoundError:
        # No such folder in a bucket that is there; a bucket that isn't says so when it is written to.
        return {}
    prefix = root.rstrip("/")
    # Tools that show a store as folders make an empty object for each, whose key ends in a slash.
    names = {path.removeprefix(prefix).lstrip("/"): info for path, info in found.items() if not path.endswith("/")}
    return {
        name: [info["size"], str(next((info[tag] for tag in _TAGS if tag in info), ""))]
        for name, info in names.items()
        if info["type"] == "file"
    }


def _download(files: Any, root: str, target: Path, names: list[str]) -> None:
    if not names:
        return
    (target.parent if names == [""] else target).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        parts = [Path(folder) / str(number) for number in range(len(names))]
        files.get([_key(root, name) for name in names], [str(part) for part in parts])
        for name, part in zip(names, parts, strict=True):
            with whole_file(target / name) as path:
                shutil.move(part, path)


def _copied(target: Path) -> list[Path]:
    """Return the files of a copy, which may be one file."""
    if target.is_file():
        return [target]
    return [path for path in target.rglob("*") if path.is_file() and not path.name.endswith((".part", _MANIFEST))]


def _key(root: str, name: str) -> str:
    return f"{root}/{name}" if name else root


def _note(target: Path, there: dict[str, Token]) -> None:
    known = {name: [token, _stamp(target / name)] for name, token in there.items()}
    write_json(_manifest(target), known, indent=None)


def _known(target: Path) -> dict[str, list[Any]]:
    path = _manifest(target)
    return dict(read_json(path)) if path.exists() else {}


def _manifest(target: Path) -> Path:
    return target.with_name(f".{target.name}{_MANIFEST}")


def _stamp(path: Path) -> Token | None:
    """Return what changes when a file of the copy is written; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]
