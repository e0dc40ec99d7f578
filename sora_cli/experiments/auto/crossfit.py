"""Cross-fitting: each half of the rows trains adapters that the other half tests.

Full rank is trained on each half, and cuts of both are screened on rows that neither trains on.
Then each size is healed in both halves and tested by the mean of their bounds (`search.halves`).
The size found is trained on all rows and written. One model serves all runs: each of the three that
start anew begins with the same factors and the same head.
"""

from __future__ import annotations

import dataclasses

from sora_cli.core.processes import from_first_process
from sora_cli.experiments.auto.budget import HalvesPlan
from sora_cli.experiments.auto.maker import Maker, Tell
from sora_cli.experiments.auto.plan import AutoPlan, placed
from sora_cli.experiments.auto.record import AutoRecord
from sora_cli.experiments.auto.searching import AutoSearch
from sora_cli.report import RunReport
from sora_cli.run.prepare import Prepared, on_rows
from sora_cli.run.runner import Runner
from sora_cli.search.certificate import Certificate, Half, Healed, SizeTest, means
from sora_cli.search.halves import HALF_SHARES, HALVES, half_confidence
from sora_cli.search.parts import EncodedPart
from sora_cli.search.row_set import SCREENING, half_name
from sora_cli.search.rows import certifiable_by, cross_fit_rows, sets_of_halves
from sora_cli.search.screening import Cuts, merged_cuts
from sora_cli.train.checkpoint.files import load_parameters, trained_tensors
from sora_cli.train.log import ReportLog, RunLog


class CrossFit(AutoSearch[list[Healed]]):
    """The search by cross-fitting; arguments as of `AutoSearch`, with all rows in `ready`."""

    def __init__(
        self,
        plan: AutoPlan,
        rows: HalvesPlan,
        ready: Prepared,
        log: ReportLog[AutoRecord],
        tell: Tell,
    ) -> None:
        recipe = plan.loaded.recipe
        self._initial = trained_tensors(ready.base.model, ready.method)
        self.confidence, self.sizes = half_confidence(plan.block.confidence), rows.sizes
        self.shares, self.step = HALF_SHARES, 1
        self.runner = Runner(ready, plan.whole(), plan.output)
        parts = cross_fit_rows(recipe, ready.task, rows.screening)
        self._sets = sets_of_halves(ready.rows, parts)
        self._makers = []
        for half in HALVES:
            own = plan.on_half(half, rows)
            on_half = on_rows(ready, own.full(rows).recipe.data)
            screening, test = (
                EncodedPart(part, part.encoded(ready.task, ready.base))
                for part in (parts[SCREENING], parts[half_name(3 - half)])
            )
            self._makers.append(Maker(own, rows, on_half, screening, [test], log, tell))
        certifiable = certifiable_by(
            plan.whole().recipe, ready, rows.test, plan.promise, self.confidence
        )
        super().__init__(plan, rows, ready, log, tell, certifiable)

    def _train_full(self) -> None:
        record = self.record
        for maker in self._makers[len(record.halves) :]:
            load_parameters(self.ready.base.model, self._initial)
            record.halves = [*record.halves, Half(full=from_first_process(maker.train_full()))]
            self._log.save()
        record.full, _ = means(record.halves, self.promise.max_drop)

    def _cuts(self) -> Cuts:
        return merged_cuts(*(maker.cuts(self.shares) for maker in self._makers))

    def _heal(self, number: int, max_params: int) -> list[Healed]:
        sizes = []
        for maker in self._makers:
            healed, scores = maker.heal(number, max_params, scored=self.may_pass)
            if scores is not None:
                healed.test = maker.test(scores, self.confidence, self.promise.max_drop)
            sizes.append(healed)
        return sizes

    def _test(self, made: list[Healed]) -> SizeTest | None:
        tests = [size.test for size in made if size.test is not None]
        return SizeTest.mean(tests, self.promise.max_drop) if tests else None

    def _tested(self, made: list[Healed], test: SizeTest | None) -> Healed:
        record = self.record
        record.halves = [
            half.model_copy(update={"candidates": [*half.candidates, size]})
            for half, size in zip(record.halves, made, strict=True)
        ]
        return made[0].model_copy(update={"test": test})

    def write(self) -> tuple[Prepared, RunLog]:
        """Train the chosen size on all rows, and write it."""
        plan = self._makers[0].plan  # its share of steps after the cut
        whole = dataclasses.replace(self.plan, healing=plan.healing)
        final = whole.final(self.record.candidates[self.chosen].max_params)
        return self._train_final(self.ready, placed(final, self.plan), self._initial)

    def certificate(self, report: RunReport) -> Certificate:
        """Return the certificate, with both halves."""
        record, size = self.record, self.record.candidates[self.chosen]
        assert record.full is not None
        return Certificate(
            promise=self.promise,
            bound=self.certifiable.screened(record.screened),
            full=record.full,
            screened=record.screened,
            candidates=record.candidates,
            halves=record.halves,
            final=self._final(report, size.max_params),
            rows=self._sets,
            seeds=self._seeds,
            base=report.base,
        )

    def forget(self) -> None:
        """Delete the states of both halves' runs."""
        for maker in self._makers:
            maker.forget(self.record.candidates)
