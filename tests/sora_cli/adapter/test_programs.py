"""The table of programs: nothing but its rows decides, and each row can be judged."""

from __future__ import annotations

import ast
from typing import get_args

import pytest

from sora_cli.adapter.programs import PROGRAMS, SERVERS, Program, program
from sora_cli.recipe.auto import Serve
from tests.shared_files import ROOT

NAMES = {known.name.lower() for known in PROGRAMS}


def compared(tree: ast.AST) -> set[str]:
    """The texts that code compares with something, or looks up in a mapping."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            found += [node.left, *node.comparators]
        elif isinstance(node, ast.Subscript):
            found.append(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            found += node.args if node.func.attr == "get" else []
    return {e.value for e in found if isinstance(e, ast.Constant) and isinstance(e.value, str)}


def test_no_program_s_name_decides_outside_the_table() -> None:
    for file in sorted((ROOT / "sora_cli").rglob("*.py")):
        words = {word.lower() for word in compared(ast.parse(file.read_text(encoding="utf-8")))}
        assert not NAMES - {"peft", "transformers"} & words, file


def test_the_servers_of_auto_are_in_the_table() -> None:
    for name in get_args(Serve):
        server = program(name)
        assert server.many
        assert server.step_name


@pytest.mark.parametrize("known", PROGRAMS, ids=lambda known: known.name)
def test_rows_are_whole(known: Program) -> None:
    assert known.version
    assert known.source
    assert known.command or known.then
    assert bool(known.many) == bool(known.item and known.request)
    assert bool(known.merged) == (known in SERVERS)
    assert list(known.steps) == sorted(known.steps)
    assert (known.strength == "module") == (known.takes != "pairs")
