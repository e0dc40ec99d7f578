"""Reading rows without labels, on which the answers of two models are compared.

A label in the file is ignored: another value stands in for it, as in `sora predict`. Next-token
choices are an exception: the given answers are read as the texts before each token, so they belong
to the input. Rows whose raw input is a training row's are left out, and so are repeated ones
(`TestRows.unseen`): then a plan knows how many there are. The rows that the model reads alike are
found once they are encoded (`TestRows.distinct_on`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, shown_path
from sora_cli.data.loading import load_file
from sora_cli.data.overlap import input_hashes
from sora_cli.data.places import RowError, locating
from sora_cli.data.source import check_file
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.reference import referenced_task
from sora_cli.search.test_rows import Answers, TestRows
from sora_cli.search.words import UNLABELLED
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Task
from sora_cli.tasks.language import Writing
from sora_cli.tasks.texts import require_column


def read_answer_rows(
    recipe: Recipe,
    path: Path,
    *,
    trained: Task | None = None,
    columns: Sequence[str] = (),
    tolerance: float | None = None,
    next_tokens: bool = False,
    asked: bool = False,
    by_prompt: bool = False,
) -> TestRows:
    """Read a file of rows without labels; `TestRows.unseen` leaves out its training rows.

    Args:
        recipe: recipe whose task and data blocks say how rows become inputs.
        path: a csv, tsv, json, jsonl or parquet file.
        trained: the task as bound to training rows, which knows the classes; None: the recipe's
            data block names them.
        columns: the inputs that the model was trained on, if it comes without training rows and
            they are known: other columns are left out, if the file has all of these.
        tolerance, next_tokens, asked: see `Answers`.
        by_prompt: also with `next_tokens`, rows with the same prompt are the same input, as in
            searches of versions without `data.repeats`.
    """
    check_file(path)
    part = load_file(path)
    names = None if trained is None else trained.label_names
    named = {} if names is None else {"label_names": names}
    data = recipe.data.model_copy(update=named)
    task = blank = referenced_task(recipe, data)
    _check_comparable(task, tolerance, next_tokens=next_tokens)
    with recipe.placing(), locating(part.origin):
        given = part.rows if trained is None else trained.unlabelled(part.rows)
        there = given.column_names
        if trained is not None:
            columns = trained.answered_columns
            for column in columns:
                require_column(column, there)
        if columns and set(columns) <= set(there):
            given = given.select_columns(list(columns))
        rows = stood_in = blank.stand_in(given)
        try:
            blank.bind(stood_in)
        except RowError as error:  # the placeholder for labels is no column of the file
            error.renamed(listed(stood_in.column_names), listed(there))
            raise
        if next_tokens:
            # another task: one that has made stand-ins takes a plain text for a prompt
            rows, task = _with_answers(part.rows, blank, trained), create_task(recipe.task, data)
            task.bind(rows)
        task.check(rows)
    name, label = shown_path(path), task.label_column
    compared = "next-token choices on" if next_tokens else "answers to"
    read = _read_columns(task, next_tokens)
    plural, quoted = "s" if len(read) > 1 else "", [f"'{column}'" for column in read]
    notes = [*part.origin.notes]
    notes.append(f"{name}: {compared} the column{plural} {listed(quoted)} are compared")
    if label in there and not next_tokens:
        notes.append(f"{name}: the column '{label}' is ignored: no label is needed")
    with_answers = next_tokens and not by_prompt
    keys = read if with_answers else blank.input_columns
    answers = Answers(
        blank,
        columns=keys,
        read=read,
        file=name,
        tolerance=tolerance,
        next_tokens=next_tokens,
        with_answers=with_answers,
        asked=asked,
    )
    return TestRows(
        task,
        rows,
        part.origin,
        UNLABELLED,
        answers,
        inputs=input_hashes(rows if with_answers else stood_in, keys),
        notes=tuple(notes),
    )


def _with_answers(rows: Dataset, blank: Task, trained: Task | None) -> Dataset:
    """Return the columns of rows that a task reads, and their given answers.

    Args:
        blank: the task, bound to these rows with stand-ins for their answers.
        trained: see `read_answer_rows`.
    """
    assert isinstance(blank, Writing)
    columns, label = rows.column_names, blank.label_column
    if label is None:  # a chat or a plain text holds its answers
        return rows.select_columns(list(blank.input_columns))
    if trained is None or trained.label_column is None:
        label = blank.part_column(columns, blank.answer_part)
    else:
        label = trained.label_column
    require_column(label, columns, hint=f"--next-tokens reads the answers, too: add '{label}'")
    return rows.select_columns([*blank.input_columns, label])


def _read_columns(task: Task, next_tokens: bool) -> list[str]:
    """Return the columns that a task reads; for next-token choices the answers, too."""
    answers = task.label_column if next_tokens else None
    return [*task.input_columns, *([] if answers is None else [answers])]


def _check_comparable(task: Task, tolerance: float | None, *, next_tokens: bool) -> None:
    """Check that a task has these answers, and that numbers, and only these, have a tolerance."""
    if next_tokens and not isinstance(task, Writing):
        raise SoraError(
            f"--next-tokens is for models that write texts, and task {task.name} writes none",
            hint="leave out --next-tokens: its answers are compared",
            key="auto.next_tokens",
        )
    if task.options.ANSWERS_NUMBERS and tolerance is None:
        raise SoraError(
            f"task {task.name} answers with numbers: two models never give the same one",
            hint="--tolerance 0.1: numbers that are no further apart count as the same",
            key="auto.max_differ",
        )
    if tolerance is not None and not task.options.ANSWERS_NUMBERS:
        raise SoraError(
            f"--tolerance is for answers that are numbers, and task {task.name} gives none",
            hint="leave out --tolerance",
            key="auto.tolerance",
        )
