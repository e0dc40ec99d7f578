"""Train at full rank, screen cuts of that run, then heal and test the chosen sizes.

Each size is cut from one checkpoint of the full run, and trained on for the remaining steps.
"""

from __future__ import annotations

from collections.abc import Callable

from sora_cli.experiments.auto.budget import RowPlan
from sora_cli.experiments.auto.cuts import score_cuts
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.experiments.auto.record import AutoRecord
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.report import RunReport
from sora_cli.run.evaluate import evaluate_all
from sora_cli.run.prepare import Prepared
from sora_cli.run.runner import Runner
from sora_cli.search.bounds import Bound, drop_bound
from sora_cli.search.certificate import (
    SCREENING,
    TEST,
    Certificate,
    FullRank,
    Healed,
    Measured,
    Screened,
    SizeTest,
    choose,
    directory_of,
)
from sora_cli.search.rows import Held, certifiable_by, deciding_rows, row_sets
from sora_cli.search.screening import expected_drop, name_sizes, screen
from sora_cli.search.search import from_first_process, in_fixed_order
from sora_cli.search.size import Size, size_of
from sora_cli.search.words import expected_line, tested_line
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.log import ReportLog

Made = tuple[Healed, RowScores | None]
"""A trained size with its scores on the test rows; None: no test could pass."""


class Maker:
    """Makes and tests the sizes of one run of `sora auto`.

    Args:
        plan: recipes of all runs, and the promise.
        rows: numbers of screening and test rows.
        ready: data, model and adapters of the run at full rank.
        log: log of the record; the record holds finished parts of an interrupted run.
        tell: prints a line about each part of the work.

    Attributes:
        certifiable: the smallest drop that the test rows can certify.
        promise: the promise, as a number even for `smallest`.
    """

    def __init__(
        self,
        plan: AutoPlan,
        rows: RowPlan,
        ready: Prepared,
        log: ReportLog[AutoRecord],
        tell: Callable[[str], None],
    ) -> None:
        self.plan, self.rows, self.ready, self.log, self._tell = plan, rows, ready, log, tell
        self.record = log.report
        self.full = plan.full(rows)
        self.runner = Runner(ready, self.full, plan.output)
        held = deciding_rows(
            self.full.recipe, ready.task, ready.rows.train, rows.screening, rows.test
        )
        self._sets = row_sets(ready.rows, held)
        self._screening, self._tests = (self._scored(held[name]) for name in (SCREENING, TEST))
        self.certifiable = certifiable_by(self.full.recipe, ready, rows.test, plan.promise)
        self.promise = plan.promise.settled(self.certifiable, rows.test)
        self._cost = {p: m.A.shape[1] + m.B.shape[0] for p, m in ready.layers.items()}
        self._reference: RowScores | None = None

    def _scored(self, part: Held) -> Callable[[], RowScores]:
        """Return a function that scores the model as it is then on a part's rows."""
        rows = part.encoded(self.ready.task, self.ready.base)
        return lambda: part.scores(self.runner.scorer(), rows)

    @property
    def _may_pass(self) -> bool:
        return self.certifiable.may_pass(self.promise.max_drop)

    def run(self) -> None:
        """Do all parts that the record does not have yet; save the record after each."""
        record, max_drop = self.record, self.promise.max_drop
        if record.full is None:
            self._tell(f"\nfull rank {self.plan.rank}: the run that all sizes are compared with")
            with self.log.phase("train at full rank"):
                name = f"{self.full.name}, full rank"
                report = self.runner.train(self.runner.next_run(self.full, name))
            self._score_full(report)
        if not record.screened:
            with self.log.phase("screen"):
                self._screen()
            self.log.save()
        for made, bound in in_fixed_order(record.waiting(), self._heal, self._test, max_drop):
            size, scores = made
            if bound is not None and scores is not None:
                score = scores.beside(self._scores_at_full_rank())
                size.test = SizeTest.of(score, bound, max_drop)
                self._tell(tested_line(size.test, self.promise))
            record.add(size)
            self.log.save()

    def candidate(self, number: int) -> LoadedRecipe:
        """Return the recipe that trains a chosen size, by its number from 0."""
        size = self.record.named()[number]
        return self.plan.candidate(number + 1, size.max_params, self.rows)

    def _score_full(self, report: RunReport) -> None:
        runner = self.runner
        with self.log.phase("score"):
            # reported scores are taken now, as long as the full run is in the model
            metrics = evaluate_all(runner.scorer(), self.ready.task, self.ready.report)
            self._reference = self._tests()
        self.record.full = from_first_process(self._full_size(report, metrics, self._reference))
        self.log.save()

    def _full_size(
        self, report: RunReport, metrics: dict[str, dict[str, float]], test: RowScores
    ) -> FullRank:
        ranks = {path: layer.rank for path, layer in self.ready.layers.items()}
        (cut_at,) = self.full.recipe.training.kept_steps(report.steps or 0)
        metric = self.ready.task.best
        return FullRank(
            **self._size(ranks).model_dump(),
            r_max=self.plan.rank,
            directory=directory_of(None),
            digest=report.digests.get("adapter", ""),  # the first process has written it
            steps=report.steps or 0,
            cut_at=cut_at,
            test=test.value,
            reported={split: scores[metric] for split, scores in metrics.items()},
        )

    def _screen(self) -> None:
        """Score unhealed cuts on the screening rows, and choose the sizes to train."""
        plan, block, test_rows = self.plan, self.plan.block, self.rows.test
        self._tell(f"\nscreening: score all sizes before healing, on {self.rows.screening:,} rows")
        first = plan.candidate(1, 1, self.rows)
        cuts = score_cuts(self.runner, first, self._screening, block.serve)
        sizes = screen(cuts, test_rows=test_rows, confidence=block.confidence)
        max_drop, may_pass = self.promise.max_drop, self._may_pass
        for number in name_sizes(
            sizes,
            cuts.full,
            max_drop,
            block.sizes,
            block.serve,
            tested=may_pass,
            answers=self.promise.kind == "differ",
        ):
            sizes[number].named = True
        self.record.screened = from_first_process(sizes)
        named = ", ".join(f"{size.share:.3g}" for size in self.record.named())
        self._tell(f"to be trained, as shares of the parameters: {named}")
        for size in self.record.named():
            if size.certifiable is not None:
                expected = expected_drop(size), size.certifiable
                self._tell(f"{size.share:.1%}: {expected_line(self.promise, test_rows, *expected)}")

    def _heal(self, size: Screened) -> Made:
        """Cut the checkpoint to a size and train it on; if a test could pass, score it."""
        record = self.record
        assert record.full is not None
        # before training: the full run may have to be restored into the model to score it
        self._scores_at_full_rank()
        number = len(record.candidates)
        loaded = self.candidate(number)
        self._tell(
            f"\nsize {number + 1} of {len(record.named())}: {size.share:.1%} of the parameters"
        )
        with self.log.phase("heal"):
            run = self.runner.next_run(loaded, f"{loaded.name}, size {number + 1}")
            report = self.runner.train(run)
        scores = None
        if self._may_pass:
            with self.log.phase("score"):
                scores = self._tests()
        healed = Healed(
            **self._size({path: rank.end for path, rank in report.ranks.items()}).model_dump(),
            max_params=size.max_params,
            directory=directory_of(number),
            digest=report.digests.get("adapter", ""),
            heal_steps=(report.steps or 0) - record.full.cut_at,
            test=None,
            reported={},
        )
        return healed, scores

    def _test(self, made: Made) -> Bound | None:
        """Return the bound of a size's drop on the test rows."""
        if made[1] is None:
            return None
        block = self.plan.block
        with self.log.phase("score"):
            return drop_bound(
                self._scores_at_full_rank(), made[1], block.confidence, seed=block.seed
            )

    def _scores_at_full_rank(self) -> RowScores:
        if self._reference is None:
            self.runner.restore(self.full)
            self._reference = self._tests()
        return self._reference

    def _size(self, ranks: dict[str, int]) -> Size:
        return size_of(ranks, self._cost, self.plan.block.serve)

    def restored(self, number: int) -> Prepared:
        """Restore the model and its method to a candidate's trained state, and return them."""
        return self.runner.restore(self.candidate(number))

    def certificate(self, report: RunReport) -> Certificate:
        """Return the certificate of this search.

        Args:
            report: report of the written adapter, with its scores on the reported rows.
        """
        record, promise = self.record, self.promise
        assert record.full is not None
        chosen, candidates = choose(record.candidates), list(record.candidates)
        reported = {}
        for split, scores in report.metrics.items():
            score = scores[promise.metric]
            drop = promise.drop(record.full.reported[split], score)
            reported[split] = Measured(score=score, drop=drop)
        candidates[chosen] = candidates[chosen].model_copy(update={"reported": reported})
        return Certificate(
            promise=promise,
            bound=self.certifiable.screened(record.screened),
            full=record.full,
            screened=record.screened,
            candidates=candidates,
            rows=self._sets,
            seeds={"training": self.full.recipe.training.seed, "rows": self.plan.block.seed},
            base=report.base,
        )
