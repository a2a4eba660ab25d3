"""The commands that README.md and demo.sh tell a user to type are ones that there are."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from training import __main__ as module

ROOT = Path(__file__).parents[1]


def commands() -> list[str]:
    """Return every `python -m training …` of the documents, on one line, without repetitions."""
    found: list[str] = []
    for name in ("README.md", "demo.sh"):
        text = (ROOT / name).read_text(encoding="utf-8").replace("\\\n", " ")
        found += re.findall(r"^(?:    |say )python -m training (.+)$", text, flags=re.MULTILINE)
    return sorted(set(found))


def test_the_documents_show_every_command() -> None:
    shown = {line.split()[0] for line in commands()}
    assert shown >= {"prepare", "fit", "compare", "sweep"}


@pytest.mark.parametrize("line", commands())
def test_the_parser_knows_every_flag_that_is_shown(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    for name, (parser, _, summary) in module._COMMANDS.items():
        monkeypatch.setitem(module._COMMANDS, name, (parser, lambda *_, name=name: called.append(name), summary))
    words = shlex.split(line)
    monkeypatch.setattr(sys, "argv", ["training", *words])
    module.main()
    assert called == words[:1]
