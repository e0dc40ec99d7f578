"""Train runs on a model that is prepared once: `sora train` one, a path and `sora auto` several.

A run's directory holds its report, its result and its checkpoints. Where several runs share one
model it also holds `state.safetensors`, the trained parameters and the method's state, from which
the model is put back where the run left it, also after an interruption. All that training changes
comes from where a run begins, so it makes no difference that one model serves all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save

from methods.registry import method_class
from sora_cli.core.atomic import write_bytes_atomic
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.processes import is_main
from sora_cli.model.tensors import load_tensors
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.report import Ranks, RunReport
from sora_cli.run.output import RANKS_PLOT
from sora_cli.run.prepare import Prepared
from sora_cli.run.results import record_result, record_setup, save_results
from sora_cli.tasks.base import Encoded
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.checkpoint.beginning import Beginning, find_beginning
from sora_cli.train.checkpoint.files import load_trained, trained_tensors
from sora_cli.train.checkpoint.places import FOLDER, STATE_FILE, checkpoint_paths
from sora_cli.train.checkpoint.resume import identity_of
from sora_cli.train.fit import fit
from sora_cli.train.log import RunLog
from sora_cli.train.loggers import send_result
from sora_cli.train.progress import following
from sora_cli.train.trainer import AdapterTrainer, build_scorer, build_trainer

Score = Callable[[RunReport, AdapterTrainer, Prepared], None]
"""Fills the scores of a report from the trained model."""


def carry_out(
    log: RunLog,
    loaded: LoadedRecipe,
    ready: Prepared,
    trainer: AdapterTrainer,
    begin: Beginning,
    *,
    score: Score | None,
    keep_state: bool = False,
) -> None:
    """Train, score and save a run that is set up; its files are complete when this returns.

    Args:
        log: of the run's report, which holds its setup.
        loaded: the recipe as the report and the adapter hold it.
        score: None: the run is not scored here.
        keep_state: write `state.safetensors`, too.
    """
    report, output = log.report, log.path.parent
    if begin.resumed is not None:
        log.note_resumption(begin.resumed.step)
    with log.running():
        with log.phase("train"), following(log, trainer):
            result = fit(
                trainer,
                ready.method,
                ready.layers,
                output,
                identity=identity_of(report),
                resumed=begin.checkpoint,
                forked=begin.forked,
            )
        if score is not None:
            with log.phase("evaluate"):
                score(report, trainer, ready)
        with log.phase("save"):
            record_result(report, ready, result)
            save_results(report, ready, loaded, output)
            if keep_state:
                _write_state(ready, output)
                trainer.accelerator.wait_for_everyone()  # another process may read it next
    send_result(trainer, report.metrics, output / RANKS_PLOT)


def _write_state(ready: Prepared, output: Path) -> None:
    tensors = trained_tensors(ready.base.model, ready.method)
    if is_main():
        write_bytes_atomic(output / STATE_FILE, save(tensors))


class Runner:
    """Trains several runs on one model, and puts it back where one of them ended.

    Args:
        ready: data, model and adapters as the first run has them.
        first: that run's recipe.
        output: the directory of everything.

    Attributes:
        setup: what the reports of all runs have in common.
    """

    def __init__(self, ready: Prepared, first: LoadedRecipe, output: Path) -> None:
        self.ready, self.output, self._first = ready, output, first
        self.setup = RunReport(name="", recipe={})
        record_setup(self.setup, ready, first.recipe.training)
        self._scorer: AdapterTrainer | None = None

    def train(
        self,
        loaded: LoadedRecipe,
        name: str,
        directory: Path,
        *,
        ready: Prepared | None = None,
        score: Score | None = None,
    ) -> RunReport:
        """Train a run, or what is left of it, from where its recipe begins.

        Args:
            name: in its report.
            directory: of its files.
            ready: with a method that has trained before; None: with a new one of the recipe's.
            score: None: it is not scored.
        """
        self._scorer = None
        ready = ready or self.with_method(loaded)
        log = RunLog(directory, name=name, recipe=loaded.resolved())
        self._note_setup(log.report)
        begin = find_beginning(
            loaded.recipe,
            log.report,
            directory,
            ready.base.model,
            ready.layers,
            resume=bool(checkpoint_paths(directory / FOLDER)),  # of a start that was cut short
        )
        trainer = build_trainer(loaded.recipe, ready.task, ready.base, directory, train=ready.train)
        carry_out(log, loaded, ready, trainer, begin, score=score, keep_state=True)
        return log.report

    def _note_setup(self, report: RunReport) -> None:
        shared = {"base", "data", "main_metric", "parameters", "events"}
        for key, value in self.setup.model_dump(include=shared).items():
            setattr(report, key, value)
        report.ranks = {p: Ranks(start=m.rank, end=m.rank) for p, m in self.ready.layers.items()}

    def with_method(self, loaded: LoadedRecipe) -> Prepared:
        """Return the same model and layers with a new method, as a recipe has it.

        Raises:
            MethodError: its schedule does not fit the run.
        """
        block = loaded.recipe.method
        method = method_class(block.name)(block.config)
        steps = loaded.recipe.training.total_steps(len(self.ready.train.lengths))
        method.begin(self.ready.layers, total_steps=steps)
        return dataclasses.replace(self.ready, method=method)

    def restore(self, loaded: LoadedRecipe, directory: Path) -> Prepared:
        """Put the model where a finished run left it.

        Raises:
            SoraError: that state is gone or damaged.
        """
        file, ready = directory / STATE_FILE, self.with_method(loaded)
        try:
            tensors = load_tensors(file)
        except Exception as error:  # safetensors raises its own kind for damage
            raise SoraError(
                f"{file} cannot be read: {first_line(error)}", hint="start again with --force"
            ) from error
        load_trained(ready.base.model, ready.method, tensors)
        return ready

    def forget(self, directory: Path) -> None:
        """Delete a run's state: it is not read again."""
        if is_main():
            (directory / STATE_FILE).unlink(missing_ok=True)

    def scores(self, rows: Encoded) -> RowScores:
        """Return the main metric of the model as it is, row by row; on all processes the same."""
        return self.scorer().row_scores(rows)

    def scorer(self) -> AdapterTrainer:
        """Return a trainer that only scores."""
        if self._scorer is None:
            base, recipe = self.ready.base, self._first.recipe
            self._scorer = build_scorer(recipe, self.ready.task, base, self.output)
        return self._scorer
