"""Train one or several runs on a model that is prepared once.

`sora train` trains one run, a path and `sora auto` several. A run's directory holds its report, its
result and its checkpoints. If several runs share a model, it also holds `state.safetensors`: the
trained parameters and the method's state, from which the model is restored to the end of that run,
also after an interruption. A run's start sets everything that training changes, so the runs that
came before on the same model make no difference.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors.torch import save

from methods.registry import method_class
from sora_cli.adapter.digest import former_results
from sora_cli.core.atomic import remove_file, tidy, write_bytes_atomic
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.processes import is_main
from sora_cli.model.tensors import load_tensors
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.report import Ranks, RateChoice, RunReport
from sora_cli.run.micro_batch import settle
from sora_cli.run.output import RANKS_PLOT
from sora_cli.run.prepare import Prepared
from sora_cli.run.rates.settle import settle_rate
from sora_cli.run.reference import hold_documents, hold_reference
from sora_cli.run.results import record_result, record_setup, save_results
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.checkpoint.beginning import Beginning, find_beginning
from sora_cli.train.checkpoint.files import load_trained, trained_tensors
from sora_cli.train.checkpoint.places import FOLDER, STATE_FILE, checkpoint_paths
from sora_cli.train.checkpoint.resume import identity_of, rate_of
from sora_cli.train.fit import fit
from sora_cli.train.log import RunLog
from sora_cli.train.loggers import send_result
from sora_cli.train.progress import following
from sora_cli.train.trainer import AdapterTrainer, build_scorer, build_trainer

Score = Callable[[RunReport, AdapterTrainer, Prepared], None]
"""Fills the scores of a report from the trained model."""


@dataclass(frozen=True)
class SetUp:
    """A run before its first step.

    Attributes:
        loaded: the recipe, as the run's report and adapter store it.
        log: of the run's report.
        ready: the model, and the method that trains it.
        trainer: of the remaining steps.
        begin: start of the training: from scratch, a checkpoint or a fork.
        keeps_state: write `state.safetensors`, as other runs follow on the same model.
    """

    loaded: LoadedRecipe
    log: RunLog
    ready: Prepared
    trainer: AdapterTrainer
    begin: Beginning
    keeps_state: bool = False


class Runner:
    """Trains several runs on one model, and can restore the model of each finished run.

    Args:
        ready: data, model and adapters of the first run.
        first: recipe of the first run.
        output: the directory above all runs.

    Attributes:
        setup: the part of the report that all runs share.
    """

    def __init__(self, ready: Prepared, first: LoadedRecipe, output: Path) -> None:
        self.ready, self.output, self._first = ready, output, first
        self.setup = RunReport(name="", recipe={})
        record_setup(self.setup, ready, first.recipe.training)
        self._scorer: AdapterTrainer | None = None

    def set_up(
        self,
        log: RunLog,
        loaded: LoadedRecipe,
        *,
        ready: Prepared | None = None,
        rate: RateChoice | None = None,
        select: Encoded | None = None,
        resume: bool,
        force: bool = False,
    ) -> SetUp:
        """Find the start of a run, and build its trainer.

        Args:
            ready: holds a method that has trained before; None: make a new method from the recipe.
            rate: found for an earlier run, for `learning_rate: auto`; None: find one. A checkpoint
                takes precedence.
            select: rows that score its checkpoints.
            resume: look for a checkpoint of this run.
            force: accept safe changes of the recipe.
        """
        self._scorer = None
        ready, recipe, report = ready or self.with_method(loaded), loaded.recipe, log.report
        self._note_setup(report)
        model, output = ready.base.model, log.path.parent
        report.former = former_results(output)
        begin = find_beginning(
            recipe, report, output, model, ready.layers, resume=resume, force=force
        )
        stored = None if begin.resumed is None else begin.resumed.run.get("micro_batch")
        recipe, report.micro_batch = settle(recipe, ready, stored=stored)
        rate = rate if begin.checkpoint is None else rate_of(begin.checkpoint.run)
        recipe, report.learning_rate = settle_rate(recipe, ready, stored=rate)
        trainer = build_trainer(
            recipe, ready.task, ready.base, output, train=ready.train, select=select
        )
        trainer.micro_batch = report.micro_batch
        return SetUp(loaded, log, ready, trainer, begin)

    def next_run(
        self,
        loaded: LoadedRecipe,
        name: str,
        directory: Path | None = None,
        *,
        ready: Prepared | None = None,
        rate: RateChoice | None = None,
    ) -> SetUp:
        """Set up one of several runs, or the rest of an interrupted run.

        Args:
            name: in its report.
            directory: for its files; None: the recipe's.
            ready, rate: see `set_up`.
        """
        directory = directory or loaded.output_dir
        if is_main() and directory.is_dir():
            tidy(directory)
        log = RunLog(directory, name=name, recipe=loaded.resolved())
        resume = bool(checkpoint_paths(directory / FOLDER))
        setup = self.set_up(log, loaded, ready=ready, rate=rate, resume=resume)
        return replace(setup, keeps_state=True)

    def _note_setup(self, report: RunReport) -> None:
        for key in ("base", "data", "main_metric", "parameters", "start", "events"):
            setattr(report, key, deepcopy(getattr(self.setup, key)))
        report.ranks = {p: Ranks(start=m.rank, end=m.rank) for p, m in self.ready.layers.items()}

    def train(self, run: SetUp, *, score: Score | None = None) -> RunReport:
        """Train, score and save a run; its files are complete when this returns.

        Args:
            score: fills the report's scores; None: the run is not scored here.
        """
        log, ready, output = run.log, run.ready, run.log.path.parent
        report = log.report
        if run.begin.resumed is not None:
            log.note_resumption(run.begin.resumed.step)
        with log.running():
            if ready.task.reference is not None:
                with log.phase("reference"):
                    parts = {"train": ready.train, "select": ready.select, **ready.report}
                    resumed = run.begin.resumed is not None
                    hold_reference(run.trainer, parts, output, resumed=resumed)
            hold_documents(run.trainer)
            with log.phase("train"), following(log, run.trainer):
                result = fit(
                    run.trainer,
                    ready.method,
                    ready.layers,
                    output,
                    identity=identity_of(report),
                    resumed=run.begin.checkpoint,
                    forked=run.begin.forked,
                )
            if score is not None:
                with log.phase("evaluate"):
                    score(report, run.trainer, ready)
            with log.phase("save"):
                record_result(report, ready, result)
                save_results(report, ready, run.loaded, output)
                if run.keeps_state:
                    _write_state(ready, output)
                    run.trainer.accelerator.wait_for_everyone()  # any process may read it next
        send_result(run.trainer, report.metrics, output / RANKS_PLOT)
        return report

    def with_method(self, loaded: LoadedRecipe) -> Prepared:
        """Return the same model and layers with a new method, built from the recipe."""
        block = loaded.recipe.method
        method = method_class(block.name)(block.config)
        steps = loaded.recipe.training.total_steps(len(self.ready.train.lengths))
        method.begin(self.ready.layers, total_steps=steps)
        return replace(self.ready, method=method)

    def restore(self, loaded: LoadedRecipe, directory: Path | None = None) -> Prepared:
        """Restore the model to the end of a finished run, from its `state.safetensors`."""
        file, ready = (directory or loaded.output_dir) / STATE_FILE, self.with_method(loaded)
        try:
            tensors = load_tensors(file)
        except Exception as error:  # safetensors has its own exception for damage
            raise SoraError(
                f"{file} cannot be read: {first_line(error)}", hint="start again with --force"
            ) from error
        load_trained(ready.base.model, ready.method, tensors)
        return ready

    def forget(self, directory: Path) -> None:
        """Delete a run's `state.safetensors`, which nothing reads again."""
        if is_main():
            remove_file(directory / STATE_FILE)

    def scores(self, rows: Encoded) -> RowScores:
        """Return the main metric of the current model for each row; the same on all processes."""
        return self.scorer().row_scores(rows)

    def scorer(self) -> AdapterTrainer:
        """Return a trainer that only scores."""
        if self._scorer is None:
            base, recipe = self.ready.base, self._first.recipe
            self._scorer = build_scorer(recipe, self.ready.task, base)
        return self._scorer


def _write_state(ready: Prepared, output: Path) -> None:
    tensors = trained_tensors(ready.base.model, ready.method)
    if is_main():
        write_bytes_atomic(output / STATE_FILE, save(tensors))
