"""Every figure of a page is the report's: another number there is another number on the page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sora_cli.experiments.report import page as pages
from sora_cli.experiments.report import parts
from sora_cli.report import RunReport
from tests.helpers_reports import report_of

Path_ = tuple[str, ...]
AS_THEY_ARE = {
    "parameters": "{:,}",
    "metrics": "{:.4f}",
    "without_adapters": "{:.4f}",
    "steps": "{:,}",
}
"""Figures that stand on the page as they are in the report, and how they are written there."""
DERIVED = {"ranks", "peak_memory_bytes", "seconds"}
"""Figures that are summed up, or shown in another unit."""
NOT_SHOWN = {"schema_version", "environment", "history", "live_components", "best_step"}
"""Facts that have no figure in the text; some are drawn."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds and are not looked at here."""
    for module in (pages, parts):
        monkeypatch.setattr(module, "picture", lambda *_: "")


def _leaves(value: Any, path: Path_ = ()) -> Iterator[tuple[Path_, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, (*path, str(key)))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def _changed(report: RunReport, path: Path_, value: float) -> RunReport:
    values = report.model_dump()
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return RunReport(**values)


def _text(report: RunReport) -> str:
    html = pages.run_page(report, Path("run"))
    html = re.sub(r"<(style|svg).*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", html).split())


def _figures(text: str) -> Counter[str]:
    return Counter(re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?%?", text))


def test_every_figure_is_the_reports() -> None:
    report = report_of(ranks=3, more={"without_adapters": {"validation": 0.5}})
    before, unseen = _text(report), []
    for path, value in _leaves(report.model_dump(exclude={"recipe"})):
        kind = path[0] if path[:2] != ("data", "rows") else "rows"
        other = value + 1 if isinstance(value, int) else value / 2 + 0.0123
        if kind == "peak_memory_bytes":
            other = value * 2
        after = _text(_changed(report, path, other))
        if kind in NOT_SHOWN:
            continue
        if after == before:
            unseen.append(path)
        elif kind in AS_THEY_ARE or kind == "rows":
            sizes = report.parameters
            shown = {AS_THEY_ARE.get(kind, "{:,}").format(other)}
            if path == ("parameters", "base"):
                shown = {f"{other - sizes.head:,}"}  # the head is not the base model's
            if path == ("parameters", "head"):
                shown |= {f"{sizes.base - other:,}"}
            new = _figures(after) - _figures(before)
            shares = {word for word in new if word.endswith("%")} if kind == "parameters" else set()
            assert new.keys() - shares == shown, path
        else:
            assert kind in DERIVED, path
    assert unseen == [("skipped_steps",), ("parameters", "trained")]  # adapters and head say that


def test_every_number_of_the_recipe_is_there() -> None:
    report = report_of()
    text = _text(report)
    for path, value in _leaves(report.recipe):
        shown = re.findall(rf"\b{path[-1]}: (\S+)", text)
        assert value in [float(word) for word in shown if re.fullmatch(r"[-+.\de]+", word)], path
