"""Draw the score of rounded adapters against their bytes: docs/results/arena-bytes.png.

    python -m tools.bits_picture [FILE.jsonl] [--steps N] -o PICTURE

Drawn is the mean of the tasks below LoRA r 8, of all sizes and bits that were scored for each task
with seeds 0 and 1. The line joins those that nothing smaller beats.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from sora_cli.core.figures import QUIET, arrange, colour, finish, new_figure, save_figure
from sora_cli.experiments.compare.plot_labels import Label, place_labels
from tools.bits import points

LINES = Path("docs/results/bytes.jsonl")
SEEDS = (0, 1)
WAYS = {"32": "32 bits", "b4": "4 bits", "b3": "3 bits", "b2": "2 bits"}
_SIZE = 7.2, 4.4  # inches


@dataclass(frozen=True)
class Point:
    """A size in some bits: per cent of LoRA r 8's bytes, and points below it."""

    label: str
    way: str
    share: float
    lost: float

    @property
    def trained(self) -> bool:
        """True if the rank was given, false if it was cut."""
        return self.label.startswith("lora")

    @property
    def text(self) -> str:
        """What stands beside the point."""
        _, number, *alpha = self.label.split("-")
        if not self.trained:
            return f"{number} %"
        return re.sub(r"(?<=[a-z])(?=\d)", " ", ", ".join((number, *alpha)))


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=LINES)
    parser.add_argument("--steps", type=int, default=150, help="of the runs")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    lines = map(json.loads, options.file.open(encoding="utf-8"))
    save_figure(draw(read([x for x in lines if x["steps"] == options.steps])), options.output)


def read(lines: Sequence[dict[str, Any]]) -> list[Point]:
    """Return the points that have every task with both seeds."""
    groups: dict[tuple[str, str], dict[tuple[str, int], dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        if line["seed"] in SEEDS and line["way"] in WAYS:
            groups[line["label"], line["way"]][line["task"], line["seed"]] = line
    whole = groups["lora-r8", "32"]
    return [
        Point(
            label,
            way,
            100 * fmean(of[pair]["bytes"] / full["bytes"] for pair, full in whole.items()),
            fmean(points(of[pair], full) for pair, full in whole.items()),
        )
        for (label, way), of in groups.items()
        if of.keys() == whole.keys()
    ]


def front(found: Sequence[Point]) -> list[Point]:
    """Return the points that are better than all smaller ones, from small to large."""
    best, kept = -math.inf, []
    for point in sorted(found, key=lambda point: point.share):
        if point.lost > best:
            best = point.lost
            kept.append(point)
    return kept


def draw(found: Sequence[Point]) -> Any:
    """Draw the points, named, with the front."""
    figure = new_figure(*_SIZE, solved=False)
    axes = figure.subplots()
    unbeaten = front(found)
    axes.plot([p.share for p in unbeaten], [p.lost for p in unbeaten], color=QUIET, lw=0.8)
    for kind, (way, name) in enumerate(WAYS.items()):
        for trained in (True, False):
            of = [point for point in found if (point.way, point.trained) == (way, trained)]
            if of:
                label = f"{'LoRA' if trained else 'cut'}, {name}"
                axes.plot(
                    [point.share for point in of], [point.lost for point in of],
                    "o" if trained else "^", color=colour(kind), label=label,
                )  # fmt: skip
    axes.set_xscale("log")
    ticks = (0.3, 1, 2, 4, 10, 30, 100)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.legend(fontsize=7.5, frameon=False, loc="lower right")
    finish(axes, "Score against bytes: mean of three tasks, two seeds",
           "% of the bytes of LoRA r 8 in 32 bits", "minus LoRA r 8, points")  # fmt: skip
    arrange(figure, 1, 1, below=0.0)
    place_labels(figure, axes, [Label(p.share, p.lost, p.text) for p in found])
    return figure


if __name__ == "__main__":
    main()
