"""Linear layers of a base model on which an adapter would be useless, each with the reason.

An adapter acts where its layer is run. A model that takes a layer's weight and multiplies by itself
passes the adapter by; which layers those are is seen in a trial, a forward pass over the shortest
row. Kernels for state-space models do the same on a GPU only, so these layers are listed. What PEFT
cannot load is listed, too (`adapter/peft/refused.py`): an adapter directory is a PEFT adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from methods.inject import linear_paths
from sora_cli.adapter.peft.refused import refused
from sora_cli.core.console import say
from sora_cli.core.errors import first_line
from sora_cli.model.base import Base
from sora_cli.tasks.base import Encoded

_BY_WEIGHT = "used only by its weight, so an adapter has no effect"
_IN_KERNELS = (
    "used only by its weight in the model's GPU kernels, so an adapter has no effect there"
)
_KERNELS = {
    **dict.fromkeys(("mamba", "falcon_mamba"), ("x_proj", "dt_proj", "out_proj")),
    **dict.fromkeys(
        ("bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2"), ("out_proj",)
    ),
}
"""Model type -> layers whose weights go to `mamba_inner_fn` or
`mamba2_split_conv1d_scan_combined` in transformers' models (`cuda_kernels_forward`)."""


def unfit_layers(
    base: Base, collate: Callable[[list[Any]], Mapping[str, Any]], rows: Encoded
) -> dict[str, str]:
    """Return {module path: what an adapter's layer there is}, to follow "it is".

    Args:
        collate: makes a batch of encoded rows.
        rows: what the model is to be trained on.
    """
    model, kind = base.model, str(base.model.config.model_type)
    paths = linear_paths(model, exclude=base.head, outputs=True)
    in_kernels = _KERNELS.get(kind, ())
    found = {path: _IN_KERNELS for path in paths if path.rpartition(".")[2] in in_kernels}
    found |= refused(kind, paths)
    batch = collate([rows.dataset[int(rows.lengths.argmin())]])
    try:
        found |= dict.fromkeys(used_by_weight(model, paths, batch), _BY_WEIGHT)
    except Exception as error:  # a model for another device than this, say; training shows it, too
        say(f"note: no trial of which layers are used only by their weight: {first_line(error)}")
    return found


def used_by_weight(model: nn.Module, paths: Iterable[str], batch: Mapping[str, Any]) -> list[str]:
    """Return those layers that a forward pass does not run while the loss depends on their weight.

    The model is left as it was.
    """
    device = next(model.parameters()).device
    inputs = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
    training = model.training
    with torch.random.fork_rng(devices=[]):
        try:
            model.eval()
            ran = _modules_run(model, inputs)
            silent = [path for path in paths if id(model.get_submodule(path)) not in ran]
            return _with_gradient(model, silent, inputs) if silent else []
        finally:
            model.train(training)


@torch.no_grad()
def _modules_run(model: nn.Module, inputs: Mapping[str, Any]) -> set[int]:
    ran: set[int] = set()
    handle = register_module_forward_hook(lambda module, _inputs, _output: ran.add(id(module)))
    try:
        model(**inputs)
    finally:
        handle.remove()
    return ran


def _with_gradient(model: nn.Module, paths: list[str], inputs: Mapping[str, Any]) -> list[str]:
    """Return the layers whose weights the loss depends on."""
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    try:
        model.requires_grad_(False)
        weights = [model.get_parameter(f"{path}.weight").requires_grad_() for path in paths]
        loss = model(**inputs)["loss"]
        if not loss.requires_grad:
            return []
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        return [path for path, g in zip(paths, found, strict=True) if g is not None]
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trained[name])
