"""Training of one recipe, for `sora train` and `sora prune --heal`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sora_cli.commands._files import check_files, run_files
from sora_cli.core.console import emit, say, say_notes
from sora_cli.core.exit_codes import OK
from sora_cli.core.interruption import Interrupted
from sora_cli.core.lock import locked
from sora_cli.core.processes import is_main
from sora_cli.core.timing import importing
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.report import FILE_NAME, recipe_of_run
from sora_cli.run.output import check_output
from sora_cli.run.precision import settle_precision
from sora_cli.run.preflight import check_recipe
from sora_cli.run.summary import conclude, how_to_resume, time_line

if TYPE_CHECKING:
    from sora_cli.run.prepare import Prepared
    from sora_cli.train.log import RunLog


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
    """Train a loaded recipe; return the exit code.

    Args:
        words: the recipe and its overrides as typed, for the command that resumes the run.
        force: replace a finished run; with `resume`, accept safe changes of the recipe.
        resume: continue from the newest complete checkpoint, if there is one.
        verify: compare the trained model with the model loaded from its files, if memory allows.
        began: start time of the command on the clock of `time.perf_counter`, in seconds.
        as_json: print the report instead of a summary.
    """
    say_notes(loaded.notes)
    check_recipe(loaded.recipe)
    output, code = loaded.output_dir, OK
    check_files(run_files(output), [], loaded)
    with locked(output):
        if resume:  # before check_output, which compares this recipe with the stored one
            loaded = loaded.continuing(recipe_of_run(output))
            loaded = settle_precision(loaded, resume=True)
        if is_main() and check_output(loaded, force=force, resume=resume):
            say(f"'{output}' already holds this run, finished")
            if as_json:
                emit((output / FILE_NAME).read_text(encoding="utf-8").rstrip("\n"))
            return OK
        loaded = settle_precision(loaded)  # only now: it imports torch, which takes seconds
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
    """Prepare, train, score and save; afterwards the model in memory equals the saved one.

    Args:
        words: the recipe and its overrides as typed.
        summary: print the result.
    """
    with importing():
        from sora_cli.run.evaluate import evaluate_run
        from sora_cli.run.prologue import begin, tell_start
        from sora_cli.run.runner import Runner
        from sora_cli.train.log import RunLog
    recipe, output = loaded.recipe, loaded.output_dir
    log = RunLog(output, name=loaded.name, recipe=loaded.resolved(), began=began)
    report = log.report
    report.recipe_notes = list(loaded.notes)
    ready = begin(recipe, log, output)
    with log.phase("set up"):
        runner = Runner(ready, loaded, output)
        setup = runner.set_up(
            log, loaded, ready=ready, select=ready.select, resume=resume, force=force
        )
    tell_start(setup.trainer.recipe, ready, report)
    runner.train(setup, score=evaluate_run)
    conclude(report, output, words, summary=summary)
    return ready, log
