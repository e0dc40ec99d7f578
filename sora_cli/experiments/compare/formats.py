"""A comparison as text: for a terminal, Markdown and LaTeX, and with raw values for programs.

JSON, version 1:

    {"schema_version": 1,
     "baseline": "lora r=8" or null,
     "columns": {key: description with the unit},
     "rows": [{key: value}],      task null: the mean over all tasks of that label
     "captions": [{"task": "rte", "caption": "rte: accuracy x 100 on validation"}],
     "footnotes": ["..."]}

CSV has the same columns; the values of a list are separated by blanks. Numbers are in their own
units (0.8777, not 87.77). An unknown value is null in JSON, empty in CSV.
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
"""An archive of the runs instead of a table; see `archive`."""


def format_of(file: Path | None, asked: str | None) -> str:
    """Return the output format: the given one, else by the file's suffix, else "table"."""
    if asked is not None:
        if asked not in (*FORMATS, LINES):
            known = ", ".join((*FORMATS, LINES))
            raise SoraError(f"there is no format '{asked}'", hint=f"one of {known}")
        return asked
    if file is None:
        return "table"
    if file.suffix not in _SUFFIXES:
        raise SoraError(
            f"the suffix of '{file.name}' does not name a format",
            hint=f"use one of {', '.join(_SUFFIXES)}, or give --format",
        )
    return _SUFFIXES[file.suffix]


def emit_comparison(tables: Tables) -> None:
    """Print a comparison for people; line breaks in labels are escaped."""
    for table in tables.parts.values():
        columns = [replace(column, title=printable(column.title)) for column in table.columns]
        emit_table(Table(printable(table.title), columns, table.rows))
    for note in tables.footnotes:
        emit(printable(note))


def render(tables: Tables, form: str) -> str:
    """Return a comparison in one of `FORMATS`, with a final line break."""
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
