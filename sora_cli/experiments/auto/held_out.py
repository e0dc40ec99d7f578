"""The search on rows held out: they are not trained on, and test the adapters."""

from __future__ import annotations

from sora_cli.core.processes import from_first_process
from sora_cli.experiments.auto.budget import RowPlan
from sora_cli.experiments.auto.maker import Made, Maker, Tell
from sora_cli.experiments.auto.plan import AutoPlan, placed
from sora_cli.experiments.auto.record import AutoRecord
from sora_cli.experiments.auto.searching import AutoSearch
from sora_cli.report import RunReport, read_report
from sora_cli.run.evaluate import evaluate_all, evaluate_run
from sora_cli.run.prepare import Prepared, on_rows
from sora_cli.run.results import save_results
from sora_cli.search.certificate import (
    REFIT,
    TEST,
    TRAIN,
    Certificate,
    Healed,
    Measured,
    SizeTest,
)
from sora_cli.search.class_rows import with_classes
from sora_cli.search.rows import certifiable_by, deciding_rows, row_sets
from sora_cli.search.screening import Cuts
from sora_cli.search.sizes import SHARES
from sora_cli.train.checkpoint.files import trained_tensors
from sora_cli.train.log import ReportLog, RunLog

_STEP = 2  # sizes to the next bolder one, of all that are screened


class HeldOut(AutoSearch[Made]):
    """The search on rows held out; arguments as of `AutoSearch`."""

    def __init__(
        self,
        plan: AutoPlan,
        rows: RowPlan,
        ready: Prepared,
        log: ReportLog[AutoRecord],
        tell: Tell,
    ) -> None:
        recipe = plan.full(rows).recipe
        held = deciding_rows(recipe, ready.task, ready.rows.train, rows.screening, rows.test)
        self._held, self._sets = held, row_sets(ready.rows, held)
        self._maker = Maker(plan, rows, ready, held, log, tell)
        self.runner = self._maker.runner
        self.confidence, self.sizes = plan.promise.parts()[0].confidence, plan.block.sizes
        self.shares, self.step = SHARES, _STEP
        self._initial = trained_tensors(ready.base.model, ready.method) if plan.block.refit else {}
        self._reported: dict[str, float] = {}
        test = self._sets[TEST].rows  # fewer than planned, where rare classes stay in training
        certifiable = certifiable_by(recipe, ready, test, plan.promise, answers=rows.answers)
        super().__init__(plan, rows, ready, log, tell, certifiable)

    def _train_full(self) -> None:
        if self.record.full is None:
            self.record.full = from_first_process(self._maker.train_full())
            self._log.save()

    def _cuts(self) -> Cuts:
        return self._maker.cuts(self.shares)

    def _heal(self, number: int, max_params: int) -> Made:
        return self._maker.heal(number, max_params, scored=self.may_pass)

    def _test(self, made: Made) -> SizeTest | None:
        if made[1] is None:
            return None
        return self._maker.test(made[1], self.confidence, self.promise.max_drop)

    def _tested(self, made: Made, test: SizeTest | None) -> Healed:
        return made[0].model_copy(update={"test": test})

    def write(self) -> tuple[Prepared, RunLog]:
        """Write the chosen size as a run of its own; with refit, train it on all rows first."""
        plan, number = self.plan, self.chosen
        size = self.record.candidates[number]
        loaded = self._maker.candidate(number, size.max_params)
        ready = self.runner.restore(loaded)
        if not plan.block.refit:
            return self._write_tested(ready, number)
        metric = self.promise.metric
        scores = evaluate_all(self.runner.scorer(), ready.task, ready.report)
        self._reported = {split: known[metric] for split, known in scores.items()}
        final = placed(plan.final(size.max_params), plan)
        whole = on_rows(self.ready, final.recipe.data)
        self._sets |= {REFIT: row_sets(whole.rows, {})[TRAIN]}
        trained = read_report(loaded.output_dir)
        assert trained is not None
        return self._train_final(whole, final, self._initial, trained.learning_rate)

    def _write_tested(self, ready: Prepared, number: int) -> tuple[Prepared, RunLog]:
        """Score the chosen size on the reported rows, and write it as the run's adapter."""
        stage = self._maker.candidate(number, self.record.candidates[number].max_params)
        loaded, record = placed(stage, self.plan), self.record
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

    def certificate(self, report: RunReport) -> Certificate:
        """Return the certificate, after `write`; with refit, of the tested and the written size."""
        record, promise, chosen = self.record, self.promise, self.chosen
        assert record.full is not None
        candidates, final = list(record.candidates), None
        scores = {split: known[promise.metric] for split, known in report.metrics.items()}
        if self.plan.block.refit:
            final, scores = self._final(report, candidates[chosen].max_params), self._reported
        reported = {
            split: Measured(score=score, drop=promise.drop(record.full.reported[split], score))
            for split, score in scores.items()
        }
        candidates[chosen] = candidates[chosen].model_copy(update={"reported": reported})
        return Certificate(
            promise=promise,
            bound=self.certifiable.screened(record.screened),
            full=record.full,
            screened=record.screened,
            candidates=candidates,
            final=final,
            rows=with_classes(self._sets, self._held, self.ready.task),
            seeds=self._seeds,
            base=report.base,
        )

    def forget(self) -> None:
        """Delete the states of all runs."""
        self._maker.forget(self.record.candidates)
