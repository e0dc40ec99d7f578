"""docs/reference/report.md, from the Pydantic models of a run's files."""

from __future__ import annotations

import inspect
from collections.abc import Container, Iterator

from pydantic import BaseModel

from sora_cli.experiments.path.record import PathReport
from sora_cli.report import BaseFacts, Environment, History, RunReport
from sora_cli.search.evidence import Evidence
from sora_cli.search.record import AutoRecord
from tools.reference.fields import nested, value_table
from tools.reference.markdown import page as make_page

INTRODUCTION = """\
Every key of the JSON files that record a run and its results. Scores are numbers in the metric's \
own unit (0.88, not 88); a score that is not a number is `null`. Later versions may add keys. How \
to read a report, step by step: [read a report](../how-to/read-a-report.md)."""
RUN = """\
`sora train` writes it into the run's directory at the start, at the end, and when the run fails \
or is interrupted. Keys that grow with the steps or the components are in `history.json` beside \
it."""
PATH = "`sora path` writes it into the path's directory; each stage has its own `report.json`."

CERTIFICATE = """\
It stands beside every adapter that a promise (`--max-drop`, `--max-differ`) made. `sora auto` and \
`sora prune --heal` write it into the run's directory, where `report.json` describes the written \
adapter; `sora prune` and `sora extract` write it into the adapter's directory. `sora verify DIR \
--certificate` computes its figures again."""
AUTO = """\
`sora auto` writes it into the run's directory after each part of its work, so that the same \
command can continue it. Its `screened`, `candidates` and `full` are copied into the certificate, \
and `sora verify RUN --certificate` compares what was screened, and the sizes that were named."""


def page() -> str:
    """Return the page."""
    growing = {*History.model_fields} - {"started", "method_details"}
    return make_page(
        "Reports",
        INTRODUCTION,
        "## report.json",
        RUN,
        *_tables(RunReport, growing, known=()),
        "## history.json",
        "It belongs to the report beside it: `started` is the same in both.",
        *_tables(History),
        "## path.json",
        PATH,
        *_tables(PathReport),
        "## certificate.json",
        CERTIFICATE,
        *_tables(Evidence),
        "## auto.json",
        AUTO,
        value_table(AutoRecord),
    )


def _tables(
    model: type[BaseModel],
    without: Container[str] = (),
    place: str = "",
    *,
    known: Container[type[BaseModel]] = (Environment, BaseFacts),
) -> Iterator[str]:
    """Yield a model's table, then a heading and a table for each object inside the model.

    Args:
        known: objects whose table is elsewhere on the page.
    """
    yield value_table(model, without=without)
    for name, info in model.model_fields.items():
        inner = None if name in without else nested(info)
        if inner is not None and inner[1] not in known:
            below = f"{place}{name}{inner[0]}"
            yield f"### {below}"
            yield inspect.getdoc(inner[1]) or ""
            yield from _tables(inner[1], without, f"{below}.", known=known)
