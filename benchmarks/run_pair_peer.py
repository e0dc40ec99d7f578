"""The peer of `benchmarks.preferences`: PEFT's LoRA in TRL's DPOTrainer.

    python -m benchmarks.run_pair_peer DATA OUTPUT STEPS {as-needed,precomputed}

One epoch of a directory's pairs on SmolLM2-135M, or STEPS steps if STEPS is above 0, with an
evaluation at the end and the adapter saved. The reference's log-probabilities are computed in each
step, or before the first. Rows, length, rank, targets, learning rate, schedule and batches are
those of `sora train`'s side.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from datasets import Dataset
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from benchmarks.run_chat_peer import LORA, SETTINGS, smollm2


def main(data: str, output: str, steps: str, reference: str) -> None:
    """Train, evaluate, save."""
    model, tokenizer = smollm2()
    trainer = DPOTrainer(
        model,
        args=DPOConfig(
            output,
            max_steps=int(steps) or -1,
            precompute_ref_log_probs=reference == "precomputed",
            precompute_ref_batch_size=SETTINGS["per_device_eval_batch_size"],
            **SETTINGS,
        ),
        train_dataset=_rows(Path(data, "train.jsonl")),
        eval_dataset=_rows(Path(data, "validation.jsonl")),
        processing_class=tokenizer,
        peft_config=LORA,
    )
    trainer.train()
    trainer.save_model()


def _rows(file: Path) -> Dataset:
    """Return rows as chats; from memory, so that TRL finds no reference of an earlier run."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    rows = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return Dataset.from_list(
        [{k: [{"role": role, "content": row[k]}] for k, role in roles.items()} for row in rows]
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
