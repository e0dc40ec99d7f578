"""Injection of adapters into a model, and their removal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from methods.base import AdapterMethod, Layers, LowRankLinear
from methods.configs import MethodConfig
from methods.errors import MethodError
from methods.init import linear_shape
from methods.sharding import is_sharded
from methods.words import did_you_mean

ALL_LINEAR = "all-linear"


def inject(
    model: nn.Module,
    method: AdapterMethod,
    *,
    exclude: Iterable[str] = (),
    trainable: Iterable[str] = (),
    unfit: Mapping[str, str] | None = None,
    generator: torch.Generator,
) -> dict[str, LowRankLinear]:
    """Freeze the model and wrap its target layers, in place.

    Refused are targets that match no linear layer, or a shared, tied, sharded or unfit layer; and
    models that have adapters already.

    Args:
        exclude: module paths never adapted (with everything below them), such as the head.
        trainable: module paths trained in full, so not adapted.
        unfit: see `find_targets`.
        generator: for drawing the initial factors, on the CPU.

    Returns:
        The adapted layers by module path, in the model's order.
    """
    if not isinstance(method.config, MethodConfig):
        raise MethodError(f"{method.name} adapts no layers: see methods.baselines.choose")
    _check_no_adapters(model)
    trainable = tuple(trainable)
    excluded = (*exclude, *trainable)
    paths = find_targets(model, method.config.targets, exclude=excluded, unfit=unfit)
    _check_unshared(model, paths)
    _check_untied(model, paths)
    _check_unsharded(model, paths)
    # all checks come before the first change, so that a refused model is still as it was; freezing
    # comes before the wrapping, so that it does not reach the new factors
    model.requires_grad_(False)
    layers = {}
    for path in paths:
        linear = model.get_submodule(path)
        layer = method.wrap(linear, generator=generator).train(linear.training)
        replace(model, path, layer)
        layers[path] = layer
    for path in trainable:
        model.get_submodule(path).requires_grad_(True)
    return layers


def adapted_layers(model: nn.Module) -> dict[str, LowRankLinear]:
    """Return the adapters in a model, by module path."""
    return {path: m for path, m in model.named_modules() if isinstance(m, LowRankLinear)}


def has_peft_layers(model: nn.Module) -> bool:
    """Return True if the model has layers with adapters of the library PEFT."""
    # by name: no method needs the library
    return any(type(m).__module__.startswith("peft.tuners.") for m in model.modules())


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


def remove(model: nn.Module, layers: Layers) -> None:
    """Put the base layers back in place of their adapters."""
    for path, layer in layers.items():
        replace(model, path, layer.base)


def linear_paths(
    model: nn.Module, *, exclude: Iterable[str] = (), outputs: bool = False
) -> list[str]:
    """Return the paths of all linear layers outside the excluded modules.

    Args:
        outputs: include the output embedding, and other layers tied to an embedding.
    """
    excluded = tuple(exclude)
    output = output_embedding(model)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return [
        path
        for path, module in model.named_modules()
        if path
        and linear_shape(module) is not None
        and (outputs or (module is not output and id(module.weight) not in embeddings))
        and not any(path == e or path.startswith(f"{e}.") for e in excluded)
    ]


def find_targets(
    model: nn.Module,
    targets: str | Sequence[str],
    *,
    exclude: Iterable[str] = (),
    unfit: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the module paths that match a `targets` option, in the model's order.

    A target is a name (the last parts of a path) or, with `*`, `?` or `[`, a pattern for the whole
    path. Each target must match a layer that is not excluded. Only a name, not a pattern, matches
    the output embedding.

    Args:
        unfit: module path -> reason why an adapter there is useless, worded to follow "it is".
            all-linear and patterns skip these layers; naming one is an error.
    """
    exclude, unfit = tuple(exclude), unfit or {}
    known = [path for path in linear_paths(model, exclude=exclude) if path not in unfit]
    if targets == ALL_LINEAR:
        if not known:
            raise MethodError("the model has no linear layer to adapt")
        return known
    wanted = [targets] if isinstance(targets, str) else targets
    everything = linear_paths(model, exclude=exclude, outputs=True)
    matched: set[str] = set()
    for target in wanted:
        among = known if _is_pattern(target) else everything
        hits = [path for path in among if matches(target, path)]
        barred = [path for path in unfit if matches(target, path)]
        # a name must not be skipped in silence; a pattern may, if it matches other layers
        if barred and (among is everything or not hits):
            raise MethodError(
                f"target '{target}' cannot be adapted: '{barred[0]}' is {unfit[barred[0]]}; leave "
                "it out of the targets"
            )
        if not hits:
            names = sorted({path.rsplit(".", 1)[-1] for path in known})
            hint = did_you_mean(target, names, also=known)
            raise MethodError(f"target '{target}' matches no linear layer; {hint}")
        matched.update(hits)
    if not matched:
        raise MethodError("no targets given; use all-linear or names of linear layers")
    return [path for path in everything if path in matched]


def matches(target: str, path: str) -> bool:
    """Return True if a module path matches a target (a name or a pattern)."""
    if _is_pattern(target):
        return fnmatchcase(path, target)
    return path == target or path.endswith(f".{target}")


def _is_pattern(target: str) -> bool:
    return any(mark in target for mark in "*?[")


def _check_no_adapters(model: nn.Module) -> None:
    if has_peft_layers(model):  # their factors are linear layers, which would get adapters
        raise MethodError(
            "the model has PEFT's adapters; take them off: model = model.unload(), or "
            "merge_and_unload() to keep what they have learnt"
        )
    for path, module in model.named_modules():
        if isinstance(module, LowRankLinear):
            raise MethodError(
                f"'{path}' has an adapter already; remove the old ones: remove(model, layers)"
            )


def _check_unshared(model: nn.Module, paths: Iterable[str]) -> None:
    """Refuse a module at two paths: it would be adapted at one path, but merged at both."""
    places: dict[nn.Module, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        places.setdefault(module, []).append(path)
    for path in paths:
        shared = places[model.get_submodule(path)]
        if len(shared) > 1:
            raise MethodError(
                f"{' and '.join(shared)} are one shared layer, which cannot be adapted; "
                f"leave it out of the targets"
            )


def _check_untied(model: nn.Module, paths: Iterable[str]) -> None:
    """Refuse layers that share a weight: an update of one layer alone could not be merged."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for path in paths:
        own = f"{path}.weight"
        known = names.get(id(model.get_submodule(path).weight), [])
        partner = next((name for name in known if name != own), None)
        if partner is not None:
            raise MethodError(
                f"'{path}' shares its weight with '{partner.removesuffix('.weight')}', so an "
                "update of it alone cannot be merged; leave it out of the targets"
            )


def _check_unsharded(model: nn.Module, paths: Iterable[str]) -> None:
    """Refuse sharded modules: each process would train its own adapter for them."""
    for path in paths:
        weight = model.get_submodule(path).weight
        if isinstance(weight, Tensor) and is_sharded(weight):
            raise MethodError(
                f"'{path}' is sharded already; inject the adapters first, then call fully_shard"
            )


def output_embedding(model: nn.Module) -> nn.Module | None:
    """Return the layer that maps hidden states to tokens; None if the model has none."""
    get = getattr(model, "get_output_embeddings", None)  # a method of transformers' models
    output = get() if callable(get) else None
    return output if isinstance(output, nn.Module) else None


def replace(model: nn.Module, path: str, new: nn.Module) -> None:
    """Replace the module at a path of the model."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)
