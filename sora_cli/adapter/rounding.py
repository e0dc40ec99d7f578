"""Round an adapter to few bits: its factors to the grid of `methods.grid`; its head if asked."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from methods.factors import LowRankFactors
from methods.grid import GROUP, nearest, packed_bytes, round_factors
from methods.keep import BITS, HEAD_BITS
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.on_demand import OnDemand
from sora_cli.adapter.pruning import Layers, Loss, cached
from sora_cli.adapter.survival import LEAST, Overlap, Survival, shown
from sora_cli.core.console import size
from sora_cli.core.errors import SoraError
from sora_cli.model.threads import by_cores


@dataclass(frozen=True)
class Head:
    """The parameters that are stored in full.

    Attributes:
        tensors: parameter name -> tensor.
        packed: bytes of all tensors in a packed file.
        error: ||rounded - before||_F / ||before||_F of all matrices together; None: not rounded.
    """

    tensors: Mapping[str, Tensor]
    packed: int
    error: float | None = None


@dataclass(frozen=True)
class Rounding:
    """The rounding of an adapter.

    Attributes:
        bits: of each number in the factors.
        head: as it will be stored.
    """

    bits: int
    head: Head

    @classmethod
    def of(cls, adapter: Adapter, bits: int, *, head: bool) -> Rounding:
        """Return the rounding of an adapter that is not rounded yet.

        Args:
            head: round the head, too.
        """
        if adapter.meta.bits is not None:
            raise SoraError(
                f"{adapter.source.directory} is rounded already, to {adapter.meta.bits} bits",
                hint="round the adapter that it was made from",
            )
        slices = adapter.objection(lambda part: part.of_one_rank)
        if slices is not None:
            raise SoraError(
                f"this adapter changes {slices}, and only factors of layers can be rounded to few "
                "bits",
                hint="leave out --bits",
            )
        tensors = adapter.head
        if head and not any(len(part.shape) > 1 for part in adapter.full.values()):
            raise SoraError("this adapter stores no matrices in full", hint="leave out --head-bits")
        as_is = Head(tensors, sum(part.bytes for part in adapter.full.values()))
        return cls(bits, round_head(tensors) if head else as_is)

    def layers(self, layers: Layers) -> Layers:
        """Return the layers in their singular basis with all numbers on the grid."""
        return round_layers(layers, self.bits)

    def facts(self) -> dict[str, Any]:
        """Return the facts for the adapter's lineage."""
        rounded = self.head.error is not None
        return {"bits": self.bits, **({"head_bits": HEAD_BITS} if rounded else {})}

    def applied(
        self, whole: Layers, small: Layers, losses: Mapping[str, Loss]
    ) -> tuple[Layers, dict[str, Loss], dict[str, float], Survival]:
        """Round layers after a cut.

        Args:
            whole: the layers before the cut.
            small: the layers after it.
            losses: of the cut.

        Returns:
            The layers, the loss of cut and rounding together, of each module the relative error of
            the rounding alone, and the part of the cut that survives it.
        """
        rounded = self.layers(small)

        def measure(path: str) -> tuple[Loss, float, Overlap]:
            cut, grid, loss = small[path], rounded[path], losses[path]
            if not grid.rank:
                return loss, 0.0, Overlap()
            error = cut.minus(grid).norm() / (cut.norm() or 1)
            kept = Overlap(cut.inner(cut), grid.inner(cut), grid.inner(grid))
            return replace(loss, dropped=whole[path].minus(grid).norm() ** 2), error, kept

        measured = by_cores(losses, measure)
        errors = {path: round(error, 6) for path, (_, error, _) in measured.items()}
        survival = Survival({path: kept for path, (*_, kept) in measured.items()}, {})
        return rounded, {path: loss for path, (loss, *_) in measured.items()}, errors, survival

    def check(self, survival: Survival) -> list[str]:
        """Return a warning if little of a module's update survives.

        It is an error if little of the whole update does, or if there is none.
        """
        if not survival.all.update:
            raise SoraError(
                "this adapter has no components: there are no numbers to round",
                hint="leave out --bits",
            )
        held = shown(survival, f"{self.bits} bits hold")
        if survival.share < LEAST:
            more = f"--bits {BITS[-1]} keeps more of it"
            raise SoraError(
                f"{held}: nothing was written",
                hint=f"{more if self.bits < BITS[-1] else 'leave out --bits'}; to test what is "
                "stored instead: --max-drop 1pt --recipe RECIPE",
            )
        return [held] if any(share < LEAST for _, share in survival.worst()) else []

    def lines(
        self,
        losses: Mapping[str, Loss],
        errors: Mapping[str, float],
        shapes: Mapping[str, tuple[int, int]],
    ) -> Iterator[str]:
        """Yield a line about the factors, and one about the head if there is one."""
        packed = factor_bytes(
            {path: loss.after for path, loss in losses.items()}, shapes, self.bits
        )
        if packed:
            yield (
                f"rounded to {self.bits} bits, with a 16-bit scale for each component and group of "
                f"{GROUP}: {size(packed)} packed; it changes an update by "
                f"{max(errors.values()):.1%} at most"
            )
        head = self.head
        if head.error is not None:
            yield (
                f"head rounded to {HEAD_BITS} bits: {size(head.packed)} packed; changed by "
                f"{head.error:.2%}"
            )
        elif head.packed > packed:
            yield f"the head takes {size(head.packed)} more; --head-bits {HEAD_BITS} rounds it, too"


def round_layers(layers: Layers, bits: int) -> Layers:
    """Return the layers in their singular basis with all numbers on a grid of this many bits."""

    def rounded(path: str) -> LowRankFactors:
        factors = layers[path].drop_zeros()
        return round_factors(factors, bits) if factors.rank else factors

    return cached(OnDemand(list(layers), rounded))


def factor_bytes(ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, int]], bits: int) -> int:
    """Return the bytes of all factors in a packed file: integers and scales.

    Args:
        shapes: module path -> (out, in).
    """
    sides = [(ranks[path], side) for path, shape in shapes.items() for side in shape]
    return packed_bytes(sides, bits)


def round_head(head: Mapping[str, Tensor]) -> Head:
    """Round the matrices of a head to 8 bits, with a scale for each group along their rows."""
    tensors, packed, lost, squared = {}, 0, 0.0, 0.0
    for name in head:
        before = tensors[name] = head[name]
        if before.ndim < 2 or not before.is_floating_point():
            packed += before.numel() * before.element_size()
            continue
        rows = before.float().flatten(1)
        after = nearest(rows, HEAD_BITS).values()
        lost += float((after - rows).double().square().sum())
        squared += float(rows.double().square().sum())
        tensors[name] = after.reshape(before.shape)
        packed += packed_bytes([(rows.shape[0], rows.shape[1])], HEAD_BITS)
    return Head(tensors, packed, math.sqrt(lost / squared) if squared else 0.0)
