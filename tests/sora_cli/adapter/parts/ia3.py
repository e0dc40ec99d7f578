"""PEFT's (IA)^3 as a part: a kind that has no factors, in one file (Liu et al., 2022, section 3.3).

PEFT stores a vector for each layer: (out, 1) multiplies the layer's outputs, with its bias, and
(1, in) multiplies its inputs (peft/tuners/ia3/layer.py, `Linear.merge`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from methods.init import linear_shape
from methods.updates import Rows, Update
from sora_cli.adapter.in_model import changed, is_transposed
from sora_cli.adapter.parts.part import (
    FLOATS,
    Content,
    Found,
    Header,
    Part,
    Section,
    Target,
    only_merged,
)
from sora_cli.adapter.peft.config import PeftConfig
from sora_cli.core.errors import SoraError

_KEY = ".ia3_l"


@dataclass(frozen=True)
class Scaled(Update):
    """Each output of a weight times a number, or each input.

    Attributes:
        outputs: (out,); None: they stay.
        inputs: (in,); None: they stay.
    """

    outputs: Tensor | None = None
    inputs: Tensor | None = None

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the vectors."""
        return tuple(vector for vector in (self.outputs, self.inputs) if vector is not None)

    def add(
        self, base: Tensor, rows: Rows, delta: Tensor, total: Tensor, *, transposed: bool
    ) -> Tensor:
        """Write the scaled rows of W into `total`, and return their difference from W."""
        total.copy_(base)
        down, across = (self.inputs, self.outputs) if transposed else (self.outputs, self.inputs)
        if down is not None:
            total.mul_(down[slice(*rows), None])
        if across is not None:
            total.mul_(across[None, :])
        return delta.view(-1)[: base.numel()].view(base.shape).copy_(total - base)


@dataclass(frozen=True)
class Vector(Part):
    """A vector that multiplies the outputs of a layer, or its inputs.

    Attributes:
        shape: (out, 1) or (1, in).
        make: reads the vector.
    """

    path: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    peft_types = ("IA3",)

    @classmethod
    def claim(cls, name: str, config: PeftConfig) -> tuple[str, str] | None:
        """Return the layer of a vector."""
        return (name.removesuffix(_KEY), "vector") if name.endswith(_KEY) else None

    @classmethod
    def read(cls, found: Found, header: Header) -> Iterator[Vector]:
        """Yield the vectors, after a check of their shapes and dtypes."""
        for path, roles in found.items():
            shape, dtype = (
                f(roles["vector"]) for f in (header.tensors.shape, header.tensors.dtype)
            )
            if len(shape) != 2 or min(shape) != 1 or dtype not in FLOATS:
                raise SoraError(f"'{path}': {shape} is no vector of outputs or inputs",
                                where=header.where)  # fmt: skip
            yield cls(path, shape, lambda key=roles["vector"]: header.read(key))

    @property
    def parameters(self) -> int:
        """Numbers of the vector."""
        return max(self.shape)

    def held(self) -> Vector:
        """Return the same part in memory."""
        vector = self.make()
        return Vector(self.path, self.shape, lambda: vector)

    def digested(self) -> Mapping[str, tuple[Content, ...]]:
        """Return the vector."""
        return {self.path: (self.make(),)}

    @torch.no_grad()
    def apply(self, model: nn.Module, today: str, *, fold: bool) -> None:
        """Multiply the layer's weight, and its bias with the outputs."""
        if not fold:
            raise only_merged(self.fixed)
        changes = self.changes()
        for target in self.targets(model, today):
            parameter = model.get_parameter(target.parameter)
            new = changed(parameter, changes[target.change](), transposed=target.transposed)
            parameter.copy_(new)

    def targets(self, model: nn.Module, today: str | None) -> Iterator[Target]:
        """Yield the weight, and the bias if the outputs are scaled."""
        name = today or self.path
        sides, module = self._linear(model, name), model.get_submodule(name)
        yield Target(f"{name}.weight", self.path, is_transposed(module))
        if sides == "outputs" and module.bias is not None:
            yield Target(f"{name}.bias", f"{self.path}.bias")

    def _linear(self, model: nn.Module, name: str) -> str:
        """Return what the vector scales, after a check of the layer."""
        sides = linear_shape(model.get_submodule(name))
        if sides is None or max(self.shape) != sides[0 if self.shape[0] == 1 else 1]:
            raise SoraError(
                f"'{name}' of the base model has no {max(self.shape)} inputs or outputs"
            )
        return "inputs" if self.shape[0] == 1 else "outputs"

    def changes(self) -> Mapping[str, Callable[[], Update]]:
        """Return the changes of weight and bias."""
        if self.shape[0] == 1:
            return {self.path: lambda: Scaled(inputs=self.make().reshape(-1))}
        outputs = {self.path: None, f"{self.path}.bias": None}
        return {name: lambda: Scaled(outputs=self.make().reshape(-1)) for name in outputs}

    @property
    def fixed(self) -> str:
        """It multiplies, and is no update of low rank."""
        return f"this is an (IA)³ adapter: it multiplies '{self.path}'"

    @property
    def unserved(self) -> str:
        """The objection of servers."""
        return "takes no vectors that multiply"

    @classmethod
    def section(cls, parts: Sequence[Vector]) -> Section:
        """Return the number of vectors."""
        text = f"{len(parts)} layers multiplied by vectors"
        return Section({"vectors": len(parts)}, [("vectors", text)] if parts else ())
