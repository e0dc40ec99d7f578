"""The contents of another program's file, in the terms that all formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.model.tensors import TensorFile


@dataclass(frozen=True)
class Source:
    """An open file of some program.

    Attributes:
        tensors: the file.
        metadata: the texts in its header.
        config: `adapter_config.json` beside it; empty where there is none.
    """

    tensors: TensorFile
    metadata: Mapping[str, str]
    config: Mapping[str, Any]

    @property
    def where(self) -> str:
        """The file, for errors."""
        return str(self.tensors.file)

    @property
    def keys(self) -> list[str]:
        """Names of its tensors."""
        return self.tensors.keys

    def number(self, key: str) -> float:
        """Return the only number of a tensor."""
        tensor = self.tensors.read(key)
        if tensor.numel() != 1:
            raise SoraError(f"'{key}' is not a single number", where=self.where)
        return float(tensor.reshape(()))


@dataclass(frozen=True)
class ForeignPair:
    """One module's factors: dW = scaling B A.

    Attributes:
        name: the module's, as the format writes it.
        part: the model that it is in, where a file is for several: "unet", "lora_te1".
        a, b: keys of A (r, in) and B (out, r); of convolutions (r, in, h, w) and (out, r, 1, 1).
        scaling: of their product.
        alpha: the key of the number that the scaling is from, if it is from one.
        transposed: A is stored as (in, r) and B as (r, out).
    """

    name: str
    part: str
    a: str
    b: str
    scaling: float
    alpha: str | None = None
    transposed: bool = False


@dataclass(frozen=True)
class Contents:
    """A file that is one of a format, and can be read.

    Attributes:
        format: the program's name.
        pairs: in the order of the file.
        flattened: names are the base's with "_" for ".", so only the base can tell which.
        exact: names are the modules' own, also without a base to compare with.
        base: name of the base model, where the format has one.
        task_type: PEFT's, where the format is for one task only.
    """

    format: str
    pairs: tuple[ForeignPair, ...]
    flattened: bool = False
    exact: bool = False
    base: str = ""
    task_type: str | None = None


Reader = Callable[[Source], Contents | None]
"""Returns None for a file of another format; raises for one of its own that it cannot read."""


def halves(
    source: Source, split: Callable[[str], tuple[str, str] | None], more: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Sort a file's keys: {module: {"a", "b" or another kind: key}}.

    Args:
        split: (module, kind) of a key; None: of nothing known.
        more: reason -> text in a key, of what is more than a plain LoRA.
    """
    found: dict[str, dict[str, str]] = {}
    for key in source.keys:
        why = next((why for why, mark in more.items() if mark in key), None)
        if why is not None:
            raise SoraError(why, where=f"{source.where}: '{key[:120]}'")
        parted = split(key)
        if parted is None:
            raise SoraError(f"'{key[:120]}' is neither half of a LoRA pair nor its alpha",
                            where=source.where)  # fmt: skip
        module, kind = parted
        if kind in found.setdefault(module, {}):
            raise SoraError(f"'{_name(module)}' has two tensors for {kind}", where=source.where)
        found[module][kind] = key
    for module, keys in found.items():
        if not {"a", "b"} <= keys.keys():
            raise SoraError(
                f"'{_name(module)}' is half a pair: there is only '{min(keys.values())}'",
                where=source.where,
            )
    return found


def _name(module: str) -> str:
    """Return a module's name as the file has it, from "part|name"."""
    return module.replace("|", "_")


def scaled_pairs(source: Source, found: Mapping[str, Mapping[str, str]]) -> list[ForeignPair]:
    """Return pairs scaled by alpha / r, or by 1 where there is no alpha.

    Args:
        found: {"part|name": {"a", "b", perhaps "alpha": key}}.
    """
    pairs = []
    for module, keys in found.items():
        part, _, name = module.partition("|")
        rank = (*source.tensors.shape(keys["a"]), 1)[0]
        scaling = source.number(keys["alpha"]) / max(rank, 1) if "alpha" in keys else 1.0
        pairs.append(ForeignPair(name, part, keys["a"], keys["b"], scaling, keys.get("alpha")))
    return pairs
