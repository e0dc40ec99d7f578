"""A part: the content of an adapter for one place of its base model, and the questions to it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.base import LowRankLinear
from methods.updates import Update
from sora_cli.adapter.peft.config import PeftConfig
from sora_cli.adapter.peft.layout import check_tensor
from sora_cli.core.errors import SoraError
from sora_cli.model.fingerprint import StoredTensor
from sora_cli.model.tensors import TensorFile

Content = StoredTensor | Tensor
"""A tensor: its place in a file, or the tensor in memory."""
Found = dict[str, dict[str, str]]
"""Path of a part -> the role of each of its keys in the file -> the key."""
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
"""The number formats in which factors are stored."""


@dataclass(frozen=True)
class Header:
    """The header of a file: its configuration, and the keys with their shapes, without numbers.

    Attributes:
        adapted: paths of the adapted layers, as their keys spell them.
        parameters: names of parameters that are adapted themselves, such as a tensor of experts.
        new_tokens: the adapter knows tokens that the base model does not.
    """

    config: PeftConfig
    tensors: TensorFile
    adapted: Collection[str] = ()
    parameters: Collection[str] = ()
    new_tokens: bool = False

    @property
    def where(self) -> str:
        """The file, for messages."""
        return str(self.tensors.file)

    def read(self, key: str) -> Tensor:
        """Read one tensor in float32; NaN and infinity are refused."""
        tensor = self.tensors.read(key).float()
        check_tensor(key, tensor, self.where)  # after the cast: a float64 may be too large
        return tensor

    def as_stored(self, key: str) -> Tensor:
        """Read one tensor in its stored dtype; NaN and infinity are refused."""
        tensor = self.tensors.read(key)
        check_tensor(key, tensor, self.where)
        return tensor


@dataclass(frozen=True)
class Target:
    """A parameter of the base model that a part changes.

    Attributes:
        parameter: the model's name of it.
        change: the name of the change, see `Part.changes`; of several parts in one tensor, the
            tensor's name in the adapter.
        transposed: it is stored as the transpose of the change.
        several: it holds several layers, one below the other, and each has a part.
        rows: only rows of it are replaced, in every parameter that is tied to it, too.
    """

    parameter: str
    change: str
    transposed: bool = False
    several: bool = False
    rows: bool = False


@dataclass(frozen=True)
class Section:
    """The facts and lines of `sora inspect` about one kind of part.

    Attributes:
        facts: its entries in `--json`.
        lines: name and text of each line.
    """

    facts: Mapping[str, Any]
    lines: Sequence[tuple[str, str]] = ()


class Part(ABC):
    """The content of an adapter for one place of its base model.

    A part reads its tensors when they are asked for, if it is a file's. Class methods answer for
    all parts of a kind in one adapter.

    Attributes:
        path: the module, or the parameter that is stored in full.
    """

    path: str

    # ----------------------------------------------------------------- in a file of PEFT's layout

    peft_types: ClassVar[tuple[str, ...]] = ()
    """PEFT's kinds of adapters whose layers are such parts; none: it stands beside layers."""

    @classmethod
    @abstractmethod
    def claim(cls, name: str, config: PeftConfig) -> tuple[str, str] | None:
        """Return the path and the role of a key without its prefix; None: it is another kind's."""

    @classmethod  # noqa: B027
    def check_claims(cls, found: Found, config: PeftConfig, where: str) -> None:
        """Check that the roles of each path fit together, before anything else is."""

    @classmethod
    @abstractmethod
    def read(cls, found: Found, header: Header) -> Iterable[Part]:
        """Return the parts behind the claimed keys, after checking their shapes and dtypes."""

    @classmethod
    def configured(cls, parts: Sequence[Any]) -> dict[str, Any]:
        """Return the entries of `adapter_config.json` that parts of this kind need."""
        return {}

    def written(self, adapted: Collection[str]) -> tuple[str, Tensor] | None:
        """Return the key and the tensor of a part that is stored as it is; None: it is factors.

        Args:
            adapted: the paths with factors.
        """
        return None

    # ------------------------------------------------------------------------------- what it holds

    @property
    @abstractmethod
    def parameters(self) -> int:
        """Numbers that it holds."""

    @abstractmethod
    def held(self) -> Part:
        """Return the same part in memory."""

    digested_first: ClassVar[bool] = False
    """True if it comes before all other kinds in the adapter's digest."""

    @property
    def digest_names(self) -> tuple[str, ...]:
        """Names of its tensors in the digest of an adapter that is merged."""
        return (self.path,)

    @abstractmethod
    def digested(self) -> Mapping[str, tuple[Content, ...]]:
        """Return {name: its tensors}; see `digest_names`."""

    # ------------------------------------------------------------- on a model, and in its files

    @classmethod  # noqa: B027
    def prepare(cls, model: nn.Module, parts: Sequence[Any]) -> None:
        """Prepare a model for these parts, before any layer is wrapped."""

    def apply(self, model: nn.Module, today: str, *, fold: bool) -> LowRankLinear | None:
        """Put the part into a model; return the layer if it was wrapped.

        Args:
            today: the model's name of the path.
            fold: add it to the weight itself where it cannot be wrapped.
        """
        return None

    def targets(self, model: nn.Module, today: str | None) -> Iterator[Target]:
        """Yield the parameters that it changes, after checking that they fit.

        Args:
            today: the model's name of the path; None: the model has no such module.
        """
        return iter(())

    @property
    def parameter(self) -> str | None:
        """The parameter that it is a slice of; None: its path is a module's."""
        return None

    def changes(self) -> Mapping[str, Callable[[], Update]]:
        """Return {name of a change: function that reads it}; see `Target.change`."""
        return {}

    # ------------------------------------------------------------------ what a command may ask it
    # An answer is the reason why not, in words that end a command's sentence; None: no objection.

    @property
    def beside_factors(self) -> str | None:
        """Its kind in words, if it does something that factors of low rank cannot do."""
        return self.fixed

    @property
    def fixed(self) -> str | None:
        """Its kind in words, if it can only be merged: neither changed nor written elsewhere."""
        return None

    @property
    def of_one_rank(self) -> str | None:
        """The tensor that it is a slice of, if all slices of it must have one rank."""
        return None

    @property
    def unserved(self) -> str | None:
        """The objection of servers, with its verb; None: they take it."""
        return None

    @property
    def added_for_a_while(self) -> bool:
        """True if it can be added to a layer's output, and taken away again."""
        return False

    # ---------------------------------------------------------------------------------- in words

    @classmethod
    def section(cls, parts: Sequence[Any]) -> Section:
        """Return the section of `sora inspect` about all parts of this kind."""
        return Section({})

    @classmethod
    def words(cls, parts: Sequence[Any]) -> Iterator[str]:
        """Yield the content of this kind in words, such as "3 biases"; for sentences."""
        return iter(())

    @classmethod
    def card_lines(cls, parts: Sequence[Any]) -> Iterator[str]:
        """Yield the lines of a merged model's card about this kind."""
        return iter(())


def objection_of(parts: Iterable[Part], ask: Callable[[Part], str | None]) -> str | None:
    """Return the first objection of an adapter's parts; None: there is none."""
    return next((why for part in parts if (why := ask(part)) is not None), None)


def claim_by_ending(name: str, roles: Mapping[str, str]) -> tuple[str, str] | None:
    """Return the path and the role of a key that ends in one of {ending: role}, or None."""
    found = ((name.removesuffix(e), role) for e, role in roles.items() if name.endswith(e))
    return next(found, None)


def only_merged(why: str) -> SoraError:
    """Return the error for a part that has no place in a model that is trained further."""
    return SoraError(f"{why}: such an adapter works only if it is merged",
                     hint="sora merge writes the merged model; use that instead")  # fmt: skip
