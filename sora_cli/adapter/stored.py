"""One module's update in an adapter file: its tensors, and ways to read it.

There are four kinds with one interface: a pair of factors (LoRA, AdaLoRA, with or without DoRA's
magnitudes), one expert's part of a pair, a LoHa product and a LoKr product. Each gives its low-rank
factors, and the update as merging computes it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from methods.factors import LowRankFactors
from methods.updates import Hadamard, Kronecker, Product, Rescaled, Update
from sora_cli.adapter.peft import adalora, lycoris
from sora_cli.adapter.peft.config import LARGEST_RANK, PeftConfig
from sora_cli.adapter.peft.layout import Pair, SplitKeys, check_tensor
from sora_cli.adapter.peft.parameters import expert_path, parameter_of
from sora_cli.core.errors import SoraError
from sora_cli.model.tensors import TensorFile, dtype_name

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_MOST_EXPERTS = 2**13  # the largest mixtures of today have below 2**10
_LARGEST_SIDE = 2**24  # inputs or outputs of a layer; the largest vocabularies are below 2**20


@dataclass(frozen=True)
class Form:
    """The kind of layer around an update, for layers that are not linear.

    Attributes:
        embedding: an embedding, whose `in` counts the tokens.
        kernel: a convolution's kernel, such as (3, 3); `in` has the channels and the kernel in one
            dimension.
        experts: number of experts in the parameter that holds this one; 0: it is a layer.
    """

    embedding: bool = False
    kernel: tuple[int, ...] = ()
    experts: int = 0


LINEAR = Form()


def experts_in(forms: Mapping[str, Form]) -> tuple[str, ...]:
    """Return the paths of experts in a parameter."""
    return tuple(path for path, form in forms.items() if form.experts)


def grouped(paths: Iterable[str], forms: Mapping[str, Form]) -> dict[str, list[str]]:
    """Return {path of a module: [it]}, with {name of a parameter: its experts} for experts."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        name = parameter_of(path) if forms.get(path, LINEAR).experts else path
        groups.setdefault(name, []).append(path)
    return groups


@dataclass(frozen=True)
class StoredModule(ABC):
    """One module's tensors in an open file.

    Attributes:
        shape: (out, in) of the update as a matrix.
        rank: number of components of the factors; 0 if all are pruned.
        form: of the layer.
    """

    path: str
    shape: tuple[int, int]
    rank: int
    form: Form
    tensors: TensorFile

    @property
    @abstractmethod
    def keys(self) -> tuple[str, ...]:
        """The keys of all its tensors."""

    @abstractmethod
    def factors(self) -> LowRankFactors:
        """Read low-rank factors, float32, with all scaling in B; magnitudes are not in them."""

    @abstractmethod
    def update(self) -> Update:
        """Read the update, with the same products that PEFT computes."""

    @property
    def parameters(self) -> int:
        """Numbers stored for this module."""
        return sum(torch.Size(self.tensors.shape(key)).numel() for key in self.keys)

    def read(self, key: str) -> Tensor:
        """Read one tensor, in float32."""
        return _read(self.tensors, key)


@dataclass(frozen=True)
class StoredPair(StoredModule):
    """A pair of factors; E and its scaling are AdaLoRA's, the magnitude is DoRA's."""

    pair: Pair
    config: PeftConfig

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of A and B, and of E and the magnitude if they are stored."""
        return tuple(k for k in (self.pair.a, self.pair.b, self.pair.e, self.pair.magnitude) if k)

    def factors(self) -> LowRankFactors:
        """Read both factors, with E and all scaling in B."""
        if self._is_dead:
            return self._zero()
        a, b = self._matrix(self.pair.a), self._matrix(self.pair.b)
        if self.pair.e is not None:
            b = adalora.fold(b, self.read(self.pair.e))
        scaled = b * self._scaling()
        check_tensor(f"{self.pair.b}, scaled,", scaled, str(self.tensors.file))
        return LowRankFactors(a, scaled)

    def update(self) -> Update:
        """Read both factors, with E in A and the scaling kept apart, in PEFT's way."""
        if self._is_dead:
            zero = self._zero()
            return Product(zero.A, zero.B)
        a, b = self._matrix(self.pair.a), self._matrix(self.pair.b)
        if self.pair.e is not None:
            a = a * self.read(self.pair.e)  # (r, in), (r, 1)
        product = Product(a, b, self._scaling())
        magnitude = self.magnitude()
        return product if magnitude is None else Rescaled(product, magnitude)

    def magnitude(self) -> Tensor | None:
        """Read DoRA's magnitudes, (out,); None if the module has none."""
        key = self.pair.magnitude
        return None if key is None else self.read(key).reshape(-1)

    @property
    def _is_dead(self) -> bool:
        return not self.tensors.shape(self.pair.a)[0]

    def _zero(self) -> LowRankFactors:
        n_out, n_in = self.shape
        return LowRankFactors(torch.zeros(1, n_in), torch.zeros(n_out, 1))

    def _matrix(self, key: str) -> Tensor:
        tensor = self.read(key)
        return tensor.reshape(len(tensor), -1)

    def _scaling(self) -> float:
        if self.pair.ranknum is None:
            return self.config.scaling(self.path)
        number = float(self.read(self.pair.ranknum).reshape(()))
        if number <= 0:
            raise SoraError(f"'{self.pair.ranknum}' must be above 0, not {number:g}",
                            where=str(self.tensors.file))  # fmt: skip
        return adalora.scaling(self.config.lora_alpha, number)


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


@dataclass(frozen=True)
class StoredProduct(StoredModule):
    """A product of two matrices other than their matrix product; each matrix is whole or a pair.

    Attributes:
        parts: name, such as "hada_w1_a" -> key.
    """

    parts: Mapping[str, str]
    scaling: float

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of all parts."""
        return tuple(self.parts.values())

    @abstractmethod
    def update(self) -> Hadamard | Kronecker:
        """Read both matrices."""

    def factors(self) -> LowRankFactors:
        """Read the product as a sum of rank-one terms, one for each pair of the matrices' terms."""
        return self.update().factors()

    def pair(self, first: str, second: str, core: str) -> tuple[Tensor, Tensor]:
        """Return L (out, r) and R (r, in) of a pair; with a core, by Tucker's decomposition."""
        a, b = self.read(self.parts[first]), self.read(self.parts[second])
        if core not in self.parts:
            return a, b
        t = self.read(self.parts[core])  # (r, r, kernel...); a (r, out), b (r, in)
        # L R is PEFT's einsum "ijkl,jr,ip->prkl" (tuners/loha/layer.py: HadaWeightCP)
        right = torch.einsum("ijkl,jn->inkl", t, b)
        return a.T.contiguous(), right.reshape(len(right), -1)


class StoredHadamard(StoredProduct):
    """LoHa's two pairs; in a convolution each may have a core (`hada_t*`)."""

    def update(self) -> Hadamard:
        """Read both pairs."""
        (b1, a1), (b2, a2) = (
            self.pair(f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2)
        )
        return Hadamard(a1, b1, a2, b2, self.scaling)


class StoredKronecker(StoredProduct):
    """LoKr's two matrices, each whole or as a product."""

    def update(self) -> Kronecker:
        """Read both matrices."""
        return Kronecker(*self._matrix("1"), *self._matrix("2"), self.scaling)

    def _matrix(self, number: str) -> tuple[Tensor, Tensor | None]:
        whole = self.parts.get(f"lokr_w{number}")
        if whole is None:
            return self.pair(f"lokr_w{number}_a", f"lokr_w{number}_b", f"lokr_t{number}")
        tensor = self.read(whole)
        return tensor.reshape(len(tensor), -1), None


def stored_modules(
    keys: SplitKeys, config: PeftConfig, tensors: TensorFile
) -> dict[str, StoredModule]:
    """Check the shapes and dtypes of each module's tensors, from the header alone."""
    modules: dict[str, StoredModule] = {}
    last = lru_cache(maxsize=2)(partial(_read, tensors))  # A and B of one parameter
    for path, pair in keys.pairs.items():
        if path in keys.parameters:
            modules |= _checked_experts(path, pair, config, tensors, last)
        else:
            modules[path] = _checked_pair(path, pair, config, tensors)
    for path, parts in keys.products.items():
        modules[path] = _checked_product(path, parts, config, tensors)
    for module in modules.values():
        _check_numbers(module)
    return modules


def checked_tokens(
    keys: SplitKeys, config: PeftConfig, tensors: TensorFile
) -> dict[str, tuple[tuple[int, ...], int]]:
    """Return {path of an embedding: (its trained rows, numbers in each row)}, after a check.

    The file has to hold each row that the configuration names, once.
    """
    rows = {}
    for path, key in keys.tokens.items():
        indices, shape = config.token_indices(path), tensors.shape(key)
        right = len(shape) == 2 and len(indices) == len(set(indices)) == shape[0]
        if not right or min(indices, default=0) < 0 or tensors.dtype(key) not in _FLOATS:
            raise SoraError(f"'{path}': trainable_token_indices names {len(indices)} rows, each "
                            f"once; the file holds {shape}", where=str(tensors.file))  # fmt: skip
        rows[path] = tuple(indices), shape[1]
    return rows


def _checked_pair(path: str, pair: Pair, config: PeftConfig, tensors: TensorFile) -> StoredPair:
    where, rank = str(tensors.file), config.rank(path)
    a, b = tensors.shape(pair.a), tensors.shape(pair.b)
    lowest = 0 if config.is_adalora else 1
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
    form = Form(pair.embedding, tuple(a[2:]))
    return StoredPair(path, (b[0], math.prod(a[1:])), rank, form, tensors, pair, config)


def _checked_experts(
    parameter: str,
    pair: Pair,
    config: PeftConfig,
    tensors: TensorFile,
    halves: Callable[[str], Tensor],
) -> dict[str, StoredModule]:
    """Return {path of each expert: its part of a parameter's pair}."""
    a, b, rank = tensors.shape(pair.a), tensors.shape(pair.b), config.rank(parameter)
    fits = len(a) == len(b) == 2 and a[0] == b[1] and a[0] % rank == 0
    if not fits or not 0 < a[0] // rank <= _MOST_EXPERTS:
        raise SoraError(f"'{parameter}': A {a} and B {b} are not pairs of rank {rank} for a number "
                        "of experts", where=str(tensors.file))  # fmt: skip
    form, shape = Form(experts=a[0] // rank), (b[0], a[1])
    paths = [expert_path(parameter, number) for number in range(form.experts)]
    config.follow(paths, parameter)
    return {
        path: StoredExpert(path, shape, rank, form, tensors, pair, config, number, halves)
        for number, path in enumerate(paths)
    }


def _checked_product(
    path: str, parts: Mapping[str, str], config: PeftConfig, tensors: TensorFile
) -> StoredModule:
    shapes = {part: tensors.shape(key) for part, key in parts.items()}
    kind: type[StoredProduct] = StoredKronecker
    if config.peft_type == lycoris.LOHA:
        kind, (shape, rank, kernel) = StoredHadamard, _hadamard(shapes)
    else:
        shape, rank, kernel = _kronecker(shapes)
    if rank < 1 or min(shape) < 1:
        listed = ", ".join(f"{part} {shape}" for part, shape in shapes.items())
        raise SoraError(f"'{path}': {listed} do not fit together", where=str(tensors.file))
    scaling = config.scaling(path)
    return kind(path, shape, rank, Form(kernel=kernel), tensors, parts, scaling)


_Dimensions = tuple[tuple[int, int], int, tuple[int, ...]]
"""Shape (out, in), number of rank-one terms (0: the parts do not fit together), kernel if known."""
_NO_FIT: _Dimensions = ((0, 0), 0, ())


def _hadamard(shapes: Mapping[str, tuple[int, ...]]) -> _Dimensions:
    pairs = [_product_shape(shapes, f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}") for i in (1, 2)]
    (first, r1, kernel), (second, r2, other) = pairs
    # an elementwise product of ranks r1 and r2 is a sum of r1 r2 rank-one terms
    return (first, r1 * r2, kernel) if first == second and kernel == other else _NO_FIT


def _kronecker(shapes: Mapping[str, tuple[int, ...]]) -> _Dimensions:
    sides = []
    for i in "12":
        whole = shapes.get(f"lokr_w{i}")
        if whole is None:
            sides.append(_product_shape(shapes, f"lokr_w{i}_a", f"lokr_w{i}_b", f"lokr_t{i}"))
        elif len(whole) not in (2, 4):  # of Conv1d PEFT makes another product of three dimensions
            return _NO_FIT
        else:
            matrix = whole[0], math.prod(whole[1:])
            sides.append((matrix, min(matrix), tuple(whole[2:])))
    (first, r1, _), (second, r2, kernel) = sides
    return (first[0] * second[0], first[1] * second[1]), r1 * r2, kernel


def _product_shape(
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


def _read(tensors: TensorFile, key: str) -> Tensor:
    tensor = tensors.read(key).float()
    check_tensor(key, tensor, str(tensors.file))
    return tensor


def _check_numbers(module: StoredModule) -> None:
    where, (n_out, n_in) = str(module.tensors.file), module.shape
    if not (0 < n_in <= _LARGEST_SIDE and 0 < n_out <= _LARGEST_SIDE
            and module.rank <= LARGEST_RANK):  # fmt: skip
        raise SoraError(f"'{module.path}': a layer with {n_in} inputs and {n_out} outputs is not "
                        "possible", where=where)  # fmt: skip
    for key in module.keys:
        if module.tensors.dtype(key) not in _FLOATS:
            dtype = dtype_name(module.tensors.dtype(key))
            raise SoraError(f"'{key}' is stored as {dtype}; only floating-point factors of 16 bits "
                            "or more can be read", where=where)  # fmt: skip
