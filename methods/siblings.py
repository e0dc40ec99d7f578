"""Joint computation of adapted layers with the same input, such as query, key and value.

One forward pass shows the siblings (`same_inputs`): layers of one parent module that get the same
tensors. In training, the first sibling to be called computes the outputs of all in one operation
(`methods.fused`); the others return theirs. If that is not possible in a forward pass (a layer is
skipped, gets another input, has hooks, or is sharded by itself), each layer computes its own
output, as in evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from methods.fused import adapted_linear
from methods.layer import LowRankLinear
from methods.sharding import is_sharded
from methods.torch_internals import has_hooks, version


class Siblings:
    """Layers with the same input, in the order of their calls."""

    def __init__(self, layers: Sequence[LowRankLinear]) -> None:
        self.layers = tuple(layers)
        self._read: tuple[Tensor, int] | None = None  # the input, and its version
        self._outputs: dict[int, Tensor] = {}  # outputs not yet returned, by place in `layers`

    def __getstate__(self) -> Any:
        return self.layers  # a copied model computes its own outputs

    def __setstate__(self, layers: Any) -> None:
        self.__init__(layers)  # type: ignore[misc]

    def output(self, layer: LowRankLinear, x: Tensor) -> Tensor | None:
        """Return a layer's output (..., out) for x (..., in); None: the layer computes its own.

        Always None while torch.compile traces: traced tensors have no version to compare.
        """
        if torch.compiler.is_compiling():
            return None
        if layer is self.layers[0]:
            self._compute(x)
        # the version tells of changes in place since the outputs were computed
        if self._read is None or self._read[0] is not x or self._read[1] != version(x):
            return None
        y = self._outputs.pop(next(i for i, m in enumerate(self.layers) if m is layer), None)
        if not self._outputs:
            self._read = None  # do not keep the input alive
        return y

    def _compute(self, x: Tensor) -> None:
        self._read, self._outputs = None, {}
        if not torch.is_grad_enabled() or not self._fit():
            return
        outputs = adapted_linear(x, [layer.branch(x) for layer in self.layers])
        self._read, self._outputs = (x, version(x)), dict(enumerate(outputs))

    def _fit(self) -> bool:
        """Return True if the layers are alike, and none is hooked, patched or sharded."""
        first = self.layers[0]
        return all(
            layer.base_is_plain()
            and not has_hooks(layer)
            and "forward" not in layer.__dict__
            and not is_sharded(layer.A)
            and layer.A.dtype == first.A.dtype
            and layer.weight.dtype == first.weight.dtype
            and layer.A.device == first.A.device
            and layer.dropout.active == first.dropout.active
            for layer in self.layers
        )


@contextmanager
def same_inputs(model: nn.Module, paths: Iterable[str]) -> Iterator[list[list[str]]]:
    """Find groups of layers in one parent module that get the same inputs, by module path.

    The list is filled at the end of the block, from the forward passes inside it. Adapters may be
    injected before or after.
    """
    seen: dict[str, list[tuple[Tensor, int]]] = {}

    def watching(path: str) -> Callable[..., None]:
        def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if inputs and isinstance(inputs[0], Tensor) and not inputs[0].is_inference():
                seen.setdefault(path, []).append((inputs[0], version(inputs[0])))

        return note

    hooks = [model.get_submodule(p).register_forward_pre_hook(watching(p)) for p in paths]
    groups: list[list[str]] = []
    try:
        yield groups
    finally:
        for hook in hooks:
            hook.remove()
    by_input: dict[Any, list[str]] = {}
    for path, inputs in seen.items():  # `seen` keeps the tensors alive, so no id was reused
        key = (path.rpartition(".")[0], *((id(x), changes) for x, changes in inputs))
        by_input.setdefault(key, []).append(path)
    groups += [group for group in by_input.values() if len(group) > 1]


def share_inputs(layers: Mapping[str, LowRankLinear], groups: Iterable[Sequence[str]]) -> None:
    """Compute the adapted layers of each group together.

    Args:
        groups: module paths, as found by `same_inputs`; paths without an adapter are skipped.
    """
    for group in groups:
        known = [layers[path] for path in group if path in layers]
        if len(known) > 1:
            siblings = Siblings(known)
            for layer in known:
                layer.siblings = siblings
