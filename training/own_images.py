"""The images that `prepare` itself writes: `images/` in the datastore's folder, and never in the place of a user's."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tailstack.errors import UserError
from tailstack.files import make_folder, read_json, write_json
from training.layouts import image_files

_MARK = ".prepared.json"
"""Lies among images that `prepare` wrote, and says how many they were."""


class OwnImages:
    """Images in the making: they lie aside until they are known to be good."""

    def __init__(self, folder: Path) -> None:
        self._aside = folder / ".prepare.part"
        self._new = self._aside / "images"
        self._target = folder / "images"

    def begin(self) -> Path:
        """Return the empty folder to write images to.

        Raises:
            UserError: `images/` has files that a user may miss.
        """
        if _may_be_missed(self._target):
            raise UserError(
                f"{self._target} has files that this command didn't write, or can't tell from your own: choose another "
                "--output, or move them away"
            )
        return make_folder(self._new)

    def keep(self, root: Path) -> Path:
        """Make what was written `images/`, and return where a folder in it is now; any other stays where it is.

        Raises:
            UserError: `images/` can't be replaced.
        """
        if not root.is_relative_to(self._new):
            return root
        write_json(self._new / _MARK, {"files": _count(self._new)})
        try:
            if self._target.exists():
                self._target.rename(self._aside / "old")
            self._new.rename(self._target)
        except OSError as error:
            raise UserError(f"{self._target} can't be replaced: {error.strerror or error}") from error
        return self._target / root.relative_to(self._new)

    def clear(self) -> None:
        """Remove what isn't kept."""
        shutil.rmtree(self._aside, ignore_errors=True)


@contextmanager
def own_images(folder: Path) -> Iterator[OwnImages]:
    """Yield the images in the making of the datastore in `folder`; nothing stays of those that aren't kept."""
    images = OwnImages(folder)
    images.clear()  # a run that was killed may have left some
    try:
        yield images
    finally:
        images.clear()


def _may_be_missed(folder: Path) -> bool:
    mark = folder / _MARK
    if folder.is_dir() and not folder.is_symlink():
        return _count(folder) > read_json(mark)["files"] if mark.is_file() else any(folder.iterdir())
    return folder.is_symlink() or folder.exists()


def _count(folder: Path) -> int:
    return sum(1 for _ in image_files(folder, folder))
