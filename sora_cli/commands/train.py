"""`sora train`: a recipe in; an adapter, checkpoints, a report and a picture out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from shlex import quote
from typing import TYPE_CHECKING

from sora_cli.core.atomic import tidy
from sora_cli.core.checks import check_apart_from
from sora_cli.core.console import emit, say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import OK
from sora_cli.core.interruption import Interrupted
from sora_cli.core.lock import locked
from sora_cli.core.processes import is_main
from sora_cli.core.timing import importing
from sora_cli.recipe.load import LoadedRecipe, load_recipe
from sora_cli.report import FILE_NAME
from sora_cli.run.output import check_output, check_run_place
from sora_cli.run.precision import settle_precision
from sora_cli.run.preflight import check_recipe
from sora_cli.run.summary import conclude, how_to_resume, time_line

if TYPE_CHECKING:
    from sora_cli.run.prepare import Prepared
    from sora_cli.train.log import RunLog


def train(
    recipe: str,
    overrides: list[str],
    *,
    dry_run: bool,
    force: bool,
    resume: bool = False,
    verify: bool = True,
    began: float | None = None,
    preview: int | None = None,
    as_json: bool = False,
) -> int:
    """Train a recipe, or with `dry_run` only show what would be trained.

    Args:
        recipe: a recipe file, or the name of one that comes with the tool.
        overrides: values to change, such as "training.epochs=3".
        dry_run: train nothing and write nothing.
        force: replace a finished run; with `resume`, accept safe changes of the recipe.
        resume: continue from the newest complete checkpoint, if there is one.
        verify: compare the trained model with what its files give, where memory allows.
        began: when the command began, by `time.perf_counter`; None: now.
        preview: rows that a dry run shows; None: two.
        as_json: print the report instead of a summary.

    Returns:
        Exit code: 1 if the files do not give the trained model's outputs.
    """
    began = time.perf_counter() if began is None else began
    loaded = load_recipe(recipe, overrides)
    if loaded.recipe.path is not None:
        say(f"note: this trains one run; the recipe's path of stages: sora path {quote(recipe)}")
    if loaded.recipe.auto is not None:
        say(f"note: this trains one run; to find the smallest size: sora auto {quote(recipe)}")
    if preview is not None and not dry_run:
        raise SoraError("--preview goes with --dry-run", hint="add --dry-run")
    if dry_run:
        check_apart_from("--dry-run", ["--json"] if as_json else [])
        check_run_place(loaded, force=force)
        from sora_cli.run.dry_run import ROWS
        from sora_cli.run.dry_run import dry_run as show

        say_notes(loaded.notes)
        show(settle_precision(loaded), rows=ROWS if preview is None else preview)
        return OK
    words = [recipe, *overrides]
    return train_loaded(
        loaded,
        words,
        force=force,
        resume=resume,
        verify=verify,
        began=began,
        as_json=as_json,
    )


def train_loaded(
    loaded: LoadedRecipe,
    words: Sequence[str],
    *,
    force: bool,
    resume: bool,
    verify: bool,
    began: float,
    as_json: bool = False,
) -> int:
    """Train a recipe that has been read; otherwise as `train`.

    Args:
        words: the recipe as it was given, and its overrides, for what is to be typed next.
    """
    say_notes(loaded.notes)
    check_recipe(loaded.recipe)
    output, code = loaded.output_dir, OK
    with locked(output):
        if resume:
            loaded = settle_precision(loaded, resume=True)
        if is_main() and check_output(loaded, force=force, resume=resume):
            say(f"'{output}' holds this run, finished")
            if as_json:
                emit((output / FILE_NAME).read_text(encoding="utf-8").rstrip("\n"))
            return OK
        loaded = settle_precision(loaded)
        try:
            ready, log = run(
                loaded, words, began=began, resume=resume, force=force, summary=not as_json
            )
        except Interrupted as end:
            raise end.with_words(*how_to_resume(output, words)) from end
        if verify and is_main():
            from sora_cli.verify.run_check import check_run

            with log.epilogue("verify"):
                code = check_run(loaded, ready, log.report)
        if as_json and is_main():
            emit(log.path.read_text(encoding="utf-8").rstrip("\n"))
        else:
            emit(time_line(log.report))
    return code


def run(
    loaded: LoadedRecipe,
    words: Sequence[str],
    *,
    began: float,
    resume: bool,
    force: bool,
    summary: bool = True,
) -> tuple[Prepared, RunLog]:
    """Carry out the whole run, one step a line; the model ends as it was saved.

    Args:
        words: the recipe as it was given, and its overrides.
        summary: print the result.
    """
    with importing():
        from sora_cli.run.evaluate import evaluate_run
        from sora_cli.run.layers import describe_layers
        from sora_cli.run.prepare import prepare
        from sora_cli.run.preview import start_lines
        from sora_cli.run.runner import Runner
        from sora_cli.train.log import RunLog
        from sora_cli.train.machine import set_deterministic
    recipe, output = loaded.recipe, loaded.output_dir
    log = RunLog(output, name=loaded.name, recipe=loaded.resolved(), began=began)
    report = log.report
    report.recipe_notes = list(loaded.notes)
    set_deterministic(recipe.training.deterministic)
    ready = prepare(recipe, log.phase)
    with log.phase("set up"):
        runner = Runner(ready, loaded, output)
        setup = runner.set_up(
            log, loaded, ready=ready, select=ready.select, resume=resume, force=force
        )
        if is_main():
            tidy(output)
    if report.start is not None:
        say(report.start.sentence())
    say_notes(report.events)
    for line in start_lines(ready):
        say(line)
    say(describe_layers(setup.trainer.recipe, ready, report.parameters))
    runner.train(setup, score=evaluate_run)
    conclude(report, output, words, summary=summary)
    return ready, log
