"""`sora train`: a recipe in; an adapter, checkpoints, a report and a picture out."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.core.atomic import tidy
from sora_cli.core.console import emit, say
from sora_cli.core.exit_codes import FAILED, OK
from sora_cli.core.interruption import Interrupted
from sora_cli.core.lock import locked
from sora_cli.core.processes import is_main, world_size
from sora_cli.core.timing import importing
from sora_cli.recipe.load import LoadedRecipe, load_recipe
from sora_cli.run.output import check_output
from sora_cli.train.checkpoint.places import FOLDER, checkpoint_paths
from sora_cli.train.checkpoint.resume import find_checkpoint, identity_of

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
) -> int:
    """Train a recipe, or with `dry_run` only show what would be trained.

    Args:
        force: replace a finished run; with `resume`, take changes of the recipe that are safe.
        resume: go on from the newest complete checkpoint, if there is one.
        verify: compare the trained model with what its files give, where memory allows.
        began: when the command began, by `time.perf_counter`; None: now.

    Returns:
        Exit code: 1 if the files do not give the trained model's outputs.
    """
    began = time.perf_counter() if began is None else began
    loaded = load_recipe(recipe, overrides)
    for note in loaded.notes:
        say(f"note: {note}")
    if loaded.recipe.path is not None:
        say(f"note: this trains one run; the recipe's path of stages: sora path {recipe}")
    if dry_run:
        from sora_cli.run.dry_run import dry_run as show

        show(loaded)
        return OK
    from sora_cli.run.preflight import check_recipe

    output = loaded.output_dir
    check_recipe(loaded.recipe)
    with locked(output):
        if is_main() and check_output(loaded, force=force, resume=resume):
            say(f"'{output}' holds this run, finished")
            return OK
        try:
            words = [recipe, *overrides]
            ready, log = run(loaded, output, words, began=began, resume=resume, force=force)
        except Interrupted as end:
            raise end.with_words(*_way_on(output, words)) from end
        return _last_words(loaded, ready, log, verify=verify)


def _last_words(loaded: LoadedRecipe, ready: Prepared, log: RunLog, *, verify: bool) -> int:
    """Check the files and say how long it took; the exit code."""
    from sora_cli.run.summary import time_line

    same = True
    if verify and is_main():
        with log.epilogue("verify"):
            same = _verified(loaded, loaded.output_dir, ready)
    emit(time_line(log.report))
    return OK if same else FAILED


def _way_on(output: Path, words: list[str]) -> list[str]:
    """What is kept of an interrupted run, and the command that goes on with it."""
    kept = checkpoint_paths(output / FOLDER)
    given = sys.argv[1:] if sys.argv[1:2] == ["train"] else ["train", *words]
    command = shlex.join(["sora", *(word for word in given if word != "--resume"), "--resume"])
    if world_size() > 1:
        command = f"the same command with --resume ({command})"
    if not kept:
        return [f"no checkpoint yet; from the start: {command}"]
    return [f"kept: {kept[-1]}", f"go on: {command}"]


def _verified(loaded: LoadedRecipe, output: Path, ready: Prepared) -> bool:
    """Whether the files give what was trained, as far as that can be told here."""
    from methods.sharding import is_sharded
    from sora_cli.verify.self_check import self_check

    recipe = loaded.recipe
    if ready.baseline is not None:
        from sora_cli.verify.baseline_check import check_baseline

        return check_baseline(output, recipe, ready)
    if recipe.model.trust_remote_code:
        say(f"not verified: the model has code of its own; sora eval {output} scores it again")
        return True
    sharded = any(is_sharded(p) for p in ready.base.model.parameters())  # one process alone can not
    packed = recipe.model.quantise is not None  # the files are an adapter of the plain model
    if recipe.training.precision == "fp32" and not sharded and not packed:
        return self_check(output, trained=ready.base.model, fresh=False)
    return self_check(output)  # autocast stays wrapped around the trained model's forward


def run(
    loaded: LoadedRecipe,
    output: Path,
    words: Sequence[str],
    *,
    began: float,
    resume: bool = False,
    force: bool = False,
) -> tuple[Prepared, RunLog]:
    """The whole run, one step a line; the model is as it was saved.

    Args:
        words: the recipe as it was given, and its overrides.
    """
    with importing():
        from sora_cli.run.evaluate import evaluate_run
        from sora_cli.run.layers import describe_layers
        from sora_cli.run.prepare import prepare
        from sora_cli.run.results import record_result, record_setup, save_results
        from sora_cli.run.summary import conclude
        from sora_cli.train.fit import fit
        from sora_cli.train.log import RunLog
        from sora_cli.train.machine import set_deterministic
        from sora_cli.train.progress import following
        from sora_cli.train.trainer import build_trainer
    log = RunLog(output, name=loaded.name, recipe=loaded.resolved(), began=began)
    log.report.recipe_notes = list(loaded.notes)

    def phase(name: str) -> AbstractContextManager[None]:
        say(f"{name} ...")
        return log.phase(name)

    set_deterministic(loaded.recipe.training.deterministic)
    ready = prepare(loaded.recipe, phase)
    with log.phase("set up"):
        record_setup(log.report, ready, loaded.recipe.training)
        identity = identity_of(log.report.recipe, log.report.base, log.report.data)
        notes = log.report.recipe_notes
        resumed = find_checkpoint(output, identity, notes, force=force) if resume else None
        trainer = build_trainer(
            loaded.recipe, ready.task, ready.base, output, train=ready.train, select=ready.select
        )
        if is_main():
            tidy(output)
    for remark in log.report.events:
        say(f"note: {remark}")
    say(describe_layers(loaded.recipe, ready, log.report.parameters))
    if resumed is not None:
        log.note_resumption(resumed.step)
    with log.running():
        with log.phase("train"), following(log, trainer):
            result = fit(
                trainer, ready.method, ready.layers, output, identity=identity, resumed=resumed
            )
        with log.phase("evaluate"):
            evaluate_run(log.report, trainer, ready)
        with log.phase("save"):
            record_result(log.report, ready, result)
            save_results(log.report, ready, loaded, output)
    conclude(log.report, output, words)
    return ready, log
