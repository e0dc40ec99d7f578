"""Task families: their options, metrics and columns, and the table of all families.

Nothing here imports numpy or torch, so that recipes are checked before slow imports. `COLUMNS` of a
class maps the parts of a row to the usual column names. `METRICS` are the metrics that a family
computes itself; some families also accept names of metrics on the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from methods.words import did_you_mean
from sora_cli.core.errors import SoraError
from sora_cli.recipe.embedding_options import EmbeddingOptions
from sora_cli.recipe.task_options import Columns, metrics_field
from sora_cli.recipe.task_options import TaskOptions as TaskOptions
from sora_cli.recipe.types import Count, SomeNames

ROUGE = ("rouge1", "rouge2", "rougeL")
WRITTEN = ("exact_match", *ROUGE)
"""Metrics of generated texts."""
_TOKENS = ("loss", "perplexity", "token_accuracy")
_CLASSES = ("accuracy", "f1", "matthews_correlation")
_NUMBERS = ("pearson", "spearman", "pearson_spearman")
ONE_NUMBER = (*_CLASSES, *_NUMBERS)
"""Metrics of families that predict one number per row."""

_OF_PAIRS = (
    "rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected",
    "logps/chosen", "logps/rejected",
)  # fmt: skip
NO_REFERENCE = ("orpo", "simpo")
_BETAS = {"simpo": 2.0}  # Meng et al. 2024 (arXiv 2405.14734), section 3
FROM_START, BASE_MODEL = "start", "base"
"""Values of task.reference that are no adapter directory."""

_OR_THE_HUBS = ", or a metric of the Hub's own collection (evaluate-metric), whose code is then run"


class SequenceClassificationOptions(TaskOptions):
    """One class for each text or pair of texts."""

    METRICS = ONE_NUMBER
    MODEL_CLASS = "AutoModelForSequenceClassification"
    HUB_TASK = "text-classification"
    FROM_THE_HUB = True

    metrics: SomeNames = metrics_field("accuracy", known=f"{', '.join(_CLASSES)}{_OR_THE_HUBS}")


class SequenceRegressionOptions(TaskOptions):
    """One number for each text or pair of texts."""

    METRICS = ONE_NUMBER
    MODEL_CLASS = "AutoModelForSequenceClassification"
    HUB_TASK = "text-classification"
    FROM_THE_HUB = True

    metrics: SomeNames = metrics_field(
        "pearson_spearman",
        "pearson",
        "spearman",
        known=f"{', '.join(_NUMBERS)}{_OR_THE_HUBS}",
    )


class _Writing(TaskOptions):
    """Families that generate texts."""

    max_new_tokens: Count = Field(64, description="largest number of tokens in a generated text")
    generation_batch_size: Count = Field(16, description="rows per batch of generated texts")


_PROMPT = Field(
    "auto",
    description="form of the prompt for instructions: chat (the tokenizer's chat template), "
    "plain (### headings), a text with columns in braces ('Q: {question}\\nA:'), or auto (chat "
    "if the tokenizer has a template, else plain)",
)
_SYSTEM = Field(None, description="system message before the messages of each row")


class CausalLmOptions(_Writing):
    """Continuing a text: instructions with answers, chats, or plain text."""

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
    WHOLE_TEXTS = ("text",)

    metrics: SomeNames = metrics_field(
        *_TOKENS, known=f"{', '.join(_TOKENS)}; {', '.join(WRITTEN)} of generated answers"
    )
    prompt: str = _PROMPT
    system: str | None = _SYSTEM
    packing: bool = Field(
        False,
        description="in training, pack several rows into one sequence of max_length tokens; their "
        "positions keep the rows apart. A step then has more rows",
    )


class PreferenceOptions(TaskOptions):
    """Preferring one of two answers to a prompt: DPO, and its relatives without a reference."""

    CHUNKS_LOSS = True
    METRICS = (*_OF_PAIRS, "loss")
    MODEL_CLASS = "AutoModelForCausalLM"
    HUB_TASK = "text-generation"
    COLUMNS: ClassVar[Columns] = {
        "prompt": ("prompt", "question", "instruction"),
        "chosen": ("chosen",),
        "rejected": ("rejected",),
    }
    WHOLE_TEXTS = ("chosen", "rejected")

    metrics: SomeNames = metrics_field(*_OF_PAIRS, known=", ".join((*_OF_PAIRS, "loss")))
    prompt: str = _PROMPT
    system: str | None = _SYSTEM
    loss: Literal["sigmoid", "hinge", "ipo", "robust", "orpo", "simpo"] = Field(
        "sigmoid",
        description="sigmoid (DPO), hinge (SLiC), ipo, robust: beside a reference model. orpo, "
        "simpo: without one",
    )
    beta: float = Field(
        default_factory=lambda values: _BETAS.get(values.get("loss", ""), 0.1),
        gt=0,
        description="strength of the preference: of the distance from the reference model (tau of "
        "ipo, lambda of orpo). Default: 0.1; simpo 2",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="share of pairs that are taken to be the wrong way round: sigmoid (then "
        "conservative DPO) and robust",
    )
    gamma: float | None = Field(
        None, ge=0, description="margin of simpo between the two rewards. Default: 1"
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="weight of a further term: the mean loss per token of the chosen answer",
    )
    reference: str = Field(
        FROM_START,
        min_length=1,
        description="the model that rewards are measured against: start (the base model with "
        "start.adapter, if the run has one), base (the base model alone), or an adapter directory",
    )

    @model_validator(mode="after")
    def _goes_together(self) -> PreferenceOptions:
        if self.label_smoothing and self.loss not in ("sigmoid", "robust"):
            raise ValueError(f"label_smoothing goes with loss sigmoid or robust, not {self.loss}")
        if self.gamma is not None and self.loss != "simpo":
            raise ValueError(f"gamma goes with loss simpo, not {self.loss}")
        if self.sft_weight and self.loss == "orpo":
            raise ValueError("orpo has the term of sft_weight already")
        return self


class Seq2SeqOptions(_Writing):
    """Writing a text from a text, with an encoder-decoder model (T5, BART)."""

    METRICS = (*_TOKENS, *WRITTEN)
    MODEL_CLASS = "AutoModelForSeq2SeqLM"
    HUB_TASK = "text2text-generation"
    TEXT_METRICS = WRITTEN
    COLUMNS: ClassVar[Columns] = {
        "source": ("source", "input", "document", "article", "dialogue", "question", "text"),
        "target": ("target", "output", "summary", "highlights", "answer"),
    }

    metrics: SomeNames = metrics_field(
        "rougeL",
        "exact_match",
        "token_accuracy",
        known=f"{', '.join(WRITTEN)} of generated texts; {', '.join(_TOKENS)} of the given targets",
    )
    prefix: str = Field("", description="text before each source, such as 'summarize: '")
    max_target_length: int = Field(
        64,
        ge=2,
        le=2**24,
        description="largest number of tokens in a target; longer targets are cut",
    )


class QuestionAnsweringOptions(TaskOptions):
    """Finding the answer to a question as a span of a context (SQuAD)."""

    METRICS = ("f1", "exact_match")
    MODEL_CLASS = "AutoModelForQuestionAnswering"
    HUB_TASK = "question-answering"
    COLUMNS: ClassVar[Columns] = {
        "id": ("id",),
        "question": ("question", "query"),
        "context": ("context", "passage"),
        "answers": ("answers",),
    }

    metrics: SomeNames = metrics_field("f1", "exact_match")
    stride: Count = Field(
        64, description="number of tokens that two neighbouring windows of a context share"
    )
    max_answer_length: Count = Field(30, description="largest number of tokens in an answer")
    unanswerable: bool = Field(
        False,
        description="true: a row without answers has a context without the answer (SQuAD 2.0), and "
        "an empty answer may be predicted. false: a row without answers is an error",
    )


class TokenClassificationOptions(TaskOptions):
    """One tag for each word; entities are spans of words."""

    METRICS = ("f1", "precision", "recall", "accuracy")
    COUNTS_ROWS = False  # but words
    MODEL_CLASS = "AutoModelForTokenClassification"
    HUB_TASK = "token-classification"
    COLUMNS: ClassVar[Columns] = {
        "tokens": ("tokens", "words"),
        "tags": ("tags", "ner_tags", "pos_tags", "chunk_tags", "labels"),
    }

    metrics: SomeNames = metrics_field(
        *METRICS, known="f1, precision, recall of entities (seqeval), accuracy of words"
    )
    label_all_pieces: bool = Field(
        False,
        description="true: train on every piece of a word. false: train on the first piece only",
    )


class MultipleChoiceOptions(TaskOptions):
    """Choosing the fitting text among several."""

    METRICS = _CLASSES
    MODEL_CLASS = "AutoModelForMultipleChoice"
    HUB_TASK = "multiple-choice"
    COLUMNS: ClassVar[Columns] = {
        "context": ("context", "premise", "sent1", "startphrase", "ctx", "article"),
        "question": ("question", "sent2", "question_stem", "goal"),
        "choices": ("choices", "endings", "options"),
    }

    metrics: SomeNames = metrics_field("accuracy")


class ImageClassificationOptions(TaskOptions):
    """One class for each image."""

    METRICS = _CLASSES
    MODEL_CLASS = "AutoModelForImageClassification"
    PROCESSOR_CLASS = "AutoImageProcessor"
    HUB_TASK = "image-classification"
    COLUMNS: ClassVar[Columns] = {"image": ("image", "img", "pixel_values")}

    metrics: SomeNames = metrics_field("accuracy")


class ImageTextOptions(TaskOptions):
    """Matching images with their texts (contrastive training, as CLIP)."""

    METRICS = ("recall_at_1", "text_recall_at_1", "loss")
    ROWS_ALONE = False  # each chooses among all
    LOSS_COMPARES = "micro-batch"
    MODEL_CLASS = "AutoModel"
    PROCESSOR_CLASS = "AutoProcessor"
    HUB_TASK = "zero-shot-image-classification"
    COLUMNS: ClassVar[Columns] = {"image": ("image", "img"), "text": ("text", "caption")}

    metrics: SomeNames = metrics_field("recall_at_1", "text_recall_at_1")


FAMILIES: dict[str, tuple[str, type[TaskOptions]]] = {
    "sequence-classification": ("sequence", SequenceClassificationOptions),
    "sequence-regression": ("sequence", SequenceRegressionOptions),
    "causal-lm": ("causal_lm", CausalLmOptions),
    "preference": ("preference", PreferenceOptions),
    "seq2seq": ("seq2seq", Seq2SeqOptions),
    "question-answering": ("question_answering", QuestionAnsweringOptions),
    "token-classification": ("token_classification", TokenClassificationOptions),
    "multiple-choice": ("multiple_choice", MultipleChoiceOptions),
    "image-classification": ("images", ImageClassificationOptions),
    "image-text": ("image_text", ImageTextOptions),
    "embedding": ("embedding", EmbeddingOptions),
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
