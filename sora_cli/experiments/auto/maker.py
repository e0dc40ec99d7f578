"""Train at full rank, score cuts of that run, heal and test sizes: the steps of a search.

Each size is cut from one checkpoint of the full run, and trained on for the remaining steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from methods.budgets import costs_of
from sora_cli.experiments.auto.budget import RowPlan
from sora_cli.experiments.auto.cuts import score_cuts
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.run.evaluate import evaluate_all
from sora_cli.run.prepare import Prepared
from sora_cli.run.runner import Runner
from sora_cli.search.evidence import Candidate, Reference, directory_of
from sora_cli.search.promise import Promise
from sora_cli.search.record import AutoRecord
from sora_cli.search.screening import Cuts
from sora_cli.search.size import Size, size_of
from sora_cli.search.statistic import Bound
from sora_cli.search.statistics import drop_bound
from sora_cli.search.test_rows import EncodedRows
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.log import ReportLog

Tell = Callable[[str], None]
"""Prints a line about a part of the work."""
Made = tuple[Candidate, RowScores | None]
"""A trained size with its scores; None: no test could pass."""


class Maker:
    """Makes and tests sizes.

    Args:
        plan: recipes of the runs.
        rows: numbers of rows.
        ready: data, model and adapters of the run at full rank.
        screening: rows that choose the sizes.
        test: rows that test them.
        log: times the steps.

    Attributes:
        full: recipe of the run at full rank.
    """

    def __init__(
        self,
        plan: AutoPlan,
        rows: RowPlan,
        ready: Prepared,
        screening: EncodedRows,
        test: EncodedRows,
        log: ReportLog[AutoRecord],
        tell: Tell,
    ) -> None:
        self.plan, self.rows, self.ready, self._log, self._tell = plan, rows, ready, log, tell
        self.full = plan.full(rows)
        self.runner = Runner(ready, self.full, plan.output)
        self._screening, self._test = screening, test
        self._cost = costs_of(ready.layers)
        self._reference: RowScores | None = None

    def _scores(self) -> RowScores:
        return self._test.scores(self.runner.scorer())

    def candidate(self, number: int, max_params: int) -> LoadedRecipe:
        """Return the recipe that trains a size.

        Args:
            number: of the size, from 0.
        """
        return self.plan.candidate(number + 1, max_params, self.rows)

    def train_full(self) -> Reference:
        """Train at full rank, and score it."""
        self._tell(f"\nfull rank {self.plan.rank}: the run that all sizes are compared with")
        with self._log.phase("train at full rank"):
            name = f"{self.full.name}, full rank"
            report = self.runner.train(self.runner.next_run(self.full, name))
        ready = self.ready
        with self._log.phase("score"):
            # reported scores are taken now, as long as the full run is in the model
            metrics = evaluate_all(self.runner.scorer(), ready.task, ready.report)
            self._reference = self._scores()
        (cut_at,) = self.full.recipe.training.kept_steps(report.steps or 0)
        return Reference(
            **self._size({path: layer.rank for path, layer in ready.layers.items()}).model_dump(),
            r_max=self.plan.rank,
            directory=directory_of(None),
            digest=report.digests.get("adapter", ""),  # the first process has written it
            steps=report.steps or 0,
            cut_at=cut_at,
            test=self._reference.value,
            reported={split: scores[ready.task.best] for split, scores in metrics.items()},
        )

    def cuts(self) -> Cuts:
        """Score unhealed cuts on the screening rows."""

        def score() -> RowScores:
            return self._screening.scores(self.runner.scorer())

        return score_cuts(self.runner, self.candidate(0, 1), score, self.plan.block.serve)

    def heal(self, number: int, max_params: int, *, scored: bool) -> Made:
        """Cut the checkpoint to a size and train it on.

        Args:
            number: of the size, from 0.
            scored: score it on the test rows.
        """
        # before training: the full run may have to be restored into the model to score it
        self.scores_at_full_rank()
        loaded = self.candidate(number, max_params)
        with self._log.phase("heal"):
            run = self.runner.next_run(loaded, f"{loaded.name}, size {number + 1}")
            report = self.runner.train(run)
        scores = None
        if scored:
            with self._log.phase("score"):
                scores = self._scores()
        start = 0 if report.start is None else report.start.step or 0
        healed = Candidate(
            **self._size({path: rank.end for path, rank in report.ranks.items()}).model_dump(),
            max_params=max_params,
            directory=directory_of(number),
            digest=report.digests.get("adapter", ""),
            heal_steps=(report.steps or 0) - start,
            test=None,
            reported={},
        )
        return healed, scores

    def scores_at_full_rank(self) -> RowScores:
        """Return full rank's scores on the test rows; if need be, restore it into the model."""
        if self._reference is None:
            self.runner.restore(self.full)
            self._reference = self._scores()
        return self._reference

    def test(self, scores: RowScores, promise: Promise) -> Bound:
        """Return the test of a size on the test rows.

        Args:
            scores: of the size on the test rows.
        """
        with self._log.phase("score"):
            full, seed = self.scores_at_full_rank(), self.plan.block.seed
            return drop_bound(full, scores, promise.confidence, seed=seed)

    def forget(self, candidates: Sequence[Candidate]) -> None:
        """Delete the states of full rank and of these candidates: none is read again."""
        for number, size in enumerate(candidates):
            self.runner.forget(self.candidate(number, size.max_params or 0).output_dir)
        self.runner.forget(self.full.output_dir)

    def _size(self, ranks: dict[str, int]) -> Size:
        return size_of(ranks, self._cost, self.plan.block.serve)
