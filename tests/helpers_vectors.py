"""Base models as sentence-transformers writes them, and the task that reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules

from sora_cli.model.base import Base, load_base
from sora_cli.recipe.recipe import DataBlock, ModelBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.embedding import Embedding
from sora_cli.tasks.encoded import Encoded
from tests.helpers_models import tiny_bert
from tests.helpers_runs import save_base


def write_sentence_model(
    folder: Path,
    *,
    model: Any = None,
    pooling: str = "mean",
    dense: int = 0,
    unit: bool = True,
    prompts: Mapping[str, str] | None = None,
) -> Path:
    """What `SentenceTransformer.save_pretrained` writes of a tiny model.

    Args:
        model: None: an encoder.
        dense: width of a dense layer; 0: none.
        unit: vectors of unit length.
    """
    save_base(tiny_bert() if model is None else model, folder / "plain")
    parts = [modules.Transformer(str(folder / "plain"))]
    width = parts[0].get_embedding_dimension()
    parts.append(modules.Pooling(width, pooling))
    if dense:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            parts.append(modules.Dense(width, dense))
    parts += [modules.Normalize()] if unit else []
    made = SentenceTransformer(modules=parts, prompts=dict(prompts or {}), device="cpu")
    made.save_pretrained(str(folder / "base"))
    return folder / "base"


def sentence_model(folder: Path) -> Any:
    """The real one, in 64 bits."""
    return SentenceTransformer(str(folder), device="cpu").double().eval()


def bound_task(rows: Sequence[Mapping[str, Any]], **options: Any) -> Embedding:
    """The family on these rows, not yet fitted to a model."""
    data = DataBlock(path="unused", **{"max_length": 64, **options.pop("data", {})})
    task = create_task(TaskBlock(name="embedding", **options), data)
    assert isinstance(task, Embedding)
    task.bind(Dataset.from_list([dict(row) for row in rows]))
    return task


def opened_base(task: Embedding, folder: Path) -> Base:
    """The base model in 64 bits, without dropout."""
    base = load_base(ModelBlock(path=str(folder)), task, dropout=0.0)
    base.model.double().eval()
    return base


def batches_of(
    task: Embedding, base: Base, rows: Sequence[Mapping[str, Any]], size: int
) -> list[Any]:
    """Micro-batches of rows as they are trained on, in order."""
    data = Dataset.from_list([dict(row) for row in rows])
    encoded = task.encode(data, base.processor, training=True).dataset
    collate = task.collator(base.processor)
    places = [range(i, min(i + size, len(rows))) for i in range(0, len(rows), size)]
    return [collate([encoded[i] for i in part]) for part in places]


@torch.no_grad()
def vectors_of(task: Embedding, base: Base, encoded: Encoded) -> torch.Tensor:
    """Every text's vector, by batches of different lengths."""
    collate, kept, rows = task.collator(base.processor), [], encoded.dataset
    for first in range(0, len(rows), 5):
        batch = collate([rows[i] for i in range(first, min(first + 5, len(rows)))])
        kept.append(task.outputs_to_keep(base.model(**task.scored_inputs(batch)), batch))
    return torch.cat(kept)
