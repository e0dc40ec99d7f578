"""Options of the family `embedding`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from sora_cli.recipe.task_options import Columns, TaskOptions, metrics_field
from sora_cli.recipe.types import Count, SomeNames
from sora_cli.recipe.usual import MINILM, Usual

_FOUND = (
    "ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10", "accuracy_at_1", "accuracy_at_10"
)  # fmt: skip
_ALIKE = ("spearman", "pearson")
VECTOR = "_vector"
"""End of the names of answers that are vectors."""
FOUND = ("document_ids", "document_scores")
"""Names of answers from a corpus: the best documents of each query, the best first."""


class EmbeddingOptions(TaskOptions):
    """One vector for each text: finding documents, or the similarity of two texts."""

    METRICS = (*_FOUND, *_ALIKE, "loss")
    COUNTS_ROWS = False  # a query may have several documents, of which some are found
    ROWS_ALONE = False  # each query chooses among all documents
    LOSS_COMPARES = "step"
    COLUMNS: ClassVar[Columns] = {
        "query": ("query", "anchor", "question", "sentence1", "sentence_A", "premise", "text1"),
        "positive": (
            "positive", "positives", "pos", "document", "passage", "answer", "sentence2",
            "sentence_B", "hypothesis", "text2", "context", "text",
        ),
        "negative": (
            "negative", "neg", "hard_negative", "negatives", "negs", "hard_negatives",
        ),
        "score": ("score", "similarity_score", "similarity", "relatedness_score", "label"),
        "grade": ("grade", "relevance"),
    }  # fmt: skip
    MODEL_CLASS = "AutoModel"
    UNREAD = ("pooler",)
    HUB_TASK = "sentence-similarity"
    PEFT_TYPE = "FEATURE_EXTRACTION"
    ONE_LABEL = False
    TRAINS_HEAD = False
    ANSWERED_BY = (f"query{VECTOR}", f"document{VECTOR}")
    ANSWERED_TOGETHER = 1024
    USUAL = Usual(
        "sentence-transformers/all-MiniLM-L6-v2",
        MINILM,
        multilingual="sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        largest_batch=32,  # a step's other rows are the wrong answers
        epochs=(1, 10),
        texts=2,
    )

    metrics: SomeNames = metrics_field(
        "ndcg_at_10",
        "mrr_at_10",
        "recall_at_1",
        known=f"{', '.join(_FOUND)} of each query among all documents of the split, or of "
        f"data.corpus; of pairs with a score (loss cosent) {', '.join(_ALIKE)}",
    )
    loss: Literal["infonce", "cosent"] = Field(
        "infonce",
        description="infonce: rows of a query, its document and further columns of wrong "
        "documents; the documents of a step's other rows are wrong, too. cosent: pairs of texts "
        "with a score, whose order the cosines learn",
    )
    adapt: Literal["both", "query"] = Field(
        "both",
        description="texts that the adapter is for. query: documents are embedded by the base "
        "model alone, so that an index of its vectors stays valid; steps read queries only",
    )
    scale: float = Field(20.0, gt=0, description="factor of the cosines in the loss: 1/temperature")
    pooling: Literal["auto", "mean", "cls", "last"] = Field(
        "auto",
        description="how a text's vector is made of its tokens' vectors. auto: as the base model's "
        "modules.json says, or else mean. Another value is for base models without that file",
    )
    query_prompt: str | None = Field(
        None, description="text before each query. Default: the base model's own, if it has one"
    )
    document_prompt: str | None = Field(
        None, description="text before each document. Default: the base model's own, if it has one"
    )
    top_k: Count = Field(
        10, description="number of documents of a corpus that sora predict names for each query"
    )
    query_max_length: int | None = Field(
        None, ge=2, le=2**24, description="largest number of tokens in a query, with its prompt. "
        "Default: data.max_length"
    )  # fmt: skip

    @property
    def searches(self) -> bool:
        """True unless rows are pairs of texts with a score."""
        return self.loss == "infonce"

    @property
    def queries_alone(self) -> bool:
        """True if the base model reads documents, and the adapter is for queries."""
        return self.adapt == "query"

    @model_validator(mode="before")
    @classmethod
    def _metrics_of_pairs(cls, values: Any) -> Any:
        pairs = isinstance(values, Mapping) and values.get("loss") == "cosent"
        unset = pairs and values.get("metrics") is None
        return {**values, "metrics": list(_ALIKE)} if unset else values

    @model_validator(mode="after")
    def _metrics_fit(self) -> EmbeddingOptions:
        wrong = _FOUND if self.loss == "cosent" else _ALIKE
        for name in self.metrics:
            if name in wrong:
                raise ValueError(f"{name} is no metric of rows with loss {self.loss}")
        if self.queries_alone and not self.searches:
            raise ValueError("adapt query goes with loss infonce: pairs have no document")
        return self
