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
import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sora_cli.core.console import emit, emit_table, printable
from sora_cli.core.errors import SoraError
from sora_cli.core.markdown import escaped
from sora_cli.experiments.compare.archive import SUFFIX
from sora_cli.experiments.compare.cells import Raw
from sora_cli.experiments.compare.table import Row, Section, Table

SCHEMA_VERSION = 1
LINES = "jsonl"
"""The runs themselves instead of a table of them; see `archive`."""
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "\N{EN DASH}": "--", "\N{MULTIPLICATION SIGN}": r"$\times$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


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


def emit_comparison(table: Table) -> None:
    """Print a comparison for people."""
    titles = [printable(column.title) for column in table.shown_columns]
    for section in table.sections():
        rows = [_shown(table, row) for row in section.rows]
        emit_table(printable(section.caption), titles, rows)
    for note in table.footnotes:
        emit(printable(note))


def render(table: Table, form: str) -> str:
    """Return a comparison in one of `FORMATS`, ending in a new line."""
    return FORMATS[form](table)


def _terminal(table: Table) -> str:
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        emit_comparison(table)
    return text.getvalue()


def _shown(table: Table, row: Row) -> list[str]:
    return [printable(row.cells[column.key].shown) for column in table.shown_columns]


def _markdown(table: Table) -> str:
    parts = [_markdown_section(table, section) for section in table.sections()]
    parts += [escaped(note) for note in table.footnotes]
    return "\n\n".join(parts) + "\n"


def _markdown_section(table: Table, section: Section) -> str:
    titles = [escaped(column.title) for column in table.shown_columns]
    lines = [
        f"**{escaped(section.caption)}**",
        "",
        _markdown_row(titles),
        _markdown_row(["---", *["---:"] * (len(titles) - 1)]),
    ]
    lines += [_markdown_row([escaped(word) for word in _shown(table, row)]) for row in section.rows]
    return "\n".join(lines)


def _markdown_row(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


def _latex(table: Table) -> str:
    columns = table.shown_columns
    lines = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}"]
    lines += [r"\toprule", _latex_row([column.title for column in columns])]
    for section in table.sections():
        caption = _latex_text(section.caption)
        lines += [
            r"\midrule",
            f"\\multicolumn{{{len(columns)}}}{{l}}{{\\textit{{{caption}}}}} \\\\",
        ]
        lines += [_latex_row(_shown(table, row)) for row in section.rows]
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [f"\\par{{\\footnotesize {_latex_text(note)}\\par}}" for note in table.footnotes]
    return "\n".join(lines) + "\n"


def _latex_row(words: Sequence[str]) -> str:
    # a bracket or star right after the last row's \\ would be read as its option
    return f"{{}}{' & '.join(_latex_text(word) for word in words)} \\\\"


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in printable(text))


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.key for column in table.columns])
    for row in table.rows:
        writer.writerow([_csv_value(row.cells[column.key].raw) for column in table.columns])
    return text.getvalue()


def _csv_value(raw: Raw) -> str:
    if isinstance(raw, list):
        return " ".join(_csv_value(value) for value in raw)
    return "" if _plain(raw) is None else printable(raw)


def _json(table: Table) -> str:
    data = {
        "schema_version": SCHEMA_VERSION,
        "baseline": table.baseline,
        "columns": {column.key: column.about for column in table.columns},
        "rows": [
            {column.key: _plain(row.cells[column.key].raw) for column in table.columns}
            for row in table.rows
        ],
        "captions": [{table.by: s.name, "caption": s.caption} for s in table.sections()],
        "footnotes": list(table.footnotes),
    }
    return json.dumps(data, indent=2) + "\n"


def _plain(raw: Raw) -> Any:
    """Return a value for JSON, which has no NaN."""
    if isinstance(raw, list):
        return [_plain(value) for value in raw]
    return None if isinstance(raw, float) and not math.isfinite(raw) else raw


FORMATS: dict[str, Callable[[Table], str]] = {
    "table": _terminal,
    "markdown": _markdown,
    "csv": _csv,
    "latex": _latex,
    "json": _json,
}
_SUFFIXES = {".md": "markdown", ".csv": "csv", ".tex": "latex", ".json": "json", ".txt": "table",
             SUFFIX: LINES}  # fmt: skip
