"""Rows of an embedding that are trained in full, such as the rows of new tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from methods.updates import Replaced, Update
from sora_cli.adapter.in_model import is_transposed, token_weight
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
from sora_cli.adapter.peft.layout import PREFIX
from sora_cli.core.console import count
from sora_cli.core.errors import SoraError
from sora_cli.model.new_tokens import grow_for

_TOKENS = ".token_adapter.trainable_tokens_delta"


@dataclass(frozen=True)
class Rows(Part):
    """Rows of an embedding that are trained in full; weights tied to it have them, too.

    Attributes:
        indices: numbers of the rows.
        width: numbers in a row.
        make: reads the rows, (rows, width), float32.
        new: the base model does not know their tokens.
    """

    path: str
    indices: tuple[int, ...]
    width: int
    make: Callable[[], Tensor]
    new: bool = False

    # ----------------------------------------------------------------- in a file of PEFT's layout

    @classmethod
    def claim(cls, name: str, config: PeftConfig) -> tuple[str, str] | None:
        """Return the embedding's path."""
        if config.trainable_token_indices is None or not name.endswith(_TOKENS):
            return None
        return name.removesuffix(_TOKENS), "rows"

    @classmethod
    def read(cls, found: Found, header: Header) -> Iterator[Rows]:
        """Yield the rows; the file has to hold each row that the configuration names, once."""
        for path, roles in found.items():
            key = roles["rows"]
            indices, shape = header.config.token_indices(path), header.tensors.shape(key)
            right = len(shape) == 2 and len(indices) == len(set(indices)) == shape[0]
            if not right or min(indices, default=0) < 0 or header.tensors.dtype(key) not in FLOATS:
                raise SoraError(f"'{path}': trainable_token_indices names {len(indices)} rows, "
                                f"each once; the file holds {shape}",
                                where=header.where)  # fmt: skip
            read = _reader(header, key)
            yield cls(path, tuple(indices), shape[1], read, header.new_tokens)

    @classmethod
    def configured(cls, parts: Sequence[Rows]) -> dict[str, Any]:
        """Return the numbers of the rows."""
        rows = {part.path: [*part.indices] for part in parts}
        return {"trainable_token_indices": rows} if rows else {}

    def written(self, adapted: Collection[str]) -> tuple[str, Tensor]:
        """Return the key and the rows."""
        return f"{PREFIX}{self.path}{_TOKENS}", self.make()

    # ------------------------------------------------------------------------------- what it holds

    @property
    def parameters(self) -> int:
        """Numbers in the rows."""
        return len(self.indices) * self.width

    def held(self) -> Rows:
        """Return the same part in memory."""
        return rows_of(self.path, self.replaced(), new=self.new)

    def replaced(self) -> Replaced:
        """Read the update."""
        return Replaced(torch.tensor(self.indices), self.make())

    digested_first = True

    @property
    def digest_names(self) -> tuple[str, ...]:
        """The name of the rows."""
        return (f"{self.path}.tokens",)

    def digested(self) -> Mapping[str, tuple[Content, ...]]:
        """Return the numbers of the rows, and the rows."""
        return {self.digest_names[0]: self.replaced().tensors()}

    # ------------------------------------------------------------- on a model, and in its files

    @classmethod
    def prepare(cls, model: nn.Module, parts: Sequence[Rows]) -> None:
        """Make room for the rows of new tokens."""
        grow_for(model, {part.path: part.indices for part in parts})

    @torch.no_grad()
    def apply(self, model: nn.Module, today: str, *, fold: bool) -> None:
        """Write the rows in place, so that whatever is tied to the embedding has them, too."""
        rows = self.replaced()
        weight = token_weight(model, today, self.indices, self.width)
        if not (fold or self.new):  # new tokens need no way back: the base model does not know them
            raise only_merged(f"rows of '{self.path}' are trained in full")
        weight[rows.indices] = rows.values.to(weight)

    def targets(self, model: nn.Module, today: str | None) -> Iterator[Target]:
        """Yield the embedding's weight."""
        name = today or self.path
        token_weight(model, name, self.indices, self.width)
        transposed = is_transposed(model.get_submodule(name))
        yield Target(f"{today}.weight", self.path, transposed, rows=True)

    def changes(self) -> Mapping[str, Callable[[], Update]]:
        """Return the one change of the embedding's weight."""
        return {self.path: self.replaced}

    # ------------------------------------------------------------------ what a command may ask it

    @property
    def beside_factors(self) -> str | None:
        """Rows are no update of low rank."""
        return (
            f"this adapter also holds rows of '{self.path}' that were trained in full "
            "(trainable_token_indices)"
        )

    @property
    def unserved(self) -> str | None:
        """The objection of servers."""
        return "refuses trained rows of an embedding"

    @classmethod
    def section(cls, parts: Sequence[Rows]) -> Section:
        """Return the number of rows of each embedding."""
        rows = {part.path: len(part.indices) for part in parts}
        lines = [
            ("tokens", f"{count(n)} rows of {path}, trained in full") for path, n in rows.items()
        ]
        return Section({"tokens": rows}, lines)

    @classmethod
    def words(cls, parts: Sequence[Rows]) -> Iterator[str]:
        """Yield the number of rows of each embedding."""
        for part in parts:
            yield f"{count(len(part.indices))} rows of {part.path}"


def rows_of(path: str, replaced: Replaced, *, new: bool = False) -> Rows:
    """Return rows that are in memory."""
    values = replaced.values
    return Rows(path, tuple(replaced.indices.tolist()), values.shape[1], lambda: values, new)


def all_rows(parts: Iterable[Part]) -> dict[str, Rows]:
    """Return the parts that are rows of embeddings, by the embeddings' paths."""
    return {part.path: part for part in parts if isinstance(part, Rows)}


def _reader(header: Header, key: str) -> Callable[[], Tensor]:
    return lambda: header.read(key)
