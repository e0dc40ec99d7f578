"""The runs of `sora auto`, on one model: the full one, and those that leave it at the cut.

Each run's directory is that of an ordinary run, with its report, its adapter and its checkpoints,
plus `state.safetensors`, which its scores are taken from again after an interruption. All that
training changes comes from the checkpoint that a run begins with, so it makes no difference that
one model serves all of them.
"""

from __future__ import annotations

import dataclasses
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
from sora_cli.train.checkpoint.beginning import find_beginning
from sora_cli.train.checkpoint.files import load_trained, trained_tensors
from sora_cli.train.checkpoint.places import FOLDER as CHECKPOINTS
from sora_cli.train.checkpoint.places import STATE_FILE, checkpoint_paths
from sora_cli.train.checkpoint.resume import identity_of
from sora_cli.train.fit import fit
from sora_cli.train.log import RunLog
from sora_cli.train.loggers import send_result
from sora_cli.train.progress import following
from sora_cli.train.trainer import AdapterTrainer, build_scorer, build_trainer


class Stages:
    """Trains the runs and scores what they end with.

    Args:
        ready: data, model and adapters as the full run has them.
        full: its recipe.
        output: the directory of everything.
    """

    def __init__(self, ready: Prepared, full: LoadedRecipe, output: Path) -> None:
        self.ready, self.output = ready, output
        setup = RunReport(name="", recipe={})
        record_setup(setup, ready, full.recipe.training)
        shared = {"base", "data", "main_metric", "parameters", "events"}
        self._setup = setup.model_dump(include=shared)
        self.setup = setup
        self._trainer: AdapterTrainer | None = None
        self._full = full

    def run(self, loaded: LoadedRecipe, name: str) -> RunReport:
        """Train a run, or what is left of it; its files are complete when this returns."""
        directory = loaded.output_dir
        self._trainer = None
        log = RunLog(directory, name=name, recipe=loaded.resolved())
        report = log.report
        for key, value in self._setup.items():
            setattr(report, key, value)
        ready = self._ready(loaded)
        report.ranks = {p: Ranks(start=m.rank, end=m.rank) for p, m in ready.layers.items()}
        begin = find_beginning(
            loaded.recipe,
            report,
            directory,
            ready.base.model,
            ready.layers,
            resume=bool(checkpoint_paths(directory / CHECKPOINTS)),  # of a start that was cut short
        )
        trainer = build_trainer(loaded.recipe, ready.task, ready.base, directory, train=ready.train)
        if begin.resumed is not None:
            log.note_resumption(begin.resumed.step)
        with log.running():
            with log.phase("train"), following(log, trainer):
                result = fit(
                    trainer,
                    ready.method,
                    ready.layers,
                    directory,
                    identity=identity_of(report),
                    resumed=begin.checkpoint,
                    forked=begin.forked,
                )
            record_result(report, ready, result)
            with log.phase("save"):
                save_results(report, ready, loaded, directory)
                tensors = trained_tensors(ready.base.model, ready.method)
                if is_main():
                    write_bytes_atomic(directory / STATE_FILE, save(tensors))
        send_result(trainer, report.metrics, directory / RANKS_PLOT)
        return report

    def _ready(self, loaded: LoadedRecipe) -> Prepared:
        """Return the same model with a run's own method."""
        block = loaded.recipe.method
        method = method_class(block.name)(block.config)
        steps = loaded.recipe.training.total_steps(len(self.ready.train.lengths))
        method.begin(self.ready.layers, total_steps=steps)
        return dataclasses.replace(self.ready, method=method)

    def restore(self, loaded: LoadedRecipe) -> Prepared:
        """Put the model where a finished run left it.

        Raises:
            SoraError: that state is gone or damaged.
        """
        file = loaded.output_dir / STATE_FILE
        ready = self._ready(loaded)
        try:
            tensors = load_tensors(file)
        except Exception as error:  # safetensors raises its own kind for damage
            raise SoraError(
                f"{file} cannot be read: {first_line(error)}", hint="start again with --force"
            ) from error
        load_trained(ready.base.model, ready.method, tensors)
        return ready

    def scores(self, rows: Encoded) -> RowScores:
        """Return the main metric of the model as it is, row by row; on all processes the same."""
        return self.scorer().row_scores(rows)

    def scorer(self) -> AdapterTrainer:
        """Return a trainer that only scores."""
        if self._trainer is None:
            base, recipe = self.ready.base, self._full.recipe
            self._trainer = build_scorer(recipe, self.ready.task, base, self.output)
        return self._trainer

    def forget(self, loaded: LoadedRecipe) -> None:
        """Delete a run's state: its scores are recorded."""
        if is_main():
            (loaded.output_dir / STATE_FILE).unlink(missing_ok=True)
