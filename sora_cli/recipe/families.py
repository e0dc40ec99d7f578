"""Task families: their options, their scores, the columns they need, and the list of them.

Nothing here imports numpy or torch, so recipes are checked early. `COLUMNS` of a class are the
parts that its rows have, with the names that data sets usually give them. `METRICS` are the scores
that a family computes itself; other names are metrics of the Hub, if the family takes those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import Field, model_validator

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.recipe.types import Block, Count, SomeNames

SMALLER_IS_BETTER = ("loss", "perplexity")
ROUGE = ("rouge1", "rouge2", "rougeL")
WRITTEN = ("exact_match", *ROUGE)
"""Scores of generated texts."""
_TOKENS = ("loss", "perplexity", "token_accuracy")
_CLASSES = ("accuracy", "f1", "matthews_correlation")
_NUMBERS = ("pearson", "spearman", "pearson_spearman")
ONE_NUMBER = (*_CLASSES, *_NUMBERS)
"""Scores of one number a row."""

Columns = Mapping[str, tuple[str, ...]]


_OR_THE_HUBS = (
    ", or the name of one in the Hub's own collection (evaluate-metric), whose code is then run"
)


def _metrics(*default: str, known: str = "") -> Any:
    about = f": {known}" if known else "; the first chooses checkpoints"
    return Field(list(default), description=f"metrics to report{about}")


def _greater(values: dict[str, Any]) -> bool:
    best = values.get("best_metric") or (values.get("metrics") or ("",))[0]
    return best not in SMALLER_IS_BETTER


class TaskOptions(Block):
    """Options of every family: its scores, and which of them chooses the checkpoint."""

    METRICS: ClassVar[tuple[str, ...]] = ()
    TEXT_METRICS: ClassVar[tuple[str, ...]] = ()
    """Those metrics that need texts generated."""
    FROM_THE_HUB: ClassVar[bool] = False
    """True if other names are metrics of the Hub's own collection, whose code is then run."""
    COUNTS_ROWS: ClassVar[bool] = True
    """True if accuracy counts whole rows, each right or wrong."""
    ROWS_ALONE: ClassVar[bool] = True
    """True if the answer to a row does not depend on the other rows."""
    CHUNKS_LOSS: ClassVar[bool] = False
    """True if the loss can be computed in chunks of logits (training.loss)."""
    COLUMNS: ClassVar[Columns] = {}
    MODEL_CLASS: ClassVar[str]
    """The Auto class of transformers that its models are loaded with."""
    PROCESSOR_CLASS: ClassVar[str] = "AutoTokenizer"
    HUB_TASK: ClassVar[str]
    """The Hub's name of the task."""

    metrics: SomeNames = _metrics("accuracy")
    best_metric: str | None = Field(
        None, description="metric that chooses the best checkpoint; unset: the first of metrics"
    )
    greater_is_better: bool = Field(
        default_factory=_greater,
        description="whether a larger best_metric is better; unset: by its name, false for loss "
        "and perplexity",
    )

    @model_validator(mode="before")
    @classmethod
    def _unset(cls, values: Any) -> Any:
        """Read `metrics: null`, which earlier versions wrote for the family's own."""
        if isinstance(values, Mapping) and values.get("metrics", ()) is None:
            return {key: value for key, value in values.items() if key != "metrics"}
        return values


class SequenceClassificationOptions(TaskOptions):
    """One class per text or pair of texts."""

    METRICS = ONE_NUMBER
    MODEL_CLASS = "AutoModelForSequenceClassification"
    HUB_TASK = "text-classification"
    FROM_THE_HUB = True

    metrics: SomeNames = _metrics("accuracy", known=f"{', '.join(_CLASSES)}{_OR_THE_HUBS}")


class SequenceRegressionOptions(TaskOptions):
    """One number per text or pair of texts."""

    METRICS = ONE_NUMBER
    MODEL_CLASS = "AutoModelForSequenceClassification"
    HUB_TASK = "text-classification"
    FROM_THE_HUB = True

    metrics: SomeNames = _metrics(
        "pearson_spearman",
        "pearson",
        "spearman",
        known=f"{', '.join(_NUMBERS)}{_OR_THE_HUBS}",
    )


class _Writing(TaskOptions):
    """Families that generate texts."""

    max_new_tokens: Count = Field(64, description="tokens a generated text has at most")
    generation_batch_size: Count = Field(16, description="rows generated at a time")


class CausalLmOptions(_Writing):
    """Text that is continued: instructions and answers, chats, or plain text."""

    CHUNKS_LOSS = True
    METRICS = (*_TOKENS, *WRITTEN)
    MODEL_CLASS = "AutoModelForCausalLM"
    HUB_TASK = "text-generation"
    TEXT_METRICS = WRITTEN
    COLUMNS: ClassVar[Columns] = {
        "messages": ("messages", "conversation", "conversations"),
        "instruction": ("instruction", "prompt", "question"),
        "input": ("input", "context"),
        "output": ("output", "completion", "response", "answer"),
        "text": ("text", "content"),
    }

    metrics: SomeNames = _metrics(
        *_TOKENS, known=f"{', '.join(_TOKENS)}; {', '.join(WRITTEN)} of generated answers"
    )
    prompt: str = Field(
        "auto",
        description="how instructions become a prompt: chat (the tokenizer's chat template), "
        "plain (### headings), a text with columns in braces ('Q: {question}\\nA:'), or auto: chat "
        "where the tokenizer has a template, else plain",
    )
    system: str | None = Field(None, description="system message before each row's own messages")
    packing: bool = Field(
        False,
        description="put several rows into one of max_length tokens, each kept apart by its "
        "positions; only in training, where a step then has more rows",
    )


class Seq2SeqOptions(_Writing):
    """A text from a text, by an encoder and a decoder."""

    METRICS = (*_TOKENS, *WRITTEN)
    MODEL_CLASS = "AutoModelForSeq2SeqLM"
    HUB_TASK = "text2text-generation"
    TEXT_METRICS = WRITTEN
    COLUMNS: ClassVar[Columns] = {
        "source": ("source", "input", "document", "article", "dialogue", "question", "text"),
        "target": ("target", "output", "summary", "highlights", "answer"),
    }

    metrics: SomeNames = _metrics(
        "rougeL",
        "exact_match",
        "token_accuracy",
        known=f"{', '.join(WRITTEN)} of generated texts; {', '.join(_TOKENS)} of the given ones",
    )
    prefix: str = Field("", description="text put before each source ('summarize: ')")
    max_target_length: int = Field(64, ge=2, le=2**24, description="tokens; longer targets are cut")


class QuestionAnsweringOptions(TaskOptions):
    """An answer is a span of a context (SQuAD)."""

    METRICS = ("f1", "exact_match")
    MODEL_CLASS = "AutoModelForQuestionAnswering"
    HUB_TASK = "question-answering"
    COLUMNS: ClassVar[Columns] = {
        "id": ("id",),
        "question": ("question", "query"),
        "context": ("context", "passage"),
        "answers": ("answers",),
    }

    metrics: SomeNames = _metrics("f1", "exact_match")
    stride: Count = Field(64, description="tokens that two windows of one context have in common")
    max_answer_length: Count = Field(30, description="tokens an answer has at most")
    unanswerable: bool = Field(
        False,
        description="rows without answers mean that the context has none (SQuAD 2.0): an empty "
        "answer may be given; false: such rows are errors",
    )


class TokenClassificationOptions(TaskOptions):
    """One tag per word; entities are spans of words."""

    METRICS = ("f1", "precision", "recall", "accuracy")
    COUNTS_ROWS = False  # but words
    MODEL_CLASS = "AutoModelForTokenClassification"
    HUB_TASK = "token-classification"
    COLUMNS: ClassVar[Columns] = {
        "tokens": ("tokens", "words"),
        "tags": ("tags", "ner_tags", "pos_tags", "chunk_tags", "labels"),
    }

    metrics: SomeNames = _metrics(
        *METRICS, known="f1, precision, recall of entities (seqeval), accuracy of words"
    )
    label_all_pieces: bool = Field(
        False, description="train on every piece of a word; false: on its first one only"
    )


class MultipleChoiceOptions(TaskOptions):
    """One of several texts, the one that fits."""

    METRICS = _CLASSES
    MODEL_CLASS = "AutoModelForMultipleChoice"
    HUB_TASK = "multiple-choice"
    COLUMNS: ClassVar[Columns] = {
        "context": ("context", "premise", "sent1", "startphrase", "ctx", "article"),
        "question": ("question", "sent2", "question_stem", "goal"),
        "choices": ("choices", "endings", "options"),
    }

    metrics: SomeNames = _metrics("accuracy")


class ImageClassificationOptions(TaskOptions):
    """One class per image."""

    METRICS = _CLASSES
    MODEL_CLASS = "AutoModelForImageClassification"
    PROCESSOR_CLASS = "AutoImageProcessor"
    HUB_TASK = "image-classification"
    COLUMNS: ClassVar[Columns] = {"image": ("image", "img", "pixel_values")}

    metrics: SomeNames = _metrics("accuracy")


class ImageTextOptions(TaskOptions):
    """Images and the texts that belong to them, told apart from all others."""

    METRICS = ("recall_at_1", "text_recall_at_1", "loss")
    ROWS_ALONE = False  # each chooses among all
    MODEL_CLASS = "AutoModel"
    PROCESSOR_CLASS = "AutoProcessor"
    HUB_TASK = "zero-shot-image-classification"
    COLUMNS: ClassVar[Columns] = {"image": ("image", "img"), "text": ("text", "caption")}

    metrics: SomeNames = _metrics("recall_at_1", "text_recall_at_1")


FAMILIES: dict[str, tuple[str, type[TaskOptions]]] = {
    "sequence-classification": ("sequence", SequenceClassificationOptions),
    "sequence-regression": ("sequence", SequenceRegressionOptions),
    "causal-lm": ("causal_lm", CausalLmOptions),
    "seq2seq": ("seq2seq", Seq2SeqOptions),
    "question-answering": ("question_answering", QuestionAnsweringOptions),
    "token-classification": ("token_classification", TokenClassificationOptions),
    "multiple-choice": ("multiple_choice", MultipleChoiceOptions),
    "image-classification": ("images", ImageClassificationOptions),
    "image-text": ("image_text", ImageTextOptions),
}
"""A family is a line here: its module in `sora_cli.tasks`, and its options.

The options of the class `CausalLm` are called `CausalLmOptions`.
"""


def task_names() -> list[str]:
    """Return the names of all task families."""
    return list(FAMILIES)


def implementation(name: str) -> str:
    """Return the class of a family as "module:Class"; it is not imported.

    Raises:
        SoraError: no such family.
    """
    options = options_class(name).__name__
    return f"sora_cli.tasks.{FAMILIES[name][0]}:{options.removesuffix('Options')}"


def unknown_task(name: str) -> SoraError:
    """Make the error for a family that does not exist; the message names the nearest."""
    return SoraError(f"unknown task '{name}'; {did_you_mean(name, FAMILIES)}", key="task.name")


def options_class(name: str) -> type[TaskOptions]:
    """Return the options class of a family.

    Raises:
        SoraError: no such family.
    """
    if name not in FAMILIES:
        raise unknown_task(name)
    return FAMILIES[name][1]


def is_share(metric: str) -> bool:
    """Tell whether a metric is one of ours that papers print times 100: all but losses."""
    known = (options.METRICS for _, options in FAMILIES.values())
    return any(metric in names for names in known) and metric not in SMALLER_IS_BETTER


def main_metric(names: Sequence[str], best: str | None) -> str:
    """Return the metric that chooses checkpoints: `best`, or else the first.

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


def check_columns(name: str, columns: Mapping[str, str]) -> None:
    """Check that `data.columns` names only parts that the family's rows have.

    Raises:
        SoraError: it names another; the message says which there are.
    """
    known = options_class(name).COLUMNS
    for part in columns:
        if part not in known:
            there = did_you_mean(part, known) if known else "see data.text_columns"
            raise SoraError(
                f"data.columns: rows of task {name} have no part '{part}'; {there}",
                key=f"data.columns.{part}",
            )
