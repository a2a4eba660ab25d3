"""Zips of images, which may be damaged, encrypted, or hold one file twice."""

import lzma
import zipfile
import zlib
from pathlib import Path

from tailstack.errors import UserError
from tailstack.progress import track

_FAILURES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError)
"""What `zipfile` raises on damaged data, by its place and the way of compression; the last on a name in its index."""


def extract(path: Path, target: Path) -> None:
    """Unpack a zip into the empty folder `target`; absolute names, and those with `..`, lead into it too.

    Raises:
        UserError: it is damaged or encrypted, it has two files for one place, or they can't be written.
    """
    at = "its index"
    written: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in track(members, f"Extracting {path.name}", len(members)):
                at = member.filename
                if member.flag_bits & 1:
                    raise UserError(f"{path} is encrypted: unpack it and give the folder")
                file = archive.extract(member, target)
                if file in written:
                    raise UserError(f"{path} has two files for {at}: unpack it, choose one, and give the folder")
                if not member.is_dir():
                    written.add(file)
    except _FAILURES as error:
        raise UserError(f"{path} can't be extracted, at {at}: {str(error) or 'it ends too early'}") from error
