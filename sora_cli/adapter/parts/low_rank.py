"""A pair of factors: LoRA's, AdaLoRA's, one expert's part of a pair; DoRA's magnitude around it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from methods.factors import LowRankFactors
from methods.updates import Product, Rescaled, Update
from sora_cli.adapter.parts.factored import Factored
from sora_cli.adapter.parts.form import LINEAR, Form
from sora_cli.adapter.parts.part import FLOATS, Found, Header, Section, claim_by_ending
from sora_cli.adapter.peft import adalora
from sora_cli.adapter.peft.config import LARGEST_RANK, LORA, PeftConfig
from sora_cli.adapter.peft.layout import PAIR, TABLE, check_tensor
from sora_cli.adapter.peft.parameters import expert_path
from sora_cli.core.console import count
from sora_cli.core.errors import SoraError
from sora_cli.model.tensors import dtype_name

_A, _B, _E, _RANKNUM, _MAGNITUDE = "A", "B", "E", "ranknum", "magnitude"
_DORA = {".lora_magnitude_vector": _MAGNITUDE}
_ADALORA = {".lora_A": _A, ".lora_B": _B, ".lora_E": _E, ".ranknum": _RANKNUM}
_MOST_EXPERTS = 2**13  # the largest mixtures of today have below 2**10
_LARGEST_SIDE = 2**24  # inputs or outputs of a layer; the largest vocabularies are below 2**20


class LowRank(Factored):
    """A pair of factors; DoRA rescales the weight with the pair in it."""

    peft_types = (LORA, adalora.ADALORA)

    @classmethod
    def claim(cls, name: str, config: PeftConfig) -> tuple[str, str] | None:
        """Return the module and the role of half a pair, or of a vector beside the pair."""
        endings = _ADALORA if config.is_adalora else {**PAIR, **TABLE}
        return claim_by_ending(name, {**endings, **(_DORA if config.use_dora else {})})

    @classmethod
    def check_claims(cls, found: Found, config: PeftConfig, where: str) -> None:
        """Check that no pair lacks a half."""
        for path, roles in found.items():
            _pair(path, roles, config, where)

    @classmethod
    def read(cls, found: Found, header: Header) -> Iterator[Factored]:
        """Yield a part for each pair, and for each expert of a pair of a parameter."""
        pairs = {
            path: _pair(path, roles, header.config, header.where) for path, roles in found.items()
        }
        halves = lru_cache(maxsize=2)(header.read)  # A and B of one parameter
        for path, pair in pairs.items():
            if path in header.parameters:
                yield from _experts(path, pair, header, halves)
            else:
                yield _checked(path, pair, header)

    def held(self) -> Factored:
        """Return the same part in memory."""
        return held(self)

    def update(self) -> Update:
        """Return the product, with the scaling kept apart, in PEFT's way."""
        product, magnitude = self.product(), self.magnitude()
        return product if magnitude is None else Rescaled(product, magnitude)

    def product(self) -> Product:
        """Return the product of the pair."""
        factors = self.factors()
        return Product(factors.A, factors.B)

    @property
    def fixed(self) -> str | None:
        """DoRA's rescaling is no change of low rank, and no method writes it."""
        if not self.rescaled:
            return None
        return f"this is a DoRA adapter: it also rescales each output of '{self.path}'"

    @property
    def unserved(self) -> str | None:
        """The objection of servers."""
        return "refuses DoRA's magnitudes" if self.rescaled else super().unserved

    @classmethod
    def section(cls, parts: Iterable[Factored]) -> Section:
        """Return the number of rescaled modules."""
        rescaled = sum(part.rescaled for part in parts)
        text = f"{count(rescaled)} modules, output by output (DoRA): the numbers above are of their"
        lines = [("rescaled", f"{text} low-rank part")]
        return Section({"rescaled": rescaled}, lines if rescaled else ())


@dataclass(frozen=True)
class Held(LowRank):
    """A pair in memory, or made when it is asked for.

    Attributes:
        make: returns float32 factors, with all scaling in B.
        norms: DoRA's magnitudes, (out,).
    """

    path: str
    make: Callable[[], LowRankFactors]
    form: Form = LINEAR
    norms: Tensor | None = None

    @cached_property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """(out, in)."""
        factors = self.make()
        return factors.B.shape[0], factors.A.shape[1]

    @cached_property
    def rank(self) -> int:  # type: ignore[override]
        """Number of components, with the zero ones."""
        return self.make().rank

    def factors(self) -> LowRankFactors:
        """Return the factors."""
        return self.make()

    def product(self) -> Product:
        """Return the product on the CPU."""
        factors = self.make()
        return Product(_on_cpu(factors.A), _on_cpu(factors.B))

    @property
    def rescaled(self) -> bool:
        """True if there are magnitudes."""
        return self.norms is not None

    def magnitude(self) -> Tensor | None:
        """Return DoRA's magnitudes."""
        return None if self.norms is None else _on_cpu(self.norms)


def held(part: Factored) -> Held:
    """Return any part with factors in memory, as a pair."""
    factors = part.factors()
    return Held(part.path, lambda: factors, part.form, part.magnitude())


@dataclass(frozen=True)
class _Pair:
    """The keys of one module's factors; E and the scaling's divisor are AdaLoRA's.

    Attributes:
        magnitude: key of DoRA's magnitudes.
        embedding: the keys are spelled as PEFT does for an embedding.
    """

    a: str
    b: str
    e: str | None = None
    ranknum: str | None = None
    magnitude: str | None = None
    embedding: bool = False

    @property
    def keys(self) -> list[str]:
        """The keys of all tensors of the update; the first two are A's and B's."""
        return [key for key in (self.a, self.b, self.e, self.magnitude) if key]


@dataclass(frozen=True)
class StoredPair(LowRank):
    """A pair of factors in an open file."""

    path: str
    shape: tuple[int, int]
    rank: int
    form: Form
    header: Header
    pair: _Pair

    @property
    def stored(self) -> int:
        """Number of components; a dead pair is read as a zero pair of rank 1."""
        return max(self.rank, 1)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The number formats of A and B: E and magnitudes may be stored in another one."""
        return {self.header.tensors.dtype(key) for key in (self.pair.a, self.pair.b)}

    def factors(self) -> LowRankFactors:
        """Read both factors, with E and all scaling in B."""
        if self._is_dead:
            return self._zero()
        a, b = self._matrix(self.pair.a), self._matrix(self.pair.b)
        if self.pair.e is not None:
            b = adalora.fold(b, self.header.read(self.pair.e))
        scaled = b * self._scaling()
        check_tensor(f"{self.pair.b}, scaled,", scaled, self.header.where)
        return LowRankFactors(a, scaled)

    def product(self) -> Product:
        """Read both factors, with E in A and the scaling kept apart, in PEFT's way."""
        if self._is_dead:
            zero = self._zero()
            return Product(zero.A, zero.B)
        a, b = self._matrix(self.pair.a), self._matrix(self.pair.b)
        if self.pair.e is not None:
            a = a * self.header.read(self.pair.e)  # (r, in), (r, 1)
        return Product(a, b, self._scaling())

    @property
    def rescaled(self) -> bool:
        """True if the file has magnitudes."""
        return self.pair.magnitude is not None

    def magnitude(self) -> Tensor | None:
        """Read DoRA's magnitudes, (out,)."""
        key = self.pair.magnitude
        return None if key is None or self._is_dead else self.header.read(key).reshape(-1)

    @property
    def _is_dead(self) -> bool:
        return not self.header.tensors.shape(self.pair.a)[0]

    def _zero(self) -> LowRankFactors:
        n_out, n_in = self.shape
        return LowRankFactors(torch.zeros(1, n_in), torch.zeros(n_out, 1))

    def _matrix(self, key: str) -> Tensor:
        tensor = self.header.read(key)
        return tensor.reshape(len(tensor), -1)

    def _scaling(self) -> float:
        config, key = self.header.config, self.pair.ranknum
        if key is None:
            return config.scaling(self.path)
        number = float(self.header.read(key).reshape(()))
        if number <= 0:
            raise SoraError(f"'{key}' must be above 0, not {number:g}", where=self.header.where)
        return adalora.scaling(config.lora_alpha, number)


@dataclass(frozen=True)
class StoredExpert(StoredPair):
    """One expert's part of a parameter's factors.

    Attributes:
        number: the expert's.
        halves: reads a tensor by its key; it remembers the last, for the next expert.
    """

    number: int
    halves: Callable[[str], Tensor]

    def _matrix(self, key: str) -> Tensor:
        # PEFT's ParamWrapper.get_delta_weight: A is (experts r, in), experts first; the columns of
        # B are (r experts), experts last
        tensor = self.halves(key)
        if key == self.pair.a:
            return tensor.view(self.form.experts, self.rank, -1)[self.number]
        return tensor.view(len(tensor), self.rank, -1)[:, :, self.number].contiguous()


def check_stored(path: str, keys: Iterable[str], sides: Iterable[int], rank: int,
                 header: Header) -> None:  # fmt: skip
    """Check that a layer of these sides is possible, and that its tensors can be read."""
    n_out, n_in = sides
    if not (0 < n_in <= _LARGEST_SIDE and 0 < n_out <= _LARGEST_SIDE and rank <= LARGEST_RANK):
        raise SoraError(f"'{path}': a layer with {n_in} inputs and {n_out} outputs is not "
                        "possible", where=header.where)  # fmt: skip
    for key in keys:
        if header.tensors.dtype(key) not in FLOATS:
            dtype = dtype_name(header.tensors.dtype(key))
            raise SoraError(f"'{key}' is stored as {dtype}; only floating-point factors of 16 bits "
                            "or more can be read", where=header.where)  # fmt: skip


def _pair(path: str, found: Mapping[str, str], config: PeftConfig, where: str) -> _Pair:
    needed: tuple[str, ...] = (_A, _B, _E) if config.is_adalora else (_A, _B)
    embedding = any(role in found for role in TABLE.values())
    if embedding:
        needed = tuple(TABLE.values())
    if config.use_dora:
        needed = (*needed, _MAGNITUDE)
    missing = [role for role in needed if role not in found]
    if missing:
        there = " and ".join(f"a{'n' if p[0] in 'AEe' else ''} {p}" for p in needed if p in found)
        raise SoraError(f"'{path}' has {there or 'a ranknum'} but no {missing[0]}", where=where)
    if embedding and _A in found:
        raise SoraError(f"'{path}' has two pairs: a layer's and an embedding's", where=where)
    if config.ensure_weight_tying and (embedding or path.endswith("lm_head")):
        raise SoraError(f"'{path}': ensure_weight_tying also gives its factors to the weights "
                        "tied to it, which cannot be read", where=where,
                        hint="PEFT itself can use it, unmerged")  # fmt: skip
    a, b = (found[role] for role in needed[:2])
    return _Pair(a, b, found.get(_E), found.get(_RANKNUM), found.get(_MAGNITUDE), embedding)


def _checked(path: str, pair: _Pair, header: Header) -> StoredPair:
    where, tensors, rank = header.where, header.tensors, header.config.rank(path)
    a, b = tensors.shape(pair.a), tensors.shape(pair.b)
    lowest = 0 if header.config.is_adalora else 1
    is_convolution = len(a) == len(b) > 2 and set(b[2:]) == {1} and not pair.embedding
    if not (len(a) == len(b) == 2 or is_convolution) or not a[0] == b[1] == rank or rank < lowest:
        raise SoraError(f"'{path}': A {a} and B {b} are not a pair of rank {rank}", where=where)
    if pair.e is not None and tensors.shape(pair.e) != (rank, 1):
        raise SoraError(f"'{path}': E {tensors.shape(pair.e)} is not of rank {rank}", where=where)
    if pair.ranknum is not None and torch.Size(tensors.shape(pair.ranknum)).numel() != 1:
        raise SoraError(f"'{pair.ranknum}' is not a single number", where=where)
    if pair.magnitude is not None:
        numbers = tensors.shape(pair.magnitude)
        if torch.Size(numbers).numel() != b[0]:
            raise SoraError(f"'{path}': its magnitudes {numbers} are not one for each of its "
                            f"{b[0]} outputs", where=where)  # fmt: skip
    shape = b[0], math.prod(a[1:])
    check_stored(path, pair.keys, shape, rank, header)
    return StoredPair(path, shape, rank, Form(pair.embedding, tuple(a[2:])), header, pair)


def _experts(
    parameter: str, pair: _Pair, header: Header, halves: Callable[[str], Tensor]
) -> Iterator[StoredExpert]:
    """Yield each expert's part of a parameter's pair."""
    tensors, config = header.tensors, header.config
    a, b, rank = tensors.shape(pair.a), tensors.shape(pair.b), config.rank(parameter)
    fits = len(a) == len(b) == 2 and a[0] == b[1] and a[0] % rank == 0
    if not fits or not 0 < a[0] // rank <= _MOST_EXPERTS:
        raise SoraError(f"'{parameter}': A {a} and B {b} are not pairs of rank {rank} for a number "
                        "of experts", where=header.where)  # fmt: skip
    form, shape = Form(experts=a[0] // rank), (b[0], a[1])
    check_stored(parameter, pair.keys, shape, rank, header)
    paths = [expert_path(parameter, number) for number in range(form.experts)]
    config.follow(paths, parameter)
    for number, path in enumerate(paths):
        yield StoredExpert(path, shape, rank, form, header, pair, number, halves)


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float32)
