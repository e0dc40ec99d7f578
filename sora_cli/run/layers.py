"""Lists of a model's adapted layers, and of its linear layers without an adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from methods.base import Layers, LowRankLinear
from methods.init import linear_shape
from methods.inject import output_embedding
from sora_cli.core.console import count
from sora_cli.core.processes import world_size
from sora_cli.core.words import first_few

if TYPE_CHECKING:
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.report import Parameters
    from sora_cli.run.prepare import Prepared

_FEW = 0.1
"""Share of a model's parameters below which a run does not name weights outside linear layers."""


@dataclass(frozen=True)
class LayerGroup:
    """Linear layers whose paths differ only in a number.

    Attributes:
        pattern: their paths, such as "encoder.layer.{0-5}.output.dense".
        shape: of each layer, "32 -> 64" (inputs -> outputs); of other weights, "4 x 32 x 64".
        count: number of layers.
        remark: the layers' rank, the reason why they have no adapter, or their kind.
    """

    pattern: str
    shape: str
    count: int
    remark: str


def adapted_groups(layers: Layers) -> list[LayerGroup]:
    """Return groups of the adapted layers; their remark is the rank."""
    return _group({p: (_shape(m.base), f"rank {m.rank}") for p, m in layers.items()})


def layers_without_adapter(
    model: nn.Module,
    *,
    head: Iterable[str],
    train_head: bool,
    left_out: Mapping[str, str] | None = None,
) -> list[LayerGroup]:
    """Return groups of the linear layers without an adapter; their remark is the reason.

    Args:
        left_out: module path -> reason why a layer named by the targets has no adapter.
    """
    heads, left_out = tuple(head), left_out or {}
    output = output_embedding(model)
    inside = {id(m.base) for m in model.modules() if isinstance(m, LowRankLinear)}
    layers = {}
    for path, module in model.named_modules():
        if linear_shape(module) is None or id(module) in inside:
            continue
        if path in left_out:
            why = left_out[path]
        elif any(path == h or path.startswith(f"{h}.") for h in heads):
            why = "head, trained in full" if train_head else "head, frozen (training.train_head)"
        elif module is output:
            why = "output embedding"
        else:
            why = "not named by method.targets"
        layers[path] = (_shape(module), why)
    return _group(layers)


def other_weights(model: nn.Module) -> list[LayerGroup]:
    """Return groups of the weights that no method can adapt, apart from embeddings.

    Examples are the fused experts of a mixture, convolutions, and attention without linear layers.
    The remark is the class name of the module that holds the weight.
    """
    return _group_weights(_other_weights(model))


def _group_weights(weights: Mapping[str, tuple[nn.Parameter, nn.Module]]) -> list[LayerGroup]:
    return _group({
        path: (" x ".join(count(n) for n in weight.shape), type(module).__name__)
        for path, (weight, module) in weights.items()
    })  # fmt: skip


def _other_weights(model: nn.Module) -> dict[str, tuple[nn.Parameter, nn.Module]]:
    """Return {path: (weight, module that holds it)}."""
    return {
        f"{path}.{name}" if path else name: (parameter, module)
        for path, module in model.named_modules()
        if linear_shape(module) is None and not isinstance(module, nn.Embedding | LowRankLinear)
        for name, parameter in module.named_parameters(recurse=False)
        if sum(n > 1 for n in parameter.shape) > 1
    }


def other_weights_lines(model: nn.Module, parameters: int) -> list[str]:
    """Return a line on the weights that no method can adapt, unless they are few.

    Args:
        parameters: of the base model.
    """
    others = _other_weights(model)
    share = sum(weight.numel() for weight, _ in others.values()) / parameters
    if share < _FEW:
        return []
    patterns = first_few(group.pattern for group in _group_weights(others))
    return [
        f"no adapter on {patterns} ({len(others)}): no linear layers; they hold {share:.0%} of the "
        "base model's parameters"
    ]


def left_out_lines(left_out: Mapping[str, str], model: nn.Module) -> list[str]:
    """Return a line for each reason why layers that the targets name get no adapter."""
    reasons: dict[str, list[LayerGroup]] = {}
    for g in _group({p: (_shape(model.get_submodule(p)), why) for p, why in left_out.items()}):
        reasons.setdefault(g.remark, []).append(g)
    return [
        f"no adapter on {first_few(g.pattern for g in groups)} ({sum(g.count for g in groups)}): "
        f"{why}"
        for why, groups in reasons.items()
    ]


def _shape(module: nn.Module) -> str:
    n_in, n_out = linear_shape(module) or (0, 0)
    return f"{count(n_in)} -> {count(n_out)}"


def _group(layers: Mapping[str, tuple[str, str]]) -> list[LayerGroup]:
    numbers: dict[tuple[str, str, str, str], list[int]] = {}
    for path, (shape, remark) in layers.items():
        parts = path.split(".")
        at = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts))
        before, after = ".".join(parts[:at]), ".".join(parts[at + 1 :])
        number = [int(parts[at])] if at < len(parts) else []
        numbers.setdefault((before, after, shape, remark), []).extend(number)
    return [
        LayerGroup(_pattern(before, n, after), shape, count=max(len(n), 1), remark=remark)
        for (before, after, shape, remark), n in numbers.items()
    ]


def _pattern(before: str, numbers: list[int], after: str) -> str:
    middle = _ranges(sorted(numbers))
    if len(numbers) > 1:
        middle = f"{{{middle}}}"
    return ".".join(part for part in (before, middle, after) if part)


def _ranges(numbers: list[int]) -> str:
    """Shorten a sorted list of numbers: [0, 1, 2, 5] becomes "0-2,5"."""
    runs: list[list[int]] = []
    for n in numbers:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def describe_layers(recipe: Recipe, ready: Prepared, counts: Parameters) -> str:
    """Describe in one line the method, model, trained parameters and rows of a run."""
    layers = ready.layers.values()
    adapted = f"{len(layers)} layers, {sum(m.rank for m in layers):,} components, "
    return (
        f"{recipe.method.name} on {recipe.model.path}: {adapted if layers else ''}"
        f"{counts.trained:,} trained of {counts.base:,} parameters, "
        f"{len(ready.train.lengths):,} rows"
        + (f", {world_size()} processes" if world_size() > 1 else "")
    )
