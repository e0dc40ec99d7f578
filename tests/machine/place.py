"""A base model and rows as small as they can be; what files hold, read without sora's readers."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from tests.helpers_runs import pair_rows, save_base, tiny_tokenizer, write_rows

STEPS = 4
RANK = 3
METHODS = {
    "sora": f"method={{name: sora, r_max: {RANK}, threshold: 0.02, gate_init: normal}}",
    "lora": f"method={{name: lora, r: {RANK}, alpha: 5}}",
}
"""Gates that die at once, and a scaling that is no power of two."""
_HALVES = {"A": ".lora_A.weight", "B": ".lora_B.weight"}

Tensors = Mapping[str, Tensor]
EXACT = 1e-5
"""Relative difference of two ways to compute the same update in float32."""


class Origin:
    """The base model, the rows and the recipe that all runs share; nothing may change them.

    Attributes:
        base: the backbone's weights by the names that they have in a model with a head.
        rows: the validation rows.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        save_base(_model(), folder / "base")
        self.rows = pair_rows(24, seed=1)
        files = {
            "train": write_rows(folder / "train.jsonl", pair_rows(32)),
            "validation": write_rows(folder / "validation.jsonl", self.rows),
        }
        recipe = {
            "model": {"path": str(folder / "base")},
            "task": {"name": "sequence-classification"},
            "data": {"files": files},
            "method": {"name": "lora", "r": RANK},
            "training": {
                "max_steps": STEPS, "batch_size": 8, "learning_rate": 0.05, "evaluate": "no",
            },
        }  # fmt: skip
        self.recipe = folder / "tiny.yaml"
        self.recipe.write_text(json.dumps(recipe), encoding="utf-8")
        weights = load_file(folder / "base" / "model.safetensors")
        self.base = {f"bert.{name}": tensor for name, tensor in weights.items()}

    def logits(self, update: Tensors, head: Tensors) -> Tensor:
        """Return the logits of the validation rows, by transformers alone."""
        model = _model()
        names = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in {**self.base, **head}.items():
                if name in names:
                    names[name].copy_(tensor)
            for path, change in update.items():
                names[f"{path}.weight"].add_(change.float())
        tokens = tiny_tokenizer()(
            [row["sentence1"] for row in self.rows],
            [row["sentence2"] for row in self.rows],
            padding=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            found: Tensor = model(**tokens).logits
        return found


@cache
def _config() -> Any:
    return transformers.BertConfig(
        vocab_size=22, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=8, max_position_embeddings=64, num_labels=2, initializer_range=0.4,
    )  # fmt: skip


def _model() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.BertForSequenceClassification(_config()).eval()


def adapter_in(place: Path) -> Path:
    """The adapter's directory of a run, or the place itself."""
    return place / "adapter" if (place / "report.json").is_file() else place


def stored_update(place: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, int]]:
    """Return dW, the head and the live components of an adapter's directory, by PEFT's rules."""
    folder = adapter_in(place)
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "adapter_model.safetensors")
    start = "base_model.model."
    update, head, ranks = {}, {}, {}
    for name, tensor in tensors.items():
        path = name.removeprefix(start)
        if path.endswith(_HALVES["A"]):
            path = path.removesuffix(_HALVES["A"])
            other = tensors[f"{start}{path}{_HALVES['B']}"].double()
            rank = _of_pattern(config.get("rank_pattern"), path, config["r"])
            alpha = _of_pattern(config.get("alpha_pattern"), path, config["lora_alpha"])
            assert tensor.shape[0] == other.shape[1] == rank, path
            update[path] = other @ tensor.double() * (alpha / rank)
            ranks[path] = int((tensor.any(1) & other.any(0)).sum())
        elif not path.endswith(_HALVES["B"]):
            head[path] = tensor
    return update, head, ranks


def _of_pattern(pattern: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """Return a module's value, by PEFT's `get_pattern_key`."""
    named = [v for key, v in (pattern or {}).items() if re.match(rf"(.*\.)?({key})$", path)]
    return named[0] if named else default


def singular(update: Tensors) -> dict[str, Tensor]:
    """The singular values of each module's dW, in descending order."""
    return {path: torch.linalg.svdvals(change) for path, change in update.items()}


def rank_of(change: Tensor) -> int:
    """The rank of a dW of float32 factors."""
    values = torch.linalg.svdvals(change)
    return int((values > 1e-5 * (values[0] if len(values) else 0)).sum()) if change.any() else 0


def truncated(change: Tensor, rank: int) -> Tensor:
    """The best approximation of a rank (Eckart-Young)."""
    left, values, right = torch.linalg.svd(change)
    return left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]


def apart(one: Tensors, other: Tensors) -> float:
    """Return ||one - other||_F / ||one||_F of all tensors together; a missing tensor is zero."""
    lost = total = 0.0
    for name in {**one, **other}:
        first = one[name].double() if name in one else torch.zeros_like(other[name]).double()
        second = other[name].double() if name in other else torch.zeros_like(first)
        lost += float((first - second).square().sum())
        total += float(first.square().sum())
    return (lost / total) ** 0.5 if total else float(lost > 0)


def digests(place: Path) -> dict[str, str]:
    """The SHA-256 of every file at or below a place, by its name."""
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file())
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
