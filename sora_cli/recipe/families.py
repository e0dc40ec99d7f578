"""The task families by name: ours, and the families of packages and of `--code` files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.recipe.embedding_options import EmbeddingOptions
from sora_cli.recipe.metric_facts import add_facts
from sora_cli.recipe.reranking_options import RerankingOptions
from sora_cli.recipe.reward_options import RewardOptions
from sora_cli.recipe.task_options import (
    CausalLmOptions,
    ImageClassificationOptions,
    ImageTextOptions,
    MultipleChoiceOptions,
    PreferenceOptions,
    QuestionAnsweringOptions,
    Seq2SeqOptions,
    SequenceClassificationOptions,
    SequenceRegressionOptions,
    TaskOptions,
    TokenClassificationOptions,
)
from sora_cli.recipe.thumbs_options import ThumbsOptions
from sora_cli.recipe.usual import READS, Usual

FAMILIES: dict[str, tuple[str, type[TaskOptions]]] = {
    "sequence-classification": ("sequence", SequenceClassificationOptions),
    "sequence-regression": ("sequence", SequenceRegressionOptions),
    "causal-lm": ("causal_lm", CausalLmOptions),
    "preference": ("preference", PreferenceOptions),
    "reward": ("reward", RewardOptions),
    "thumbs": ("thumbs", ThumbsOptions),
    "seq2seq": ("seq2seq", Seq2SeqOptions),
    "question-answering": ("question_answering", QuestionAnsweringOptions),
    "token-classification": ("token_classification", TokenClassificationOptions),
    "multiple-choice": ("multiple_choice", MultipleChoiceOptions),
    "image-classification": ("images", ImageClassificationOptions),
    "image-text": ("image_text", ImageTextOptions),
    "embedding": ("embedding", EmbeddingOptions),
    "reranking": ("reranking", RerankingOptions),
}
"""Task families by name: module in `sora_cli.tasks`, and options class.

The class `CausalLm` in that module has the options class `CausalLmOptions`.
"""


NAMED = f"{', '.join(FAMILIES)}, or a family of a --code file"
ENTRY_POINT_GROUP = "sora.tasks"
"""A package's families: `name = "module:NameOptions"`, with `NAME` and `FAMILY` in that class."""
_ADDED: dict[str, tuple[Any, type[TaskOptions]]] = {}
"""Families of `--code` files and of packages: their class or its place, and their options."""


def add_family(family: Any, options: type[TaskOptions]) -> None:
    """Add a family of somebody else's, under the name in its options.

    Args:
        family: its class, or "module:Class".
    """
    known = _ADDED.get(options.NAME)
    if options.NAME in FAMILIES or (known is not None and known[1] is not options):
        raise SoraError(f"there is a task family '{options.NAME}' already: use another NAME")
    add_facts(options.METRIC_FACTS)
    _ADDED[options.NAME] = family, options


@cache
def _add_packages() -> None:
    for point in entry_points(group=ENTRY_POINT_GROUP):
        options = point.load()
        if getattr(options, "NAME", None) != point.name:
            raise SoraError(f"entry point '{point.name}' of {ENTRY_POINT_GROUP} has another NAME")
        add_family(options.FAMILY, options)


def families() -> Mapping[str, tuple[Any, type[TaskOptions]]]:
    """Return all families: ours, those of installed packages, and those of `--code` files."""
    _add_packages()
    return {**FAMILIES, **_ADDED}


def task_names() -> list[str]:
    """Return the names of all task families."""
    return list(families())


def built_on(name: str) -> str | None:
    """Return the family of ours whose options a family extends: its own name, if it is ours.

    None: it stands alone.
    """
    options = options_class(name)
    ours = {cls: known for known, (_, cls) in FAMILIES.items()}
    return next((ours[cls] for cls in options.__mro__ if cls in ours), None)


def implementation(name: str) -> Any:
    """Return a family's class, or its name as "module:Class"; nothing is imported."""
    options = options_class(name)
    if name not in FAMILIES:
        return families()[name][0]
    return f"sora_cli.tasks.{FAMILIES[name][0]}:{options.__name__.removesuffix('Options')}"


def unknown_task(name: str) -> SoraError:
    """Return the error for an unknown family; the message names the nearest family."""
    return SoraError(
        f"unknown task '{name}'; {did_you_mean(name, families())}",
        hint="a family of your own: --code FILE.py",
        key="task.name",
    )


def options_class(name: str) -> type[TaskOptions]:
    """Return the options class of a family."""
    if name not in families():
        raise unknown_task(name)
    return families()[name][1]


def usual_of(name: str) -> Usual:
    """Return what `sora init` proposes for a family; without its own, of the one most like it."""
    options = options_class(name)
    alike = (ours for _, ours in FAMILIES.values() if ours.MODEL_CLASS == options.MODEL_CLASS)
    return options.USUAL or next((ours.USUAL for ours in alike if ours.USUAL), READS)


def main_metric(names: Sequence[str], best: str | None) -> str:
    """Return the metric that chooses checkpoints: `best`, or the first of `names` without it."""
    if best is not None and best not in names:
        raise SoraError(
            f"task.best_metric '{best}' is not among the metrics",
            where=f"task.metrics: {', '.join(names)}",
            key="task.best_metric",
        )
    return best or names[0]


def check_columns(name: str, columns: Mapping[str, str]) -> None:
    """Raise `SoraError` if `data.columns` names a part that rows of the family lack."""
    known = options_class(name).COLUMNS
    for part in columns:
        if part not in known:
            there = did_you_mean(part, known) if known else "see data.text_columns"
            raise SoraError(
                f"data.columns: rows of task {name} have no part '{part}'; {there}",
                key=f"data.columns.{part}",
            )
