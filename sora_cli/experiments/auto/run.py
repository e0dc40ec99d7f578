"""A search from the first run to its certificate, or its remaining parts."""

from __future__ import annotations

from sora_cli.adapter.card import rewrite_card
from sora_cli.adapter.places import ADAPTER
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.console import say, say_notes
from sora_cli.core.processes import is_main
from sora_cli.experiments.auto.beginning import done
from sora_cli.experiments.auto.plan import AutoPlan
from sora_cli.experiments.auto.plot import plot_curve
from sora_cli.experiments.auto.rows import planned_rows
from sora_cli.experiments.auto.searching import AutoSearch
from sora_cli.experiments.auto.tables import constant_lines, cost_lines, promised
from sora_cli.run.opening import resumable
from sora_cli.run.prepare import Prepared
from sora_cli.run.prologue import begin, tell_start
from sora_cli.search.evidence import FILE_NAME, PICTURE, Evidence
from sora_cli.search.record import FILE_NAME as RECORD
from sora_cli.search.record import AutoRecord
from sora_cli.train.log import ReportLog, RunLog


def run(
    plan: AutoPlan, record: AutoRecord, *, began: float, force: bool
) -> tuple[Evidence, Prepared, RunLog]:
    """Run the search, or its remaining steps; return certificate, chosen model and log."""
    log = ReportLog(plan.output / RECORD, record)
    log.note_import(began)
    plan, rows, notes = planned_rows(plan, record)
    record.basis = plan.block.basis
    say_notes(notes)
    full = plan.full(rows)
    ready = begin(full.recipe, log, plan.output)
    with log.phase("set up"):
        search = AutoSearch(plan, rows, ready, log, say)
    tell_start(full.recipe, ready, search.runner.setup)
    for line in [
        *cost_lines(plan, search.rows),
        *promised(search.promise, search.rows, search.bound),
        *constant_lines(search.promise, ready),
    ]:
        say(line)
    with resumable(lambda: done(record), force=force), log.running():
        search.run()
        with log.phase("conclude"):
            trained, final = search.write()
            certificate = search.certificate(final.report)
            if is_main():
                write_text_atomic(plan.output / FILE_NAME, certificate.text())
                plot_curve(certificate, plan.output / PICTURE)
                rewrite_card(plan.output / ADAPTER, certificate.lines())
    # only now: until the certificate is written, an interrupted search continues from these states
    search.forget()
    return certificate, trained, final
