"""PEFT's `target_parameters`: factors of single parameters, such as the fused experts of a mixture.

PEFT wraps the parameter's module, once more for each further parameter of the module
(tuners/lora/layer.py, `ParamWrapper`). The keys name the wrappers, not the parameters:
`experts.lora_A` is the last parameter's and `experts.base_layer.lora_A` the one's before it, in the
order in which the module registers them. Each expert in a parameter is a layer here; its path is
the parameter's name and the expert's number.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from sora_cli.core.errors import SoraError

_BASE = ".base_layer"
_ORDER = ("gate_up_proj", "gate_up_proj_bias", "up_proj", "down_proj", "down_proj_bias")
"""Parameters of experts in the order in which the modules of transformers 5.24 register them.
Another order cannot pass unseen: their shapes differ, and are compared with the model's."""


def parameters_of(paths: Iterable[str], targets: Sequence[str], where: str) -> dict[str, str]:
    """Return {path in the file's keys: name of the parameter} for the paths of parameters.

    Args:
        paths: those that no other rule of the configuration chooses.
        targets: `target_parameters` of the configuration.
    """
    wrappers: dict[str, list[str]] = {}
    for path in paths:
        wrappers.setdefault(path.replace(_BASE, ""), []).append(path)
    named: dict[str, str] = {}
    for module, wrapped in wrappers.items():
        # PEFT's rule: the parameter's full name, or its end after a dot
        ends = {t.rpartition(".")[2] for t in targets if f".{module}.{_last(t)}".endswith(f".{t}")}
        if not ends:
            continue
        unknown = ends.difference(_ORDER) if len(ends) > 1 else ()
        if unknown or len(ends) != len(wrapped):
            what = f"target_parameters names {', '.join(sorted(ends))} of '{module}'"
            raise SoraError(
                f"{what}, whose order is not known" if unknown else
                f"{what}, but the file holds {len(wrapped)} of them", where=where)  # fmt: skip
        # the wrapper of the first parameter is the innermost
        first_to_last = sorted(ends, key=_place)
        for path, name in zip(sorted(wrapped, key=len, reverse=True), first_to_last, strict=True):
            named[path] = f"{module}.{name}"
    return named


def wrapper_paths(parameters: Iterable[str]) -> dict[str, str]:
    """Return {name of a parameter: its path in the keys of a file}, the reverse."""
    ordered = sorted(parameters, key=lambda name: (_module(name), -_place(_last(name))))
    return {
        name: module + _BASE * depth
        for module, group in groupby(ordered, key=_module)
        for depth, name in enumerate(group)
    }


def expert_path(parameter: str, number: int) -> str:
    """Return the path of one expert in a parameter."""
    return f"{parameter}.{number}"


def parameter_of(path: str) -> str:
    """Return the name of the parameter that an expert's path belongs to."""
    return path.rpartition(".")[0]


def expert_number(path: str) -> int:
    """Return the number in an expert's path."""
    return int(path.rpartition(".")[2])


_APART = re.compile(r"(.+\.experts)\.(\d+)\.(\w+)")
"""The path of one expert's layer, as before transformers 5 fused them."""


def experts_apart(paths: Iterable[str]) -> dict[str, dict[str, list[str]]]:
    """Return {path of a layer's experts: {name of a weight: its paths, one of each expert}}.

    Only experts with layers of their own count.
    """
    layers: dict[str, dict[str, list[str]]] = {}
    for path in paths:
        if (found := _APART.fullmatch(path)) is not None:
            layers.setdefault(found[1], {}).setdefault(found[3], []).append(path)
    return layers


def _place(name: str) -> int:
    return _ORDER.index(name) if name in _ORDER else 0


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _module(name: str) -> str:
    return name.rpartition(".")[0]
