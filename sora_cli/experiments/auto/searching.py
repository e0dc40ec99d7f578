"""The order of the parts of a search, each of them saved: full rank, screening, tests, the result.

Rows held out, or rows without labels, screen and test the sizes; no adapter is trained on them. The
one loop over sizes is `in_fixed_order`.
"""

from __future__ import annotations

from sora_cli.core.processes import from_first_process
from sora_cli.experiments.auto.budget import RowPlan
from sora_cli.experiments.auto.maker import Made, Maker, Tell
from sora_cli.experiments.auto.plan import AutoPlan, placed
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import RunReport, read_report
from sora_cli.run.evaluate import evaluate_run
from sora_cli.run.prepare import Prepared
from sora_cli.run.results import save_results
from sora_cli.search.evidence import Evidence, Measured, Screened, choose
from sora_cli.search.record import AutoRecord
from sora_cli.search.rows import DecidingParts, deciding_parts, deciding_rows, method_by
from sora_cli.search.screening import expected_drop, name_sizes, screen
from sora_cli.search.search import in_fixed_order
from sora_cli.search.statistic import Bound
from sora_cli.search.statistics import statistic_in
from sora_cli.search.words import expected_line, tested_line
from sora_cli.train.log import ReportLog, RunLog


def parts_of_search(recipe: Recipe, ready: Prepared, rows: RowPlan) -> DecidingParts:
    """Return the rows that screen and test, encoded.

    Args:
        recipe: of the run at full rank, for which `ready` was prepared.
        rows: their planned numbers.
    """
    task = ready.task
    held = deciding_rows(recipe, task, ready.rows, rows.screening, rows.planned_test)
    return deciding_parts(recipe, task, ready.base, ready.rows, ready.train, held)


class AutoSearch:
    """A search; its finished parts are saved in a record.

    Args:
        ready: data, model and adapters of the run at full rank, before the first step.
        log: log of the record; the record holds finished parts of an interrupted search.
        tell: prints a line about each part of the work.

    Attributes:
        promise: the promise, as a number even for `smallest`.
        rows: the plan, with the number of rows that really test.
        bound: the method of the test.
        statistic: what is compared.
        nouns: its words about the promise.
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
        recipe = plan.full(rows).recipe
        parts = parts_of_search(recipe, ready, rows)
        for note in parts.test.notes("test rows"):
            tell(f"note: {note}")
        self.plan, self.rows, self._log, self._tell = plan, rows.counted(len(parts.test)), log, tell
        self._maker = Maker(plan, self.rows, ready, parts.screening, parts.test, log, tell)
        self.record, self.runner = log.report, self._maker.runner
        self.bound = method_by(recipe, ready, self.rows.test, plan.promise)
        self.promise = promise = plan.promise.settled(self.bound, self.rows.test)
        self.statistic = statistic_in(self.bound, promise)
        self.nouns = self.statistic.nouns(promise)
        self.record.set_rows(parts.sets, plan.output)

    @property
    def may_pass(self) -> bool:
        """False if no model could pass a test on these rows."""
        return self.bound.may_pass(self.promise.max_drop)

    @property
    def chosen(self) -> int:
        """Number of the size to write."""
        return choose(self.record.candidates)

    def run(self) -> None:
        """Do all parts that the record does not have yet; save the record after each."""
        record, max_drop = self.record, self.promise.max_drop
        if record.full is None:
            record.full = from_first_process(self._maker.train_full())
            self._log.save()
        if not record.screened:
            with self._log.phase("screen"):
                self._screen()
            self._log.save()
        for made, test in in_fixed_order(record.waiting(), self._heal, self._test, max_drop):
            if test is not None:
                self._tell(tested_line(test, self.nouns, self.promise))
            record.add(made[0].model_copy(update={"test": test}))
            self._log.save()

    def _screen(self) -> None:
        """Score unhealed cuts on the screening rows, and choose the sizes to train."""
        promise, block, test_rows = self.promise, self.plan.block, self.rows.test
        self._tell(f"\nscreening: score all sizes before healing, on {self.rows.screening:,} rows")
        cuts = self._maker.cuts()
        sizes = screen(cuts, test_rows=test_rows, confidence=promise.confidence)
        for number in name_sizes(
            sizes,
            cuts.full,
            promise.max_drop,
            block.sizes,
            block.serve,
            self.statistic,
            tested=self.may_pass,
        ):
            sizes[number].named = True
        self.record.screened = from_first_process(sizes)
        named = ", ".join(f"{size.share:.3g}" for size in self.record.named())
        self._tell(f"to be trained, as shares of the parameters: {named}")
        for size in self.record.named():
            if size.certifiable is not None:
                expected = expected_drop(size), size.certifiable
                self._tell(f"{size.share:.1%}: {expected_line(self.nouns, test_rows, *expected)}")

    def _heal(self, size: Screened) -> Made:
        number, named = len(self.record.candidates), len(self.record.named())
        self._tell(f"\nsize {number + 1} of {named}: {size.share:.1%} of the parameters")
        return self._maker.heal(number, size.max_params, scored=self.may_pass)

    def _test(self, made: Made) -> Bound | None:
        return None if made[1] is None else self._maker.test(made[1], self.promise)

    def write(self) -> tuple[Prepared, RunLog]:
        """Score the chosen size on the reported rows, and write it as a run of its own.

        Returns:
            The model as it is then, and the log of the run.
        """
        number, record = self.chosen, self.record
        stage = self._maker.candidate(number, record.candidates[number].max_params or 0)
        ready, loaded = self.runner.restore(stage), placed(stage, self.plan)
        log = RunLog(self.plan.output, name=loaded.name, recipe=loaded.resolved())
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
                save_results(log.report, ready, loaded, self.plan.output)
        return ready, log

    def certificate(self, report: RunReport) -> Evidence:
        """Return the certificate, after `write`.

        Args:
            report: report of the written adapter, with its scores on the reported rows.
        """
        record, promise = self.record, self.promise
        assert record.full is not None
        candidates = list(record.candidates)
        scores = {split: known[promise.metric] for split, known in report.metrics.items()}
        reported = {
            split: Measured(score=score, drop=promise.drop(record.full.reported[split], score))
            for split, score in scores.items()
        }
        written = candidates[self.chosen].model_copy(update={"reported": reported})
        candidates[self.chosen] = written
        bound, named = self.bound, record.named()
        if bound.smallest_drop is None and named:  # the estimate of the largest named size
            bound = bound.model_copy(update={"smallest_drop": named[0].certifiable})
        return Evidence(
            promise=promise,
            bound=bound,
            full=record.full,
            screened=record.screened,
            candidates=candidates,
            rows=record.rows,
            seeds={"training": self.plan.loaded.recipe.training.seed, "rows": self.plan.block.seed},
            base=report.base,
        )

    def forget(self) -> None:
        """Delete the states of all runs: none of them is read again."""
        self._maker.forget(self.record.candidates)
