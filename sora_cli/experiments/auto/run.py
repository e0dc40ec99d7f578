"""A search from the first run to its certificate, or its remaining parts."""

from __future__ import annotations

from sora_cli.adapter.card import rewrite_card
from sora_cli.adapter.places import ADAPTER
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.console import say, say_notes
from sora_cli.core.processes import is_main
from sora_cli.experiments.auto.beginning import progress
from sora_cli.experiments.auto.maker import TrainingMaker
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.experiments.auto.plot import plot_curve
from sora_cli.experiments.auto.rows import planned_rows
from sora_cli.experiments.auto.tables import constant_lines, cost_lines, promised
from sora_cli.run.opening import resumable
from sora_cli.run.prepare import Prepared
from sora_cli.run.prologue import begin, tell_start
from sora_cli.search.asked_search import AskedSearch
from sora_cli.search.asking import AskTable, notes_on
from sora_cli.search.evidence import FILE_NAME, PICTURE, Evidence
from sora_cli.search.record import FILE_NAME as RECORD
from sora_cli.search.record import AutoRecord
from sora_cli.search.statistics import statistic_in
from sora_cli.search.words import tested_line
from sora_cli.train.log import ReportLog, RunLog


def run(
    plan: AutoPlan,
    record: AutoRecord,
    *,
    began: float,
    force: bool,
    table: AskTable | None = None,
) -> tuple[Evidence, Prepared, RunLog]:
    """Run the search, or its remaining steps; return certificate, chosen model and log.

    Args:
        table: of a search that asks for labels.

    Raises:
        WaitingError: labels are wanted.
    """
    log = ReportLog(plan.output / RECORD, record)
    log.note_import(began)
    plan, rows, notes = planned_rows(plan, record)
    record.basis = plan.block.basis
    say_notes(notes)
    full = plan.full(rows)
    ready = begin(full.recipe, log, plan.output)
    with log.phase("set up"):
        maker = TrainingMaker(plan, rows, ready, log, say)
        search = maker.search()
        if isinstance(search, AskedSearch) and table is not None:
            search.read = table.read
    tell_start(full.recipe, ready, maker.runner.setup)
    for line in [
        *cost_lines(plan, maker.rows),
        *promised(search.promise, maker.rows, search.bound),
        *constant_lines(search.promise, ready),
    ]:
        say(line)
    with resumable(lambda: progress(record), force=force), log.running():
        nouns = statistic_in(search.bound, search.promise).nouns(search.promise)
        for size in search.run():
            if size is not None and size.test is not None and table is None:
                say(tested_line(size.test, nouns, search.promise))
            log.save()
        if isinstance(search, AskedSearch) and table is not None:
            table.ask(search)
            for size in search.tested:  # only now: a label that is wanted is no failure
                if size.test is not None:
                    say(tested_line(size.test, nouns, search.promise))
        with log.phase("conclude"):
            trained, final = maker.write(search.chosen)
            metric = search.promise.metric
            scores = {split: known[metric] for split, known in final.report.metrics.items()}
            certificate = search.certificate(scores, final.report.base)
            if is_main():
                write_text_atomic(plan.output / FILE_NAME, certificate.text())
                plot_curve(certificate, plan.output / PICTURE)
                rewrite_card(plan.output / ADAPTER, certificate.lines())
    # only now: until the certificate is written, an interrupted search continues from these states
    if isinstance(search, AskedSearch):  # other labels may still be read
        say_notes(notes_on(search.wanted, certificate, table, plan.output))
    else:
        maker.forget()
    return certificate, trained, final
