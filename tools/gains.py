"""What an adapter gains over its base model on rows like those that trained it, and on others.

    python -m tools.gains RUN... [--rows FILE...] [--most N]

The first group are the rows that each run held out of its training split (data.selection:
train-rows), N of them. Each file is a further group, of as many rows, among whose own documents, or
labels, its rows are scored in the same way. Printed are the main score of the base model alone and
with the adapter, times 100, and the mean gain of a row with its 95 % bootstrap interval, over all
runs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.measure import markdown
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.reading import read_adapter
from sora_cli.core.console import emit, say
from sora_cli.experiments.compare.stats import difference
from sora_cli.recipe.load import load_stored
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import FILE_NAME, read_report
from sora_cli.search.cut import Adapted, scored_on
from sora_cli.search.rows import selection_rows
from sora_cli.tasks.row_scores import RowScores

Pair = tuple[RowScores, RowScores]
"""Scores of the base model alone, and with an adapter."""
HELD_OUT = "held out of the training rows"


def main() -> None:
    """Score and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--rows", nargs="+", type=Path, default=[])
    parser.add_argument("--most", type=int, help="rows of a group; default: the recipe's")
    options = parser.parse_args()
    groups: dict[str, list[Pair]] = {}
    for run in options.runs:
        say(f"scoring {run} ...")
        for name, pair in score(run, options.rows, options.most).items():
            groups.setdefault(name, []).append(pair)
    emit(table(groups))


def score(run: Path, files: Sequence[Path], most: int | None = None) -> dict[str, Pair]:
    """Return the scores of a run's base model and adapter on each group of rows."""
    report = read_report(run)
    assert report is not None
    recipe = load_stored(report.recipe, run / FILE_NAME, report.name).recipe.to_score()
    if most is not None:
        data = recipe.data.model_copy(update={"max_validation_rows": most})
        recipe = recipe.model_copy(update={"data": data})
    given = recipe.data.files
    assert given is not None
    adapter = read_adapter(run)
    held = _pair(adapter, recipe)
    made = {HELD_OUT: held}
    for file in files:
        blocks = recipe.data.model_dump()
        blocks |= {"selection": "validation", "validation": ["validation"]}
        blocks["files"] = {"train": given["train"], "validation": [str(file)]}
        data = recipe.data.model_copy(update=blocks | {"max_validation_rows": len(held[0])})
        made[file.stem] = _pair(adapter, recipe.model_copy(update={"data": data}))
    return made


def _pair(adapter: Adapter, recipe: Recipe) -> Pair:
    rows = selection_rows(recipe)
    model = Adapted(adapter, recipe, rows.task)
    scores = scored_on(rows, recipe, model.trainer)[1]
    with_adapter = scores()
    model.put({path: replace(f, B=f.B * 0) for path, f in adapter.layers.items()})
    return scores(), with_adapter


def table(groups: dict[str, list[Pair]]) -> str:
    """Return a line for each group of rows, in Markdown."""
    lines = []
    for name, pairs in groups.items():
        base, adapted = (statistics.fmean(p[i].value for p in pairs) for i in (0, 1))
        # one gain a row: runs are averaged, so that rows alone are drawn anew
        gains = [
            statistics.fmean(of_row) * 100
            for of_row in zip(*((a.parts - b.parts)[:, 0] for b, a in pairs), strict=True)
        ]
        gain = difference([gains])
        assert gain is not None
        assert gain.low is not None
        assert gain.high is not None
        interval = f"{gain.mean:+.2f} [{gain.low:+.2f}, {gain.high:+.2f}]"
        shown = f"{100 * base:.2f}", f"{100 * adapted:.2f}", interval
        lines.append((name, f"{len(gains):,}", *shown))
    return markdown(("rows", "number", "base alone", "with adapter", "gain"), lines)


if __name__ == "__main__":
    main()
