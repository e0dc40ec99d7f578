"""Find the layer of the base model for each pair of a foreign file."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from sora_cli.adapter.foreign.base import BaseLayers
from sora_cli.adapter.foreign.contents import Contents, ForeignPair
from sora_cli.core.errors import SoraError
from sora_cli.core.words import first_few
from sora_cli.model.tensors import TensorFile

_NUMBER = re.compile(r"_(\d+)(?=_)")

DIFFUSERS_PARTS = {"lora_unet": "unet", "lora_te": "text_encoder", "lora_te1": "text_encoder",
                   "lora_te2": "text_encoder_2", "lora_te3": "text_encoder_3"}  # fmt: skip
"""Kohya's prefix of each model -> its directory in a pipeline of diffusers."""


def parts_of(contents: Contents) -> list[str]:
    """Return the models that a file is for, in the order of the file."""
    return list(dict.fromkeys(pair.part for pair in contents.pairs))


def readable_names(contents: Contents) -> dict[str, ForeignPair]:
    """Return {readable name: pair}, for a look at the file without its base model."""
    names = {}
    for pair in contents.pairs:
        name = (
            _NUMBER.sub(r".\1.", pair.name).replace("._", ".") if contents.flattened else pair.name
        )
        names[f"{pair.part}.{name}" if pair.part else name] = pair
    return names


def by_name(contents: Contents, where: str) -> dict[str, ForeignPair]:
    """Return {module path: pair} for a file of one model with module paths as names."""
    parts = parts_of(contents)
    if not contents.exact:
        raise SoraError(
            f"{contents.format}'s names cannot be matched to layers without the base model",
            where=where,
            hint=f"add --base MODEL{f' (the file names {contents.base})' if contents.base else ''}",
        )
    if len(parts) > 1:
        raise SoraError(
            f"the file holds adapters of several models: {', '.join(parts)}",
            where=where,
            hint="choose one by its base model: --base MODEL",
        )
    return {pair.name: pair for pair in contents.pairs}


def by_base(
    contents: Contents, tensors: TensorFile, base: BaseLayers
) -> tuple[dict[str, ForeignPair], dict[str, str]]:
    """Return {module path in the base: pair}, and {part of the file that does not fit: reason}.

    Exactly one part of the file has to fit. A part fits if each name is one layer of the base, no
    layer has two names, and all shapes agree.
    """
    names = (
        _flattened(base.names) if contents.flattened else {n: {p} for n, p in base.names.items()}
    )
    fitting: dict[str, dict[str, ForeignPair]] = {}
    failures: dict[str, SoraError] = {}
    for part in parts_of(contents):
        try:
            fitting[part] = _match_layers(
                [pair for pair in contents.pairs if pair.part == part], names, tensors, base
            )
        except SoraError as error:
            failures[part] = error
    if not fitting:
        raise _closest(failures, contents, base)
    if len(fitting) > 1:
        raise SoraError(
            f"{' and '.join(fitting)} in the file both fit {base.reference.path}",
            where=str(tensors.file),
        )
    part, pairs = fitting.popitem()
    return pairs, {part: error.what for part, error in failures.items()}


def _closest(failures: Mapping[str, SoraError], contents: Contents, base: BaseLayers) -> SoraError:
    """Return the error of the only part, or else one that names all."""
    if len(failures) == 1:
        return next(iter(failures.values()))
    reasons = "; ".join(f"{part}: {error.what}" for part, error in failures.items())
    return SoraError(f"no part of this file of {contents.format} fits {base.reference.path}",
                     where=reasons)  # fmt: skip


def _flattened(names: Mapping[str, str]) -> dict[str, set[str]]:
    flat: dict[str, set[str]] = {}
    for name, path in names.items():
        flat.setdefault(name.replace(".", "_"), set()).add(path)
    return flat


def _match_layers(
    pairs: Iterable[ForeignPair],
    names: Mapping[str, set[str]],
    tensors: TensorFile,
    base: BaseLayers,
) -> dict[str, ForeignPair]:
    matches: dict[str, ForeignPair] = {}
    where, reference = str(tensors.file), base.reference.path
    pairs = list(pairs)
    absent = [pair.name for pair in pairs if pair.name not in names]
    if absent:
        raise SoraError(
            f"{reference} has no layer {first_few(absent)}, which the file names",
            where=where,
            hint="is it the right base? --base MODEL",
        )
    for pair in pairs:
        paths = names[pair.name]
        if len(paths) > 1:
            raise SoraError(f"'{pair.name}' fits several layers of {reference}: "
                            f"{' and '.join(sorted(paths))}", where=where)  # fmt: skip
        (path,) = paths
        if path in matches:
            raise SoraError(f"'{pair.name}' and '{matches[path].name}' are the same layer of "
                            f"{reference}: '{path}'", where=where)  # fmt: skip
        matches[path] = pair
    for path, pair in matches.items():
        shape = weight_shape(pair, tensors)
        if shape != base.shapes[path]:
            raise SoraError(
                f"'{path}' of {reference} has the shape {base.shapes[path]}, its update in the "
                f"file {shape}",
                where=where,
                hint="is it the right base? --base MODEL",
            )
    return matches


def weight_shape(pair: ForeignPair, tensors: TensorFile) -> tuple[int, ...]:
    """Return the shape of the weight to be updated: (out, in), then the kernel of a convolution."""
    a, b = tensors.shape(pair.a), tensors.shape(pair.b)
    if pair.transposed:
        a, b = a[::-1], b[::-1]
    return (*b[:1], *a[1:])  # B of a convolution is (out, r, 1, 1): the kernel is in A
