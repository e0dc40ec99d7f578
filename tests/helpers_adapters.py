"""In-memory adapted models with random factors and heads, and the adapters they give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods import inject, registry
from methods.base import LowRankLinear
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from sora_cli.model.fingerprint import fingerprint
from tests.helpers_models import (
    model_inputs,
    tiny_bert,
    tiny_deberta,
    tiny_distilbert,
    tiny_gpt2,
    tiny_llama,
    tiny_roberta,
)

R_MAX = 4
CLASSIFIERS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "bert": (tiny_bert, ("bert.pooler", "classifier")),
    "roberta": (tiny_roberta, ("classifier",)),
    "deberta": (tiny_deberta, ("pooler", "classifier")),
    "distilbert": (tiny_distilbert, ("pre_classifier", "classifier")),
    "gpt2": (lambda: tiny_gpt2(num_labels=3), ("score",)),
    "llama": (lambda: tiny_llama(num_labels=3), ("score",)),
}
CAUSAL = {
    "gpt2": tiny_gpt2,
    "llama": tiny_llama,
    "llama-tied": lambda: tiny_llama(tied=True),
}
LABELS = ("yes", "no", "maybe")


def logits(model: Any) -> Tensor:
    """The model's outputs on fixed random inputs."""
    with torch.no_grad():
        result: Tensor = model(**model_inputs(model)).logits
    return result


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal within 1e-5 of the largest logit."""
    assert actual.shape == expected.shape
    worst = (actual - expected).abs().max() / expected.abs().max()
    assert worst <= 1e-5, f"off by {worst:.2e} of the largest logit"


def save_backbone(model: Any, directory: Path) -> Path:
    """Save the model without its classification head, so that a reload draws a new one."""
    if "ForSequenceClassification" in type(model).__name__:
        model.base_model.save_pretrained(directory)
    else:
        model.save_pretrained(directory)
    return directory


def adapt(
    model: Any, base: Path, *, head: tuple[str, ...] = (), ranks: str = "mixed", seed: int = 0
) -> Adapter:
    """Put random adapters and a random head into the model, in place.

    Args:
        ranks: "full", "mixed" (0 to R_MAX components alive, some modules dead in each possible
            way), or "dead" (no component at all).
    """
    generator = torch.Generator().manual_seed(seed)
    method = registry.create("sora", r_max=R_MAX)
    layers = inject.inject(model, method, exclude=head, generator=generator)
    randomise(model, layers, head, ranks=ranks, generator=generator)
    causal = not head
    return Adapter.of(
        layers={path: method.factors(layer) for path, layer in layers.items()},
        head={
            f"{path}.{name}": tensor.detach().clone()
            for path in head
            for name, tensor in model.get_submodule(path).state_dict().items()
        },
        head_modules=head,
        task_type="CAUSAL_LM" if causal else "SEQ_CLS",
        base=BaseReference(str(base), str(base), None, fingerprint(base)),
        fan_in_fan_out=any(type(x.base).__name__ == "Conv1D" for x in layers.values()),
        meta=AdapterMeta(
            method="sora",
            task=None if causal else "sequence-classification",
            labels=None if causal else LABELS,
            num_labels=None if causal else len(LABELS),
            problem_type=None if causal else "single_label_classification",
            ranks_start={path: layer.rank for path, layer in layers.items()},
        ),
    )


@torch.no_grad()
def randomise(
    model: Any,
    layers: dict[str, LowRankLinear],
    head: tuple[str, ...],
    *,
    ranks: str,
    generator: torch.Generator,
) -> None:
    """Random A, B, gates and head; how many gates stay open is up to `ranks`."""

    def fill(tensor: Tensor, scale: float) -> None:
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * scale)

    for i, layer in enumerate(layers.values()):
        assert layer.d is not None
        fill(layer.A, 0.3)
        fill(layer.B, 0.1)
        fill(layer.d, 1.0)
        if ranks == "dead":
            layer.d.zero_()
        elif ranks == "mixed":
            live = i % (R_MAX + 1)
            layer.d[torch.randperm(R_MAX, generator=generator)[live:]] = 0
            if i % 6 == 1:
                layer.A[0] = 0
            if i % 6 == 3:
                layer.B[:, -1] = 0
    for path in head:
        for parameter in model.get_submodule(path).parameters():
            fill(parameter, 0.5)


def forget_base_weights(adapter: Path) -> None:
    """Take the base's fingerprint out of an adapter's sora.json, as other tools write none."""
    file = adapter / "sora.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["base"]["fingerprint"] = None
    file.write_text(json.dumps(content), encoding="utf-8")


@torch.no_grad()
def fill_peft(model: Any, *, seed: int = 1, scale: float = 0.2) -> Any:
    """Random numbers in all that PEFT trains in a model, in place: no B is zero any more."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()
