"""Write rows with a trained model's answers: part by part to a file, or as a stream."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sora_cli.core.atomic import new_file
from sora_cli.core.console import say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import Interrupted
from sora_cli.core.words import first_few, shown_path
from sora_cli.data.content import data_fingerprint
from sora_cli.data.csv_form import csv_form, encoding_of_copy
from sora_cli.data.places import line_end_in
from sora_cli.run.opening import continued_by
from sora_cli.use.formats import VECTORS, Format, check_vectors
from sora_cli.use.parts import Parts, opened
from sora_cli.use.predictor import Predictor, Request
from sora_cli.use.source import Source


@dataclass
class Summary:
    """The outcome of a call of `sora predict`."""

    rows: int
    task: str
    reads: list[str]
    adds: list[str]
    truncated: int = 0
    before: int = 0
    """Number of rows that an earlier call had answered."""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)
    """Remarks on the model, for people."""


def predict_file(
    request: Request, file: Path, output: Path, kind: str, *, separator: str | None, force: bool
) -> Summary:
    """Write the rows of a file with a model's answers to another file.

    Finished parts are kept beside the output until it is complete, so that the same command can
    continue an interrupted call.

    Args:
        kind: format of the output: "csv", "json", "parquet" or "npy".
        separator: of a CSV output; None means the separator of the input.
        force: start from the first row, and replace the output.

    Raises:
        Interrupted: a signal came; the message names the rows that are kept.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=_make_parent(output), prefix=".sora-rows-") as scratch:
        source = Source(file, Path(scratch))
        predictor = Predictor(request, source)
        if kind == VECTORS:
            check_vectors(predictor.adds)
        form = _format(kind, source, separator)
        with opened(output, {**predictor.made_with(), "format": kind}, force=force) as parts:
            parts.check(predictor.digest)
            before = parts.rows
            _fill(parts, predictor, form, output, force=force)
            with new_file(output) as temporary:
                remark = form.join(parts.files, temporary, predictor.adds)
            parts.delete()
    say_notes([] if remark is None else [f"{shown_path(output)}: {remark}"])
    return _summary(predictor, before, began)


def predict_stream(
    request: Request, file: Path, kind: str, write: Callable[[str], object]
) -> Summary:
    """Pass the rows of a file with a model's answers to `write`, part by part.

    Args:
        kind: format of the output: "csv" or "json".
        write: called with the text of each part.
    """
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sora-rows-") as scratch:
        source = Source(file, Path(scratch))
        predictor = Predictor(request, source)
        form = _format(kind, source, None)
        _say_columns(predictor)
        _check_rows(predictor, 0)
        as_is, started = source.as_they_stand(kind, 0), False
        with _bar("predicting", len(source), 0) as bar:
            for rows, answers in predictor.answered(0):
                part = form.part(rows, answers, as_is).decode()
                write(part if started else form.start(list(answers)) + part)
                started = True
                bar.update(len(rows))
    return _summary(predictor, 0, began)


def _fill(parts: Parts, predictor: Predictor, form: Format, output: Path, *, force: bool) -> None:
    """Answer the remaining rows and add their parts."""
    source, first = predictor.source, parts.rows
    if first:
        say(f"{first:,} of {len(source):,} rows are done: continuing from there")
    if first == len(source):
        return
    _say_columns(predictor)
    as_is = source.as_they_stand(form.kind, first)
    try:
        _check_rows(predictor, first)
        with _bar("predicting", len(source), first) as bar:
            for rows, answers in predictor.answered(first):
                parts.add(form.part(rows, answers, as_is), len(rows), data_fingerprint(rows))
                bar.update(len(rows))
    except Interrupted as end:
        raise end.with_words(*_resume_lines(parts, output, force=force)) from None
    except SoraError:
        for line in _resume_lines(parts, output, force=force):
            say(line)
        raise


def _resume_lines(parts: Parts, output: Path, *, force: bool) -> list[str]:
    if not parts.rows:
        return []
    # without --force, a command refuses to replace a file
    moved = f"once {shown_path(output)} is moved away, " if output.exists() else ""
    done = f"{parts.rows:,} rows are done, in {shown_path(parts.folder)}"
    return [f"{done}: {moved}{continued_by(force=force)}"]


def _say_columns(predictor: Predictor) -> None:
    say_notes(predictor.source.origin.notes)
    reads = first_few((f"'{name}'" for name in predictor.task.input_columns), 6)
    say(f"{predictor.task.name}: reads {reads}, adds {first_few(predictor.adds, 6)}")
    if not predictor.request.meta.max_length and not predictor.request.chosen:
        limit = predictor.recipe.data.max_length
        if predictor.task.options.PROCESSOR_CLASS != "AutoImageProcessor":
            say(f"rows are cut at {limit} tokens (data.max_length)")


def _check_rows(predictor: Predictor, first: int) -> None:
    with _bar("checking", len(predictor.source), first) as bar:
        predictor.check(first, bar)


def _bar(what: str, total: int, first: int) -> Any:
    return tqdm(desc=what, total=total, initial=first, unit="row", leave=False, dynamic_ncols=True)


def _format(kind: str, source: Source, separator: str | None) -> Format:
    is_csv = source.kind == "csv"
    own = csv_form(source.path).separator if is_csv else ","
    encoding = encoding_of_copy(source.path) if is_csv and kind == "csv" else "utf-8"
    header = source.header if kind == source.kind else source.columns
    line_end = "\n" if source.kind == "parquet" else line_end_in(source.path)
    separator = own if separator is None else separator
    return Format(kind, header, separator=separator, line_end=line_end, encoding=encoding)


def _make_parent(output: Path) -> Path:
    """Create and return the directory of the output, which also holds the temporary rows."""
    output.parent.mkdir(parents=True, exist_ok=True)
    return output.parent


def _summary(predictor: Predictor, before: int, began: float) -> Summary:
    return Summary(
        rows=len(predictor.source),
        task=predictor.task.name,
        reads=list(predictor.task.input_columns),
        adds=predictor.adds,
        truncated=predictor.truncated,
        before=before,
        seconds=time.perf_counter() - began,
        notes=predictor.notes,
    )
