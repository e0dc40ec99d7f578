"""Every `sora` command that the documentation names exists, with the options it is given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sora_cli.app import ANYWHERE, COMMANDS
from sora_cli.core.removed import removed_flag
from sora_cli.recipe.families import task_names
from tests.docs.pages import DOCS, PAGES, blocks, code_spans, name_of
from tools.reference.commands import commands, option_names

OPTIONS = {name: option_names(command) | ANYWHERE for name, command in commands()}
_COMMAND = re.compile(r"(?:^|[;&|(] *|\$ |: )(?:[A-Z_]+=\S+ +)*sora ([^;&|>)\n]*)", re.MULTILINE)
_OPTION = re.compile(r"(?<!\S)--?[a-zA-Z][\w-]*")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    for given, certain in _commands(page):
        words = given.split()
        name = find_command(words)
        if name is None:
            assert not certain, f"sora {given}: no such command"
            continue
        for option in _OPTION.findall(" ".join(words)):
            if page.name == "CHANGELOG.md" and removed_flag(name, option):
                continue
            assert option in OPTIONS[name], f"sora {given}: {name} has no {option}"


def test_index_has_every_command_and_task() -> None:
    spans = list(code_spans(DOCS / "index.md"))
    named = {words[1] for span in spans if (words := span.split())[0] == "sora" and len(words) > 1}
    assert set(COMMANDS) <= named
    assert set(task_names()) <= set(spans)


def _commands(page: Path) -> Iterator[tuple[str, bool]]:
    """Yield the words after `sora`, and True if they can only be a command.

    In the output of a program a line may begin with "sora", the method.
    """
    for block in blocks(page):
        text = re.sub(r" #.*", "", block.text.replace("\\\n", " "))
        if block.language in ("sh", "text"):
            yield from ((found, block.language == "sh") for found in _COMMAND.findall(text))
    for span in code_spans(page):
        yield from ((found, True) for found in _COMMAND.findall(span))


def find_command(words: list[str]) -> str | None:
    """Return the longest command name at the beginning of the words."""
    names = (" ".join(["sora", *words[:count]]) for count in (2, 1))
    found = next((name for name in names if name in OPTIONS), None)
    if found is None and (not words or words[0].startswith("-") or words[0].isupper()):
        return "sora"
    return found
