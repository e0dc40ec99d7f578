"""The table in which people label rows: what spreadsheets make of it, and what is refused."""

from __future__ import annotations

import csv
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.search.ask_table import (
    NONE,
    Given,
    Question,
    alike,
    glance,
    guide_of,
    id_of,
    is_guide,
    read_table,
    write_guide,
    write_table,
)

ALLOWED = ("good", "bad")
TEXTS = [
    "=1+1",
    "+49 30",
    "-5",
    "@home",
    "007",
    "1e5",
    "2026-11-30",
    "a\nb",
    "ä, ö; é",
    "'tis",
    "5",
]


def questions(texts: Sequence[str], allowed: Sequence[str] = ALLOWED) -> list[Question]:
    return [Question(id_of([text], "run"), {"text": text}, allowed) for text in texts]


def written(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def labelled(path: Path, **labels: str) -> None:
    """Rewrite a table of plain texts with labels, by text."""
    rows = [{**row, "label": labels.get(row["text"], "")} for row in written(path)]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "ask.csv"
    write_table(path, questions(["one", "two", "three"]), {})
    return path


ROWS = {row.id: ALLOWED for row in questions(["one", "two", "three"])}
ONE, TWO, THREE = ROWS


def test_spreadsheets_take_every_text_for_a_text(tmp_path: Path) -> None:
    path = tmp_path / "ask.csv"
    write_table(path, questions(TEXTS), {})
    raw = path.read_bytes()
    assert raw.startswith(b"\xef\xbb\xbfid,text,label,label_2,allowed\r\n")
    shown = [row["text"] for row in written(path)]
    odd = {"=1+1", "+49 30", "-5", "@home", "007", "1e5", "2026-11-30", "'tis"}
    assert shown == [f"'{text}" if text in odd else text for text in TEXTS]
    assert all(row["allowed"] == "good | bad" for row in written(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for row in written(path):  # no word, no number, no date
        assert row["id"].isalpha()
        assert not set(row["id"]) & set("aeiou")


def test_ids_are_a_runs_own() -> None:
    assert id_of(["one"], "run") != id_of(["one"], "other")
    assert id_of(["one", ""], "run") != id_of(["", "one"], "run")
    assert len({id_of([str(number)], "run") for number in range(5000)}) == 5000


def test_own_columns_with_the_names_of_the_tables(tmp_path: Path) -> None:
    path = tmp_path / "ask.csv"
    write_table(path, [Question("bcd", {"Id": "7", "label": "x"}, [str(n) for n in range(77)])], {})
    (row,) = written(path)
    assert row == {"id": "bcd", "row_Id": "7", "row_label": "x", "label": "", "label_2": "",
                   "allowed": "see ask.txt"}  # fmt: skip
    write_guide(path, ["a", "b"], "sora auto x")
    guide = guide_of(path)
    assert "Allowed labels: a, b." in guide.read_text()
    assert guide.read_text().endswith("    sora auto x\n")
    assert stat.S_IMODE(guide.stat().st_mode) == 0o600
    assert is_guide(guide)
    assert not is_guide(path)


@pytest.mark.parametrize(
    ("encoding", "separator"), [("utf-8", ","), ("utf-8-sig", ";"), ("utf-16", "\t")]
)
def test_what_spreadsheets_save_is_read(table: Path, encoding: str, separator: str) -> None:
    rows = written(table)
    for row, label in zip(rows, ["good", " BAD ", ""], strict=True):
        row["label"], row["text"] = label, "whatever"
    with table.open("w", encoding=encoding, newline="") as file:
        saved = csv.DictWriter(file, list(rows[0]), delimiter=separator)
        saved.writeheader()
        saved.writerows(reversed(rows))
    assert read_table(table, ROWS) == {ONE: ("good", ""), TWO: ("bad", ""), THREE: NONE}


def test_labels_that_were_known_stand_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "ask.csv"
    classes = ["007", "true", "-1"]
    rows = questions(["one", "two", "three"], classes)
    given: dict[str, Given] = {ONE: ("007", ""), TWO: ("true", "-1")}
    write_table(path, rows, given)
    assert read_table(path, dict.fromkeys(ROWS, classes)) == {**given, THREE: NONE}
    labelled(path, one="7", two="TRUE", three="-1.0")
    found = read_table(path, dict.fromkeys(ROWS, classes))
    assert [label for label, _ in found.values()] == ["007", "true", "-1"]
    assert glance(path)[ONE] == ("7", "")
    assert alike("007", "7")
    assert not alike("007", "")


def refusal(path: Path) -> list[str]:
    with pytest.raises(SoraError) as refused:
        read_table(path, ROWS)
    lines = refused.value.lines()
    assert len(lines) == 3
    return lines


def test_what_is_refused(table: Path) -> None:
    def changed(old: str, new: str) -> list[str]:
        text = table.read_bytes()
        table.write_bytes(text.replace(old.encode(), new.encode()))
        lines = refusal(table)
        table.write_bytes(text)
        return lines

    assert changed(f"{ONE},one,,", f"{ONE},one,maybe,")[0] == (
        "'maybe' in column 'label' is none of the labels"
    )
    assert changed(f"{TWO},two", f"{ONE},two")[0].endswith(f"has the row {ONE} twice")
    assert changed(f"{TWO},two", "bcdfgh,two")[0].endswith(
        "has a row 'bcdfgh' that this run has not asked for"
    )
    assert changed(f"{TWO},two,,,good | bad\r\n", "")[0].endswith("lacks 1 of 3 rows")
    assert changed("id,", "number,")[0].endswith("has no column 'id'")
    assert changed("label_2", "label")[0].endswith("has two columns 'label'")
    ambiguous = {ONE: ["7", "007"], TWO: ALLOWED, THREE: ALLOWED}
    table.write_bytes(table.read_bytes().replace(b",one,,", b",one,07,"))
    with pytest.raises(SoraError, match="none of the labels"):
        read_table(table, ambiguous)
