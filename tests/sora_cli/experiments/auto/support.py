"""Searches that train in seconds, and certificates that were never trained for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sora_cli.search.evidence import Evidence, Measured, Reference, Screened, read_certificate
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, write_recipe, write_rows
from tests.present import present


def auto_recipe(folder: Path, **blocks: Any) -> Path:
    """A recipe of 16 steps whose rows can certify a promise of half of everything."""
    blocks["auto"] = {"max_drop": "50pt", "rows": 60, "sizes": 3, **blocks.get("auto", {})}
    blocks["method"] = {"name": "lora", "r": 4, **blocks.get("method", {})}
    training = {"epochs": 2, "batch_size": 8, "checkpoint": 5, "learning_rate": 0.02}
    blocks["training"] = {**training, **blocks.get("training", {})}
    return write_recipe(folder, tiny_bert(num_labels=2), rows=124, **blocks)


ROWS = 100
"""Rows without labels of `recipe_with_inputs`, without repeated and training rows."""


def recipe_with_inputs(folder: Path) -> Path:
    """A recipe with a promise about its metric, beside rows whose labels are nonsense."""
    path = auto_recipe(folder, auto={"rows": None})
    rows = [{**row, "label": "?"} for row in pair_rows(ROWS, seed=9)]
    write_rows(path.parent / "inputs.jsonl", [*rows, *rows[:5], *pair_rows(3)])
    return path


def certificate_of(run: Path) -> Evidence:
    """The certificate of a run, which has one."""
    return present(read_certificate(run))


def full(*, parameters: int = 1000, largest_rank: int = 8, served: int | None = None) -> Reference:
    """The full rank of a search that was never made."""
    return Reference(
        parameters=parameters,
        components=100,
        largest_rank=largest_rank,
        served=parameters if served is None else served,
        r_max=largest_rank,
        directory="sizes/full",
        digest="sha256:a",
        steps=100,
        cut_at=93,
        test=0.8,
        reported={"validation": 0.8},
    )


def screened(drops: list[float], *, served: list[int] | None = None) -> list[Screened]:
    """Sizes with those drops, the largest first, each half as large as the one before."""
    found = []
    for number, drop in enumerate(drops):
        parameters = 512 >> number
        found.append(
            Screened(
                parameters=parameters,
                components=10,
                largest_rank=8,
                served=parameters if served is None else served[number],
                share=parameters / 1000,
                max_params=parameters,
                screening=Measured(score=0.8 - drop, drop=drop),
                named=False,
            )
        )
    return found
