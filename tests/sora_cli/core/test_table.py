"""Tables: what is shown, what is raw, and how columns are aligned; `compare` tests the rest."""

from __future__ import annotations

import pytest

from sora_cli.core.console import count
from sora_cli.core.table import Cell, Column, Table, csv_text, emit_table, latex, markdown

TABLE = Table(
    "sizes of a|b",
    [Column("size", key="size"), Column("kind", left=True, key="kind"),
     Column("parameters", count, key="parameters"), Column("drop", "+.2f", "-", key="drop"),
     Column("seeds", key="seeds", raw_only=True)],
    [("whole", "x", 12345, None, [0, 1]), ("half", None, 6000, Cell(0.5, "0.50 ± 0.10"), [2])],
    footer=("all", None, 18345, 0.125, None),
)  # fmt: skip


def test_people_read_texts_and_programs_raw_values() -> None:
    assert [TABLE.shown(row) for row in TABLE.rows] == [
        ["whole", "x", "12,345", "-"], ["half", "", "6,000", "0.50 ± 0.10"],
    ]  # fmt: skip
    assert TABLE.records()[1] == {
        "size": "half", "kind": None, "parameters": 6000, "drop": 0.5, "seeds": [2],
    }  # fmt: skip
    assert csv_text([TABLE]).splitlines()[:2] == [
        "size,kind,parameters,drop,seeds", "whole,x,12345,,0 1",
    ]  # fmt: skip


def test_a_row_has_a_value_for_each_column() -> None:
    with pytest.raises(ValueError, match="shorter"):
        TABLE.shown(("whole", "x"))


def test_columns_that_show_nothing_are_left_out() -> None:
    table = Table(None, ["run", "score", Column("time", count)], [("", None, 5), ("a", None, None)])
    assert [column.title for column in table.without_empty().columns] == ["run", "time"]
    assert table.without_empty().rows == (("", 5), ("a", None))


def test_alignment_and_titles() -> None:
    assert markdown(TABLE).splitlines()[:4] == [
        r"**sizes of a\|b**", "", "| size | kind | parameters | drop |",
        "| --- | --- | ---: | ---: |",
    ]  # fmt: skip
    assert markdown(Table(None, ["a"], [])) == "| a |\n| --- |"
    assert r"\begin{tabular}{llrr}" in latex([TABLE])


def test_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    emit_table(TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [line.rstrip() for line in lines]
    assert lines[2] == "  size    kind   parameters          drop"
    assert lines[4:6] == [
        "  whole   x          12,345             -", "  half                6,000   0.50 ± 0.10",
    ]  # fmt: skip
    assert lines[7] == "  all                18,345         +0.12"
