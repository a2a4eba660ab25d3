"""Progress bars of the commands: drawn in a terminal, absent from logs and pipes."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track as rich_track

T = TypeVar("T")


def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Yield `items`, with a bar that says how many of `total` are done and how long the rest takes."""
    console = Console(stderr=True)
    yield from rich_track(items, title, total, console=console, transient=True, disable=not console.is_terminal)
