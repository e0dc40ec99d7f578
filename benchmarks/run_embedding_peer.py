"""The peer of `benchmarks.embeddings`: PEFT's LoRA in SentenceTransformerTrainer.

    python -m benchmarks.run_embedding_peer DATA

One epoch of DATA/train.jsonl (query, positive) on all-MiniLM-L6-v2, an evaluation on
DATA/validation.jsonl, and the adapter saved. Length, rank, targets, learning rate, schedule and
batches are those of `sora train`'s side.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, get_peft_model
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from benchmarks.embeddings import LAYERS, LENGTH, MINILM, RANK
from benchmarks.sides import ALPHA
from sora_cli.model.references import resolve_model_path


def main(data: str) -> None:
    """Train, evaluate, save."""
    train, held_out = (_rows(Path(data, f"{split}.jsonl")) for split in ("train", "validation"))
    model: Any = SentenceTransformer(resolve_model_path(MINILM), device="cpu")
    model.max_seq_length = LENGTH
    config = LoraConfig("FEATURE_EXTRACTION", r=RANK, lora_alpha=int(ALPHA), target_modules=LAYERS)
    peft = get_peft_model(model[0].model, config)
    arguments = SentenceTransformerTrainingArguments(
        str(Path(data, "peer")), num_train_epochs=1, per_device_train_batch_size=32,
        per_device_eval_batch_size=64, learning_rate=1e-3, warmup_steps=0.06, weight_decay=0.01,
        save_strategy="no", report_to="none", use_cpu=True,
    )  # fmt: skip
    SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_list(train),
        loss=MultipleNegativesRankingLoss(model),
    ).train()  # fmt: skip
    numbers = [str(i) for i in range(len(held_out))]
    queries, documents = (
        dict[str, Any](zip(numbers, (row[part] for row in held_out), strict=True))
        for part in ("query", "positive")
    )
    InformationRetrievalEvaluator(queries, documents, {i: {i} for i in numbers})(model)
    peft.save_pretrained(str(Path(data, "peer", "adapter")))


def _rows(file: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main(*sys.argv[1:])
