"""Options of the task families: recipe keys, and the facts that need no torch.

Nothing here imports numpy or torch, so that recipes are checked before slow imports. `COLUMNS` of a
class maps the parts of a row to the usual column names. `METRICS` are the metrics that a family
computes itself; some families also accept names of metrics on the Hub.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sora_cli.recipe.metric_facts import MetricFacts, facts_of
from sora_cli.recipe.types import Block, Count, SomeNames
from sora_cli.recipe.usual import READS, SPEAKS, Usual, writes

ROUGE = ("rouge1", "rouge2", "rougeL")
WRITTEN = ("exact_match", *ROUGE)
"""Metrics of generated texts."""
_TOKENS = ("loss", "perplexity", "token_accuracy")
_CLASSES = ("accuracy", "f1", "matthews_correlation")
_NUMBERS = ("pearson", "spearman", "pearson_spearman")
ONE_NUMBER = (*_CLASSES, *_NUMBERS)
"""Metrics of families that predict one number per row."""

_WITH_PROBABILITY = ("prediction", "probability")
_IMAGES = 256  # rows whose image files are in memory together

Columns = Mapping[str, tuple[str, ...]]


OF_REWARDS = ("rewards/accuracies", "rewards/margins", "rewards/chosen", "rewards/rejected")
OF_LOGPS = (*OF_REWARDS, "logps/chosen", "logps/rejected")
NO_REFERENCE = ("orpo", "simpo")
_BETAS = {"simpo": 2.0}  # Meng et al. 2024 (arXiv 2405.14734), section 3
FROM_START, BASE_MODEL = "start", "base"
"""Values of task.reference that are no adapter directory."""

_OR_THE_HUBS = ", or a metric of the Hub's own collection (evaluate-metric), whose code is then run"


def metrics_field(*default: str, known: str = "") -> Any:
    """Return the field of a family's metrics, with its default and the names that it takes."""
    about = f": {known}" if known else "; the first one chooses the checkpoint"
    return Field(list(default), description=f"metrics to report{about}")


def _greater(values: dict[str, Any]) -> bool:
    best = values.get("best_metric") or (values.get("metrics") or ("",))[0]
    return not facts_of(best).smaller_is_better


class TaskOptions(Block):
    """Options of every family: its metrics, and the metric that chooses the checkpoint."""

    NAME: ClassVar[str]
    """The family's name in recipes; only for families that are not ours."""
    FAMILY: ClassVar[str]
    """Place of the family's class, "module:Class"; only for families of packages."""
    METRICS: ClassVar[tuple[str, ...]] = ()
    METRIC_FACTS: ClassVar[Mapping[str, MetricFacts]] = {}
    """What kind of number a metric is; only for those of families that are not ours."""
    TEXT_METRICS: ClassVar[tuple[str, ...]] = ()
    """Metrics that need generated texts."""
    FROM_THE_HUB: ClassVar[bool] = False
    """True: other names are metrics of the Hub's own collection, and their code is run."""
    COUNTS_ROWS: ClassVar[bool] = True
    """True if accuracy counts whole rows, each right or wrong."""
    ROWS_ALONE: ClassVar[bool] = True
    """True if the answer to a row does not depend on the other rows."""
    LOSS_COMPARES: ClassVar[Literal["nothing", "micro-batch", "step"]] = "nothing"
    """The rows that a row's loss depends on: of its micro-batch, of its step, or no other rows."""
    CHUNKS_LOSS: ClassVar[bool] = False
    """True: the loss can be computed in chunks of logits (training.loss)."""
    COLUMNS: ClassVar[Columns] = {}
    WHOLE_TEXTS: ClassVar[tuple[str, ...]] = ()
    """Parts of a row that hold a whole text: beside them there is no prompt to put into a form."""
    MODEL_CLASS: ClassVar[str]
    """The Auto class of transformers that loads the family's models."""
    UNREAD: ClassVar[tuple[str, ...]] = ()
    """Modules of the model that the family does not read: they may be missing."""
    PROCESSOR_CLASS: ClassVar[str] = "AutoTokenizer"
    HUB_TASK: ClassVar[str]
    """The Hub's name for the task."""
    PEFT_TYPE: ClassVar[str | None] = None
    """PEFT's task_type, written into adapters; None if PEFT has none for this family."""
    TRAINS_HEAD: ClassVar[bool] = True
    """True if the model's output head is new and trained in full."""
    ONE_LABEL: ClassVar[bool] = True
    """True if each encoded row has a single label."""
    ANSWERED_BY: ClassVar[tuple[str, ...]] = ("prediction",)
    """Names of the columns that hold a model's answers."""
    ANSWERS_NUMBERS: ClassVar[bool] = False
    """True if an answer is a number, so that two models' answers are equal by chance alone."""
    WRITES_ANSWERS: ClassVar[bool] = False
    """True if the answers are generated texts, which need no outputs of the model."""
    CAN_SPEAK: ClassVar[bool] = False
    """True if its models continue prompts, for `sora chat` and `sora generate`."""
    ANSWERED_TOGETHER: ClassVar[int] = 4096
    """Number of rows in memory at a time for `sora predict`."""
    USUAL: ClassVar[Usual | None] = None
    """What `sora init` proposes; None: that of a family of ours with the same `MODEL_CLASS`."""

    metrics: SomeNames = metrics_field("accuracy")
    best_metric: str | None = Field(
        None, description="metric that chooses the best checkpoint. Default: the first of metrics"
    )
    greater_is_better: bool = Field(
        default_factory=_greater,
        description="whether a larger best_metric is better. Default: false for loss and "
        "perplexity, else true",
    )

    @property
    def needs_reference(self) -> bool:
        """True if scores and loss compare the model with a reference model."""
        return False

    @property
    def searches(self) -> bool:
        """True if queries find documents, which may lie in a fixed corpus (data.corpus)."""
        return False

    @property
    def queries_alone(self) -> bool:
        """True if the base model reads documents, and the adapter is for queries."""
        return False

    @model_validator(mode="before")
    @classmethod
    def _unset(cls, values: Any) -> Any:
        """Drop `metrics: null`, by which earlier versions meant the family's defaults."""
        if isinstance(values, Mapping) and values.get("metrics", ()) is None:
            return {key: value for key, value in values.items() if key != "metrics"}
        return values


class SequenceClassificationOptions(TaskOptions):
    """One class for each text or pair of texts."""

    PEFT_TYPE = "SEQ_CLS"
    ANSWERED_BY = _WITH_PROBABILITY
    METRICS = ONE_NUMBER
    MODEL_CLASS = "AutoModelForSequenceClassification"
    HUB_TASK = "text-classification"
    USUAL = READS
    FROM_THE_HUB = True

    metrics: SomeNames = metrics_field("accuracy", known=f"{', '.join(_CLASSES)}{_OR_THE_HUBS}")


class SequenceRegressionOptions(TaskOptions):
    """One number for each text or pair of texts."""

    PEFT_TYPE = "SEQ_CLS"
    ANSWERS_NUMBERS = True
    METRICS = ONE_NUMBER
    MODEL_CLASS = "AutoModelForSequenceClassification"
    HUB_TASK = "text-classification"
    USUAL = READS
    FROM_THE_HUB = True

    metrics: SomeNames = metrics_field(
        "pearson_spearman",
        "pearson",
        "spearman",
        known=f"{', '.join(_NUMBERS)}{_OR_THE_HUBS}",
    )


class _Writing(TaskOptions):
    """Families that generate texts."""

    TRAINS_HEAD = False
    ONE_LABEL = False
    WRITES_ANSWERS = True
    CAN_SPEAK = True
    ANSWERED_TOGETHER = 256  # generation is slow, so results are saved often

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

    PEFT_TYPE = "CAUSAL_LM"
    CHUNKS_LOSS = True
    METRICS = (*_TOKENS, *WRITTEN)
    MODEL_CLASS = "AutoModelForCausalLM"
    HUB_TASK = "text-generation"
    USUAL = SPEAKS
    TEXT_METRICS = WRITTEN
    COLUMNS: ClassVar[Columns] = {
        "messages": ("messages", "conversation", "conversations"),
        "tools": ("tools",),
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
    learn: Literal["all", "last"] = Field(
        "all",
        description="the assistant's answers in a chat that are learned: all, or the last one",
    )
    packing: bool = Field(
        False,
        description="in training, pack several rows into one sequence of max_length tokens; their "
        "positions keep the rows apart. A step then has more rows",
    )


class AnswerOptions(TaskOptions):
    """Rows of a prompt and of answers to it."""

    ONE_LABEL = False
    COLUMNS: ClassVar[Columns] = {
        "prompt": ("prompt", "question", "instruction"),
        "tools": ("tools",),
    }

    prompt: str = _PROMPT
    system: str | None = _SYSTEM


def reference_field() -> Any:
    """Return the field of the model that rewards are measured against."""
    return Field(
        FROM_START,
        min_length=1,
        description="the model that rewards are measured against: start (the base model with "
        "start.adapter, if the run has one), base (the base model alone), or an adapter directory",
    )


class PairOptions(AnswerOptions):
    """Rows of a chosen and a rejected answer to a prompt."""

    ANSWERED_BY = ("prefers", "reward_chosen", "reward_rejected")
    COLUMNS: ClassVar[Columns] = {
        "prompt": AnswerOptions.COLUMNS["prompt"],
        "chosen": ("chosen",),
        "rejected": ("rejected",),
        "tools": AnswerOptions.COLUMNS["tools"],
    }
    WHOLE_TEXTS = ("chosen", "rejected")


class PreferenceOptions(PairOptions):
    """Preferring one of two answers to a prompt: DPO, and its relatives without a reference."""

    PEFT_TYPE = "CAUSAL_LM"
    TRAINS_HEAD = False
    CAN_SPEAK = True
    CHUNKS_LOSS = True
    METRICS = (*OF_LOGPS, "loss")
    MODEL_CLASS = "AutoModelForCausalLM"
    HUB_TASK = "text-generation"
    USUAL = replace(SPEAKS, builtin="builtin://tiny-llama", texts=2)

    metrics: SomeNames = metrics_field(*OF_LOGPS, known=", ".join((*OF_LOGPS, "loss")))
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
    reference: str = reference_field()

    @property
    def needs_reference(self) -> bool:
        """True if scores and loss compare the model with a reference model."""
        return self.loss not in NO_REFERENCE

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

    PEFT_TYPE = "SEQ_2_SEQ_LM"
    METRICS = (*_TOKENS, *WRITTEN)
    MODEL_CLASS = "AutoModelForSeq2SeqLM"
    HUB_TASK = "text2text-generation"
    USUAL = writes("google/flan-t5-base", "google/mt5-small", builtin="builtin://tiny-t5")
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

    PEFT_TYPE = "QUESTION_ANS"
    ANSWERED_BY = ("prediction", "start", "end", "score")
    ONE_LABEL = False
    METRICS = ("f1", "exact_match")
    MODEL_CLASS = "AutoModelForQuestionAnswering"
    HUB_TASK = "question-answering"
    USUAL = READS
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

    PEFT_TYPE = "TOKEN_CLS"
    ONE_LABEL = False
    METRICS = ("f1", "precision", "recall", "accuracy")
    COUNTS_ROWS = False  # but words
    MODEL_CLASS = "AutoModelForTokenClassification"
    HUB_TASK = "token-classification"
    USUAL = READS
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

    ANSWERED_BY = ("prediction", "choice", "probability")
    ONE_LABEL = False  # models do not see a choice's place, so the place is no class
    METRICS = _CLASSES
    MODEL_CLASS = "AutoModelForMultipleChoice"
    HUB_TASK = "multiple-choice"
    USUAL = READS
    COLUMNS: ClassVar[Columns] = {
        "context": ("context", "premise", "sent1", "startphrase", "ctx", "article"),
        "question": ("question", "sent2", "question_stem", "goal"),
        "choices": ("choices", "endings", "options"),
    }

    metrics: SomeNames = metrics_field("accuracy")


class ImageClassificationOptions(TaskOptions):
    """One class for each image."""

    ANSWERED_BY = _WITH_PROBABILITY
    ANSWERED_TOGETHER = _IMAGES
    METRICS = _CLASSES
    MODEL_CLASS = "AutoModelForImageClassification"
    PROCESSOR_CLASS = "AutoImageProcessor"
    HUB_TASK = "image-classification"
    USUAL = Usual("google/vit-base-patch16-224-in21k", builtin="builtin://tiny-vit")
    COLUMNS: ClassVar[Columns] = {"image": ("image", "img", "pixel_values")}

    metrics: SomeNames = metrics_field("accuracy")


class ImageTextOptions(TaskOptions):
    """Matching images with their texts (contrastive training, as CLIP)."""

    TRAINS_HEAD = False
    ANSWERED_BY = ("similarity",)
    ANSWERED_TOGETHER = _IMAGES
    ONE_LABEL = False
    METRICS = ("recall_at_1", "text_recall_at_1", "loss")
    ROWS_ALONE = False  # each chooses among all
    LOSS_COMPARES = "micro-batch"
    MODEL_CLASS = "AutoModel"
    PROCESSOR_CLASS = "AutoProcessor"
    HUB_TASK = "zero-shot-image-classification"
    USUAL = Usual("openai/clip-vit-large-patch14", builtin="builtin://tiny-clip")
    COLUMNS: ClassVar[Columns] = {"image": ("image", "img"), "text": ("text", "caption")}

    metrics: SomeNames = metrics_field("recall_at_1", "text_recall_at_1")
