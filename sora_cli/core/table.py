"""Tables: rows of raw values, columns that format them, and output in several formats.

sizes = Table("sizes", ["size", Column("parameters", count), Column("drop", "+.4f")], rows)
emit_table(sizes)

People read formatted text: in a terminal, in Markdown, in LaTeX, and on HTML pages (whose templates
call `shown`). Programs get raw values: `records` for JSON, and CSV. Each format escapes text from
outside in its own way. Nothing slow is imported at the top.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, final

from sora_cli.core.console import emit, printable
from sora_cli.core.markdown import escaped
from sora_cli.core.processes import is_main

_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
    "±": r"$\pm$", "\N{EN DASH}": "--", "\N{MULTIPLICATION SIGN}": r"$\times$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}  # fmt: skip


class Cell(NamedTuple):
    """A raw value with its own text, for a text that needs other values, too ("0.88 ± 0.01")."""

    raw: Any
    shown: str


@dataclass(frozen=True)
class Column:
    """The title and format of a column.

    Attributes:
        title: heading for people; in a terminal it may have several lines.
        form: a format specification such as ".4f", or a function from value to text.
        none: the text for None.
        key: the column's name in JSON and CSV.
        about: description of the column, with the unit of the raw value.
        raw_only: True: the column is in JSON and CSV only.
        left: True: aligned left, as the first column always is. Other columns are aligned right.
    """

    title: str
    form: str | Callable[[Any], str] = ""
    none: str = ""
    key: str = ""
    about: str = ""
    raw_only: bool = False
    left: bool = False

    def shown(self, value: Any) -> str:
        """Return a value's text."""
        if isinstance(value, Cell):
            return value.shown
        if value is None:
            return self.none
        return format(value, self.form) if isinstance(self.form, str) else self.form(value)


@final
class Table:
    """A table with a title.

    Args:
        title: None: no title. In a terminal it may have several lines.
        columns: a plain text stands for a column of that title without a format.
        rows: each row has a raw value, or a `Cell`, for each column.
        footer: a last row that is set apart, for example sums.
    """

    def __init__(
        self,
        title: str | None,
        columns: Iterable[Column | str],
        rows: Iterable[Sequence[Any]],
        *,
        footer: Sequence[Any] | None = None,
    ) -> None:
        self.title = title
        self.columns = tuple(Column(c) if isinstance(c, str) else c for c in columns)
        self.rows = tuple(rows)
        self.footer = footer

    @property
    def shown_columns(self) -> tuple[Column, ...]:
        """All columns without `raw_only`."""
        return tuple(column for column in self.columns if not column.raw_only)

    def shown(self, row: Sequence[Any]) -> list[str]:
        """Return the texts of a row, one for each of `shown_columns`."""
        pairs = zip(self.columns, row, strict=True)
        return [column.shown(value) for column, value in pairs if not column.raw_only]

    def records(self) -> list[dict[str, Any]]:
        """Return each row as a mapping from column keys to raw values."""
        return [
            {
                column.key: value.raw if isinstance(value, Cell) else value
                for column, value in zip(self.columns, row, strict=True)
            }
            for row in self.rows
        ]

    def without_empty(self) -> Table:
        """Return the table without columns that are empty in every row; the first column stays."""
        texts = [self.shown(row) for row in self.rows]
        used = [i for i in range(len(self.columns)) if i == 0 or any(row[i] for row in texts)]
        return Table(self.title, [self.columns[i] for i in used],
                     [tuple(row[i] for i in used) for row in self.rows])  # fmt: skip


def emit_table(table: Table) -> None:
    """Print a table on stdout; brackets in a text are not read as rich's markup."""
    if not is_main():
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table as Drawn

    title = table.title
    if title is not None:
        title = "\n".join(printable(line) for line in title.split("\n"))
    footer = [] if table.footer is None else table.shown(table.footer)
    drawn = Drawn(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_footer=bool(footer))
    for i, column in enumerate(table.shown_columns):
        drawn.add_column(column.title, footer[i] if footer else "", no_wrap=True,
                         justify="left" if i == 0 or column.left else "right")  # fmt: skip
    for row in table.rows:
        drawn.add_row(*map(printable, table.shown(row)))
    plain = partial(Console, highlight=False, markup=False, emoji=False)
    needed = plain(width=10_000).measure(drawn).maximum
    # rich would cut numbers off in a narrow terminal; at full width the terminal wraps the lines
    console = plain(width=max(plain().width, needed))
    with console.capture() as captured:
        console.print(drawn, soft_wrap=True)
    # rich fills each line up to the longest, in a file by hundreds of blanks
    emit("\n".join(line.rstrip() for line in captured.get().splitlines()))


def markdown(table: Table) -> str:
    """Return a table in Markdown, under its title in bold."""
    columns = table.shown_columns
    marks = ["---" if i == 0 or column.left else "---:" for i, column in enumerate(columns)]
    lines = [[escaped(column.title) for column in columns], marks]
    lines += [[escaped(printable(text)) for text in table.shown(row)] for row in table.rows]
    title = [] if table.title is None else [f"**{escaped(table.title)}**", ""]
    return "\n".join([*title, *(f"| {' | '.join(words)} |" for words in lines)])


def latex(tables: Sequence[Table]) -> str:
    """Return tables with the same columns as a single LaTeX table (package booktabs)."""
    columns = tables[0].shown_columns
    marks = "".join("l" if i == 0 or c.left else "r" for i, c in enumerate(columns))
    lines = ["% \\usepackage{booktabs}", f"\\begin{{tabular}}{{{marks}}}", r"\toprule"]
    lines.append(_latex_row(column.title for column in columns))
    for table in tables:
        title = latex_text(table.title or "")
        lines += [r"\midrule", f"\\multicolumn{{{len(columns)}}}{{l}}{{\\textit{{{title}}}}} \\\\"]
        lines += [_latex_row(table.shown(row)) for row in table.rows]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_row(words: Iterable[str]) -> str:
    # a bracket or star right after the last row's \\ would be read as its option
    return f"{{}}{' & '.join(map(latex_text, words))} \\\\"


def latex_text(text: str) -> str:
    """Return text on one line, escaped for LaTeX."""
    return "".join(_LATEX.get(character, character) for character in printable(text))


def csv_text(tables: Sequence[Table]) -> str:
    """Return tables with the same columns as one CSV text of raw values; the heads are the keys."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([column.key for column in tables[0].columns])
    for table in tables:
        writer.writerows(map(_csv_value, record.values()) for record in table.records())
    return text.getvalue()


def _csv_value(raw: Any) -> str:
    if isinstance(raw, list):
        return " ".join(map(_csv_value, raw))
    return "" if finite(raw) is None else printable(raw)


def finite(raw: Any) -> Any:
    """Replace NaN and infinite numbers by None, also within a list, because JSON has neither."""
    if isinstance(raw, list):
        return [finite(value) for value in raw]
    return None if isinstance(raw, float) and not math.isfinite(raw) else raw
