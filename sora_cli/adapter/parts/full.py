"""A parameter that is stored in full: of a head, a bias, or a weight of the base model itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sora_cli.adapter.in_model import load_head
from sora_cli.adapter.parts.part import Content, Found, Header, Part, Section
from sora_cli.adapter.peft.config import PeftConfig
from sora_cli.adapter.peft.layout import BASE_LAYER, PREFIX
from sora_cli.core.console import count
from sora_cli.core.errors import SoraError
from sora_cli.core.markdown import code
from sora_cli.core.words import first_few
from sora_cli.model.fingerprint import StoredTensor
from sora_cli.model.tensors import torch_dtype

HEAD, BIAS, BASE = "head", "bias", "base weight"
_UNUSED = "unused"
_BIAS = ".bias"
_OF_ROWS = f".token_adapter{BASE_LAYER}"
_COPIES = (".original_module.", ".modules_to_save.")
"""Parts of the names of needless biases: `bias: all` also stores the biases of full modules."""
_EMBEDDINGS = ("lm_head", "wte", "shared")
"""Names of embeddings and output layers without "emb" in their name."""


@dataclass(frozen=True)
class Full(Part):
    """A parameter that is stored in full, and replaces the base model's.

    Attributes:
        path: the parameter's name.
        make: reads the tensor.
        shape: of the tensor.
        dtype: of the tensor; None: torch has no such dtype.
        role: HEAD: all tensors of its module are stored. BIAS: a trained bias. BASE: the base
            model's own weight, which is replaced also where another parameter is tied to it; its
            module may have factors besides.
        module: path of the head's module; "" for other roles.
        entry: its place in a file.
    """

    path: str
    make: Callable[[], Tensor]
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    role: str = HEAD
    module: str = ""
    entry: StoredTensor | None = None

    # ----------------------------------------------------------------- in a file of PEFT's layout

    @classmethod
    def claim(cls, name: str, config: PeftConfig) -> tuple[str, str] | None:
        """Return the parameter and its role."""
        path = name.replace(_OF_ROWS, ".").replace(BASE_LAYER, ".")
        module = config.head_module(name)
        # the order matters: the bias of an adapted module is below `.base_layer.`, too
        if config.bias != "none" and name.endswith(_BIAS) and module is None:
            return path, BIAS
        if BASE_LAYER in name or (_is_embedding(name) and module is None):
            return path, BASE
        if module is None:
            return None
        return name, _UNUSED if any(part in name for part in _COPIES) else HEAD

    @classmethod
    def read(cls, found: Found, header: Header) -> Iterator[Full]:
        """Yield the parameters; a weight below an adapter's layer needs that adapter."""
        for path, roles in found.items():
            (role, key), *_ = roles.items()
            name = key.removeprefix(PREFIX)
            owner = name.partition(BASE_LAYER)[0]
            if role == BASE and owner != name and owner not in header.adapted \
                    and _OF_ROWS not in name:  # fmt: skip
                raise SoraError(f"'{owner}' is stored in full but has no adapter",
                                where=header.where)  # fmt: skip
            if role == _UNUSED:
                continue
            entry = header.tensors.entry(key)
            yield cls(
                path,
                _reader(header, key),
                entry.shape,
                torch_dtype(entry.dtype),
                role,
                (header.config.head_module(path) or "") if role == HEAD else "",
                entry,
            )

    @classmethod
    def configured(cls, parts: Sequence[Full]) -> dict[str, object]:
        """Return the modules that are stored in full, and whether biases are."""
        biases = any(part.role == BIAS for part in parts)
        return {
            "bias": "all" if biases else "none",
            "modules_to_save": [*modules_of(parts)] or None,
        }

    def written(self, adapted: Collection[str]) -> tuple[str, Tensor]:
        """Return the key and the tensor; PEFT puts an adapted module's own into `base_layer`."""
        owner, _, last = self.path.rpartition(".")
        below = self.role != HEAD and owner in adapted
        return (
            f"{PREFIX}{owner}{BASE_LAYER}{last}" if below else f"{PREFIX}{self.path}",
            self.make(),
        )

    # ------------------------------------------------------------------------------- what it holds

    @property
    def parameters(self) -> int:
        """Numbers of the parameter."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the tensor as it is stored."""
        return self.parameters * (0 if self.dtype is None else self.dtype.itemsize)

    def held(self) -> Full:
        """Return the same part in memory."""
        return self.with_tensor(self.make())

    def with_tensor(self, tensor: Tensor) -> Full:
        """Return the part with other numbers, in memory."""
        return replace(self, make=lambda: tensor, shape=tuple(tensor.shape), dtype=tensor.dtype,
                       entry=None)  # fmt: skip

    @property
    def content(self) -> Content:
        """Its place in a file, or the tensor in memory."""
        if self.entry is None:
            return self.make().detach().cpu()
        self.check_readable()
        return self.entry

    def check_readable(self) -> None:
        """Check that torch has the dtype, and that the file holds all numbers."""
        if self.entry is None or self.bytes == self.entry.length:
            return
        raise SoraError(f"'{self.path}' is stored as {self.entry.dtype}, which cannot be read",
                        where=str(self.entry.file))  # fmt: skip

    @property
    def everywhere(self) -> bool:
        """True if parameters that are tied to it get its numbers, too."""
        return self.role == BASE

    def digested(self) -> Mapping[str, tuple[Content, ...]]:
        """Return its content."""
        return {self.path: (self.content,)}

    # --------------------------------------------------------------------------------- on a model

    @classmethod
    def prepare(cls, model: nn.Module, parts: Sequence[Full]) -> None:
        """Load the tensors, all at once: tied parameters may need several of them."""
        everywhere = [part.path for part in parts if part.everywhere]
        load_head(model, {part.path: part.make() for part in parts}, base_weights=everywhere)

    # ---------------------------------------------------------------------------------- in words

    @property
    def unserved(self) -> str | None:
        """The objection of servers; heads have their own rules there."""
        if self.role == BIAS:
            return "refuses trained biases"
        # vLLM and llama.cpp pass over it without a word
        return f"takes no {self.path}, stored in full" if self.role == BASE else None

    @classmethod
    def section(cls, parts: Sequence[Full]) -> Section:
        """Return the names of heads, base weights and biases."""
        modules, biases, weights = modules_of(parts), _named(parts, BIAS), _named(parts, BASE)
        numbers = sum(part.parameters for part in parts)
        lines = []
        if modules:
            lines.append(("head", f"{', '.join(modules)}: {count(numbers)} parameters"))
        if weights:
            lines.append(("base weights", f"{first_few(weights)}, instead of the base model's"))
        if biases:
            text = f"{count(len(biases))} of the base model, such as {biases[0]}"
            lines.append(("biases", text))
        facts = {"head_modules": [*modules], "biases": biases, "base_weights": weights}
        return Section(facts, lines)

    @classmethod
    def words(cls, parts: Sequence[Full]) -> Iterator[str]:
        """Yield the head, the number of biases, and the base weights."""
        if modules := modules_of(parts):
            yield f"the head ({', '.join(modules)})"
        if biases := _named(parts, BIAS):
            yield f"{count(len(biases))} biases"
        if weights := _named(parts, BASE):
            yield f"the base weight {first_few(weights)}"

    @classmethod
    def card_lines(cls, parts: Sequence[Full]) -> Iterator[str]:
        """Yield the lines about the head, and about base weights."""
        if modules := modules_of(parts):
            yield f"- trained in full: {', '.join(map(code, modules))}"
        if weights := _named(parts, BASE):
            yield f"- base weights replaced by the adapter's: {', '.join(map(code, weights))}"


def full(parts: Iterable[Part]) -> dict[str, Full]:
    """Return the parts that are stored in full, by their names."""
    return {part.path: part for part in parts if isinstance(part, Full)}


def modules_of(parts: Iterable[Full]) -> tuple[str, ...]:
    """Return the paths of the modules that are stored in full."""
    return tuple(dict.fromkeys(part.module for part in parts if part.module))


def _named(parts: Iterable[Full], role: str) -> list[str]:
    return [part.path for part in parts if part.role == role]


def _reader(header: Header, key: str) -> Callable[[], Tensor]:
    return lambda: header.as_stored(key)


def _is_embedding(name: str) -> bool:
    """Return true if a parameter's name is that of a model's embedding or output layer."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    is_known = ("emb" in module and not module.startswith("lora_")) or module in _EMBEDDINGS
    return is_known and name.endswith((".weight", _BIAS))
