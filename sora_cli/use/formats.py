"""Rows with their answers as CSV, JSON lines or Parquet, or vectors: in parts, then joined."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # type: ignore[import-untyped]
import pyarrow.parquet as pq  # type: ignore[import-untyped]
from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, shown_value
from sora_cli.data.csv_form import UTF8
from sora_cli.recipe.embedding_options import VECTOR
from sora_cli.use.source import plain_rows

VECTORS = "npy"
Answers = Mapping[str, Sequence[Any]]
"""New columns: name -> values."""


class Format:
    """An output format: the rows' own columns first, then the answers; of "npy" vectors alone.

    Attributes:
        kind: "csv", "json", "parquet" or "npy".
        header: names of the rows' own columns.
        line_end: line break of CSV and JSON lines.
        encoding: of the joined file; the parts are UTF-8.
    """

    def __init__(
        self,
        kind: str,
        header: Sequence[str],
        *,
        separator: str = ",",
        line_end: str = "\n",
        encoding: str = "utf-8",
    ) -> None:
        self.kind, self.header, self.separator = kind, list(header), separator
        self.line_end, self.encoding = line_end, encoding

    def start(self, answers: Sequence[str]) -> str:
        """Return the head of the file: the header line of CSV, otherwise ""."""
        return self._lines([[*self.header, *answers]]) if self.kind == "csv" else ""

    def part(self, rows: Dataset, answers: Answers, as_is: Iterator[Any] | None) -> bytes:
        """Return rows and answers as a part of the file.

        Args:
            as_is: iterator over the same rows as their own file holds them (007 stays 007); None
                converts the rows from their loaded values.
        """
        if self.kind == "parquet":
            return _parquet(rows, answers)
        if self.kind == VECTORS:
            return _vectors(answers)
        own = plain_rows(rows) if as_is is None else list(islice(as_is, len(rows)))
        added = zip(*answers.values(), strict=True)
        if self.kind == "csv":
            fields = (list(row.values()) if isinstance(row, dict) else row for row in own)
            cells = ([*row, *new] for row, new in zip(fields, added, strict=True))
            return self._lines(cells).encode()
        named = (dict(zip(answers, new, strict=True)) for new in added)
        lines = (_json({**row, **new}) for row, new in zip(own, named, strict=True))
        return "".join(f"{line}{self.line_end}" for line in lines).encode()

    def join(self, parts: Sequence[Path], file: Path, answers: Sequence[str]) -> str | None:
        """Join the parts into one file.

        Returns:
            A remark if an answer has a letter that the encoding lacks; None: it has all letters.
        """
        if self.kind in ("parquet", VECTORS):
            (_join_parquet if self.kind == "parquet" else _join_vectors)(parts, file)
            return None
        try:
            self._join_texts(parts, file, answers, self.encoding)
        except UnicodeEncodeError as error:
            # the byte order mark tells a spreadsheet that it is no longer the input's code page
            self._join_texts(parts, file, answers, UTF8)
            lacking = error.object[error.start]
            return (
                f"written as UTF-8 with a byte order mark: {self.encoding}, the encoding of the "
                f"input, has no {shown_value(lacking)}"
            )
        return None

    def _join_texts(
        self, parts: Sequence[Path], file: Path, answers: Sequence[str], encoding: str
    ) -> None:
        with file.open("w", encoding=encoding, newline="") as out:
            out.write(self.start(answers))
            for part in parts:
                with part.open(encoding="utf-8", newline="") as content:
                    shutil.copyfileobj(content, out)

    def _lines(self, rows: Iterable[Sequence[Any]]) -> str:
        text = io.StringIO()
        writer = csv.writer(text, delimiter=self.separator, lineterminator=self.line_end)
        writer.writerows([_cell(value) for value in row] for row in rows)
        return text.getvalue()


def _cell(value: Any) -> Any:
    """Return a value for a cell of CSV: lists and mappings as JSON."""
    return _json(value) if isinstance(value, list | dict) else value


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_as_json)


def _as_json(value: Any) -> str:
    if isinstance(value, bytes):
        raise SoraError("the rows have bytes, which a text file cannot hold",
                        hint="write Parquet: -o FILE.parquet")  # fmt: skip
    return str(value)


def check_vectors(names: Sequence[str]) -> None:
    """Raise `SoraError` unless the answers are one vector a row, as a .npy file holds them."""
    if len(names) != 1 or not names[0].endswith(VECTOR):
        raise SoraError(
            f"a .npy file holds one vector for each row, and the answers are {listed(names)}",
            hint="write Parquet: -o FILE.parquet; or give a file with the texts of one side only",
        )


def _vectors(answers: Answers) -> bytes:
    """Return a part as an array of (rows, d), float32."""
    (values,) = answers.values()
    out = io.BytesIO()
    np.save(out, np.asarray(list(values), dtype=np.float32), allow_pickle=False)
    return out.getvalue()


def _join_vectors(parts: Sequence[Path], file: Path) -> None:
    arrays = [np.lib.format.open_memmap(part, mode="r") for part in parts]
    shape = sum(map(len, arrays)), arrays[0].shape[1]
    with file.open("wb") as out:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(out, header)
        for array in arrays:
            out.write(array.tobytes())


def _parquet(rows: Dataset, answers: Answers) -> bytes:
    table = rows.with_format("arrow")[:]
    for name, values in answers.items():
        table = table.append_column(name, pa.array(list(values)))
    out = pa.BufferOutputStream()
    pq.write_table(table, out)
    content: bytes = out.getvalue().to_pybytes()
    return content


def _join_parquet(parts: Sequence[Path], file: Path) -> None:
    # a column of nulls only has another type than the same column with texts in the next part
    schemas = [pq.read_schema(part) for part in parts]
    schema = pa.unify_schemas(schemas, promote_options="permissive")
    with pq.ParquetWriter(file, schema) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part).cast(schema))
