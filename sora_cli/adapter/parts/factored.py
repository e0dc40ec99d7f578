"""A change of one layer's weight that has factors of low rank."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from methods.base import LowRankLinear
from methods.factors import LowRankFactors
from methods.init import factor_options, linear_shape
from methods.inject import replace
from methods.updates import Product, Rescaled, Update
from sora_cli.adapter.in_model import Sides, expert_weight, fold_in, is_transposed, layer_of
from sora_cli.adapter.parts.form import LINEAR, Form
from sora_cli.adapter.parts.part import Content, Part, Target, only_merged
from sora_cli.adapter.peft.parameters import expert_number
from sora_cli.model.tensors import dtype_name


class Factored(Part, ABC):
    """A change of one layer's weight that has factors of low rank.

    Attributes:
        form: the kind of layer.
        shape: (out, in) of the update as a matrix; a convolution's `in` includes its kernel.
        rank: number of components of the factors; 0 if all are pruned.
    """

    form: Form
    shape: Sides
    rank: int

    @abstractmethod
    def factors(self) -> LowRankFactors:
        """Return low-rank factors, float32, with all scaling in B; magnitudes are not in them."""

    @abstractmethod
    def update(self) -> Update:
        """Return the update, with the same products that PEFT computes."""

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The number formats of the factors."""
        return {torch.float32}

    @property
    def rescaled(self) -> bool:
        """True if the weight with the update in it is rescaled to magnitudes (DoRA)."""
        return False

    def magnitude(self) -> Tensor | None:
        """Return DoRA's magnitudes, (out,); None: the weight is not rescaled."""
        return None

    # ------------------------------------------------------------------------------- what it holds

    @property
    def stored(self) -> int:
        """Number of stored components, with the zero ones."""
        return self.rank

    @property
    def parameters(self) -> int:
        """Numbers in its factors."""
        return self.stored * sum(self.shape)

    @property
    def digest_names(self) -> tuple[str, ...]:
        """The names of A and B."""
        return f"{self.path}.A", f"{self.path}.B"

    def digested(self) -> Mapping[str, tuple[Content, ...]]:
        """Return the live components in float32, or the tensors of another product."""
        update, (first, second) = self.update(), self.digest_names
        if not isinstance(update, Product):
            tensors = update.tensors()
            return {first: tensors[:1], second: tensors[1:]}
        factors = self.factors()
        live = LowRankFactors(_on_cpu(factors.A), _on_cpu(factors.B)).drop_zeros()
        return {first: (live.A,), second: (live.B,)} if live.rank else {}

    # ------------------------------------------------------------- on a model, and in its files

    @torch.no_grad()
    def apply(self, model: nn.Module, today: str, *, fold: bool) -> LowRankLinear | None:
        """Wrap a linear layer, or add the update to the weight of another kind of layer."""
        factors, magnitude = self.factors(), self.magnitude()
        if self.form.experts:
            weight, transposed = expert_weight(model, today, self.shape, self.form)
            if not fold:
                raise only_merged(f"'{self.path}' is an expert in a fused tensor")
            part = weight[expert_number(self.path)] if weight.ndim == 3 else weight
            delta = (factors.B @ factors.A).to(part.device)
            part.copy_(part.float() + (delta.T if transposed else delta))
            return None
        module = layer_of(model, today, self.shape, self.form)
        options = factor_options(module)
        A, B = factors.A.to(**options), factors.B.to(**options)
        if linear_shape(module) is not None and magnitude is None:
            layer = LowRankLinear(module, A, B, scaling=1.0)  # B already has the scaling
            replace(model, today, layer)
            return layer
        if not fold:
            why = "is rescaled by DoRA" if magnitude is not None else "is not a linear layer"
            raise only_merged(f"'{self.path}' {why}")
        product = Product(A.float(), B.float())
        fold_in(module, product if magnitude is None else
                Rescaled(product, magnitude.float().to(A.device)))  # fmt: skip
        return None

    def targets(self, model: nn.Module, today: str | None) -> Iterator[Target]:
        """Yield the layer's weight, or the parameter that holds the expert."""
        name = self.form.owner(self.path) if today is None else today
        if self.form.experts:
            transposed = expert_weight(model, name, self.shape, self.form)[1]
            yield Target(name, self.form.owner(self.path), transposed, several=True)
        else:
            module = layer_of(model, name, self.shape, self.form)
            yield Target(f"{name}.weight", self.path, is_transposed(module))

    @property
    def parameter(self) -> str | None:
        """The parameter that holds the expert."""
        return self.form.owner(self.path) if self.form.experts else None

    def changes(self) -> Mapping[str, Callable[[], Update]]:
        """Return the one change of its weight."""
        return {self.path: self.update}

    # ------------------------------------------------------------------ what a command may ask it

    @property
    def of_one_rank(self) -> str | None:
        """The fused experts that it is one of: PEFT stores all experts in a tensor at one rank."""
        return f"fused experts ({self.parameter})" if self.form.experts else None

    @property
    def unserved(self) -> str | None:
        """The objection of servers to other layers than linear ones."""
        if self.form.experts:
            # vLLM: is_3d_moe_weight in lora/model_manager.py (01533aa8); llama.cpp's converter
            # stops at the names
            return "takes fused experts of few kinds of model or none, and may drop them silently"
        if self.form in (LINEAR, Form(embedding=True)):  # tables have their own rules there
            return None
        return f"refuses factors of the convolution {self.path}"

    @property
    def added_for_a_while(self) -> bool:
        """True for plain factors."""
        return not self.rescaled


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)


def factored(parts: Iterable[Part]) -> dict[str, Factored]:
    """Return the parts with factors by their paths."""
    return {part.path: part for part in parts if isinstance(part, Factored)}


def forms_of(parts: Iterable[Part]) -> dict[str, Form]:
    """Return {path: the kind of layer} for layers that are not linear."""
    own = factored(parts).items()
    return {path: part.form for path, part in own if part.form != LINEAR}


def common_dtype(parts: Mapping[str, Factored]) -> str:
    """Return the number format of all live factors; "float32" if they are mixed."""
    dtypes = {dtype for part in parts.values() if part.rank for dtype in part.dtypes}
    return dtype_name(dtypes.pop()) if len(dtypes) == 1 else "float32"
