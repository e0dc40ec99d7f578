"""The weights of a loaded model that the parts of an adapter belong to."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from methods.base import LowRankLinear
from methods.init import linear_shape
from methods.updates import Rescaled, Update
from sora_cli.adapter.parts.form import LINEAR, Form
from sora_cli.adapter.todays_names import todays_names
from sora_cli.core.environment import installed
from sora_cli.core.errors import SoraError

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_OTHER_BASE = (
    "is it the right base model and the right task, and is transformers as new as "
    f"the adapter's (here {installed('transformers')})?"
)
Sides = tuple[int, int]
"""(out, in) of an update as a matrix."""


def token_weight(model: nn.Module, path: str, indices: Sequence[int], width: int) -> Tensor:
    """Return the weight (tokens, width) of an embedding with rows that are trained in full."""
    try:
        weight = model.get_submodule(path).weight
    except AttributeError:
        weight = None
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        raise SoraError(f"the base model has no embedding '{path}'")
    if weight.shape[1] != width or len(weight) <= max(indices):
        raise SoraError(f"'{path}' of the base model has the shape {tuple(weight.shape)}: no row "
                        f"{max(indices)} of {width} numbers")  # fmt: skip
    return weight


def expert_weight(model: nn.Module, name: str, sides: Sides, form: Form) -> tuple[Tensor, bool]:
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
    new = changed(weight, update, transposed=is_transposed(module))
    module.weight = nn.Parameter(new, requires_grad=False)


def changed(parameter: Tensor, update: Update, *, transposed: bool) -> Tensor:
    """Return a parameter with a change in it; see `Update.add`."""
    base = parameter.detach().reshape(len(parameter), -1).float()
    total, memory, rows = torch.empty_like(base), torch.empty_like(base), (0, len(base))
    # DoRA divides by the norm over the inputs of each output (arXiv 2402.09353, eq. 5); a row of a
    # transposed weight has one input only, so the norms need a pass over the whole sum first
    if isinstance(update, Rescaled) and update.needs_norms(transposed=transposed):
        delta = update.direction.delta(rows, memory, transposed=transposed)
        update = update.with_norms((base + delta).double().square().sum(0))
    update.add(base, rows, memory, total, transposed=transposed)
    return total.reshape(parameter.shape).to(parameter)


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


def linear_of(model: nn.Module, path: str, sides: Sides) -> nn.Module:
    """Return the linear layer at a path, after checking its kind and shape."""
    return layer_of(model, path, sides, LINEAR)


def layer_of(model: nn.Module, path: str, sides: Sides, form: Form) -> nn.Module:
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
    wanted_shape = sides[::-1]
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
