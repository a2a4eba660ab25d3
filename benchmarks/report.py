"""Figures as a page of Markdown: the same text in the terminal and in the file."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markdown import Markdown

from tailstack import markdown

COLUMNS = 120
"""Of a page, at least: in fewer, rich cuts the figures of its tables short."""
IDLE = 0.1
"""Cores that others may take without a word of warning."""


def machine_line(report: Mapping[str, Any]) -> str:
    """Return what the figures were measured on, with a warning where others took the cores meanwhile."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items() if name != "onnxruntime")
    threads = f", {machine['threads']} thread(s)" if machine["threads"] else ""
    text = (
        f"{machine['provider']}{threads}; {machine['cpu']}, {machine['cores']} core(s), "
        f"{machine['memory_gib']} GiB; {machine['versions']['onnxruntime']}, {versions}; {machine['system']}."
    )
    if machine["cores_of_others"] > IDLE:
        text += (
            f"\n\n**Other processes took {machine['cores_of_others']} core(s) during the measurement: "
            "don't trust its latencies.**"
        )
    return text


def cell(value: float | None, form: str) -> str:
    """Return a figure as text, by a format such as `.1f`; a dash where there is none."""
    return "-" if value is None else format(value, form)


def show(page: str) -> None:
    """Print a page of Markdown."""
    Console(width=max(Console().width, COLUMNS)).print(Markdown(page))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str) -> str:
    """Return a headline and a table, whose first column is text and whose others are figures."""
    return f"## {title}\n\n{markdown.table(header, rows)}"
