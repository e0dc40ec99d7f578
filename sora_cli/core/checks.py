"""Checks of a command's options, made before torch loads.

The functions that do the work check the same: they are also called without a command.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sora_cli.core.errors import SoraError

if TYPE_CHECKING:
    from methods.keep import Keep

LAYOUTS = ("exact", "padded")
"""Each module at its own rank, by patterns; or all zero-padded to the largest, without patterns."""
STORED = ("float32", "bfloat16", "float16")
"""Number formats that factors are written in."""
GGUF_TYPES = ("f32", "f16")
"""Number formats of factors in a GGUF file."""
MERGED_GGUF = ("f16", "q8_0", "f32")
"""Number formats of changed weights in a merged GGUF file."""
FORMATS = ("peft", "gguf")
"""Forms of an exported adapter: a directory that PEFT loads, or one file for llama.cpp."""
MODEL_FORMATS = ("checkpoint", "gguf")
"""Forms of a merged model: a directory that transformers loads, or one file for llama.cpp."""
MERGED = ("base", *STORED)
"""Number formats that merged weights are written in; "base": each in the one it has in the base."""
ROUNDINGS = ("nearest", "stochastic")
"""Ways in which merged weights are rounded."""
COMBINATIONS = ("linear", "ties", "dare")
"""Ways in which adapters are made into one."""
COMPUTE = ("float32", "float64", "bfloat16", "float16")
"""Number formats that outputs are compared in."""


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise `SoraError` where an option's value is none of the known ones."""
    if value not in known:
        raise SoraError(f"there is no {name} '{value}'", hint=f"one of {', '.join(known)}")


def check_one(options: Sequence[str]) -> None:
    """Raise `SoraError` where several of the options that exclude each other are given."""
    if len(options) > 1:
        raise SoraError(f"{' and '.join(options)} exclude each other: give one of them")


def check_needed(needed: str, given: Mapping[str, bool]) -> None:
    """Raise `SoraError` where options are given that go with another one only, which is not."""
    for name, is_given in given.items():
        if is_given:
            raise SoraError(f"{name} goes with {needed} only")


def check_apart_from(option: str, others: Sequence[str]) -> None:
    """Raise `SoraError` where options are given that do not go with another one, which is."""
    if others:
        raise SoraError(f"{others[0]} does not go with {option}")


def option(name: str) -> str:
    """Return an option's name as it is written on the command line."""
    return f"--{name.replace('_', '-')}"


_LIMITS = {
    "energy": "is a share above 0 and up to 1",
    "mean_rank": "must be above 0",
    "rank": "must be at least 1",
    "max_params": "must be at least 1",
}


def check_keep(
    *, max_drop: str | None = None, max_differ: str | None = None, **rules: float | None
) -> Keep:
    """Return the truncation rule that a command's options give.

    Args:
        max_drop, max_differ: options that exclude every rule; `recipe.tolerance` checks their
            values.
        rules: options by the names of `KeepOptions`; None where they are not given.

    Raises:
        SoraError: options that exclude each other, or an impossible value.
    """
    from pydantic import ValidationError  # help does without

    from methods.keep import KeepOptions

    given = {name: value for name, value in rules.items() if value is not None}
    promises = {"--max-drop": max_drop, "--max-differ": max_differ}
    check_one([*map(option, given), *(name for name, text in promises.items() if text is not None)])
    try:
        return KeepOptions.model_validate(given).keep()
    except ValidationError as error:
        name, value = next(iter(given.items()))
        raise SoraError(f"{option(name)} {_LIMITS[name]}, not {value:g}") from error


def check_comparison(dtype: str, tolerance: float | None) -> None:
    """Raise `SoraError` where outputs cannot be compared in this format or with this tolerance."""
    if dtype not in COMPUTE:
        raise SoraError(f"--dtype must be one of {', '.join(COMPUTE)}, not {dtype}")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise SoraError(f"--tolerance must be 0 or more, not {tolerance:g}")


def check_working_directory() -> None:
    """Raise `SoraError` where the current directory has been deleted."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise SoraError(
            "the current directory is not there any more", hint="cd to one that is there"
        ) from error
