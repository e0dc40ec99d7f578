"""Options of the family `reranking`."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from sora_cli.recipe.task_options import Columns, TaskOptions, metrics_field
from sora_cli.recipe.types import SomeNames
from sora_cli.recipe.usual import READS

LISTED, SINGLE = "scores", "score"
"""Names of the answers to a row with a list of documents, and to one with a single document."""


class RerankingOptions(TaskOptions):
    """One number for a query with a document, by which the documents of a query are ordered."""

    PEFT_TYPE = "SEQ_CLS"
    METRICS = ("ndcg_at_10", "mrr_at_10")
    COUNTS_ROWS = False
    ONE_LABEL = False
    ANSWERED_BY = (LISTED,)
    MODEL_CLASS = "AutoModelForSequenceClassification"
    HUB_TASK = "text-ranking"
    COLUMNS: ClassVar[Columns] = {
        "query": ("query", "question", "anchor"),
        "documents": (
            "documents", "docs", "passages", "document", "doc", "passage", "answer", "text",
        ),
        "labels": ("labels", "label", "relevance", "score"),
    }  # fmt: skip
    USUAL: ClassVar = replace(
        READS,
        on_the_hub="cross-encoder/ms-marco-MiniLM-L6-v2",
        multilingual="cross-encoder/mmarco-mMiniLMv2-L12-H384-v1",
        epochs=(1, 3),  # a row has several documents
    )

    metrics: SomeNames = metrics_field(
        *METRICS, known=f"{', '.join(METRICS)} of each query's own documents"
    )
    loss: Literal["binary", "lambda"] = Field(
        "binary",
        description="binary: cross-entropy of each document by itself, with labels from 0 to 1; a "
        "step has batch_size documents. lambda: LambdaLoss (NDCG-Loss2++), which compares the "
        "documents of a query, with labels of any size; a step has batch_size queries",
    )
