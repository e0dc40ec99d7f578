"""Compare two adapters of one model, module by module: their updates and singular subspaces.

Everything is computed from the factors: QR decompositions of the thin ones and small matrices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from methods.factors import LowRankFactors, numerical_rank, subspace_overlap
from sora_cli.adapter.stored import grouped
from sora_cli.core.errors import SoraError
from sora_cli.model.threads import one_thread

if TYPE_CHECKING:
    from sora_cli.adapter.reading import AdapterFile

_CLOSE = 1e-4
"""Below this relative distance the quick formula has lost half of its digits."""


@dataclass(frozen=True)
class Overlap:
    """The agreement of two updates' singular subspaces, from 0 to 1; see `subspace_overlap`.

    Attributes:
        left: of their outputs (column spaces).
        right: of their inputs (row spaces).
        chance_left: the average overlap of two random subspaces of these sizes.
        chance_right: the same for the inputs.
    """

    left: float
    right: float
    chance_left: float
    chance_right: float


@dataclass(frozen=True)
class ModuleComparison:
    """The updates A and B of one module.

    Attributes:
        ranks: live components of A and of B.
        norms: ||dW||_F of A and of B.
        inner: Frobenius inner product of the two updates.
        distance: ||dW_A - dW_B||_F.
        overlap: None if A or B is zero.
    """

    ranks: tuple[int, int]
    norms: tuple[float, float]
    inner: float
    distance: float
    overlap: Overlap | None

    @property
    def cosine(self) -> float | None:
        """Cosine between the two updates as vectors; None if A or B is zero."""
        return _cosine(self.inner, self.norms)

    @property
    def relative(self) -> float | None:
        """||dW_A - dW_B||_F / ||dW_A||_F; None if A is zero."""
        return self.distance / self.norms[0] if self.norms[0] else None


@dataclass(frozen=True)
class Comparison:
    """Two adapters, module by module and as a whole.

    Attributes:
        modules: the modules of both adapters, in the order of the first; a module that an adapter
            lacks counts as zero.
        only: paths of the modules in the first adapter only, and in the second only.
        total: both adapters as one block-diagonal update; its overlap is the mean over modules.
    """

    modules: dict[str, ModuleComparison]
    only: tuple[tuple[str, ...], tuple[str, ...]]
    total: ModuleComparison


def compare(first: AdapterFile, second: AdapterFile) -> Comparison:
    """Compare two adapters; the modules of both are read one at a time.

    They must have a module in common, and equal shapes in all common modules.
    """
    only = _only(first, second), _only(second, first)
    _check_fit(first, second)
    with one_thread():
        modules = {
            path: compare_factors(_factors(first, second, path), _factors(second, first, path))
            for path in (*first.paths, *only[1])
        }
    # all experts in a parameter are one module
    forms = {**second.forms, **first.forms}
    together = {
        name: _total({path: modules[path] for path in paths}) if len(paths) > 1 else modules[name]
        for name, paths in grouped(modules, forms).items()
    }
    return Comparison(together, only, _total(modules))


def compare_factors(first: LowRankFactors, second: LowRankFactors) -> ModuleComparison:
    """Compare two updates of one module."""
    a, b = first.drop_zeros(), second.drop_zeros()
    svd_a, svd_b = a.svd(), b.svd()
    norms = float(svd_a[1].norm()), float(svd_b[1].norm())
    inner = a.inner(b)
    return ModuleComparison(
        ranks=(a.rank, b.rank),
        norms=norms,
        inner=inner,
        distance=_distance(a, b, norms, inner),
        overlap=_overlap(svd_a, svd_b),
    )


def _distance(
    a: LowRankFactors, b: LowRankFactors, norms: tuple[float, float], inner: float
) -> float:
    """Return ||dW_A - dW_B||_F, computed from stacked factors if the two are close."""
    # ||A - B||^2 = ||A||^2 + ||B||^2 - 2 <A, B>; for A near B all digits of it cancel
    squared = norms[0] ** 2 + norms[1] ** 2 - 2 * inner
    if squared > (_CLOSE * max(norms)) ** 2:
        return math.sqrt(squared)
    return a.minus(b).norm()


def _overlap(
    svd_a: tuple[Tensor, Tensor, Tensor], svd_b: tuple[Tensor, Tensor, Tensor]
) -> Overlap | None:
    """Return the overlap of the singular subspaces above float32's resolution."""
    (u_a, s_a, vt_a), (u_b, s_b, vt_b) = svd_a, svd_b
    k_a, k_b = numerical_rank(s_a), numerical_rank(s_b)
    if not k_a or not k_b:
        return None
    larger = max(k_a, k_b)
    return Overlap(
        left=subspace_overlap(u_a[:, :k_a], u_b[:, :k_b]),
        right=subspace_overlap(vt_a[:k_a].T, vt_b[:k_b].T),
        chance_left=larger / u_a.shape[0],
        chance_right=larger / vt_a.shape[1],
    )


def _only(file: AdapterFile, other: AdapterFile) -> tuple[str, ...]:
    return tuple(path for path in file.paths if path not in other.shapes)


def _factors(file: AdapterFile, other: AdapterFile, path: str) -> LowRankFactors:
    """Return a module's factors; factors of rank 0 if only the other adapter has the module."""
    if path in file.shapes:
        return file.factors(path)
    n_out, n_in = other.shapes[path]
    return LowRankFactors(torch.zeros(0, n_in), torch.zeros(n_out, 0))


def _total(modules: Mapping[str, ModuleComparison]) -> ModuleComparison:
    every = list(modules.values())
    overlaps = [m.overlap for m in every if m.overlap is not None]
    return ModuleComparison(
        ranks=(sum(m.ranks[0] for m in every), sum(m.ranks[1] for m in every)),
        # block-diagonal: squared norms and inner products of the modules add up
        norms=(
            math.hypot(*(m.norms[0] for m in every)),
            math.hypot(*(m.norms[1] for m in every)),
        ),
        inner=sum(m.inner for m in every),
        distance=math.hypot(*(m.distance for m in every)),
        overlap=_mean(overlaps) if overlaps else None,
    )


def _mean(overlaps: list[Overlap]) -> Overlap:
    n = len(overlaps)
    return Overlap(
        left=sum(o.left for o in overlaps) / n,
        right=sum(o.right for o in overlaps) / n,
        chance_left=sum(o.chance_left for o in overlaps) / n,
        chance_right=sum(o.chance_right for o in overlaps) / n,
    )


def _cosine(inner: float, norms: tuple[float, float]) -> float | None:
    product = norms[0] * norms[1]
    return max(-1.0, min(1.0, inner / product)) if product else None  # rounding may pass 1


def _check_fit(first: AdapterFile, second: AdapterFile) -> None:
    where = f"{first.directory} and {second.directory}"
    common = [path for path in first.paths if path in second.shapes]
    if not common:
        raise SoraError("the two adapters have no module in common", where=where)
    for path in common:
        if first.shapes[path] != second.shapes[path]:
            raise SoraError(
                f"'{path}' has the shape {first.shapes[path]} in one adapter and "
                f"{second.shapes[path]} in the other: their base models differ",
                where=where,
            )
