"""Excel's exports are read as they are meant, and told; what is not plain is not guessed."""

from __future__ import annotations

from pathlib import Path

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.data.columns import read_columns
from sora_cli.data.csv_form import csv_form
from sora_cli.data.loading import load_file, load_splits
from sora_cli.data.source import resaving
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks.sequence import SequenceRegression
from sora_cli.use.source import Source
from tests.helpers_errors import refusal
from tests.helpers_first_data import EXCEL, Table, as_text, german_rows, padded, write_excel

TABLE = german_rows(12)
ROWS = [dict(zip(TABLE[0], row, strict=True)) for row in TABLE[1:]]


@pytest.mark.parametrize("kind", EXCEL)
def test_excels_exports_hold_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = write_excel(tmp_path, kind, TABLE)
    part = load_file(path)
    assert part.rows.to_list() == ROWS
    lines = path.read_bytes().decode(csv_form(path).encoding).splitlines()
    for place, row in enumerate(ROWS):
        line = int(part.origin.place(place).removeprefix(f"{path}:"))
        assert lines[line - 1].startswith(row["Bewertung"][:5].strip('"')), lines[line - 1]
    assert bool(part.origin.notes) == (kind != "utf8")  # said, unless it is the usual form


@pytest.mark.parametrize("kind", EXCEL)
def test_folders_recipes_and_predictions_read_alike(tmp_path: Path, kind: str) -> None:
    path = write_excel(tmp_path, kind, TABLE)
    (tmp_path / "folder").mkdir()
    write_excel(tmp_path / "folder", kind, TABLE).rename(tmp_path / f"folder/train{path.suffix}")
    if path.suffix == ".csv":  # `datasets` takes one kind of files in a folder
        write_excel(tmp_path / "folder", "utf8", TABLE).rename(tmp_path / "folder/test.csv")
    for block in (
        DataBlock(path=str(tmp_path / "folder")),
        DataBlock.model_validate({"files": {"train": [str(path)]}}),
    ):
        splits = load_splits(block)
        assert [part.rows.to_list() for part in splits.values()] == [ROWS] * len(splits)
        assert bool(splits["train"].origin.notes) == (kind != "utf8")
    source = Source(path, tmp_path / "scratch")
    assert list(source.as_they_stand("csv", 0) or ()) == TABLE[1:]


def test_files_of_a_split_may_have_different_forms(tmp_path: Path) -> None:
    paths = [str(write_excel(tmp_path, kind, TABLE)) for kind in EXCEL]
    files = load_splits(DataBlock.model_validate({"files": {"train": paths}}))["train"]
    assert files.rows.to_list() == ROWS * len(EXCEL)
    assert files.origin.place(len(ROWS)).startswith(f"{paths[1]}:2")
    assert len(files.origin.notes) == len(EXCEL) - 1


def test_numbers_stay_whole_beside_empty_lines(tmp_path: Path) -> None:
    table: Table = [["text", "label"], ["one", "0"], ["two", "1"]]
    (tmp_path / "a.csv").write_text(as_text(padded(table, empty=3)))
    part = load_file(tmp_path / "a.csv")
    assert part.rows["label"][:] == [0, 1]
    assert "3 empty lines left out" in part.origin.notes[0]


TITLE = "Umfrage 2024, Köln"


@pytest.mark.parametrize(
    ("text", "header"),
    [
        (f"{TITLE}\n\ntext;label\na, b;x\nc;y\n", ["text", "label"]),
        (f'"{TITLE}",\n,\ntext,label\n"a, b",x\nc,y\n', ["text", "label"]),
        (f"sep=;\n{TITLE};\nStand: Mai;\n;\ntext;label\na, b;x\nc;y\n", ["text", "label"]),
        (f"{TITLE}||\ntext|label|n\na, b; c|x|1\n", ["text", "label", "n"]),
        # these are no titles
        ("text;label\n\na, b;x\nc, d;y\n", ["text", "label"]),
        ("text\na\n\nb\n", ["text"]),
        ("text\na; b\nc\n", ["text"]),
        ("text,label\na,x\nb\n", ["text", "label"]),
        ("text,label\na,x\nb\n\nc; d,y\n", ["text", "label"]),
        (",text\n0,a\n1,b\n", ["", "text"]),
    ],
)
def test_a_title_is_not_the_header(tmp_path: Path, text: str, header: list[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    part = load_file(path)
    assert [name.replace("Unnamed: 0", "") for name in part.rows.column_names] == header
    assert any("title" in note for note in part.origin.notes) == (TITLE in text)


def test_a_title_that_is_not_plain_is_an_error_or_told(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for table in ("text,label\na,x\n", "text;label\na, b;x\nc;y\n"):
        path.write_text(f"Umfrage 2024\n{table}", encoding="utf-8")
        with refusal():
            load_file(path)
    padded_two = "Umfrage,\ntext,label\na,x\n"
    two_texts = "Umfrage,Stand: Mai,\ntext,label,date\na,x,1\n"
    for text in (padded_two, two_texts, "Umfrage 2024\n\ntext\na\n"):
        path.write_text(text)
        (note,) = load_file(path).origin.notes
        assert "a.csv:1 is taken as the header" in note
        assert "if it is a title, take it out" in note


@pytest.mark.parametrize(
    ("text", "encoding", "is_western"),
    [
        ("Größe, Straße, „Tür“ zu 5 €, nur", "cp1252", True),
        ("Le château était déjà fermé, l'été, où ça; cœur", "cp1252", True),
        ("Señor, ¿qué tal? ¡Está aquí mañana!", "cp1252", True),
        ("Før vi går på øen, å, æ", "cp1252", True),
        ("Привет, всё хорошо", "cp1251", False),
        ("Καλημέρα", "cp1253", False),
        ("Zażółć gęślą jaźń, był sobie król", "cp1250", False),
        ("Příliš žluťoučký kůň, velký", "cp1250", False),
        ("Bu çok güzel bir şey, değil mi", "cp1254", False),
        ("很好,满意", "gbk", False),
        ("とても良い", "shift_jis", False),
        ("Die Tür war schön und groß", "cp850", False),
        ("Die Tür war schön und groß", "mac_roman", False),
    ],
)
def test_only_western_texts_are_taken_for_western(
    tmp_path: Path, text: str, encoding: str, is_western: bool
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(f'text,label\n"{text}",x\n'.encode(encoding))
    if is_western:
        assert load_file(path).rows["text"][:] == [text]
        return
    with refusal():
        load_file(path)


def test_decimal_commas_are_numbers(tmp_path: Path) -> None:
    rows = load_file(write_excel(tmp_path, "ansi", german_rows(60))).rows
    assert read_columns(rows)["Preis"].kind == "number"
    task = SequenceRegression(
        TaskBlock.model_validate({"name": "sequence-regression"}),
        DataBlock(path="x", label_column="Preis", text_columns=["Bewertung"]),
    )
    assert task.encode_labels(["3,5", "-1", "12,25"]) == [3.5, -1.0, 12.25]
    with pytest.raises(SoraError, match="not all numbers: '1,234'"):
        task.encode_labels(["1,234", "5"])  # maybe 1234


@pytest.mark.parametrize(
    ("name", "hint"), [("a.xlsx", "save it as CSV UTF-8"), ("a b.txt", "mv 'a b.txt' 'a b.tsv'")]
)
def test_tables_in_other_files(name: str, hint: str) -> None:
    assert hint in str(resaving(Path(name)))
