"""The file and line that a row stands in, for every kind of file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.data.places import Origin, RowError, locating
from sora_cli.data.rows import Rows, load_rows
from sora_cli.recipe.recipe import DataBlock
from tests.helpers_runs import write_glue

HEADER = "text,label\n"


def _rows(folder: Path, content: dict[str, str | bytes], **data: Any) -> Rows:
    """Rows of files whose names begin with their split."""
    files: dict[str, list[str]] = {}
    for name, text in content.items():
        (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
        files.setdefault(name.partition("-")[0].partition(".")[0], []).append(str(folder / name))
    return load_rows(DataBlock.model_validate({"files": files, **data}))


def _places(rows: Rows, part: Dataset, folder: Path) -> dict[str, str]:
    """Text of each row -> where it is said to stand."""
    origin = rows.origin(part)
    return {
        text: origin.place(i).replace(f"{folder}/", "").partition(",")[0]
        for i, text in enumerate(part["text"])
    }


OK = f"{HEADER}a,0\nb,1\n"


@pytest.mark.parametrize(
    ("name", "content", "lines"),
    [
        ("train.csv", f"{HEADER}a,0\nb,1\n", {"a": 2, "b": 3}),
        ("train.csv", f'\n{HEADER}\n"a\nx\n",0\n\n"b, ""c""",1\nd,1\n',
         {"a\nx\n": 4, 'b, "c"': 8, "d": 9}),
        ("train.csv", f"\ufeff{HEADER}a,0\r\n".replace("\n", "\r\n"), {"a": 2}),
        ("train.csv", f"{HEADER}{'a' * 200_000},0\nb,1\n", {"a" * 200_000: 2, "b": 3}),
        ("train.csv", 'text\na\n""\n\nb\n', {"a": 2, None: 3, "b": 5}),
        ("train.jsonl", '{"text": "a"}\n\n{"text": "b"}\n', {"a": 1, "b": 3}),
        ("train.json", '[\n {"text": "a",\n  "n": [1, 2]},\n\n {"text": "b"}, {"text": "c"}]\n',
         {"a": 2, "b": 5, "c": 5}),
    ],
)  # fmt: skip
def test_lines(tmp_path: Path, name: str, content: str, lines: dict[str | None, int]) -> None:
    rows = _rows(tmp_path, {name: content, "validation.csv": OK})
    assert _places(rows, rows.train, tmp_path) == {t: f"{name}:{n}" for t, n in lines.items()}


def test_files_without_lines_name_the_row(tmp_path: Path) -> None:
    for number in (1, 2):
        Dataset.from_dict({"text": ["a", "b"]}).to_parquet(str(tmp_path / f"{number}.parquet"))
    files = {"train": ["1.parquet", "2.parquet"], "validation": ["2.parquet"]}
    named = {split: [str(tmp_path / name) for name in own] for split, own in files.items()}
    origin = (rows := load_rows(DataBlock.model_validate({"files": named}))).origin(rows.train)
    assert origin.place(2) == f"{tmp_path}/2.parquet, row 0 (counted from 0), split 'train'"


@pytest.mark.parametrize("selection", ["validation", "half-validation", "train-rows"])
def test_rows_drawn_from_several_files_keep_their_lines(tmp_path: Path, selection: str) -> None:
    parts = {
        f"{split}-{part}.csv": HEADER + "".join(f"{split} {part} {i},{i % 2}\n" for i in range(9))
        for split in ("train", "validation")
        for part in "xy"
    }
    block = {"selection": selection, "selection_rows": 5, "max_validation_rows": 4}
    rows = _rows(tmp_path, parts, max_train_rows=12, **block)
    for part in (rows.train, rows.select, rows.report["validation"]):
        for text, place in _places(rows, part, tmp_path).items():
            split, file, number = text.split()
            assert place == f"{split}-{file}.csv:{int(number) + 2}"


def test_rows_of_a_directory(tmp_path: Path) -> None:
    folder = write_glue(tmp_path / "glue", rows=4, tasks=("rte",))
    rows = load_rows(DataBlock(path=str(folder), name="rte"))
    place = rows.origin(rows.select).place(3)
    assert place.endswith("validation-00000-of-00001.parquet, row 3 (counted from 0), "
                          "split 'validation'")  # fmt: skip
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "validation"):
        (other / f"{split}.csv").write_text(OK)
    rows = load_rows(DataBlock(path=str(other)))
    assert rows.origin(rows.train).place(1) == f"{other}/train.csv:3, split 'train'"


def test_rows_of_no_file_have_a_number() -> None:
    rows = load_rows(DataBlock(path="builtin://entailment"))
    assert rows.origin(rows.train).place(7) == "row 7 (counted from 0), split 'train'"
    with pytest.raises(RowError) as caught, locating(rows.origin(rows.train)):
        raise RowError("no column 'a'", where="there are: b")
    assert caught.value.lines() == ["no column 'a'", "split 'train'; there are: b"]


@pytest.mark.parametrize("directory", [False, True])
def test_words_for_nothing_are_texts_and_an_empty_cell_is_missing(
    tmp_path: Path, directory: bool
) -> None:
    words = ["NA", "None", "null", "nan", "N/A", "a"]
    content = HEADER + "".join(f"{word},{i}\n" for i, word in enumerate(words)) + ",1\n"
    rows = _rows(tmp_path, {"train.csv": content, "validation.csv": content})
    if directory:
        rows = load_rows(DataBlock(path=str(tmp_path)))
    assert rows.train["text"][:] == [*words, None]


def test_columns_of_one_name_are_told(tmp_path: Path) -> None:
    twice = "text,label,text\na,0,b\nc,1,d\n"
    rows = _rows(tmp_path, {"train.csv": OK, "validation.csv": twice})
    (note,) = rows.notes
    assert note.endswith("validation.csv:1 has 2 columns called 'text' (1, 3): only the "
                         "first keeps this name")  # fmt: skip
    assert rows.select["text"][:] == ["a", "c"]


@pytest.mark.parametrize(
    ("content", "says", "hint"),
    [
        (f"{HEADER}a,0,\nb,1,\n", "3 fields, but the header has 2", "at the ends of the lines"),
        (f"{HEADER}a,b,0\nb,c,1\n", "3 fields, but the header has 2", "into quotes"),
        ("text;label\na;b;0\n", "3 fields, but the header has 2", "into quotes"),
    ],
)
def test_a_first_row_wider_than_the_header(
    tmp_path: Path, content: str, says: str, hint: str
) -> None:
    """pandas takes the first column of such a file for an index, and moves all others."""
    with pytest.raises(Exception, match=says) as caught:
        _rows(tmp_path, {"train.csv": OK, "validation.csv": content})
    lines = str(caught.value).splitlines()
    assert lines[1].endswith("validation.csv:2, split 'validation'")
    assert hint in lines[2]


@pytest.mark.parametrize(
    ("content", "says", "place"),
    [
        (["text,label\na,0\n", "text,kind\na,0\n"], "it has no column 'label', unlike ", "1.csv:1"),
        (["text,label\na,0\n", "text,label\na,0\nb,x\n"],
         "'x' stands in a column of whole numbers", "1.csv:3"),
        (['{"text": "a", "text": "b"}\n'], "the key 'text' occurs twice", "0.jsonl:1"),
        (['[{"text": "{"},\n'], "not valid JSON", "0.json:"),
    ],
)  # fmt: skip
def test_what_a_reader_does_not_tell(
    tmp_path: Path, content: list[str], says: str, place: str
) -> None:
    ending = place.partition(":")[0].partition(".")[2]
    files = {f"validation-{i}.{ending}": text for i, text in enumerate(content)}
    with pytest.raises(Exception, match=r"data\.files\.validation cannot be read") as caught:
        _rows(tmp_path, {"train.csv": OK, **files})
    assert says in str(caught.value)
    assert f"validation-{place}" in str(caught.value)


@pytest.mark.parametrize(
    ("train", "validation", "says"),
    [
        ({"a.csv": "text,label\na,0\n"}, {"b.csv": "text, label\na,0\n"}, "b.csv:1\n"),
        ({"a.jsonl": '{"tags": [0]}\n'}, {"b.jsonl": '{"tags": ["x"]}\n'},
         "'x' stands in a column of whole numbers"),
        ({"a.csv": "text,label\n"}, {"b.csv": OK}, "split 'train' holds no rows"),
    ],
)  # fmt: skip
def test_splits_of_a_directory_that_do_not_fit(
    tmp_path: Path, train: dict[str, str], validation: dict[str, str], says: str
) -> None:
    for split, files in (("train", train), ("validation", validation)):
        (tmp_path / split).mkdir()
        for name, text in files.items():
            (tmp_path / split / name).write_text(text)
    with pytest.raises(SoraError) as caught:
        load_rows(DataBlock(path=str(tmp_path)))
    assert says in f"{caught.value}\n"


def test_rows_that_share_a_line_have_a_number(tmp_path: Path) -> None:
    content = '[{"text": "a"}, {"text": "b"}]'
    rows = _rows(tmp_path, {"train.json": content, "validation.csv": OK})
    place = rows.origin(rows.train).place(1)
    assert place.endswith("train.json:1, row 1 (counted from 0), split 'train'")


def test_json_rows_are_read_as_python_reads_them(tmp_path: Path) -> None:
    made = [{"text": f"[{i}], {{", "label": i % 2} for i in range(5)]
    content = json.dumps(made, indent=1)
    rows = _rows(tmp_path, {"train.json": content, "validation.csv": OK})
    assert rows.train.to_list() == made
    assert list(_places(rows, rows.train, tmp_path).values()) == [
        f"train.json:{2 + 4 * i}" for i in range(5)
    ]


def test_a_newline_in_a_name_stays_in_its_line(tmp_path: Path) -> None:
    file = tmp_path / "a\nb.csv"
    file.write_text(OK)
    with pytest.raises(RowError) as caught, locating(Origin("train", (file,), 2)):
        raise RowError("no label", 1, where="classes: 'x'", hint="put it right")
    what, where, hint = caught.value.lines()
    assert where == f"{tmp_path}/a\\nb.csv:3, split 'train'; classes: 'x'"
    assert "\n" not in what + hint
