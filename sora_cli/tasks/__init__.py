"""Task families by name. One file per family, and its options; nothing about a family elsewhere."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from methods.registry import did_you_mean
from sora_cli.errors import SoraError
from sora_cli.tasks import options
from sora_cli.tasks.options import SMALLER_IS_BETTER, TaskOptions

if TYPE_CHECKING:
    from sora_cli.recipe import DataBlock, TaskBlock
    from sora_cli.tasks.base import Task

_FAMILIES: dict[str, tuple[str, type[TaskOptions]]] = {
    "sequence-classification": (
        "sora_cli.tasks.sequence:SequenceClassification",
        options.SequenceClassificationOptions,
    ),
    "sequence-regression": (
        "sora_cli.tasks.sequence:SequenceRegression",
        options.SequenceRegressionOptions,
    ),
    "causal-lm": ("sora_cli.tasks.causal_lm:CausalLm", options.CausalLmOptions),
    "seq2seq": ("sora_cli.tasks.seq2seq:Seq2Seq", options.Seq2SeqOptions),
    "question-answering": (
        "sora_cli.tasks.question_answering:QuestionAnswering",
        options.QuestionAnsweringOptions,
    ),
    "token-classification": (
        "sora_cli.tasks.token_classification:TokenClassification",
        options.TokenClassificationOptions,
    ),
    "multiple-choice": (
        "sora_cli.tasks.multiple_choice:MultipleChoice",
        options.MultipleChoiceOptions,
    ),
    "image-classification": (
        "sora_cli.tasks.images:ImageClassification",
        options.ImageClassificationOptions,
    ),
    "image-text": ("sora_cli.tasks.image_text:ImageText", options.ImageTextOptions),
}


def task_names() -> list[str]:
    """All task families."""
    return list(_FAMILIES)


def unknown_task(name: str) -> SoraError:
    """No such family; the message names the nearest."""
    return SoraError(f"unknown task '{name}'{did_you_mean(name, _FAMILIES)}", key="task.name")


def options_class(name: str) -> type[TaskOptions]:
    """What can be set on a family.

    Raises:
        SoraError: no such family.
    """
    if name not in _FAMILIES:
        raise unknown_task(name)
    return _FAMILIES[name][1]


def is_share(metric: str) -> bool:
    """Whether a metric is one of ours that papers print times 100: all but losses."""
    known = (options.METRICS for _, options in _FAMILIES.values())
    return any(metric in names for names in known) and metric not in SMALLER_IS_BETTER


def main_metric(names: Sequence[str], best: str | None) -> str:
    """The metric that chooses checkpoints: the first, or `best`.

    Raises:
        SoraError: `best` is not among them.
    """
    if best is not None and best not in names:
        raise SoraError(
            f"task.best_metric '{best}' is not among the metrics",
            where=f"task.metrics: {', '.join(names)}",
            key="task.best_metric",
        )
    return best or names[0]


def create_task(task: TaskBlock, data: DataBlock) -> Task:
    """The task family a recipe names.

    Raises:
        SoraError: no such family, or no such metric.
    """
    options_class(task.name)
    module, _, name = _FAMILIES[task.name][0].partition(":")
    family: type[Task] = getattr(importlib.import_module(module), name)
    return family(task, data)


def check_columns(name: str, columns: Mapping[str, str]) -> None:
    """`data.columns` may name the parts that rows of a family have, and no others.

    Raises:
        SoraError: it names another; the message says which there are.
    """
    known = options_class(name).COLUMNS
    for part in columns:
        if part not in known:
            there = did_you_mean(part, known) if known else "; see data.text_columns"
            raise SoraError(
                f"data.columns: rows of task {name} have no part '{part}'{there}",
                key=f"data.columns.{part}",
            )
