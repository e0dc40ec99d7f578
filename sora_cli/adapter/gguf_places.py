"""The places of an adapter's modules in llama.cpp: weight names, and the order of their rows.

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

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.gguf_kinds import (
    KINDS,
    Heads,
    Kind,
    configured_heads,
    gguf_names,
    has_tied_output,
    kind_of_architecture,
)
from sora_cli.adapter.metadata import read_json
from sora_cli.adapter.parts.form import grouped
from sora_cli.core.errors import SoraError, first_line
from sora_cli.core.words import first_few
from sora_cli.model.files import MODEL_CONFIG
from sora_cli.model.references import local_checkpoint, resolve_model_path

_EMBEDDINGS = ("token_embd", "position_embd", "token_types")


@dataclass(frozen=True)
class Place:
    """A module in llama.cpp: the name of its weight, and the order of its rows."""

    name: str
    rows: Tensor | None  # (out,) int64


def places_of(file: Adapter, base: str) -> tuple[str, dict[str, Place]]:
    """Return llama.cpp's name of the architecture, and {module path: place}.

    An adapter is refused if one of its parts has no place, or no place that is known to be exact.
    """
    check_package()
    _check_parts(file)
    source = local_checkpoint(resolve_model_path(base), file.base.revision)
    if source is not None and source.is_file():
        return places_in_file(file, source)
    if source is None or not (source / MODEL_CONFIG).is_file():
        raise SoraError(
            f"the base model {base} is not here: its config.json is needed for llama.cpp's names",
            hint="name a GGUF file or a directory: --base MODEL",
        )
    config = read_json(source / MODEL_CONFIG)
    if not isinstance(config, dict):
        raise SoraError(f"{source / MODEL_CONFIG} is not a configuration")
    model_type = str(config.get("model_type"))
    kind = KINDS.get(model_type)
    if kind is None:
        raise _refusal(f"adapters of {model_type} models are not known to be exact in llama.cpp")
    names = gguf_names(model_type, file.paths) or {}
    tied = [path for path in file.paths if names.get(path) == "output"]
    if tied and has_tied_output(config):
        raise _refusal(f"llama.cpp cannot adapt {tied[0]}, which is tied to the embedding")
    try:
        heads = configured_heads(config) if kind.order else Heads(1, 1)
    except LookupError as error:
        raise _refusal(f"{source / MODEL_CONFIG} does not say {error.args[0]}") from error
    return kind.architecture, _match_places(file, kind, names, heads)


def places_in_file(file: Adapter, source: Path) -> tuple[str, dict[str, Place]]:
    """Return the same for a base model in a GGUF file, after checking the shape of each weight."""
    check_package()
    _check_parts(file)
    import gguf

    try:
        reader = gguf.GGUFReader(source)
        architecture = str(reader.fields[gguf.Keys.General.ARCHITECTURE].contents())
        kind = kind_of_architecture(architecture)
        if kind is None:
            raise _refusal(f"adapters of {architecture} models are not known to be exact in "
                           "llama.cpp")  # fmt: skip
        heads = _heads_in_file(reader, architecture) if kind.order else Heads(1, 1)
        shapes = {t.name: tuple(int(n) for n in t.shape) for t in reader.tensors}  # (in, out)
    except SoraError:
        raise
    except Exception as error:  # it parses the file without checks of its own
        raise SoraError(f"the GGUF file {source} cannot be read: {first_line(error)}") from error
    names = gguf_names(architecture, file.paths) or {}
    places = _match_places(file, kind, names, heads)
    for path, place in places.items():
        shape = shapes.get(f"{place.name}.weight")
        if shape is None:
            raise _refusal(f"{source.name} has no {place.name}.weight, for '{path}'")
        if shape != file.shapes[path][::-1]:
            raise _refusal(
                f"'{path}' is (in, out) = {file.shapes[path][::-1]}, but {place.name}.weight in "
                f"{source.name} is {shape}"
            )
    return architecture, places


def _check_parts(file: Adapter) -> None:
    if file.full:
        names = first_few(file.head_modules or file.full)
        raise _refusal(f"llama.cpp takes no weights stored in full with an adapter: {names}")
    if file.forms:
        raise _refusal(f"only adapters of linear layers are known to be exact in llama.cpp, not "
                       f"{first_few(grouped(file.forms, file.forms))}")  # fmt: skip


def _heads_in_file(reader: Any, architecture: str) -> Heads:
    def number(name: str) -> int | None:
        field = reader.fields.get(f"{architecture}.{name}")
        return None if field is None else int(field.contents())

    count = number("attention.head_count") or 1
    size = number("attention.key_length") or (number("embedding_length") or 0) // count
    return Heads(count, size)


def _match_places(
    file: Adapter, kind: Kind, names: Mapping[str, str | None], heads: Heads
) -> dict[str, Place]:
    places: dict[str, Place] = {}
    for path in file.paths:
        name = names.get(path)
        if name is None:
            raise _refusal(f"llama.cpp has no place for '{path}' of a {kind.architecture} model")
        if name in _EMBEDDINGS:
            raise _refusal(f"'{path}' is an embedding, whose factors llama.cpp looks up instead of "
                           "multiplying")  # fmt: skip
        if any(place.name == name for place in places.values()):
            raise _refusal(f"'{path}' and another module are one weight in llama.cpp, {name}")
        places[path] = Place(name, _rows(kind, path, file.shapes[path][0], heads))
    return places


def _rows(kind: Kind, path: str, n_out: int, heads: Heads) -> Tensor | None:
    """Return the rows of the model in llama.cpp's order, (out,) int64; None: in the same order."""
    part, places = path.rpartition(".")[2], torch.arange(n_out)
    if kind.order == "turns" and part in ("q_proj", "k_proj"):
        if not heads.size or n_out % heads.size or heads.size % 2:
            raise _refusal(f"'{path}' has {n_out} outputs, which are not whole heads of "
                           f"{heads.size}")  # fmt: skip
        # LlamaModel.permute: transformers rotates halves of a head, llama.cpp neighbouring numbers
        return places.view(-1, 2, heads.size // 2).swapaxes(1, 2).reshape(-1)
    if kind.order == "joint" and part == "query_key_value":
        if n_out != 3 * heads.count * heads.size:
            raise _refusal(f"'{path}' has {n_out} outputs, not query, key and value of "
                           f"{heads.count} heads")  # fmt: skip
        # transformers has query, key and value head by head: (heads, 3, size)
        return places.view(heads.count, 3, heads.size).swapaxes(0, 1).reshape(-1)
    return None


def _refusal(why: str) -> SoraError:
    return SoraError(why, hint="sora merge first, and convert the merged model")


def check_package() -> None:
    """Check that the package gguf is installed."""
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise SoraError("writing GGUF files needs the package gguf",
                        hint="pip install gguf") from error  # fmt: skip
