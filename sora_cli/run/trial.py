"""A trial run of the base model: finds layers that an adapter cannot change, and shared inputs.

An adapter acts only if its layer is called. Some models read a layer's weight and multiply
themselves, which bypasses the adapter; some have layers that a task does not need, such as
Longformer's global attention without global tokens. The trial, a forward and a backward pass over
the shortest row, finds both. Kernels of state-space models bypass layers only on a GPU, so those
layers are listed here. Layers that PEFT cannot load are listed in `adapter/peft/refused.py`: an
adapter directory must load in PEFT. The same trial finds layers that read the same input, whose
adapters can be computed together (`methods.siblings`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from methods.inject import linear_paths
from methods.siblings import same_inputs
from sora_cli.adapter.peft.refused import refused
from sora_cli.core.console import say_notes
from sora_cli.core.errors import first_line
from sora_cli.model.attention import usual_attention
from sora_cli.model.base import Base
from sora_cli.tasks.encoded import Encoded

_BY_WEIGHT = "used only by its weight, so an adapter has no effect"
_IN_KERNELS = (
    "used only by its weight in the model's GPU kernels, so an adapter has no effect there"
)
_IDLE = "not used for this task's loss, so an adapter would learn nothing"
_KERNELS = {
    **dict.fromkeys(("mamba", "falcon_mamba"), ("x_proj", "dt_proj", "out_proj")),
    **dict.fromkeys(
        ("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"), ("out_proj",)
    ),
}
"""Model type -> layers whose weights go to `mamba_inner_fn` or
`mamba2_split_conv1d_scan_combined` in transformers' models (`cuda_kernels_forward`)."""


Loss = Callable[[nn.Module, Mapping[str, Any]], tuple[Tensor, Any]]
"""Computes a batch's loss, and a model's outputs."""


@dataclass(frozen=True)
class Trial:
    """The result of a trial of the base model.

    Attributes:
        unfit: module path -> reason against an adapter there; it completes "the layer is ...".
        siblings: groups of module paths that read the same input.
    """

    unfit: Mapping[str, str] = field(default_factory=dict)
    siblings: Sequence[Sequence[str]] = ()


def try_base(
    base: Base, collate: Callable[[list[Any]], Mapping[str, Any]], rows: Encoded, loss: Loss
) -> Trial:
    """Run the base model once or twice to find unfit layers; the model is left unchanged.

    Args:
        collate: makes a batch of encoded rows.
        rows: the training rows.
        loss: of a batch; see `Task.step_loss`.
    """
    model, kind = base.model, str(base.model.config.model_type)
    paths = linear_paths(model, exclude=base.head, outputs=True)
    in_kernels = _KERNELS.get(kind, ())
    unfit = {path: _IN_KERNELS for path in paths if path.rpartition(".")[2] in in_kernels}
    unfit |= refused(kind, paths)
    order = rows.lengths.argsort(kind="stable")
    # shortest row first: it is cheap, and the longest runs only if some layer seems idle
    batches = (collate([rows.dataset[int(row)]]) for row in (order[0], order[-1]))
    siblings: Sequence[Sequence[str]] = ()
    try:
        with usual_attention(model, on_gpus=True), same_inputs(model, paths) as siblings:
            unfit |= try_layers(model, paths, batches, loss)
    except Exception as error:  # e.g. the model needs a GPU; training reports it, too
        say_notes([f"could not test which layers influence the loss: {first_line(error)}"])
    return Trial(unfit, siblings)


def try_layers(
    model: nn.Module,
    paths: Iterable[str],
    batches: Iterable[Mapping[str, Any]],
    loss: Loss,
) -> dict[str, str]:
    """Return {path: reason} of the layers whose outputs do not influence the loss.

    A layer counts as idle only if the layers at the same place in all other blocks are idle, too:
    the experts of a mixture that run depend on the rows. The model is left unchanged.

    Args:
        batches: the first is cheap; the others run only if some layer seems idle.
        loss: of a batch.
    """
    training, bypassed = model.training, {}
    silent = list(paths)
    with torch.random.fork_rng(devices=[]), _frozen(model):
        try:
            model.eval()
            for number, batch in enumerate(batches):
                inputs = _on_device(model, batch)
                places = {
                    _without_numbers(path) for path in _outputs_used(model, silent, inputs, loss)
                }
                silent = [path for path in silent if _without_numbers(path) not in places]
                if silent and number == 0:
                    bypassed = dict.fromkeys(_weights_used(model, silent, inputs, loss), _BY_WEIGHT)
                    silent = [path for path in silent if path not in bypassed]
                if not silent:
                    break
        finally:
            model.train(training)
    return bypassed | dict.fromkeys(silent, _IDLE)


def _without_numbers(path: str) -> str:
    return re.sub(r"\d+", "#", path)


def _on_device(model: nn.Module, batch: Mapping[str, Any]) -> dict[str, Any]:
    device = next(model.parameters()).device
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])


def _outputs_used(
    model: nn.Module, paths: Iterable[str], inputs: Mapping[str, Any], loss: Loss
) -> list[str]:
    """Return the layers whose outputs influence the loss."""
    # a zero that requires a gradient is added to each output: autograd then tells which outputs
    # the loss depends on, and the numbers stay the same
    zeros = {path: torch.zeros((), requires_grad=True) for path in paths}

    def adding(zero: Tensor) -> Callable[..., Tensor]:
        return lambda _module, _inputs, output: output + zero

    hooks = [model.get_submodule(n).register_forward_hook(adding(z)) for n, z in zeros.items()]
    try:
        return _depends_on(model, inputs, zeros, loss)
    finally:
        for hook in hooks:
            hook.remove()


def _weights_used(
    model: nn.Module, paths: Iterable[str], inputs: Mapping[str, Any], loss: Loss
) -> list[str]:
    """Return the layers whose weights influence the loss."""
    weights = {path: model.get_parameter(f"{path}.weight") for path in paths}
    weights = {path: w for path, w in weights.items() if w.is_floating_point()}  # not packed
    for weight in weights.values():
        weight.requires_grad_()
    return _depends_on(model, inputs, weights, loss)


def _depends_on(
    model: nn.Module, inputs: Mapping[str, Any], tensors: Mapping[str, Tensor], loss: Loss
) -> list[str]:
    value, _ = loss(model, inputs)
    if not (tensors and value.requires_grad):
        return []
    gradients = torch.autograd.grad(value, list(tensors.values()), allow_unused=True)
    return [name for name, g in zip(tensors, gradients, strict=True) if g is not None]
