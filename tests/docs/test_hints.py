"""Every `sora` command that the program's own texts name exists, with the options it is given."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from sora_cli.core.removed import removed_flag
from tests.docs.test_commands import OPTIONS, find_command
from tests.shared_files import ROOT

FILES = sorted((ROOT / "sora_cli").rglob("*.py"))
_COMMAND = re.compile(r"(?<![\w/.-])sora (?=[a-z-])((?:(?!\bsora\b)[^;:,()`\n])*)")
_OPTION = re.compile(r"(?<!\S)--?[a-zA-Z][\w-]*")
NO_NAMES = (
    "option",
    "chosen[0]",
    "layout",
    "VLLM_RANKS[-1]",
    "cut['max_params']",
    "cut.max_params",
)
"""Values in commands that are no names of files: options and numbers."""
PROSE = ("wrote", "recipe")
"""Words after "sora", the program's name, that begin no command."""


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each string, f-strings included; no docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    inside: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
        elif isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in node.values}
            yield node.lineno, "".join(map(_part, node.values))
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield node.lineno, node.value


def _part(node: ast.expr) -> str:
    """Return a part of an f-string: X for a word that is quoted as shells need it, else <...>."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.FormattedValue)
    inner = ast.unparse(node.value)
    return "X" if inner.startswith("quote(") or inner in NO_NAMES else f"<{inner}>"


def test_commands_exist() -> None:
    found = 0
    for file in FILES:
        for line, text in _texts(file):
            for given in _COMMAND.findall(text):
                place = f"{file.relative_to(ROOT)}:{line}: sora {given}"
                words = given.split()
                if words[0] in PROSE:
                    continue
                name = find_command(words)
                assert name is not None, f"{place}: there is no such command"
                for option in _OPTION.findall(given):
                    if file.stem == "removed" and removed_flag(name, option):
                        continue
                    assert option in OPTIONS[name], f"{place}: there is no option {option}"
                assert "<" not in given, f"{place}: a name with a space breaks it; quote(...)"
                found += 1
    assert found > 40  # the expression still finds them


def test_names_in_commands_are_quoted_by_one_function() -> None:
    """`shlex.quote` alone would print a name that begins with a dash as an option."""
    for file in FILES:
        if file != ROOT / "sora_cli" / "core" / "shell.py":
            assert not re.search(r"shlex(\.| import .*)\bquote", file.read_text("utf-8")), file
