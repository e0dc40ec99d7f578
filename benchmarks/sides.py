"""The sides of a measurement: our methods, their peers, and the floor.

- `floor`: forward and backward pass with all weights frozen except the head; the output of the
  embedding requires a gradient, so that the backward pass goes through every layer. Each product of
  a frozen layer takes the faster of torch's two matrix libraries (`benchmarks/faster.py`).
- `torch floor`: the same with torch's own choice, which every side but ours takes for all products.
- `PEFT LoRA`, `PEFT AdaLoRA`: PEFT's methods on the same linear layers. AdaLoRA's allocator is
  called after every step; its penalty is part of the model's loss.
- `plain SoRA`: a direct implementation of the paper's layer under plain autograd, with the same
  proximal step applied gate vector by gate vector.
- `LoRA`, `SoRA`, `AdaLoRA`: our methods, with all their hooks.

Every side has its own copy of the model and the same fused AdamW on its trained parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from benchmarks.faster import use_faster_products
from benchmarks.models import DECODER, Setting, batch, head, load
from benchmarks.stepping import Stepping
from methods.base import AdapterMethod, LowRankLinear, StepInfo
from methods.inject import inject, replace
from methods.registry import create
from methods.siblings import same_inputs, share_inputs

ALPHA = 16.0
THRESHOLD = 1e-5  # SoRA's; so small that no gate dies during the measurement
STEPS = 1_000_000  # of AdaLoRA's schedule, so that its budget falls in every measured step
OURS = ("LoRA", "SoRA", "AdaLoRA")
PEER = {"LoRA": "PEFT LoRA", "SoRA": "plain SoRA", "AdaLoRA": "PEFT AdaLoRA"}
ALL = ("floor", "torch floor", *PEER.values(), *OURS)


class Side(Stepping):
    """One model of a setting that takes optimiser steps on its batch, with AdamW."""

    def __init__(
        self,
        where: Setting,
        model: nn.Module,
        *,
        groups: list[dict[str, Any]] | None = None,
        penalty: Callable[[], Tensor | None] = lambda: None,
        after: Callable[[int], None] = lambda _: None,
    ) -> None:
        grouped = {id(p) for group in groups or [] for p in group["params"]}
        rest = [p for p in model.parameters() if p.requires_grad and id(p) not in grouped]
        groups = [*(groups or []), *([{"params": rest}] if rest else [])]
        optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True) if groups else None
        super().__init__(model, batch(where), optimizer=optimizer, penalty=penalty, after=after)
        self.where = where


def make(name: str, where: Setting, *, rank: int, dropout: float) -> Side:
    """Make a side by its name in `ALL`."""
    if name in ("floor", "torch floor"):
        return _floor(where, faster=name == "floor")
    if name in OURS:
        return ours(where, method(name, rank=rank, dropout=dropout))
    if name == PEER["SoRA"]:
        return _plain_sora(where, rank, dropout)
    return _peft(where, rank, dropout, adaptive=name == PEER["AdaLoRA"])


def method(name: str, *, rank: int, dropout: float = 0.0) -> AdapterMethod:
    """Return one of our methods; AdaLoRA goes from `rank` to half of it."""
    options: dict[str, dict[str, Any]] = {
        "LoRA": {"r": rank},
        "SoRA": {"r_max": rank, "threshold": THRESHOLD},
        "AdaLoRA": {"init_r": rank, "target_r": rank / 2, "t_init": 0, "t_final": 1},
    }
    return create(name.lower(), alpha=ALPHA, dropout=dropout, **options[name])


def ours(where: Setting, method: AdapterMethod, *, steps: int = STEPS) -> Side:
    """Make a side of one of our methods, with every hook that training calls.

    Args:
        steps: length of the run in the method's schedule.
    """
    model = load(where)
    layers = inject(
        model,
        method,
        exclude=head(where),
        trainable=head(where),
        generator=torch.Generator().manual_seed(0),
    )
    with torch.no_grad(), same_inputs(model, layers) as siblings:
        model(**{name: tensor[:1] for name, tensor in batch(where).items()})
    share_inputs(layers, siblings)
    method.begin(layers, total_steps=steps)
    groups = method.param_groups(layers, lr=1e-4, weight_decay=0.0)
    rates = {group["name"]: 1e-4 for group in groups}
    side = Side(where, model.train(), groups=groups, penalty=lambda: method.penalty(layers))
    assert side.optimizer is not None
    state = side.optimizer.state
    side.after = lambda step: method.after_step(layers, StepInfo(step, steps, rates, state))
    return side


def _floor(where: Setting, *, faster: bool) -> Side:
    model: Any = load(where)
    if faster:
        use_faster_products(model)
    embedding = model.bert.embeddings if head(where) else model.get_input_embeddings()
    embedding.register_forward_hook(lambda _module, _args, output: output.requires_grad_())
    return Side(where, model)


def _peft(where: Setting, rank: int, dropout: float, *, adaptive: bool) -> Side:
    import peft

    common: dict[str, Any] = {
        "lora_alpha": ALPHA,
        "lora_dropout": dropout,
        "target_modules": _targets(where),
        "modules_to_save": head(where) or None,
    }
    if adaptive:
        config = peft.AdaLoraConfig(
            init_r=rank, target_r=rank // 2, tinit=0, tfinal=1, deltaT=1, total_step=STEPS, **common
        )
    else:
        config = peft.LoraConfig(r=rank, **common)
    model: Any = peft.get_peft_model(load(where), config)  # type: ignore[arg-type]
    after = model.base_model.update_and_allocate if adaptive else lambda _: None
    return Side(where, model.train(), after=after)


def _targets(where: Setting) -> str:
    if where.model == DECODER:
        return r".*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"
    return r".*encoder\..*\.(query|key|value|dense)"


class PlainLayer(nn.Module):
    """W x + b + s B (d * (A dropout(x))), in the order of the paper's formula."""

    def __init__(self, layer: LowRankLinear, dropout: float) -> None:
        super().__init__()
        self.base, self.A, self.B, self.d = layer.base, layer.A, layer.B, layer.d
        self.scaling, self.dropout = layer.scaling, nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out)."""
        assert self.d is not None
        h = linear(self.dropout(x), self.A) * self.d
        out: Tensor = self.base(x) + linear(h, self.B) * self.scaling
        return out


def _plain_sora(where: Setting, rank: int, dropout: float) -> Side:
    model, sora = load(where), method("SoRA", rank=rank)
    generator = torch.Generator().manual_seed(0)
    layers = inject(model, sora, exclude=head(where), trainable=head(where), generator=generator)
    gates = []
    for path, layer in layers.items():
        replace(model, path, PlainLayer(layer, dropout))
        gates.append(layer.d)

    @torch.no_grad()
    def shrink(step: int) -> None:
        del step
        for gate in gates:
            assert gate is not None
            gate.copy_(gate.sign() * (gate.abs() - THRESHOLD).clamp_(min=0))

    return Side(where, model.train(), after=shrink)
