"""Train at full rank, score cuts of that run, heal sizes: the maker of a search that trains.

Each size is cut from one checkpoint of the full run, and trained on for the remaining steps. Rows
held out, or rows without labels, screen and test the sizes; no adapter is trained on them.
"""

from __future__ import annotations

from collections.abc import Callable

from methods.budgets import costs_of
from sora_cli.experiments.auto.budget import RowPlan
from sora_cli.experiments.auto.cuts import score_cuts
from sora_cli.experiments.auto.plan import AutoPlan, placed
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import read_report
from sora_cli.run.evaluate import evaluate_all, evaluate_run
from sora_cli.run.prepare import Prepared
from sora_cli.run.results import save_results
from sora_cli.run.runner import Runner
from sora_cli.search.asked_search import AskedSearch
from sora_cli.search.auto_search import AutoSearch, Made, Maker
from sora_cli.search.evidence import Candidate, Reference, Screened, directory_of
from sora_cli.search.promise import Promise
from sora_cli.search.record import AutoRecord
from sora_cli.search.rows import DecidingParts, deciding_parts, deciding_rows, method_by
from sora_cli.search.screening import expected_drop, name_sizes, screen
from sora_cli.search.size import Size, size_of
from sora_cli.search.statistic import Bound, BoundMethod
from sora_cli.search.statistics import statistic_in
from sora_cli.search.test_rows import TestRows
from sora_cli.search.words import expected_line
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.log import ReportLog, RunLog

Tell = Callable[[str], None]
"""Prints a line about a part of the work."""


def parts_of_search(recipe: Recipe, ready: Prepared, rows: RowPlan) -> DecidingParts:
    """Return the rows that screen and test, encoded.

    Args:
        recipe: of the run at full rank, for which `ready` was prepared.
        rows: their planned numbers.
    """
    task = ready.task
    held = deciding_rows(recipe, task, ready.rows, rows.screening, rows.planned_test)
    return deciding_parts(recipe, task, ready.base, ready.rows, ready.train, held)


class TrainingMaker(Maker):
    """Trains the run at full rank and the sizes that a search compares.

    Args:
        plan: recipes of the runs.
        rows: the planned numbers of rows.
        ready: data, model and adapters of the run at full rank, before the first step.
        log: log of the record; the record holds finished parts of an interrupted search.
        tell: prints a line about each part of the work.

    Attributes:
        full: recipe of the run at full rank.
        rows: the plan, with the number of rows that really test.
        runner: trains and scores on the model.
    """

    def __init__(
        self,
        plan: AutoPlan,
        rows: RowPlan,
        ready: Prepared,
        log: ReportLog[AutoRecord],
        tell: Tell,
    ) -> None:
        self.plan, self.ready, self._log, self._tell = plan, ready, log, tell
        self.full = plan.full(rows)
        parts = parts_of_search(self.full.recipe, ready, rows)
        for note in parts.test.notes("test rows"):
            tell(f"note: {note}")
        log.report.set_rows(parts.sets, plan.output)
        self._screening, self._test = parts.screening, parts.test
        self._asks = plan.promise.basis == "asked"  # then `_test` is the pool until they are drawn
        self.rows = rows.counted(len(parts.test))
        self.runner = Runner(ready, self.full, plan.output)
        self._cost = costs_of(ready.layers)
        self._reference: RowScores | None = None

    def search(self) -> AutoSearch:
        """Return the search that this maker is for."""
        plan, rows, record = self.plan, self.rows.test, self._log.report
        seeds = {"training": plan.loaded.recipe.training.seed, "rows": plan.block.seed}
        first = plan.promise if record.asked is None else record.asked.first(plan.promise)
        bound = method_by(self.full.recipe, self.ready, rows, first)
        kind = AskedSearch if self._asks else AutoSearch
        return kind(self, record, plan.promise, bound, rows, seeds)

    def draw(self, rows: int) -> TestRows:
        """Draw test rows from the pool, and return them."""
        most = self.plan.promise.labels or 0
        self._tell(
            f"{rows:,} of {len(self._test):,} rows are drawn to test: as many as the promise needs "
            f"and {most:,} labels reach"
        )
        self._test = self._test.drawn(rows, self.ready.base, self.plan.block.seed)
        self._log.report.set_drawn(self._test.row_set(), self.plan.output)
        self._reference = None
        return self._test.part

    def scored(self, number: int, named: Screened) -> RowScores:
        """Restore a size into the model, and score it."""
        self.runner.restore(self._candidate(number, named.max_params))
        with self._log.phase("score"):
            return self._scores()

    def _scores(self) -> RowScores:
        return self._test.scores(self.runner.scorer())

    def _candidate(self, number: int, max_params: int) -> LoadedRecipe:
        """Return the recipe that trains a size.

        Args:
            number: of the size, from 0.
        """
        return self.plan.candidate(number + 1, max_params, self.rows)

    def full_rank(self) -> Reference:
        """Train at full rank, and score it."""
        self._tell(f"\nfull rank {self.plan.rank}: the run that all sizes are compared with")
        with self._log.phase("train at full rank"):
            name = f"{self.full.name}, full rank"
            report = self.runner.train(self.runner.next_run(self.full, name))
        ready = self.ready
        with self._log.phase("score"):
            # reported scores are taken now, as long as the full run is in the model
            metrics = evaluate_all(self.runner.scorer(), ready.task, ready.report)
            value = 1.0  # a model agrees with itself, on the rows that are not drawn yet
            if not self._asks:
                self._reference = self._scores()
                value = self._reference.value
        (cut_at,) = self.full.recipe.training.kept_steps(report.steps or 0)
        return Reference(
            **self._size({path: layer.rank for path, layer in ready.layers.items()}).model_dump(),
            r_max=self.plan.rank,
            directory=directory_of(None),
            digest=report.digests.get("adapter", ""),  # the first process has written it
            steps=report.steps or 0,
            cut_at=cut_at,
            test=value,
            reported={split: scores[ready.task.best] for split, scores in metrics.items()},
        )

    def screened(self, promise: Promise, bound: BoundMethod) -> list[Screened]:
        """Score unhealed cuts on the screening rows, and choose the sizes to train."""
        rows, block, statistic = self.rows, self.plan.block, statistic_in(bound, promise)
        self._tell(f"\nscreening: score all sizes before healing, on {rows.screening:,} rows")
        with self._log.phase("screen"):
            cuts = score_cuts(
                self.runner,
                self._candidate(0, 1),
                lambda: self._screening.scores(self.runner.scorer()),
                block.serve,
            )
            sizes = screen(
                cuts, test_rows=rows.test, confidence=promise.confidence, statistic=statistic
            )
            for number in name_sizes(
                sizes,
                cuts.full,
                promise.max_drop,
                block.sizes,
                block.serve,
                statistic,
                tested=bound.may_pass(promise.max_drop),
            ):
                sizes[number].named = True
        named, nouns = [size for size in sizes if size.named], statistic.nouns(promise)
        shares = ", ".join(f"{size.share:.3g}" for size in named)
        self._tell(f"to be trained, as shares of the parameters: {shares}")
        for size in named:
            if size.certifiable is not None:
                expected = expected_drop(size), size.certifiable
                self._tell(f"{size.share:.1%}: {expected_line(nouns, rows.test, *expected)}")
        return sizes

    def size(self, number: int, named: Screened, *, scored: bool) -> Made:
        """Cut the checkpoint to a size and train it on."""
        of = sum(size.named for size in self._log.report.screened)
        self._tell(f"\nsize {number + 1} of {of}: {named.share:.1%} of the parameters")
        # before training: the full run may have to be restored into the model to score it
        self.scores_at_full_rank()
        loaded = self._candidate(number, named.max_params)
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
            max_params=named.max_params,
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

    def test(self, scores: RowScores, promise: Promise, seed: int) -> Bound:
        """Return the test of a size by its scores."""
        with self._log.phase("score"):
            return super().test(scores, promise, seed)

    def write(self, number: int) -> tuple[Prepared, RunLog]:
        """Score a size on the reported rows, and write it as the search's own run.

        Returns:
            The model as it is then, and the log of the run.
        """
        record, output = self._log.report, self.plan.output
        stage = self._candidate(number, record.candidates[number].max_params or 0)
        ready, loaded = self.runner.restore(stage), placed(stage, self.plan)
        log = RunLog(output, name=loaded.name, recipe=loaded.resolved())
        trained = read_report(stage.output_dir)
        assert trained is not None
        own = {"name", "command", "recipe", "started", "finished", "environment", "status", "error"}
        for key in trained.model_fields_set - own - {"seconds", "digests", "resumed"}:
            setattr(log.report, key, getattr(trained, key))
        log.report.started, log.report.seconds = record.started, dict(record.seconds)
        log.report.recipe_notes = list(self.plan.loaded.notes)
        with log.running():
            with log.phase("evaluate"):
                evaluate_run(log.report, self.runner.scorer(), ready)
            with log.phase("save"):
                save_results(log.report, ready, loaded, output)
        return ready, log

    def forget(self) -> None:
        """Delete the states of all runs: none of them is read again."""
        for number, size in enumerate(self._log.report.candidates):
            self.runner.forget(self._candidate(number, size.max_params or 0).output_dir)
        self.runner.forget(self.full.output_dir)

    def _size(self, ranks: dict[str, int]) -> Size:
        return size_of(ranks, self._cost, self.plan.block.serve)
