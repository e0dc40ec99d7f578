"""Checks of a command's options, made before torch loads.

The functions that do the work repeat these checks, since they can also be called directly.
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
"""Layouts of exported ranks: each module keeps its own rank (written as patterns), or all modules
are zero-padded to the largest rank (no patterns)."""
STORED = ("float32", "bfloat16", "float16")
"""Number formats of stored factors."""
GGUF_TYPES = ("f32", "f16")
"""Number formats of factors in a GGUF file."""
MERGED_GGUF = ("f16", "q8_0", "f32", "base")
"""Number formats of changed weights in a merged GGUF file; "base": each keeps its own."""
FORMATS = ("peft", "gguf", "packed")
"""Forms of an exported adapter: a directory that PEFT loads, one file for llama.cpp, or one small
file of a rounded adapter."""
MODEL_FORMATS = ("checkpoint", "gguf")
"""Forms of a merged model: a directory that transformers loads, or one file for llama.cpp."""
MERGED = ("base", *STORED)
"""Number formats of merged weights; "base": each weight keeps the format of the base model."""
ROUNDINGS = ("nearest", "stochastic")
"""Rounding of merged weights."""
COMBINATIONS = ("linear", "ties", "dare")
"""Methods of combining adapters into one."""
COMPUTE = ("float32", "float64", "bfloat16", "float16")
"""Number formats for comparing outputs."""


def check_choice(name: str, value: str, known: Iterable[str]) -> None:
    """Raise `SoraError` unless an option's value is one of `known`."""
    if value not in known:
        raise SoraError(f"there is no {name} '{value}'", hint=f"one of {', '.join(known)}")


def check_exclusive(options: Sequence[str]) -> None:
    """Raise `SoraError` if more than one of some mutually exclusive options was given."""
    if len(options) > 1:
        raise SoraError(f"{' and '.join(options)} exclude each other: give one of them")


def check_requires(needed: str, given: Mapping[str, bool]) -> None:
    """Raise `SoraError` if an option was given but not `needed`, which that option requires."""
    for name, is_given in given.items():
        if is_given:
            raise SoraError(f"{name} goes with {needed} only")


def check_excludes(option: str, others: Sequence[str]) -> None:
    """Raise `SoraError` if any of `others` was given together with `option`."""
    if others:
        raise SoraError(f"{others[0]} does not go with {option}")


def option(name: str) -> str:
    """Return an option's spelling on the command line: "max_drop" becomes "--max-drop"."""
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
    """Return the truncation rule of a command's options; at most one of them may be given.

    Args:
        max_drop, max_differ: values of --max-drop and --max-differ, which exclude every rule; only
            their presence is checked here (`recipe.tolerance` checks the values).
        rules: values by the names of `KeepOptions`; None: not given.
    """
    from pydantic import ValidationError  # not needed for --help

    from methods.keep import KeepOptions

    given = {name: value for name, value in rules.items() if value is not None}
    promises = {"--max-drop": max_drop, "--max-differ": max_differ}
    promised = [name for name, text in promises.items() if text is not None]
    check_exclusive([*map(option, given), *promised])
    try:
        return KeepOptions.model_validate(given).keep()
    except ValidationError as error:  # pydantic's text would name a field, not the option
        name, value = next(iter(given.items()))
        raise SoraError(f"{option(name)} {_LIMITS[name]}, not {value:g}") from error


def check_bits(bits: int | None, head_bits: int | None, *, heal: bool = False) -> None:
    """Raise `SoraError` unless the options of rounding are valid."""
    from methods.keep import BITS, HEAD_BITS

    if bits is not None and bits not in BITS:
        known = ", ".join(map(str, BITS[:-1]))
        raise SoraError(f"--bits is {known} or {BITS[-1]}, not {bits}")
    if head_bits is not None and head_bits != HEAD_BITS:
        hint = f"--head-bits {HEAD_BITS}"
        raise SoraError(f"a head is rounded to {HEAD_BITS} bits only", hint=hint)
    check_requires("--bits", {"--head-bits": head_bits is not None and bits is None})
    if heal and bits is not None:
        raise SoraError(
            "--bits does not go with --heal: training would leave the grid",
            hint="heal first, then round the result: sora prune RUN -o OUT --bits 4",
        )


def check_comparison(dtype: str, tolerance: float | None) -> None:
    """Raise `SoraError` unless `dtype` and `tolerance` are valid for comparing outputs."""
    if dtype not in COMPUTE:
        raise SoraError(f"--dtype must be one of {', '.join(COMPUTE)}, not {dtype}")
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise SoraError(f"--tolerance must be 0 or more, not {tolerance:g}")


def check_working_directory() -> None:
    """Raise `SoraError` if the current directory has been deleted."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise SoraError(
            "the current directory has been deleted", hint="cd to an existing directory"
        ) from error
