"""`sora train`: a recipe in; an adapter, checkpoints, a report and a picture out."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.console import emit, say
from sora_cli.errors import SoraError
from sora_cli.recipe_file import LoadedRecipe, load_recipe
from sora_cli.timing import importing

if TYPE_CHECKING:
    from sora_cli.prepare import Prepared
    from sora_cli.recipe import Recipe
    from sora_cli.report import Parameters, RunLog


def train(
    recipe: str,
    overrides: list[str],
    *,
    dry_run: bool,
    force: bool,
    verify: bool = True,
    began: float | None = None,
) -> int:
    """Train a recipe, or with `dry_run` only show what would be trained.

    Args:
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
        from sora_cli.commands.dry_run import dry_run as show

        show(loaded)
        return 0
    from sora_cli.conclusion import time_line
    from sora_cli.preflight import check_recipe

    check_output(loaded.output_dir, force=force)
    check_recipe(loaded.recipe)
    ready, log = run(loaded, loaded.output_dir, began=began)
    same = True
    if verify:
        with log.epilogue("verify"):
            same = _verified(loaded, loaded.output_dir, ready)
    emit(time_line(log.report))
    return 0 if same else 1


def _verified(loaded: LoadedRecipe, output: Path, ready: Prepared) -> bool:
    """Whether the files give what was trained, as far as that can be told here."""
    from sora_cli.verify.self_check import self_check

    recipe = loaded.recipe
    if recipe.model.trust_remote_code:
        say(f"not verified: the model has code of its own; sora eval {output} scores it again")
        return True
    if recipe.training.precision == "fp32":
        return self_check(output, trained=ready.base.model, fresh=False)
    return self_check(output)  # autocast stays wrapped around the trained model's forward


def check_output(output: Path, *, force: bool) -> None:
    """A finished run is not overwritten unless asked for.

    Raises:
        SoraError: there is one, or something that is no run at all.
    """
    from sora_cli.report import FILE_NAME, read_report

    if output.exists() and not output.is_dir():
        raise SoraError(f"output '{output}' is a file", hint="output.dir=DIR")
    report = read_report(output)
    if report is not None and report.status == "completed" and not force:
        raise SoraError(
            f"'{output}' holds a finished run",
            hint="train again with --force, or elsewhere: output.dir=DIR",
        )
    foreign = output.is_dir() and any(output.iterdir()) and not (output / FILE_NAME).exists()
    if foreign and not force:
        raise SoraError(
            f"'{output}' is not empty and holds no run of this tool", hint="output.dir=DIR"
        )


def run(loaded: LoadedRecipe, output: Path, *, began: float) -> tuple[Prepared, RunLog]:
    """The whole run, one step a line; the model is as it was saved."""
    with importing():
        from sora_cli.conclusion import conclude
        from sora_cli.prepare import prepare
        from sora_cli.report import RunLog
        from sora_cli.results import evaluate_all, record_result, record_setup, save_results
        from sora_cli.training import build_trainer, fit
    log = RunLog(output, name=loaded.name, recipe=loaded.resolved(), began=began)
    log.report.recipe_notes = list(loaded.notes)

    def phase(name: str) -> AbstractContextManager[None]:
        say(f"{name} ...")
        return log.phase(name)

    ready = prepare(loaded.recipe, phase)
    with log.phase("set up"):
        record_setup(log.report, ready)
        trainer = build_trainer(
            loaded.recipe, ready.task, ready.base, output, train=ready.train, select=ready.select
        )
    say(describe_layers(loaded.recipe, ready, log.report.parameters))
    with log.running():
        with log.phase("train"):
            result = fit(trainer, ready.method, ready.layers, output)
        with log.phase("evaluate"):
            log.report.metrics = evaluate_all(trainer, ready.task, ready.report)
        with log.phase("save"):
            record_result(log.report, ready, result)
            save_results(log.report, ready, loaded, output)
    conclude(log.report, output)
    return ready, log


def describe_layers(recipe: Recipe, ready: Prepared, counts: Parameters) -> str:
    """One line that says what is about to be trained."""
    layers = ready.layers.values()
    return (
        f"{recipe.method.name} on {recipe.model.path}: {len(layers)} layers, "
        f"{sum(m.rank for m in layers):,} components, "
        f"{counts.trained:,} trained of {counts.base:,} parameters, "
        f"{len(ready.train.lengths):,} rows"
    )
