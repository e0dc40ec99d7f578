"""The order of things: full rank, screening, then one size after the other until a test fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from accelerate.utils import broadcast_object_list

from sora_cli.core.console import say
from sora_cli.core.processes import world_size
from sora_cli.experiments.auto.budget import RowPlan
from sora_cli.experiments.auto.carrying import carrying
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.experiments.auto.record import AutoRecord
from sora_cli.experiments.auto.screening import score_cuts, screen
from sora_cli.experiments.auto.stages import Stages
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.report import RunReport
from sora_cli.run.evaluate import evaluate_all
from sora_cli.run.prepare import Prepared
from sora_cli.search.bound import Carrying, judged
from sora_cli.search.certificate import (
    SCREENING,
    TEST,
    Candidate,
    Full,
    RowSet,
    Screened,
    SizeTest,
    directory_of,
)
from sora_cli.search.promise import promise_of
from sora_cli.search.rows import choosing_rows, row_sets
from sora_cli.search.screening import expected_drop
from sora_cli.search.size import Size, size_of
from sora_cli.tasks.base import Encoded
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.log import ReportLog

T = TypeVar("T")


@dataclass(frozen=True)
class Choosing:
    """The rows that choose, encoded, and what they can carry.

    Attributes:
        sets: of all rows of the run, by part.
    """

    screening: Encoded
    test: Encoded
    sets: dict[str, RowSet]
    carrying: Carrying


class Search:
    """One search for the smallest size.

    Args:
        plan: what is to be done.
        rows: how many rows choose.
        ready: data, model and adapters as the full run has them.
        log: of the record, which holds what was done before.
    """

    def __init__(
        self, plan: AutoPlan, rows: RowPlan, ready: Prepared, log: ReportLog[AutoRecord]
    ) -> None:
        self.plan, self.rows, self.ready, self.log = plan, rows, ready, log
        self.record = log.report
        self.full = plan.full(rows)
        self.stages = Stages(ready, self.full, plan.output)
        self.cost = {p: m.A.shape[1] + m.B.shape[0] for p, m in ready.layers.items()}
        self._reference: RowScores | None = None

    def choosing(self) -> Choosing:
        """Load the rows that choose, and compute what they can carry."""
        plan, ready = self.plan, self.ready
        held = choosing_rows(ready.task, self.rows.screening, plan.block.seed)
        found = carrying(self.full.recipe, ready, self.rows.test, plan.block.confidence)
        encoded = {name: part.encoded(ready.task, ready.base) for name, part in held.items()}
        return Choosing(encoded[SCREENING], encoded[TEST], row_sets(ready.rows, held), found)

    def run(self, choosing: Choosing) -> None:
        """Do what is left; the record is saved after each part."""
        record = self.record
        self._train_full(choosing)
        if not record.screened:
            with self.log.phase("screen"):
                self._screen(choosing)
            self.log.save()
        while record.waiting():
            self._try(record.waiting()[0], choosing)
            self.log.save()

    def candidate(self, number: int) -> LoadedRecipe:
        """Return the recipe of the run of a named size, from 0."""
        size = self.record.named()[number]
        return self.plan.candidate(number + 1, size.max_params, self.rows)

    def _train_full(self, choosing: Choosing) -> None:
        record, stages, full = self.record, self.stages, self.full
        if record.full is None:
            say(f"\nfull rank {self.plan.rank}: the run that all others are compared with")
            with self.log.phase("train at full rank"):
                report = stages.run(full, f"{full.name}, full rank")
            with self.log.phase("score"):
                metrics = evaluate_all(stages.scorer(), self.ready.task, self.ready.report)
                self._reference = stages.scores(choosing.test)
            record.full = decided(self._full_size(report, metrics, self._reference))
            self.log.save()

    def _full_size(
        self, report: RunReport, metrics: dict[str, dict[str, float]], test: RowScores
    ) -> Full:
        ranks = {path: layer.rank for path, layer in self.ready.layers.items()}
        (cut_at,) = self.full.recipe.training.kept_steps(report.steps or 0)
        metric = self.ready.task.best
        return Full(
            **self._size(ranks).model_dump(),
            r_max=self.plan.rank,
            directory=directory_of(None),
            digest=report.digests.get("adapter", ""),  # the first process has written it
            steps=report.steps or 0,
            cut_at=cut_at,
            test=test.value,
            reported={split: scores[metric] for split, scores in metrics.items()},
        )

    def _screen(self, choosing: Choosing) -> None:
        plan = self.plan
        tested = choosing.carrying.can_carry(plan.max_drop)
        say(f"\nscreening: unhealed cuts on {self.rows.screening:,} rows")
        first = plan.candidate(1, 1, self.rows)
        cuts = score_cuts(self.stages, first, choosing.screening, plan.block.serve)
        found = screen(cuts, plan, test_rows=self.rows.test, tested=tested)
        self.record.screened = decided(found)
        named = ", ".join(f"{size.share:.3g}" for size in self.record.named())
        say(f"to be trained, as shares of the parameters: {named}")
        for size in self.record.named():
            if size.certifiable is not None:
                say(
                    f"{size.share:.1%}: a drop of {expected_drop(size):+.4f} is expected before "
                    f"healing; {self.rows.test:,} test rows can be expected to certify "
                    f"{size.certifiable:.4f}"
                )

    def _try(self, size: Screened, choosing: Choosing) -> None:
        """Train a size and test it, if a test could pass."""
        record, plan = self.record, self.plan
        reference = self._scores_at_full_rank(choosing)
        number = len(record.candidates)
        loaded = self.candidate(number)
        say(f"\nsize {number + 1} of {len(record.named())}: {size.share:.1%} of the parameters")
        with self.log.phase("heal"):
            report = self.stages.run(loaded, f"{loaded.name}, size {number + 1}")
        test = None
        if choosing.carrying.can_carry(plan.max_drop):
            with self.log.phase("score"):
                test = self._test(reference, choosing.test)
        assert record.full is not None
        ranks = {path: rank.end for path, rank in report.ranks.items()}
        candidate = Candidate(
            **self._size(ranks).model_dump(),
            max_params=size.max_params,
            directory=directory_of(number),
            digest=report.digests.get("adapter", ""),
            heal_steps=(report.steps or 0) - record.full.cut_at,
            test=test,
            reported={},
        )
        record.add(decided(candidate))
        done = record.candidates[-1].test
        if done is not None:
            bound = (
                f"bound {done.upper:.4f}" if done.refused is None else f"no bound: {done.refused}"
            )
            verdict = f"{done.verdict}{': no smaller size is tested' if done.failed else ''}"
            say(f"drop {done.drop:+.4f}, {bound}, of {plan.max_drop:g}: {verdict}")

    def _scores_at_full_rank(self, choosing: Choosing) -> RowScores:
        if self._reference is None:
            self.stages.restore(self.full)
            self._reference = self.stages.scores(choosing.test)
        return self._reference

    def _test(self, reference: RowScores, rows: Encoded) -> SizeTest:
        promise = promise_of(self.plan.loaded.recipe)
        return judged(reference, self.stages.scores(rows), promise, self.plan.block.seed)

    def _size(self, ranks: dict[str, int]) -> Size:
        return size_of(ranks, self.cost, self.plan.block.serve)

    def restored(self, number: int) -> Prepared:
        """Return the model as a candidate left it, and its method with what it has done."""
        return self.stages.restore(self.candidate(number))


def decided(value: T) -> T:
    """Return the first process's value on every process: one decides, the others are told."""
    if world_size() == 1:
        return value
    told: list[T] = [value]
    broadcast_object_list(told)
    return told[0]
