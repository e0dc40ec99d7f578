"""The contents of another program's file, in the terms that all formats share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.model.tensors import TensorFile


@dataclass(frozen=True)
class Source:
    """An open file of another program.

    Attributes:
        tensors: the file.
        metadata: the texts in its header.
        config: the content of `adapter_config.json` beside it; empty if there is none.
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
        """Return the number in a tensor with a single element."""
        tensor = self.tensors.read(key)
        if tensor.numel() != 1:
            raise SoraError(f"'{key}' is not a single number", where=self.where)
        return float(tensor.reshape(()))


@dataclass(frozen=True)
class ForeignPair:
    """One module's factors: dW = scaling B A.

    Attributes:
        name: the module's name in the file.
        part: the model around the module, if a file is for several: "unet", "lora_te1".
        a, b: keys of A (r, in) and B (out, r); of convolutions (r, in, h, w) and (out, r, 1, 1).
        scaling: factor of the product.
        alpha: key of the number that gave the scaling; None: there was none.
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
    """The content of a file in a known format.

    Attributes:
        format: the program's name.
        pairs: in the order of the file.
        flattened: names have "_" in place of ".", so that only the base model tells the module.
        exact: names are module paths, which need no base model to be understood.
        base: name of the base model, if the file has one.
        task_type: PEFT's, if the format is for one task only.
    """

    format: str
    pairs: tuple[ForeignPair, ...]
    flattened: bool = False
    exact: bool = False
    base: str = ""
    task_type: str | None = None


Reader = Callable[[Source], Contents | None]
"""Returns None for a file of another format; raises if a file of its own format is not readable."""


def halves(
    source: Source, split: Callable[[str], tuple[str, str] | None], more: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Sort a file's keys: {module: {"a", "b" or another kind: key}}.

    Half a pair is an error, and so is any key that is more than a plain LoRA or not known.

    Args:
        split: returns (module, kind) of a key; None for an unknown key.
        more: error message -> the text in a key that shows it, for everything beyond a plain LoRA.
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
    """Return a module's name as in the file, from "part|name"."""
    return module.replace("|", "_")


def scaled_pairs(source: Source, modules: Mapping[str, Mapping[str, str]]) -> list[ForeignPair]:
    """Return pairs scaled by alpha / r, or by 1 if there is no alpha.

    Args:
        found: {"part|name": {"a", "b", perhaps "alpha": key}}.
    """
    pairs = []
    for module, keys in modules.items():
        part, _, name = module.partition("|")
        rank = (*source.tensors.shape(keys["a"]), 1)[0]  # 1 for a tensor of no dimensions
        scaling = source.number(keys["alpha"]) / max(rank, 1) if "alpha" in keys else 1.0
        pairs.append(ForeignPair(name, part, keys["a"], keys["b"], scaling, keys.get("alpha")))
    return pairs
