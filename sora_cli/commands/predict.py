"""`sora predict`: write the answers of a trained model to the rows of a file."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sora_cli.adapter.digest import result_remarks
from sora_cli.adapter.places import check_named_base, check_target
from sora_cli.commands import options
from sora_cli.commands._files import check_files, of_results, output_file
from sora_cli.core.checks import check_choice, check_excludes
from sora_cli.core.console import count, duration, emit, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import interruptible
from sora_cli.core.outputs import check_new_file, output_path
from sora_cli.core.shell import quote
from sora_cli.core.timing import importing
from sora_cli.data.source import check_file, file_kind
from sora_cli.recipe.reading import names_columns

if TYPE_CHECKING:
    from sora_cli.use.predict import Summary

STREAM = "-"
_STREAMED = {"jsonl": "json", "csv": "csv"}
_WRITTEN = (".csv", ".tsv", ".jsonl", ".parquet", ".npy")


def predict(
    target: options.Target,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="The rows: a csv, tsv, jsonl, json or parquet file; - is stdin."
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="The file to write (.csv, .tsv, .jsonl or .parquet; of vectors .npy, too); - is "
            "stdout.",
        ),
    ],
    overrides: options.ReadOverrides = None,
    *,
    probabilities: Annotated[
        bool,
        typer.Option("--probabilities", help="Add a column with the probability of each class."),
    ] = False,
    corpus: Annotated[
        str | None,
        typer.Option(
            "--corpus",
            metavar="FILE",
            help="Of queries: write the ids and scores of the best documents of this file (columns "
            "id and text) in place of vectors.",
            show_default=False,
        ),
    ] = None,
    k: Annotated[
        int | None,
        typer.Option(
            "--k",
            min=1,
            help="Number of documents for each query, with --corpus. Default: 10.",
            show_default=False,
        ),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(
            "--prefix",
            help="Text before the names of the new columns, such as model_.",
            show_default=False,
        ),
    ] = "",
    stream: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="Format of stdin and stdout: jsonl or csv. Default: jsonl.",
            show_default=False,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option("--task", help="The task family, if the model's files do not name it."),
    ] = None,
    base: options.BaseModel = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, help="Rows per batch."),
    ] = None,
    as_json: options.Json = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Replace an existing file instead of continuing it."),
    ] = False,
    code: options.Code = None,
) -> None:
    """Write the rows of a file with a model's answers in new columns."""
    options.load_plugins(code)
    given = [*(overrides or []), *_search(corpus, k)]
    check_choice("--format", stream or "jsonl", _STREAMED)
    if stream is not None and STREAM not in (file, output):
        raise SoraError(
            "--format is for stdin and stdout only: the format of a file follows from its ending"
        )
    to = None if output == STREAM else output_path(output)
    kind = _check_output(to, stream, as_json=as_json, force=force)
    if file != STREAM:
        check_file(Path(file).expanduser())
    place = check_target(target, f"sora predict {{}} {quote(file)} -o {quote(output)}")
    check_named_base(base, [place])
    say_notes(result_remarks(place))
    with importing():
        from sora_cli.use.described import recipe_for_rows
        from sora_cli.use.predict import predict_file, predict_stream
        from sora_cli.use.predictor import Request
    recipe, meta = recipe_for_rows(place, given, on=base, task=task, batch=batch_size)
    rows = [] if file == STREAM else [file]
    check_files(output_file("-o", to), [*of_results(place), *rows, base], recipe)
    chosen = names_columns(given)
    request = Request(target, place, recipe, meta, base, probabilities, prefix, chosen)
    with _rows(file, stream) as path:
        if to is None:
            predict_stream(request, path, kind, sys.stdout.write)
            return
        separator = "\t" if to.suffix.lower() == ".tsv" else None
        summary = predict_file(request, path, to, kind, separator=separator, force=force)
    _show(summary, output, as_json=as_json)


def _search(corpus: str | None, k: int | None) -> list[str]:
    """Return the overrides that the flags of a search stand for."""
    if corpus is None and k is not None:
        raise SoraError("--k is for a search in a corpus", hint="add --corpus FILE")
    words = [] if corpus is None else [f"data.corpus={json.dumps(corpus)}"]
    return words if k is None else [*words, f"task.top_k={k}"]


def _check_output(to: Path | None, stream: str | None, *, as_json: bool, force: bool) -> str:
    """Check the output (None: stdout); return its file format."""
    if to is None:
        others = {"--json": as_json, "--force": force}
        check_excludes("-o -", [name for name, given in others.items() if given])
        return _STREAMED[stream or "jsonl"]
    check_new_file("-o", to, force=force)
    if to.suffix.lower() not in _WRITTEN:
        raise SoraError(
            f"-o {to}: the file must end in one of {', '.join(_WRITTEN)}",
            hint=f"-o {quote(str(to.with_suffix('.jsonl')))}",
        )
    return "npy" if to.suffix.lower() == ".npy" else file_kind(to)


@contextmanager
def _rows(file: str, stream: str | None) -> Iterator[Path]:
    """Yield the file of rows; stdin is first read to its end into a temporary file."""
    if file != STREAM:
        yield Path(file).expanduser()
        return
    with tempfile.TemporaryDirectory(prefix="sora-stdin-") as folder:
        path = Path(folder) / f"stdin.{stream or 'jsonl'}"
        # the reader of rows takes a file, not a pipe
        with path.open("wb") as copy, interruptible():
            shutil.copyfileobj(sys.stdin.buffer, copy)
        if not path.stat().st_size:
            raise SoraError("stdin is empty: there are no rows to answer")
        try:
            yield path
        except SoraError as error:
            error.renamed(str(path), "stdin")
            raise


def _show(summary: Summary, output: str, *, as_json: bool) -> None:
    took = duration(summary.seconds)
    cut = f"; {count(summary.truncated)} of them were cut" if summary.truncated else ""
    say(f"{count(summary.rows)} rows with predictions in {output}, in {took}{cut}")
    if as_json:
        emit(json.dumps({"output": output, **asdict(summary)}, indent=2))
