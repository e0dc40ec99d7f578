"""Text from files never gives orders to the terminal, and never stops the program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.core.boundary import guarded
from sora_cli.core.console import printable, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.table import Table, emit_table
from sora_cli.model.files import ADAPTER_CONFIG, SORA_FILE
from sora_cli.recipe.load import load_recipe
from sora_cli.run.dry_run import recipe_lines
from tests.sora_cli.adapter.test_spectra import SHAPES, write_peft


def test_what_can_not_be_printed_is_escaped() -> None:
    assert printable("é, \U0001f600 and 'x y'") == "é, \U0001f600 and 'x y'"
    assert printable("a\nb\x1b[31m\x9b\ud800\u202e") == r"a\nb\x1b[31m\x9b\ud800\u202e"
    assert printable(Path("a\udcffb")) == r"a\udcffb"


def test_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise SoraError("no '\x1b[2J'", where="x\ud800:1")

    assert guarded(fail) == 2
    assert capsys.readouterr().err == "error: no '\\x1b[2J'\n  x\\ud800:1\n"


def test_a_name_is_never_a_line_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise SoraError("no 'a\nerror: b'")

    say_notes(["x\ny"])
    say("\nfiles in a\nb/")
    emit_table(Table("[red]a\n:smile:", ["x"], [["[bold]b\nc"]]))
    assert guarded(fail) == 2
    out, err = capsys.readouterr()
    assert err == "note: x\\ny\n\nfiles in a\\nb/\nerror: no $'a\\nerror: b'\n"
    assert "[red]a\n:smile:" in out
    assert "[bold]b\\nc" in out


def test_nor_in_the_systems_errors_and_in_those_of_usage(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert guarded(lambda: Path("a\nb" * 200).read_bytes()) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert run(["inspect", "--a\nb"]) == 2
    assert capsys.readouterr().err.splitlines()[1:] == ["  try: sora inspect --help"]


def test_inspect_and_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory, other = tmp_path / "a", tmp_path / "b\x1b[2J"
    for place in (directory, other):
        write_peft(place, SHAPES)
    config = json.loads((directory / ADAPTER_CONFIG).read_text())
    config["base_model_name_or_path"] = "\x1b[2J\ud800"
    (directory / ADAPTER_CONFIG).write_text(json.dumps(config))
    lineage = [{"command": "\x1b[2J", "x": "\ud800\n"}]
    written = {"method": "\x1b[2J", "labels": ["\ud800", "b"], "task": "a\nb", "lineage": lineage}
    (directory / SORA_FILE).write_text(json.dumps(written))
    for places in ([directory], [other], [directory, other]):
        assert run(["inspect", *map(str, places)]) == 0
        _assert_clean(capsys.readouterr().out)
    assert run(["export", str(directory), "-o", str(tmp_path / "out"), "--no-verify"]) == 0
    _assert_clean(capsys.readouterr().out)


def test_dry_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = ['data.name="\\e[2J"', 'data.files={"\\e": ["\\x9b", "\\x7f"]}', "data.path=null"]
    lines = list(recipe_lines(load_recipe("quickstart", odd[:2])))
    _assert_clean("\n".join(lines))
    assert any(r'"\u001b[2J"' in line for line in lines)


def _assert_clean(text: str) -> None:
    text.encode("utf-8")
    assert all(character.isprintable() or character == "\n" for character in text)


def test_very_many_notes_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    say_notes(f"run {number}" for number in range(1000))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["note: run 0", "note: run 1"]
    assert lines[10:] == ["note: 990 more like these (all of them: --verbose)"]
