"""The places of a model's modules in llama.cpp: weight names, and the order of their rows.

For a checkpoint they follow from its configuration. For a GGUF file they follow from the file,
which has to hold each weight in the right shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.factors import LowRankFactors
from sora_cli.core.errors import SoraError
from sora_cli.gguf.kinds import KINDS, Kind, gguf_names, has_tied_output
from sora_cli.gguf.package import reading

_EMBEDDINGS = ("token_embd", "position_embd", "token_types")


@dataclass(frozen=True)
class Place:
    """A module in llama.cpp: the name of its weight, and the order of its rows."""

    name: str
    rows: Tensor | None  # (out,) int64

    def in_order(self, factors: LowRankFactors) -> LowRankFactors:
        """Return a module's factors with the rows of B in llama.cpp's order."""
        return factors if self.rows is None else LowRankFactors(factors.A, factors.B[self.rows])


@dataclass(frozen=True)
class _Heads:
    """The attention heads of a model: their number, and the numbers in each."""

    count: int
    size: int


Shapes = Mapping[str, tuple[int, int]]
"""Module path -> (out, in)."""
Places = dict[str, Place]
"""Module path -> place."""


def places_by_config(config: Mapping[str, Any], where: Path, shapes: Shapes) -> tuple[str, Places]:
    """Return llama.cpp's name of a checkpoint's architecture, and the places of its modules.

    A module is refused if it has no place, or no place that is known to be exact.

    Args:
        config: the content of its config.json.
        where: that file, for errors.
    """
    model_type = str(config.get("model_type"))
    kind = _exact(KINDS.get(model_type), model_type)
    names = gguf_names(model_type, shapes) or {}
    tied = [path for path in shapes if names.get(path) == "output"]
    if tied and has_tied_output(config):
        raise refusal(f"llama.cpp cannot adapt {tied[0]}, which is tied to the embedding")
    heads = _configured_heads(config, where) if kind.order else _Heads(1, 1)
    return kind.architecture, _match_places(kind, names, heads, shapes)


def places_in_file(source: Path, shapes: Shapes) -> tuple[str, Places]:
    """Return the same for a model in a GGUF file, after checking the shape of each weight."""
    import gguf

    with reading(source):
        reader = gguf.GGUFReader(source)
        architecture = str(reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
        kinds = {kind.architecture: kind for kind in KINDS.values()}
        kind = _exact(kinds.get(architecture), architecture)
        heads = _heads_in_file(reader, architecture) if kind.order else _Heads(1, 1)
        stored = {t.name: tuple(int(n) for n in t.shape) for t in reader.tensors}  # (in, out)
    places = _match_places(kind, gguf_names(architecture, shapes) or {}, heads, shapes)
    for path, place in places.items():
        shape, expected = stored.get(f"{place.name}.weight"), shapes[path][::-1]
        if shape is None:
            raise refusal(f"{source.name} has no {place.name}.weight, for '{path}'")
        if shape != expected:
            raise refusal(f"'{path}' is (in, out) = {expected}, but {place.name}.weight in "
                          f"{source.name} is {shape}")  # fmt: skip
    return architecture, places


def refusal(why: str) -> SoraError:
    """Return the error about an update that llama.cpp cannot add to a model, or not exactly."""
    return SoraError(why, hint="sora merge first, and convert the merged model")


def _exact(kind: Kind | None, name: str) -> Kind:
    if kind is None:
        raise refusal(f"adapters of {name} models are not known to be exact in llama.cpp")
    return kind


def _configured_heads(config: Mapping[str, Any], where: Path) -> _Heads:
    count, hidden = (
        next((config[name] for name in names if isinstance(config.get(name), int)), None)
        for names in (("num_attention_heads", "n_head", "num_heads", "n_heads"),
                      ("hidden_size", "n_embd", "d_model"))
    )  # fmt: skip
    size = config.get("head_dim") or (hidden and count and hidden // count)
    if not isinstance(count, int) or not isinstance(size, int):
        raise refusal(f"{where} does not say the number of attention heads")
    return _Heads(count, size)


def _heads_in_file(reader: Any, architecture: str) -> _Heads:
    def number(name: str) -> int | None:
        field = reader.fields.get(f"{architecture}.{name}")
        return None if field is None else int(field.contents())

    count = number("attention.head_count") or 1
    size = number("attention.key_length") or (number("embedding_length") or 0) // count
    return _Heads(count, size)


def _match_places(
    kind: Kind, names: Mapping[str, str | None], heads: _Heads, shapes: Shapes
) -> Places:
    places: Places = {}
    for path, (n_out, _) in shapes.items():
        name = names.get(path)
        if name is None:
            raise refusal(f"llama.cpp has no place for '{path}' of a {kind.architecture} model")
        if name in _EMBEDDINGS:
            raise refusal(f"'{path}' is an embedding, whose factors llama.cpp looks up instead of "
                          "multiplying")  # fmt: skip
        if any(place.name == name for place in places.values()):
            raise refusal(f"'{path}' and another module are one weight in llama.cpp, {name}")
        places[path] = Place(name, _rows(kind, path, n_out, heads))
    return places


def _rows(kind: Kind, path: str, n_out: int, heads: _Heads) -> Tensor | None:
    """Return the rows of the model in llama.cpp's order, (out,) int64; None: in the same order."""
    part, places = path.rpartition(".")[2], torch.arange(n_out)
    if kind.order == "turns" and part in ("q_proj", "k_proj"):
        if not heads.size or n_out % heads.size or heads.size % 2:
            raise refusal(f"'{path}' has {n_out} outputs, which are not whole heads of "
                          f"{heads.size}")  # fmt: skip
        # LlamaModel.permute: transformers rotates halves of a head, llama.cpp neighbouring numbers
        return places.view(-1, 2, heads.size // 2).swapaxes(1, 2).reshape(-1)
    if kind.order == "joint" and part == "query_key_value":
        if n_out != 3 * heads.count * heads.size:
            raise refusal(f"'{path}' has {n_out} outputs, not query, key and value of "
                          f"{heads.count} heads")  # fmt: skip
        # transformers has query, key and value head by head: (heads, 3, size)
        return places.view(heads.count, 3, heads.size).swapaxes(0, 1).reshape(-1)
    return None
