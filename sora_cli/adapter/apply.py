"""Put a stored adapter back onto its base model."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from methods.base import Layers, LowRankLinear
from methods.factors import LowRankFactors
from methods.init import factor_options, linear_shape
from methods.inject import replace
from methods.updates import Product, Replaced, Rescaled, Update
from sora_cli.adapter.directory import Adapter
from sora_cli.adapter.peft.parameters import expert_number
from sora_cli.adapter.stored import LINEAR, Form
from sora_cli.adapter.todays_names import todays_layers, todays_names, todays_paths
from sora_cli.core.errors import SoraError
from sora_cli.model.new_tokens import grow_for

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OTHER_BASE = (
    "is it the right base model and the right task, and is transformers as new as "
    f"the adapter's (here {version('transformers')})?"
)


@torch.no_grad()
def apply_adapter(
    model: nn.Module, adapter: Adapter, *, fold: bool = False
) -> dict[str, LowRankLinear]:
    """Wrap the adapter's layers in the model and load its head, in place.

    Only linear layers without DoRA's magnitudes can be wrapped. For all other parts of an adapter
    `fold` is needed. Fused experts are changed in place.

    Args:
        fold: add the update into the weight itself where a layer is not linear, is rescaled by
            DoRA, or has rows of known tokens trained in full. Such a layer is not returned, and no
            longer shares its weight with others.

    Returns:
        The wrapped layers, by the names that the adapter has for them.
    """
    # first: wrapped layers have their own parameters elsewhere
    load_head(model, adapter.head, base_weights=adapter.base_weights)
    grow_for(model, adapter.token_rows)
    # rows of new tokens need no way back: the base model does not know them
    fold_rows = fold or bool(adapter.meta.new_tokens)
    today = todays_layers(model, adapter)
    layers = {}
    for path, factors in adapter.layers.items():
        form, magnitude = adapter.forms.get(path, LINEAR), adapter.magnitudes.get(path)
        if form.experts:
            weight, transposed = expert_weight(model, today[path], factors, form)
            if not fold:
                raise _only_merged(f"'{path}' is an expert in a fused tensor")
            part = weight[expert_number(path)] if weight.ndim == 3 else weight
            delta = (factors.B @ factors.A).to(part.device)
            part.copy_(part.float() + (delta.T if transposed else delta))
            continue
        module = layer_of(model, today[path], factors, form)
        options = factor_options(module)
        A, B = factors.A.to(**options), factors.B.to(**options)
        if linear_shape(module) is not None and magnitude is None:
            layers[path] = LowRankLinear(module, A, B, scaling=1.0)  # B already has the scaling
            replace(model, today[path], layers[path])
        elif fold:
            product = Product(A.float(), B.float())
            fold_in(module, product if magnitude is None else
                    Rescaled(product, magnitude.float().to(A.device)))  # fmt: skip
        else:
            why = "is rescaled by DoRA" if magnitude is not None else "is not a linear layer"
            raise _only_merged(f"'{path}' {why}")
    for path, rows in adapter.token_rows.items():
        weight = token_weight(model, today[path], rows)
        if not fold_rows:
            raise _only_merged(f"rows of '{path}' are trained in full")
        weight[rows.indices] = rows.values.to(weight)  # in place: what is tied to it has them, too
    return layers


def _only_merged(why: str) -> SoraError:
    return SoraError(f"{why}: such an adapter works only if it is merged",
                     hint="sora merge writes the merged model; use that instead")  # fmt: skip


@contextmanager
def added(model: nn.Module, adapter: Adapter) -> Iterator[None]:
    """Add an adapter's update to the layers of a model inside the `with` block, for scoring.

    The model may have adapters of its own, and stays as it is. The adapter must be one of linear
    layers, without DoRA's magnitudes and without parts stored in full.
    """
    today = todays_paths(model, adapter.layers)
    with ExitStack() as hooks:
        for path, factors in adapter.layers.items():
            options = factor_options(linear_of(model, today[path], factors))
            layer = model.get_submodule(today[path])
            A, B = factors.A.to(**options), factors.B.to(**options)
            handle = layer.register_forward_hook(partial(_with_update, A, B))
            hooks.callback(handle.remove)
        yield


def _with_update(A: Tensor, B: Tensor, _layer: nn.Module, args: Any, out: Tensor) -> Tensor:
    return out + linear(linear(args[0].to(A.dtype), A), B).to(out.dtype)


@contextmanager
def switched_off(layers: Layers) -> Iterator[None]:
    """Set every factor to zero inside the `with` block, so each layer computes only its base layer.

    Afterwards the very same tensors are back, bit for bit. Not for training.
    """
    parameters = [p for layer in layers.values() for _, p in layer.named_factors()]
    tensors = [p.data for p in parameters]
    try:
        for parameter in parameters:  # A, B and gates: 0 x NaN is NaN
            parameter.data = torch.zeros_like(parameter.data)
        yield
    finally:
        for parameter, tensor in zip(parameters, tensors, strict=True):
            parameter.data = tensor


def token_weight(model: nn.Module, path: str, rows: Replaced) -> Tensor:
    """Return the weight (tokens, width) of an embedding with rows that are trained in full."""
    try:
        weight = model.get_submodule(path).weight
    except AttributeError:
        weight = None
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise SoraError(f"the base model has no embedding '{path}'")
    if weight.shape[1] != rows.values.shape[1] or len(weight) <= int(rows.indices.max()):
        raise SoraError(f"'{path}' of the base model has the shape {tuple(weight.shape)}: no row "
                        f"{int(rows.indices.max())} of {rows.values.shape[1]} numbers")  # fmt: skip
    return weight


def expert_weight(
    model: nn.Module, name: str, factors: LowRankFactors, form: Form
) -> tuple[Tensor, bool]:
    """Return a parameter of experts, and True if each is the transpose of its factors' product.

    PEFT takes a parameter as (experts, out, in), or as (experts, in, out) where its module says so
    (`ParamWrapper.update_layer`); a single weight may be (out, in). Before version 0.19.1 it took
    most the other way round. Only today's rule can read squares; other shapes show their way.
    """
    path, _, last = name.rpartition(".")
    try:
        module = model.get_submodule(path)
        weight = getattr(module, last)
    except AttributeError:
        raise SoraError(f"the base model has no parameter '{name}'", hint=_OTHER_BASE) from None
    sides = factors.B.shape[0], factors.A.shape[1]
    if isinstance(weight, Tensor) and weight.shape == sides and form.experts == 1:
        return weight, False
    plain, turned = (form.experts, *sides), (form.experts, *sides[::-1])
    if not isinstance(weight, Tensor) or weight.shape not in (plain, turned):
        there = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise SoraError(f"'{name}' of the base model is {there}; the adapter's factors change one "
                        f"of {plain}", hint=_OTHER_BASE)  # fmt: skip
    square = plain == turned
    return weight, getattr(module, "is_transposed", False) if square else weight.shape == turned


def fold_in(module: nn.Module, update: Update) -> None:
    """Replace a layer's weight by the sum of the weight and its update."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    transposed = is_transposed(module)
    base = weight.detach().reshape(len(weight), -1).float()
    total, memory, rows = torch.empty_like(base), torch.empty_like(base), (0, len(base))
    # DoRA divides by the norm over the inputs of each output (arXiv 2402.09353, eq. 5); a row of a
    # transposed weight has one input only, so the norms need a pass over the whole sum first
    if isinstance(update, Rescaled) and update.needs_norms(transposed=transposed):
        delta = update.delta(rows, memory, transposed=transposed)
        update = update.with_norms((base + delta).double().square().sum(0))
    update.add(base, rows, memory, total, transposed=transposed)
    module.weight = nn.Parameter(total.reshape(weight.shape).to(weight), requires_grad=False)


def is_transposed(module: nn.Module) -> bool:
    """Return true if a layer stores its weight as (in, out): GPT-2's Conv1D and embeddings do."""
    return not isinstance(module, (nn.Linear, *_CONVOLUTIONS))


def load_head(
    model: nn.Module,
    head: Mapping[str, Tensor],
    *,
    base_weights: Collection[str] = (),
    what: str = "adapter",
) -> None:
    """Load the tensors that are stored in full into the model.

    A tensor that shares its memory with another parameter of the model is refused, unless both are
    in `head` with the same numbers or the name is in `base_weights`.

    Args:
        base_weights: names in `head` that replace the base model's own weight, also for every
            parameter tied to it.
        what: the word for the source of the tensors in error messages.
    """
    state = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    names = names_by_parameter(model)
    today = todays_names(model, head)
    everywhere = {today[name] for name in base_weights}
    head = {today[name]: tensor for name, tensor in head.items()}
    for name, tensor in head.items():
        target = state.get(name)
        if target is None or target.shape != tensor.shape:
            there = "no such parameter" if target is None else f"{tuple(target.shape)}"
            raise SoraError(
                f"the {what}'s '{name}' {tuple(tensor.shape)} does not fit the base: {there}"
            )
        # the copy below writes into every parameter that is tied to this one
        for other in names.get(id(target), []):
            same = torch.equal(head[other], tensor) if other in head else name in everywhere
            if not same:
                raise SoraError(f"'{name}' is trained in full but shares its weight with '{other}'")
        target.copy_(tensor)


def linear_of(model: nn.Module, path: str, factors: LowRankFactors) -> nn.Module:
    """Return the linear layer at a path, after checking its kind and shape."""
    return layer_of(model, path, factors, LINEAR)


def layer_of(model: nn.Module, path: str, factors: LowRankFactors, form: Form) -> nn.Module:
    """Return the base model's layer at a path, after checking its kind and shape for the update."""
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise SoraError(
            f"the base model has no layer '{path}'",
            hint=_OTHER_BASE,
        ) from error
    if isinstance(module, LowRankLinear):
        module = module.base
    shape = _shape_of(module, form)
    if shape is None:
        wanted = "an embedding" if form.embedding else "a linear layer"
        kind = type(module).__name__
        if isinstance(module, _CONVOLUTIONS) and module.groups > 1:
            kind += f" with {module.groups} groups, which cannot have an adapter of this form"
        raise SoraError(
            f"'{path}' of the base model is not "
            f"{'a plain convolution' if form.kernel else wanted} but {kind}"
        )
    wanted_shape = (factors.A.shape[1], factors.B.shape[0])
    if shape != wanted_shape:
        raise SoraError(f"'{path}' maps {shape[0]} to {shape[1]}, the adapter's "
                        f"factors map {wanted_shape[0]} to {wanted_shape[1]}")  # fmt: skip
    return module


def _shape_of(module: nn.Module, form: Form) -> tuple[int, int] | None:
    """Return (in, out) of a layer that an update of this form can change; None for other layers."""
    if form.embedding:
        if not isinstance(module, nn.Embedding):
            return None
        return module.num_embeddings, module.embedding_dim
    if isinstance(module, _CONVOLUTIONS) and module.groups == 1:
        if form.kernel not in ((), tuple(module.kernel_size)):  # LoHa's may not show theirs
            return None
        return module.weight[0].numel(), module.out_channels
    return None if form.kernel else linear_shape(module)


def names_by_parameter(model: nn.Module) -> dict[int, list[str]]:
    """Return the names of each parameter by its identity: tied parameters have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return names
