"""Tables of Markdown, as a reader of Markdown sees them."""

from itertools import pairwise

from markdown_it import MarkdownIt

from benchmarks.report import table as titled
from tailstack.markdown import table

_OPEN = {"th_open", "td_open"}


def cells(text: str) -> list[str]:
    """Return the text of each cell of a page's tables."""
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(text)
    return [token.content for before, token in pairwise(tokens) if before.type in _OPEN]


def test_a_class_may_be_named_with_a_bar() -> None:
    text = table(("class", "a|b"), [("x|y", "1")])
    assert cells(text) == ["class", "a|b", "x|y", "1"]
    assert cells(titled(("", "images"), [("x|y", "1")], "Classes")) == ["", "images", "x|y", "1"]


def test_the_first_column_is_text_and_the_others_are_numbers_unless_the_table_says_otherwise() -> None:
    assert table(("a", "b", "c"), []).splitlines()[1] == "| --- | ---: | ---: |"
    assert table(("a", "b", "c"), [], "lr").splitlines()[1] == "| --- | ---: | ---: |"
    assert table(("a", "b", "c"), [], "lrl").splitlines()[1] == "| --- | ---: | --- |"
