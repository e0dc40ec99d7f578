"""The order of the parts of a search, each of them saved: full rank, screening, tests, the result.

`held_out` and `crossfit` fill in the parts. The one loop over sizes is `in_fixed_order`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar

from torch import Tensor

from sora_cli.core.processes import from_first_process
from sora_cli.experiments.auto.budget import RowPlan
from sora_cli.experiments.auto.maker import Tell
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.experiments.auto.record import AutoRecord
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.report import RateChoice, RunReport
from sora_cli.run.evaluate import evaluate_run
from sora_cli.run.prepare import Prepared
from sora_cli.run.runner import Runner
from sora_cli.search.certifiable import Certifiable
from sora_cli.search.certificate import Certificate, Final, Healed, Screened, SizeTest, choose
from sora_cli.search.row_set import RowSet
from sora_cli.search.screening import Cuts, expected_drop, name_sizes, screen
from sora_cli.search.search import in_fixed_order
from sora_cli.search.size import size_of
from sora_cli.search.words import expected_line, tested_line
from sora_cli.train.checkpoint.files import load_parameters
from sora_cli.train.log import ReportLog, RunLog

Made = TypeVar("Made")


class AutoSearch(ABC, Generic[Made]):
    """A search; its finished parts are saved in a record.

    Args:
        ready: data, model and adapters before the first step.
        log: log of the record; the record holds finished parts of an interrupted search.
        tell: prints a line about each part of the work.
        certifiable: the smallest drop that the test rows can certify.

    Attributes:
        promise: the promise, as a number even for `smallest`.
        confidence: confidence of each bound.
        shares: sizes that are screened, as shares of full rank's parameters.
        sizes: largest number of sizes that are trained.
        runner: trains and scores on the model.
    """

    confidence: float
    shares: Sequence[float]
    step: int
    sizes: int
    runner: Runner
    _sets: dict[str, RowSet]  # the rows of every part

    def __init__(
        self,
        plan: AutoPlan,
        rows: RowPlan,
        ready: Prepared,
        log: ReportLog[AutoRecord],
        tell: Tell,
        certifiable: Certifiable,
    ) -> None:
        self.plan, self.rows, self.ready, self._log, self._tell = plan, rows, ready, log, tell
        self.record, self.certifiable = log.report, certifiable
        self.promise = plan.promise.settled(certifiable, rows.test)
        self.record.set_rows(self._sets, plan.output)

    @property
    def may_pass(self) -> bool:
        """False if no model could pass a test on these rows."""
        return self.certifiable.may_pass(self.promise.max_drop)

    def run(self) -> None:
        """Do all parts that the record does not have yet; save the record after each."""
        record, max_drop = self.record, self.promise.max_drop
        self._train_full()
        if not record.screened:
            with self._log.phase("screen"):
                self._screen()
            self._log.save()
        for made, test in in_fixed_order(record.waiting(), self._heal_next, self._test, max_drop):
            if test is not None:
                self._tell(tested_line(test, self.promise))
            record.add(self._tested(made, test))
            self._log.save()

    @abstractmethod
    def _train_full(self) -> None:
        """Train and score full rank, unless the record holds it already."""

    @abstractmethod
    def _cuts(self) -> Cuts:
        """Score unhealed cuts on the screening rows."""

    @abstractmethod
    def _heal(self, number: int, max_params: int) -> Made:
        """Train a size and score it on the test rows."""

    @abstractmethod
    def _test(self, made: Made) -> SizeTest | None:
        """Test a size; None: no size could pass on these rows."""

    @abstractmethod
    def _tested(self, made: Made, test: SizeTest | None) -> Healed:
        """Return a size as the record has it, with its test."""

    @abstractmethod
    def write(self) -> tuple[Prepared, RunLog]:
        """Write the run: its adapter and report; return the model as it is then, and the log."""

    @abstractmethod
    def certificate(self, report: RunReport) -> Certificate:
        """Return the certificate of this search.

        Args:
            report: report of the written adapter, with its scores on the reported rows.
        """

    @abstractmethod
    def forget(self) -> None:
        """Delete the states of all runs: none of them is read again."""

    def _screen(self) -> None:
        """Score unhealed cuts on the screening rows, and choose the sizes to train."""
        block, test_rows = self.plan.block, self.rows.test
        self._tell(f"\nscreening: score all sizes before healing, on {self.rows.screening:,} rows")
        cuts = self._cuts()
        answers = self.rows.answers
        sizes = screen(cuts, test_rows=test_rows, confidence=self.confidence, answers=answers)
        for number in name_sizes(
            sizes,
            cuts.full,
            self.promise.max_drop,
            self.sizes,
            block.serve,
            tested=self.may_pass,
            step=self.step,
            answers=self.promise.by_answers,
        ):
            sizes[number].named = True
        self.record.screened = from_first_process(sizes)
        named = ", ".join(f"{size.share:.3g}" for size in self.record.named())
        self._tell(f"to be trained, as shares of the parameters: {named}")
        for size in self.record.named():
            if size.certifiable is not None:
                expected = expected_drop(size), size.certifiable
                self._tell(f"{size.share:.1%}: {expected_line(self.promise, test_rows, *expected)}")

    def _heal_next(self, size: Screened) -> Made:
        number, named = len(self.record.candidates), len(self.record.named())
        self._tell(f"\nsize {number + 1} of {named}: {size.share:.1%} of the parameters")
        return self._heal(number, size.max_params)

    @property
    def _seeds(self) -> dict[str, int]:
        return {"training": self.plan.loaded.recipe.training.seed, "rows": self.plan.block.seed}

    @property
    def chosen(self) -> int:
        """Number of the size to write."""
        return choose(self.record.candidates)

    def _train_final(
        self,
        ready: Prepared,
        loaded: LoadedRecipe,
        initial: dict[str, Tensor],
        rate: RateChoice | None = None,
    ) -> tuple[Prepared, RunLog]:
        """Train the size found on all rows, from the start, as the run itself.

        Args:
            ready: with all rows.
            loaded: recipe of this run.
            initial: trained parameters before the first step of any run.
            rate: found for full rank on rows like these; None: find one on all rows.
        """
        share = self.record.named()[self.chosen].share
        rows = len(ready.rows.train)
        self._tell(f"\nthe size found, {share:.1%} of the parameters, trained on all {rows:,} rows")
        load_parameters(ready.base.model, initial)
        runner = Runner(ready, loaded, self.plan.output)
        run = runner.next_run(loaded, loaded.name, self.plan.output, rate=rate)
        run.log.report.recipe_notes = list(self.plan.loaded.notes)
        with self._log.phase("train on all rows"):
            runner.train(run, score=evaluate_run)
        runner.forget(self.plan.output)
        return run.ready, run.log

    def _final(self, report: RunReport, max_params: int) -> Final:
        """Return the certificate's entry of the written adapter."""
        metric, layers = self.promise.metric, self.ready.layers
        cost = {path: layer.A.shape[1] + layer.B.shape[0] for path, layer in layers.items()}
        ranks = {path: rank.end for path, rank in report.ranks.items()}
        return Final(
            **size_of(ranks, cost, self.plan.block.serve).model_dump(),
            max_params=max_params,
            digest=report.digests.get("adapter", ""),
            steps=report.steps or 0,
            reported={split: scores[metric] for split, scores in report.metrics.items()},
        )
