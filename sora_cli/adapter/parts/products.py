"""LoHa's and LoKr's products of two matrices, read as factors where factors are needed."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from methods.factors import LowRankFactors
from methods.updates import Hadamard, Kronecker
from sora_cli.adapter.parts.factored import Factored
from sora_cli.adapter.parts.form import LINEAR, Form
from sora_cli.adapter.parts.low_rank import check_stored, held
from sora_cli.adapter.parts.part import Found, Header, claim_by_ending
from sora_cli.adapter.peft import lycoris
from sora_cli.adapter.peft.config import PeftConfig
from sora_cli.core.errors import SoraError

_Dimensions = tuple[tuple[int, int], int, tuple[int, ...]]
"""Shape (out, in), number of rank-one terms (0: the parts do not fit together), kernel if known."""
_NO_FIT: _Dimensions = ((0, 0), 0, ())


@dataclass(frozen=True)
class StoredProduct(Factored):
    """A product of two matrices other than their matrix product; each matrix is whole or a pair.

    Attributes:
        roles: name, such as "hada_w1_a" -> key.
    """

    path: str
    shape: tuple[int, int]
    rank: int
    form: Form
    header: Header
    roles: Mapping[str, str]

    @classmethod
    def claim(cls, name: str, config: PeftConfig) -> tuple[str, str] | None:
        """Return the module and the name of one of the product's matrices."""
        return claim_by_ending(name, lycoris.PARTS[cls.peft_types[0]])

    @classmethod
    def check_claims(cls, found: Found, config: PeftConfig, where: str) -> None:
        """Check that no product lacks a matrix, or has one too many."""
        for path, roles in found.items():
            wrong = lycoris.lacking(cls.peft_types[0], roles)
            if wrong:
                raise SoraError(f"'{path}' has {', '.join(sorted(roles))}; missing or superfluous: "
                                f"{', '.join(wrong)}", where=where)  # fmt: skip

    @classmethod
    def read(cls, found: Found, header: Header) -> Iterator[Self]:
        """Yield a part for each product."""
        for path, roles in found.items():
            shapes = {role: header.tensors.shape(key) for role, key in roles.items()}
            shape, rank, kernel = cls.dimensions(shapes)
            if rank < 1 or min(shape) < 1:
                listed = ", ".join(f"{role} {shape}" for role, shape in shapes.items())
                raise SoraError(f"'{path}': {listed} do not fit together", where=header.where)
            check_stored(path, roles.values(), shape, rank, header)
            yield cls(path, shape, rank, Form(kernel=kernel), header, roles)

    @staticmethod
    @abstractmethod
    def dimensions(shapes: Mapping[str, tuple[int, ...]]) -> _Dimensions:
        """Return the product's dimensions, by the shapes of its matrices."""

    @abstractmethod
    def update(self) -> Hadamard | Kronecker:
        """Read both matrices."""

    def held(self) -> Factored:
        """Return the same update in memory, as a pair of factors."""
        return held(self)

    def factors(self) -> LowRankFactors:
        """Read the product as a sum of rank-one terms, one for each pair of the matrices' terms."""
        return self.update().factors()

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The number formats of its first two matrices."""
        return {self.header.tensors.dtype(key) for key in [*self.roles.values()][:2]}

    @property
    def parameters(self) -> int:
        """Numbers in the file."""
        shapes = (self.header.tensors.shape(key) for key in self.roles.values())
        return sum(torch.Size(shape).numel() for shape in shapes)

    def with_kernel(self, shape: tuple[int, ...]) -> Self:
        """Return the part of a convolution whose weight has this shape, if none is known.

        By default PEFT writes a convolution's channels and its kernel as one dimension.
        """
        if self.form != LINEAR or len(shape) <= 2:
            return self
        return replace(self, form=Form(kernel=shape[2:]))

    @property
    def scaling(self) -> float:
        """The factor of the product."""
        return self.header.config.scaling(self.path)

    def pair(self, first: str, second: str, core: str) -> tuple[Tensor, Tensor]:
        """Return L (out, r) and R (r, in) of a pair; with a core, by Tucker's decomposition."""
        a, b = (self.header.read(self.roles[role]) for role in (first, second))
        if core not in self.roles:
            return a, b
        t = self.header.read(self.roles[core])  # (r, r, kernel...); a (r, out), b (r, in)
        # L R is PEFT's einsum "ijkl,jr,ip->prkl" (tuners/loha/layer.py: HadaWeightCP)
        right = torch.einsum("ijkl,jn->inkl", t, b)
        return a.T.contiguous(), right.reshape(len(right), -1)


class LoHa(StoredProduct):
    """LoHa's two pairs; in a convolution each may have a core (`hada_t*`)."""

    peft_types = (lycoris.LOHA,)

    def update(self) -> Hadamard:
        """Read both pairs."""
        (b1, a1), (b2, a2) = (
            self.pair(f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2)
        )
        return Hadamard(a1, b1, a2, b2, self.scaling)

    @staticmethod
    def dimensions(shapes: Mapping[str, tuple[int, ...]]) -> _Dimensions:
        """Return the dimensions of an elementwise product."""
        (first, r1, kernel), (second, r2, other) = (
            _pair_dimensions(shapes, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2)
        )
        # an elementwise product of ranks r1 and r2 is a sum of r1 r2 rank-one terms
        return (first, r1 * r2, kernel) if first == second and kernel == other else _NO_FIT


class LoKr(StoredProduct):
    """LoKr's two matrices, each whole or as a product."""

    peft_types = (lycoris.LOKR,)

    def update(self) -> Kronecker:
        """Read both matrices."""
        return Kronecker(*self._matrix("1"), *self._matrix("2"), self.scaling)

    def _matrix(self, number: str) -> tuple[Tensor, Tensor | None]:
        whole = self.roles.get(f"lokr_w{number}")
        if whole is None:
            return self.pair(f"lokr_w{number}_a", f"lokr_w{number}_b", f"lokr_t{number}")
        tensor = self.header.read(whole)
        return tensor.reshape(len(tensor), -1), None

    @staticmethod
    def dimensions(shapes: Mapping[str, tuple[int, ...]]) -> _Dimensions:
        """Return the dimensions of a Kronecker product."""
        sides = []
        for i in "12":
            whole = shapes.get(f"lokr_w{i}")
            if whole is None:
                names = (f"lokr_w{i}_a", f"lokr_w{i}_b", f"lokr_t{i}")
                sides.append(_pair_dimensions(shapes, *names))
            elif len(whole) not in (2, 4):  # of Conv1d PEFT makes another product of 3 dimensions
                return _NO_FIT
            else:
                matrix = whole[0], math.prod(whole[1:])
                sides.append((matrix, min(matrix), tuple(whole[2:])))
        (first, r1, _), (second, r2, kernel) = sides
        return (first[0] * second[0], first[1] * second[1]), r1 * r2, kernel


def _pair_dimensions(
    shapes: Mapping[str, tuple[int, ...]], first: str, second: str, core: str
) -> _Dimensions:
    a, b, t = shapes[first], shapes[second], shapes.get(core)
    if len(a) != 2 or len(b) != 2:
        return _NO_FIT
    if t is None:
        return ((a[0], b[1]), a[1], ()) if a[1] == b[0] else _NO_FIT
    if len(t) != 4 or t[:2] != (a[0], b[0]):
        return _NO_FIT
    return (a[1], b[1] * t[2] * t[3]), a[0], tuple(t[2:])
