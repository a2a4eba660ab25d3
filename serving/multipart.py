"""A multipart form (RFC 7578), taken apart by searching for its delimiter."""

from collections.abc import Iterator
from dataclasses import dataclass

_MAX_HEAD = 16_384
"""Bytes of one part's headers."""
_BREAK = b"\r\n"


class MultipartError(ValueError):
    """The bytes are no such form."""


@dataclass(frozen=True)
class Part:
    """One field of a form."""

    disposition: str
    """Value of its header Content-Disposition; empty if it has none."""
    data: bytes


def split_form(body: bytes, boundary: str, max_parts: int) -> Iterator[Part]:
    """Yield the parts of a form, in order.

    Args:
        body: all of it.
        boundary: as the content type names it, not empty.
        max_parts: more are refused.

    Raises:
        MultipartError: it is malformed or cut short, or has more parts.
    """
    opening = b"--" + boundary.encode("latin-1", "replace")
    body = body.lstrip(_BREAK)
    if not body.startswith(opening):
        raise MultipartError("the multipart body is malformed: it doesn't begin with its boundary")
    pieces = body[len(opening) :].split(_BREAK + opening, max_parts + 1)
    for number, piece in enumerate(pieces):
        if piece.startswith(b"--"):
            return
        if number == max_parts:
            raise MultipartError(f"the form has more than {max_parts} parts")
        yield _part(piece)
    raise MultipartError("the multipart body is cut short")


def _part(piece: bytes) -> Part:
    """Read what stands between two delimiters: a line break, headers, an empty line, data."""
    end = piece.find(_BREAK * 2, 0, _MAX_HEAD)
    if end < 0 or not piece.startswith(_BREAK):
        raise MultipartError("the multipart body is malformed: a part has no end of its headers")
    disposition = b""
    for line in piece[len(_BREAK) : end].split(_BREAK) if end else ():
        name, colon, value = line.partition(b":")
        if not colon:
            raise MultipartError("the multipart body is malformed: a part has a header without a colon")
        if name.lower() == b"content-disposition" and not disposition:
            disposition = value.strip(b" \t")
    return Part(disposition.decode("utf-8", "replace").replace("\n", " "), piece[end + 2 * len(_BREAK) :])
