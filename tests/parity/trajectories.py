"""Golden trajectories: a recorded run, and the same run through our public API."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from methods.base import AdapterMethod, LowRankLinear, StepInfo
from methods.inject import inject
from methods.registry import create
from tests.shared_files import golden_file


@dataclass(frozen=True)
class Recording:
    """The input of the reference code, and what it did with it.

    Attributes:
        options: hyper-parameters, and the log of every step.
        tensors: `x`, `y`, `init.*` and `step<N>.*`, float64.
        adapters: our module path -> the adapter's name in `tensors`.
        gate: name of the gate tensor.
    """

    options: dict[str, Any]
    tensors: dict[str, Tensor]
    adapters: dict[str, str]
    gate: str

    @property
    def snapshots(self) -> list[int]:
        return list(self.options["snapshots"])

    def factors(self, when: str, path: str) -> dict[str, Tensor]:
        """A (r, in), B (out, r) and d (r,) of a layer at "init" or "step<N>"."""
        prefix = f"{when}.{self.adapters[path]}"
        return {
            "A": self.tensors[f"{prefix}.lora_A"],
            "B": self.tensors[f"{prefix}.lora_B"],
            "d": self.tensors[f"{prefix}.{self.gate}"].flatten(),
        }


@dataclass(frozen=True)
class Step:
    """One step of our run: losses before it, factors and non-zero gates after it."""

    task_loss: float
    penalty: float
    factors: dict[str, dict[str, Tensor]]
    nonzero: list[int]


def load(name: str, *, adapters: dict[str, str], gate: str) -> Recording:
    options = json.loads(golden_file(f"{name}.json").read_text())
    return Recording(options, load_file(golden_file(f"{name}.safetensors")), adapters, gate)


def sora_run(recording: Recording) -> list[Step]:
    """SoRA on fc1, tanh, fc2: warm-up and linear decay, gradients clipped together."""
    h = recording.options
    method = create(
        "sora",
        r_max=h["rank"],
        alpha=h["alpha"],
        threshold=h["threshold"],
        threshold_times_lr=h["threshold_times_lr"],
        prox=h["prox"],
        l1=h["l1_lambda"],
        gate_eps=h["eps_gate"],
        betas=tuple(h["betas"]),
    )
    layers, net = _adapted(recording, method)
    optimizer = torch.optim.AdamW(
        method.param_groups(layers, lr=h["lr"], weight_decay=h["weight_decay_A_B"]),
        betas=h["betas"],
        eps=h["eps_A_B"],
    )
    warm_up, total = h["warmup_steps"], h["total_steps"]
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: s / warm_up if s < warm_up else (total - s) / (total - warm_up)
    )
    return _follow(
        recording, method, layers, net, optimizer, scheduler, max_grad_norm=h["max_grad_norm"]
    )


def adalora_run(recording: Recording) -> list[Step]:
    """AdaLoRA on three linear layers with tanh between: constant learning rate, no clipping."""
    h = recording.options
    method = create(
        "adalora",
        init_r=h["initial_rank"],
        target_r=h["target_rank"],
        alpha=h["alpha"],
        t_init=h["initial_warmup"],
        t_final=h["final_warmup"],
        delta_t=h["mask_interval"],
        beta1=h["beta1"],
        beta2=h["beta2"],
        orth_weight=h["orthogonality_weight"],
    )
    layers, net = _adapted(recording, method)
    optimizer = torch.optim.AdamW(
        method.param_groups(layers, lr=h["lr"], weight_decay=h["weight_decay"])
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    return _follow(recording, method, layers, net, optimizer, scheduler, max_grad_norm=None)


def _adapted(
    recording: Recording, method: AdapterMethod
) -> tuple[dict[str, LowRankLinear], nn.Module]:
    """The recorded base net with our adapters in it, at the recorded initial factors."""
    net = nn.Sequential()
    for path in recording.adapters:
        weight = recording.tensors[f"init.{path}.weight"]  # (out, in)
        linear = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
        linear.load_state_dict({"weight": weight, "bias": recording.tensors[f"init.{path}.bias"]})
        if len(net):
            net.append(nn.Tanh())
        net.add_module(path, linear)
    layers = inject(net, method, generator=torch.Generator().manual_seed(0))
    for path, layer in layers.items():
        layer.load_state_dict(recording.factors("init", path), strict=False)
    return layers, net


def _follow(
    recording: Recording,
    method: AdapterMethod,
    layers: dict[str, LowRankLinear],
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: torch.optim.lr_scheduler.LRScheduler,
    *,
    max_grad_norm: float | None,
) -> list[Step]:
    total = recording.options["total_steps"]
    trained = [p for group in optimizer.param_groups for p in group["params"]]
    method.begin(layers, total_steps=total)
    steps = []
    for number in range(total):
        task_loss = nn.functional.mse_loss(net(recording.tensors["x"]), recording.tensors["y"])
        penalty = method.penalty(layers)
        loss = task_loss if penalty is None else task_loss + penalty
        optimizer.zero_grad()
        loss.backward()
        if max_grad_norm is not None:
            nn.utils.clip_grad_norm_(trained, max_grad_norm)
        optimizer.step()
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        method.after_step(layers, StepInfo(number, total, rates))
        scheduler.step()
        steps.append(
            Step(
                task_loss.item(),
                0.0 if penalty is None else penalty.item(),
                {path: _copies(layer) for path, layer in layers.items()},
                [int(_copies(layer)["d"].count_nonzero()) for layer in layers.values()],
            )
        )
    return steps


def _copies(layer: LowRankLinear) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in layer.named_parameters(recurse=False)}
