"""A preview of a run's data as the model reads it, for dry runs, the start of a run, and `init`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import printable
from sora_cli.core.words import listed
from sora_cli.data.columns import read_columns
from sora_cli.run.class_counts import class_counts, class_lines
from sora_cli.run.encoded_rows import length_of, row_lines
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Encoded

if TYPE_CHECKING:
    from sora_cli.run.prepare import Prepared

ROWS = 2
"""Default number of training rows in a dry run."""
WIDTH = 98


def task_line(task: Task, columns: list[str]) -> str:
    """Describe in one line the columns that a task reads and learns, and the unused columns.

    Args:
        columns: of the raw rows.
    """
    used = [*task.input_columns, *([task.label_column] if task.label_column else [])]
    unused = [name for name in columns if name not in used]
    text = f"{task.name}: reads {listed(task.input_columns)}"
    if task.label_column:
        text += f", learns {listed([task.label_column])}"
    return printable(text + (f"; columns not taken: {listed(unused)}" if unused else ""))


def start_lines(ready: Prepared) -> Iterator[str]:
    """Yield the columns, the classes and the first row of a run's data."""
    yield task_line(ready.task, ready.rows.train.column_names)
    yield from class_lines(class_counts(ready))
    yield first_row_line(ready)


def column_lines(ready: Prepared) -> Iterator[str]:
    """Yield the task, its columns, and the contents of the unused columns."""
    task = ready.task
    columns = read_columns(ready.rows.train)
    unused = {
        name: column.about
        for name, column in columns.items()
        if name not in (*task.input_columns, task.label_column)
    }
    yield f"{'task':<11} {task.name}"
    yield f"{'reads':<11} {listed(task.input_columns)}"
    if task.label_column:
        yield f"{'learns':<11} {listed([task.label_column])}"
    if unused:
        about = ", ".join(f"{name} ({about})" for name, about in unused.items())
        yield from wrapped("not taken", printable(about))
    template = task.template(ready.base.processor)
    if template is not None:
        yield from wrapped("template", printable(template))


def rows_lines(task: Task, processor: Any, rows: Encoded, number: int) -> Iterator[str]:
    """Yield the first training rows, encoded.

    Args:
        number: of rows.
    """
    for row in range(min(number, len(rows.dataset))):
        about = length_of(task, rows, row)
        yield f"row {row}{f', {about}' if about else ''}"
        yield from (f"  {line}" for line in row_lines(task, processor, rows, row))


def first_row_line(ready: Prepared) -> str:
    """Describe in one line the first training row, encoded."""
    about = length_of(ready.task, ready.train, 0)
    lines = list(row_lines(ready.task, ready.base.processor, ready.train, 0))
    text = "; ".join(" ".join(line.split()) for line in lines)
    return f"first row{f', {about}' if about else ''}: {_clipped(text)}"


def wrapped(title: str, text: str, *, indent: int = 12) -> list[str]:
    """Break a titled text into lines that fit the page."""
    start = f"{title:<11} " if indent else title
    return textwrap.wrap(
        f"{start}{text}", WIDTH, subsequent_indent=" " * indent, break_long_words=False
    )


def indented(lines: list[str]) -> Iterator[str]:
    """Yield lines, each indented by two spaces."""
    return (f"  {line}" for line in lines)


def _clipped(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 4]} ..."
