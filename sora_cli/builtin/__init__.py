"""Data that comes with the program, so that a first run needs no download."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datasets import DatasetDict


def _entailment() -> DatasetDict:
    from datasets import ClassLabel, Dataset, DatasetDict

    from sora_cli.builtin.entailment import LABEL_NAMES, load_entailment

    splits = {name: Dataset.from_list(rows) for name, rows in load_entailment().items()}
    label = ClassLabel(names=list(LABEL_NAMES))
    return DatasetDict({name: rows.cast_column("label", label) for name, rows in splits.items()})


BUILTINS: dict[str, Callable[[], DatasetDict]] = {"entailment": _entailment}
"""What `data.path: builtin://NAME` may name."""
