"""Paths that train in seconds, and records that were never trained."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from sora_cli.app import run
from sora_cli.experiments.path.record import PathReport, Stage, read_path
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe
from tests.present import present

THRESHOLDS = [0, 0.02, 0.06, 0.12]


def path_recipe(folder: Path, *, values: list[Any] | None = None, **blocks: Any) -> Path:
    """A recipe with a path of four stages of six to twelve steps."""
    block = {
        "vary": "method.threshold",
        "schedule": {"kind": "list", "values": values or THRESHOLDS},
        "epochs": 1,
        "memorisation_rows": 16,
    }
    blocks["path"] = {**block, **blocks.get("path", {})}
    return write_recipe(folder, tiny_bert(num_labels=2), **blocks)


def train_path(recipe: Path, *words: str, out: Path | None = None) -> PathReport:
    """`sora path` in this process, which must end well; its record."""
    output = out or recipe.parent / "out"
    assert run(["path", str(recipe), *words, f"output.dir={output}"]) == 0
    return present(read_path(output))


SPLITS = ("train-subset", "validation", "selection")


def made_report(
    scores: list[float], parameters: list[int], *, greater_is_better: bool = True
) -> PathReport:
    """A record with those scores on the split that the choice is made on."""
    report = PathReport(
        name="made",
        recipe={},
        vary="method.threshold",
        method="sora",
        main_metric="score",
        greater_is_better=greater_is_better,
        generalisation="validation",
        choice="selection",
        rows={"selection": 10, "validation": 10},
        stage_count=len(scores),
    )
    for i, (score, size) in enumerate(zip(scores, parameters, strict=True)):
        report.stages.append(
            Stage(
                index=i,
                value=0.1 * i,
                directory=f"stages/{i:02d}",
                epochs=1,
                steps=10,
                live=size,
                total=max(parameters),
                alive={"layer.0.a": list(range(size))},
                parameters=size,
                metrics={split: {"score": score, "loss": 0.0} for split in SPLITS},
                relative=dict.fromkeys(SPLITS, score / (scores[0] or math.nan)),
                norm=1.0,
                energy_removed=None if i == 0 else 0.1,
                seconds=1.0,
            )
        )
    return report
