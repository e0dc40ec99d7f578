"""`sora eval --benchmark`: scores of lm-evaluation-harness, in a table and in `benchmarks.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shlex import quote

from sora_cli.adapter.digest import result_digest, result_remarks
from sora_cli.adapter.places import check_target, takes_base, with_base
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.console import count, emit, emit_table, printable, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.json_text import readable_json
from sora_cli.core.outputs import check_apart, check_new_file
from sora_cli.core.timing import importing
from sora_cli.core.words import near_files
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.reading import BENCHMARK, load_read, named_base
from sora_cli.report import FILE_NAME
from sora_cli.run.output import BENCHMARKS
from sora_cli.run.precision import settle_precision


@dataclass(frozen=True)
class Benchmarks:
    """The benchmarks that are asked for.

    Attributes:
        names: separated by commas.
        folder: with definitions of the user's own.
        limit: rows of each at most.
        few_shot: examples in each prompt; None: as each benchmark has it.
        batch: rows at a time.
    """

    names: str
    folder: Path | None = None
    limit: int | None = None
    few_shot: int | None = None
    batch: int = 8


def score(
    target: str,
    asked: Benchmarks,
    *,
    recipe: str | None,
    overrides: list[str],
    output: Path | None,
    as_json: bool,
    force: bool,
) -> None:
    """Score a causal language model on benchmarks.

    Args:
        recipe: whose model options and precision are used; None: as the files of the target tell.
        output: the report to write; None: `benchmarks.json` in a run's directory.
    """
    names = [name.strip() for name in asked.names.split(",") if name.strip()]
    if not names:
        raise SoraError("--benchmark names none", hint="--benchmark hellaswag,arc_easy")
    if find_spec("lm_eval") is None:
        raise SoraError(
            "lm-evaluation-harness is not installed", hint="pip install 'sora-cli[lm-eval]'"
        )
    folder = asked.folder
    if folder is not None and not folder.is_dir():
        raise SoraError(f"no directory '{folder}' (--benchmark-tasks)", hint=near_files(folder))
    known = takes_base(Path(target).expanduser())
    reading = BENCHMARK if known else BENCHMARK.without("model.path")
    loaded = None
    if recipe is not None:
        loaded = load_read(partial(load_recipe, recipe), overrides, reading)
    check_new_file("--output", output, force=force)
    place = check_target(target, f"sora eval {{}} --benchmark {quote(asked.names)}")
    if output is not None:
        check_apart(output, *with_base(place), hint="name another file")
    say_notes(result_remarks(place))
    with importing():
        from sora_cli.use.benchmark import (
            BenchmarkReport,
            check_family,
            find_benchmarks,
            harness_version,
            score_benchmarks,
        )
        from sora_cli.use.described import described
    try:
        read = loaded or described(place, overrides, reading=reading)[0]
    except SoraError as error:
        if "--task" not in (error.hint or ""):
            raise
        raise SoraError(
            error.what, where=error.where, hint="add --recipe RECIPE, of the task it is for"
        ) from error
    used = settle_precision(read).recipe
    check_family(used, target)
    index = find_benchmarks(names, folder)
    results, notes = score_benchmarks(
        target,
        used,
        names,
        index,
        batch=asked.batch,
        limit=asked.limit,
        few_shot=asked.few_shot,
        on=named_base(read),
    )
    report = BenchmarkReport(
        target=target,
        digest=result_digest(place),
        harness=harness_version(),
        limit=asked.limit,
        results=results,
        notes=notes,
    )
    text = readable_json(json.loads(report.model_dump_json()))
    if output is None and (place.parent / FILE_NAME).is_file():
        output = place.parent / BENCHMARKS
    if output is not None:
        write_text_atomic(output, text)
        say(f"wrote {output}")
    if as_json:
        emit(text.rstrip("\n"))
        return
    rows = [
        [name, metric, f"{value:.4f}", _error(found.errors.get(metric)), found.few_shot, found.rows]
        for name, found in results.items()
        for metric, value in found.scores.items()
    ]
    shown = [["" if cell is None else cell for cell in row] for row in rows]
    columns = ["benchmark", "metric", "score", "+- (stderr)", "few-shot", "rows"]
    emit_table(printable(target), columns, shown)
    if asked.limit is not None:
        say(f"note: at most {count(asked.limit)} rows of each were scored: --limit")


def _error(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"
