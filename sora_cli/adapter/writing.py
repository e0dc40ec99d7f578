"""The content of an adapter's file: its components, in a layout and a dtype."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from methods.factors import LowRankFactors
from methods.grid import bits_of
from sora_cli.adapter.parts.form import LINEAR, Form, grouped
from sora_cli.adapter.parts.part import Part
from sora_cli.adapter.peft.layout import check_tensor, pair_keys
from sora_cli.adapter.peft.parameters import wrapper_paths
from sora_cli.core.atomic import check_read_back
from sora_cli.core.checks import LAYOUTS, STORED, check_choice
from sora_cli.core.errors import SoraError
from sora_cli.model.tensors import NewTensor, dtype_name
from sora_cli.model.threads import by_cores

_SMALL = 2.0**-12
"""A factor whose largest number is smaller loses bits in float16: its spacing ends at 2^-24."""


class Plan:
    """The names and shapes of a file's tensors; each layer is read once here, and none is kept.

    Here, in writing and in comparing, each core has one layer in memory at a time.

    Args:
        layers: module path -> factors, any dtype, any device. The mapping may make them on demand.
        rest: parts without factors, stored as they are.
        layout: one of `core.checks.LAYOUTS`.
        dtype: of the factors, one of `core.checks.STORED`.
        forms: module path -> the kind of layer, for layers that are not linear.

    Attributes:
        start: module path -> components given.
        live: module path -> components that are not exactly zero.
        stored: module path -> rank in its configuration. Dead modules are left out; if all are
            dead, one is stored at rank 1. All experts in a parameter have the rank of the largest.
        groups: module path -> itself; name of a parameter -> paths of its experts.
        bits: of each number, if all factors lie on a grid and are stored exactly; else None.
    """

    def __init__(
        self,
        layers: Mapping[str, LowRankFactors],
        rest: Sequence[Part] = (),
        *,
        layout: str = "exact",
        dtype: str = "float32",
        forms: Mapping[str, Form] | None = None,
    ) -> None:
        check_choice("layout", layout, LAYOUTS)
        check_choice("dtype", dtype, STORED)
        if not layers:
            raise SoraError("there is no adapted layer to write")
        self._layers, self._rest, self._forms = layers, rest, forms or {}
        self._dtype: torch.dtype = getattr(torch, dtype)
        self._keep: dict[str, Tensor] = {}  # (r,) bool
        self._sides: dict[str, tuple[int, int]] = {}  # (out, in)
        self._written: dict[tuple[str, str], bytes] = {}  # (path, "A" or "B") -> digest
        bits: list[int | None] = []
        for path, (keep, sides, b) in by_cores(layers, self._live_sides_bits).items():
            self._keep[path], self._sides[path] = keep, sides
            bits += [b] if sum(keep) else []
        self.start = {path: keep.numel() for path, keep in self._keep.items()}
        self.live = {path: int(keep.sum()) for path, keep in self._keep.items()}
        self.stored = {path: rank for path, rank in self.live.items() if rank}
        # PEFT loads no directory without targets
        # until: peft > 0.21
        if not self.stored:
            self.stored = {next(iter(layers)): 1}
        self.groups = grouped(layers, self._forms)
        for paths in self.groups.values():
            if rank := max(self.stored.get(path, 0) for path in paths):
                self.stored |= dict.fromkeys(paths, rank)
        self.bits = None if None in bits else max((b for b in bits if b), default=None)
        self._padded_to = max(self.stored.values()) if layout == "padded" else None

    def _live_sides_bits(self, path: str) -> tuple[Tensor, tuple[int, int], int | None]:
        plain = _float32_on_cpu(path, self._layers[path])
        bits = bits_of(plain) if self._dtype == torch.float32 else None
        return plain.live_components(), (plain.B.shape[0], plain.A.shape[1]), bits

    @property
    def targets(self) -> dict[str, int]:
        """The names in the configuration, each parameter as one, and their ranks."""
        firsts = {name: paths[0] for name, paths in self.groups.items()}
        return {name: self.stored[path] for name, path in firsts.items() if path in self.stored}

    @property
    def parameters(self) -> set[str]:
        """The names in `targets` of parameters."""
        return {name for name in self.targets if self.groups[name] != [name]}

    def sums(self, ranks: Mapping[str, int]) -> dict[str, int]:
        """Sum numbers of modules over the experts in each parameter."""
        return {name: sum(map(ranks.__getitem__, paths)) for name, paths in self.groups.items()}

    def factors(self, path: str) -> LowRankFactors:
        """Return one module's factors in the dtype and layout of the file."""
        live = _float32_on_cpu(path, self._layers[path]).select(self._keep[path])
        if self._dtype == torch.float16:  # bfloat16 has float32's exponents, and needs no balance
            live = _balanced(live)
        padding = (self._padded_to or self.stored[path]) - live.rank
        if padding:
            live = LowRankFactors(pad(live.A, (0, 0, 0, padding)), pad(live.B, (0, padding)))
        cast = LowRankFactors(live.A.to(self._dtype), live.B.to(self._dtype))
        for tensor in (cast.A, cast.B) if self._dtype != torch.float32 else ():
            if not all(bool(extreme.isfinite()) for extreme in tensor.aminmax()):
                name = dtype_name(self._dtype)
                raise SoraError(f"'{path}' holds numbers too large for {name}",
                                hint="write it as float32 or bfloat16")  # fmt: skip
        return cast

    def tensors(self, where: str) -> dict[str, NewTensor]:
        """Return {key: tensor to write}; `where` names the adapter in errors about the head."""
        new = {}
        waiting: dict[tuple[str, str], Tensor] = {}  # the other halves of pairs

        def half(path: str, name: str, shape: tuple[int, ...]) -> Tensor:
            if (path, name) not in waiting:
                pairs = {part: self.factors(part) for part in self.groups[path]}
                for part, pair in pairs.items():
                    self._written[part, "A"] = _digest(pair.A)
                    self._written[part, "B"] = _digest(pair.B)
                # A of the experts below each other, B's columns component by component: see
                # StoredExpert
                waiting[path, "A"] = torch.cat([pair.A for pair in pairs.values()])
                waiting[path, "B"] = torch.stack([pair.B for pair in pairs.values()], -1)
            return waiting.pop((path, name)).reshape(shape)

        wrappers = wrapper_paths(self.parameters)
        for path, rank in self.targets.items():
            first, count = self.groups[path][0], len(self.groups[path])
            (n_out, n_in), form = self._sides[first], self._forms.get(first, LINEAR)
            rank = (self._padded_to or rank) * count
            size, ones = math.prod(form.kernel), (1,) * len(form.kernel)
            shapes = (rank, n_in // size, *form.kernel), (n_out, rank, *ones)
            keys = pair_keys(wrappers.get(path, path), embedding=form.embedding)
            for key, name, shape in zip(keys, "AB", shapes, strict=True):
                make = partial(half, path, name, shape)
                new[key] = NewTensor(self._dtype, shape, make, group=path)
        for part in self._rest:
            key, tensor = self._as_it_is(part)
            check_tensor(part.path, tensor, f"for {where}")
            make = partial(self._tensor, part)
            new[key] = NewTensor(tensor.dtype, tuple(tensor.shape), make)
        return new

    def _as_it_is(self, part: Part) -> tuple[str, Tensor]:
        written = part.written(self.stored)
        assert written is not None  # the adapter can be written
        return written

    def _tensor(self, part: Part) -> Tensor:
        return self._as_it_is(part)[1]

    def check(self, layers: Mapping[str, LowRankFactors], rest: Sequence[Part]) -> None:
        """Check that the tensors read back equal the tensors made by the last call of `tensors`."""

        def same_pair(path: str) -> bool:
            back = layers[path]
            return all(
                torch.equal(cast.float(), tensor) and _digest(cast) == self._written[path, name]
                for name, tensor in (("A", back.A), ("B", back.B))
                for cast in [tensor.to(self._dtype)]
            )

        back, made = ({self._as_it_is(part)[0]: part for part in p} for p in (rest, self._rest))
        same = set(layers) == set(self.stored) and set(back) == set(made)
        same = same and all(by_cores(self.stored, same_pair).values())
        for key in made if same else ():
            same = same and torch.equal(self._tensor(back[key]), self._tensor(made[key]).cpu())
        check_read_back(same)


def _digest(tensor: Tensor) -> bytes:
    """Return the digest of a matrix: its shape and its bytes."""
    digest = hashlib.sha256(repr(tuple(tensor.shape)).encode())
    digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def _balanced(factors: LowRankFactors) -> LowRankFactors:
    """Move powers of two between A and B, term by term, if one of them is too small for float16.

    B A stays the same to the bit; without this a B of 1e-8, as short training gives, would become
    zero.
    """
    largest_a = factors.A.abs().amax(1)  # (r,)
    largest_b = factors.B.abs().amax(0)  # (r,)
    # an integer power of two changes exponents only; half of the distance makes both sides equal
    halves = ((largest_b.log2() - largest_a.log2()) / 2).round()
    small = torch.minimum(largest_a, largest_b) < _SMALL  # none is 0: only live terms are here
    shift = torch.where(small, halves, 0.0).exp2()
    return LowRankFactors(factors.A * shift[:, None], factors.B / shift)


def _float32_on_cpu(path: str, factors: LowRankFactors) -> LowRankFactors:
    """Return the factors in float32 on the CPU, after checking that all are finite."""
    a, b = (t.detach().to("cpu", torch.float32) for t in (factors.A, factors.B))
    for tensor in (a, b):
        check_tensor(path, tensor, "in memory")
    return LowRankFactors(a, b)
