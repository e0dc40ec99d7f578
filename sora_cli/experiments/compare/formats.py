"""A comparison as text: for a terminal, for Markdown and LaTeX, and raw for programs.

JSON, version 1:

    {"schema_version": 1,
     "baseline": "lora r=8" or null,
     "columns": {key: what it holds and in which unit},
     "rows": [{key: value}],      task null: the mean over all tasks of that label
     "captions": [{"task": "rte", "caption": "rte: accuracy x 100 on validation"}],
     "footnotes": ["..."]}

CSV has the same columns, lists with blanks between the values. Both hold numbers in their own units
(0.8777, not 87.77); what is not known is null, or empty.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sora_cli.core.console import emit, printable
from sora_cli.core.errors import SoraError
from sora_cli.core.markdown import escaped
from sora_cli.core.table import Table, csv_text, emit_table, finite, latex, latex_text, markdown
from sora_cli.experiments.compare.archive import SUFFIX
from sora_cli.experiments.compare.table import Tables

SCHEMA_VERSION = 1
LINES = "jsonl"
"""The runs themselves instead of a table of them; see `archive`."""


def format_of(file: Path | None, asked: str | None) -> str:
    """Return the format to write: the one asked for, else that of the file's suffix, else "table".

    Raises:
        SoraError: there is no such format, or the suffix stands for none.
    """
    if asked is not None:
        if asked not in (*FORMATS, LINES):
            known = ", ".join((*FORMATS, LINES))
            raise SoraError(f"there is no format '{asked}'", hint=f"one of {known}")
        return asked
    if file is None:
        return "table"
    if file.suffix not in _SUFFIXES:
        raise SoraError(
            f"the suffix of '{file.name}' stands for no format",
            hint=f"name it {', '.join(_SUFFIXES)}, or give --format",
        )
    return _SUFFIXES[file.suffix]


def emit_comparison(tables: Tables) -> None:
    """Print a comparison for people; labels in titles are printed on one line."""
    for table in tables.parts.values():
        columns = [replace(column, title=printable(column.title)) for column in table.columns]
        emit_table(Table(printable(table.title), columns, table.rows))
    for note in tables.footnotes:
        emit(printable(note))


def render(tables: Tables, form: str) -> str:
    """Return a comparison in one of `FORMATS`, ending in a new line."""
    return FORMATS[form](tables)


def _terminal(tables: Tables) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        emit_comparison(tables)
    return text.getvalue()


def _markdown(tables: Tables) -> str:
    parts = [*map(markdown, tables.parts.values()), *map(escaped, tables.footnotes)]
    return "\n\n".join(parts) + "\n"


def _latex(tables: Tables) -> str:
    notes = (f"\\par{{\\footnotesize {latex_text(note)}\\par}}" for note in tables.footnotes)
    return "\n".join([latex(tuple(tables.parts.values())), *notes]) + "\n"


def _csv(tables: Tables) -> str:
    return csv_text(tuple(tables.parts.values()))


def _json(tables: Tables) -> str:
    data = {
        "schema_version": SCHEMA_VERSION,
        "baseline": tables.baseline,
        "columns": {column.key: column.about for column in tables.columns},
        "rows": [
            {key: finite(value) for key, value in record.items()}
            for table in tables.parts.values()
            for record in table.records()
        ],
        "captions": [{tables.by: n, "caption": t.title} for n, t in tables.parts.items()],
        "footnotes": list(tables.footnotes),
    }
    return json.dumps(data, indent=2) + "\n"


FORMATS: dict[str, Callable[[Tables], str]] = {
    "table": _terminal,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "json": _json,
}
_SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".json": "json", ".txt": "table",
             SUFFIX: LINES}  # fmt: skip
