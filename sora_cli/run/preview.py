"""The preview of a run: what was understood of its data, for dry runs, a run's start and `init`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sora_cli.core.console import count, printable
from sora_cli.core.words import listed
from sora_cli.data.overlap import find_overlaps
from sora_cli.data.places import locating
from sora_cli.run.class_counts import absent_remarks, class_counts, class_lines, count_classes
from sora_cli.run.dry_run import ROWS
from sora_cli.run.encoded_rows import length_of, row_lines
from sora_cli.run.remarks import overlap_remark
from sora_cli.tasks.base import Encoded, Task

if TYPE_CHECKING:
    from sora_cli.data.rows import Rows
    from sora_cli.run.prepare import Prepared
    from sora_cli.run.propose.proposal import Proposal

_WIDTH = 98
_KEY, _VALUE = 28, 24  # columns


def task_line(task: Task, columns: list[str]) -> str:
    """Say in one line which columns a task takes, and which it does not.

    Args:
        columns: of the raw rows.
    """
    taken = [*task.input_columns, *([task.label_column] if task.label_column else [])]
    left = [name for name in columns if name not in taken]
    text = f"{task.name}: reads {listed(task.input_columns)}"
    if task.label_column:
        text += f", learns {listed([task.label_column])}"
    return printable(text + (f"; columns not taken: {listed(left)}" if left else ""))


def start_lines(ready: Prepared) -> Iterator[str]:
    """Yield what a run says of its data as it starts: columns, classes, and the first row."""
    yield task_line(ready.task, ready.rows.train.column_names)
    yield from class_lines(class_counts(ready))
    yield first_row_line(ready)


def column_lines(ready: Prepared) -> Iterator[str]:
    """Yield the task, the columns it takes, and what the others hold."""
    from sora_cli.run.propose.columns import read_columns

    task = ready.task
    columns = read_columns(ready.rows.train)
    left = {
        name: column.about
        for name, column in columns.items()
        if name not in (*task.input_columns, task.label_column)
    }
    yield f"{'task':<11} {task.name}"
    yield f"{'reads':<11} {listed(task.input_columns)}"
    if task.label_column:
        yield f"{'learns':<11} {listed([task.label_column])}"
    if left:
        about = ", ".join(f"{name} ({about})" for name, about in left.items())
        yield from _wrapped("not taken", printable(about))
    template = task.template(ready.base.processor)
    if template is not None:
        yield from _wrapped("template", printable(template))


def rows_lines(task: Task, processor: Any, rows: Encoded, number: int) -> Iterator[str]:
    """Yield the first training rows as the model gets them.

    Args:
        number: of rows.
    """
    for row in range(min(number, len(rows.dataset))):
        about = length_of(task, rows, row)
        yield f"row {row}{f', {about}' if about else ''}"
        yield from (f"  {line}" for line in row_lines(task, processor, rows, row))


def first_row_line(ready: Prepared) -> str:
    """Say in one line what the model gets of the first training row."""
    about = length_of(ready.task, ready.train, 0)
    lines = list(row_lines(ready.task, ready.base.processor, ready.train, 0))
    text = "; ".join(" ".join(line.split()) for line in lines)
    return f"first row{f', {about}' if about else ''}: {_clipped(text)}"


def proposal_lines(proposal: Proposal, *, rows: int = ROWS) -> Iterator[str]:
    """Yield what was understood of data without a recipe, and each value with its reason.

    Args:
        rows: shown as the model gets them.
    """
    task, found = proposal.task, proposal.match
    yield f"{found.task}: {printable(found.why)}"
    taken = ", ".join(f"{column} ({part})" for column, part in found.taken.items())
    yield from _indented(_wrapped("taken", printable(taken)))
    left = found.not_taken(proposal.columns)
    if left:
        about = ", ".join(f"{column} ({why})" for column, why in left.items())
        yield from _indented(_wrapped("not taken", printable(about)))
    template = task.template(proposal.processor)
    if template is not None:
        yield from _indented(_wrapped("template", printable(template)))
    parts = _encoded(proposal.task, proposal.rows, proposal.processor)
    numbers = {"train": proposal.rows.train, **proposal.rows.report}
    sizes = ", ".join(f"{name} {count(len(part))}" for name, part in numbers.items())
    yield from _indented([f"{'rows':<11} {sizes}"])
    counts, texts = count_classes(task, parts), task.input_columns
    found_twice = find_overlaps(
        proposal.rows.train, proposal.rows.report, texts=texts, label=task.label_column
    )
    twice = (overlap_remark(name, o, len(numbers[name])) for name, o in found_twice.items())
    remarks = [*absent_remarks(counts), *filter(None, twice)]
    for line in (*class_lines(counts), *(f"note: {remark}" for remark in remarks)):
        yield from _indented(_wrapped("", line, indent=0))
    yield ""
    yield from _values(proposal)
    if rows:
        yield ""
        yield from rows_lines(task, proposal.processor, parts["train"], rows)


def _encoded(task: Task, rows: Rows, processor: Any) -> dict[str, Encoded]:
    """Return the rows as a model takes them."""
    made = {}
    for name, part in {"train": rows.train, **rows.report}.items():
        with locating(rows.origin(part), rows.origin(rows.train)):
            made[name] = task.encode(part, processor, training=name == "train")
    return made


def _values(proposal: Proposal) -> Iterator[str]:
    """Yield each value of the recipe that is not a default, with its reason."""
    from sora_cli.run.propose.text import in_yaml

    resolved = proposal.loaded.resolved()
    for key, why in proposal.reasons.items():
        block, _, name = key.partition(".")
        value = printable(in_yaml(_at(resolved, block, name)))
        start = f"{key:<{_KEY}} {value:<{_VALUE}} "
        if not why:
            yield start.rstrip()
        elif len(start) + len(why) <= _WIDTH:
            yield f"{start}{printable(why)}"
        else:
            yield start.rstrip()
            yield from (
                f"{'':<{_KEY}}   {line}" for line in textwrap.wrap(printable(why), _WIDTH - _KEY)
            )


def _at(values: Mapping[str, Any], block: str, key: str) -> Any:
    return values[block].get(key)


def _wrapped(title: str, text: str, *, indent: int = 12) -> list[str]:
    start = f"{title:<11} " if indent else title
    return textwrap.wrap(
        f"{start}{text}", _WIDTH, subsequent_indent=" " * indent, break_long_words=False
    )


def _indented(lines: list[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _clipped(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 4]} ..."
