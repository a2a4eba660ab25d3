"""Tables of Markdown, as all reports have them."""

from collections.abc import Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], align: str = "l") -> str:
    """Return a table; `align` has an l (text) or r (number) for each of the first columns, the rest are numbers.

    Cells are Markdown, but for `|`: a class may be named anything.
    """
    rule = ["---" if letter == "l" else "---:" for letter in align.ljust(len(header), "r")]
    lines = ([text.replace("|", "\\|") for text in line] for line in [header, rule, *rows])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
