"""JSON that pyarrow's reader would end the whole process for: each is an error with its line."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pytest

from sora_cli.core.errors import SoraError
from sora_cli.data.json_lines import DEEPEST, NO_ROW, TOO_DEEP, nesting, refusing_fatal_lines
from sora_cli.data.loading import load_file, load_splits
from sora_cli.recipe.recipe import DataBlock

GOOD = '{"text": "a film", "label": 1}\n'


def _deep(levels: int) -> str:
    """A row whose lists and mappings, the row among them, are so many levels deep."""
    return f'{{"text": {"[" * (levels - 1)}1{"]" * (levels - 1)}}}\n'


@pytest.mark.parametrize(
    ("name", "content", "what", "line"),
    [
        ("a.jsonl", "null\n" * 5, NO_ROW, 1),
        ("a.jsonl", f"\ufeff \tnull\r\n{GOOD}", NO_ROW, 1),
        ("a.jsonl", f"{GOOD * 5000}null\n{GOOD}", NO_ROW, 5001),
        ("a.json", "null", NO_ROW, 1),
        ("a.json", f"[null, {GOOD}]", NO_ROW, 1),
        ("a.json", f"[{GOOD},\nnull\n]", NO_ROW, 3),
        ("a.json", f"[{GOOD}, 3]", NO_ROW, 2),
        ("a.jsonl", f"{GOOD}3\n", NO_ROW, 2),
        ("a.jsonl", "{}\n" * 3, "its rows have no columns", 1),
        ("a.json", "\n[{}, {}]", "its rows have no columns", 2),
        ("a.jsonl", GOOD + _deep(100_000), TOO_DEEP, 2),
        ("a.jsonl", _deep(DEEPEST + 1), TOO_DEEP, 1),
        ("a.json", f"[{GOOD}, {_deep(100_000)}]", TOO_DEEP, 2),
        ("a.jsonl", GOOD + '{"text": "\\ud800"}\n', "surrogates not allowed", 2),
    ],
)
def test_rows_that_are_none(tmp_path: Path, name: str, content: str, what: str, line: int) -> None:
    file = tmp_path / name
    file.write_text(content)
    with pytest.raises(SoraError) as caught:
        load_file(file, tmp_path / "cache")
    assert what in caught.value.what
    assert caught.value.where == f"{file}:{line}"


def test_in_a_directory(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(f"null\n{GOOD}")
    with pytest.raises(SoraError, match="not a row") as caught:
        load_splits(DataBlock(path=str(tmp_path)))
    assert caught.value.where == f"{tmp_path / 'train.jsonl'}:1"


def test_rows_with_nulls_and_many_levels(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(_deep(DEEPEST) + '{"text": null}\n{}\n')
    assert len(load_file(file, tmp_path / "cache").rows) == 3


def test_brackets_in_texts_are_no_levels() -> None:
    row = json.dumps({"text": "[{" * 99 + '"\\', "turns": [{"role": "user"}] * 99})
    assert nesting(row.encode()) == 3


def test_a_null_within_one_document() -> None:
    lines = json.dumps({"text": ["a", None, None]}, indent=1).encode()

    def rows(block: int) -> int:
        options = pyarrow.json.ReadOptions(block_size=block)
        with refusing_fatal_lines():
            return int(pyarrow.json.read_json(BytesIO(lines), read_options=options).num_rows)

    assert rows(len(lines)) == 1
    with pytest.raises(pa.ArrowInvalid, match="straddling"):  # the reader then takes larger blocks
        rows(20)
