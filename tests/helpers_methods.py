"""The options of a small run, which each low-rank method's configuration names itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from methods.registry import config_class, low_rank_names

EXAMPLES: dict[str, dict[str, Any]] = {
    name: dict(config_class(name).EXAMPLE) for name in low_rank_names()
}
BUDGET = "sora with a budget"
VARIANTS: dict[str, dict[str, Any]] = {
    **EXAMPLES,
    BUDGET: {"r_max": 4, "threshold": None, "target_r": 1.5, "gate_init": "ones"},
}
"""The methods, and SoRA's other way, which takes the place of a threshold."""


def method_block(name: str) -> dict[str, Any]:
    """A recipe's block of a method, or of a variant, with its small options."""
    return {"name": name.partition(" ")[0], **VARIANTS[name]}


def method_words(name: str) -> list[str]:
    """The same as overrides, for a recipe of any method."""
    name, *options = method_block(name).items()
    return [f"method.name={name[1]}", *(f"method.{key}={json.dumps(v)}" for key, v in options)]


def set_method(recipe: Path, name: str, **options: Any) -> None:
    """Let a recipe's file train with a method, its small options and others."""
    blocks = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    blocks["method"] = {**method_block(name), **options}
    recipe.write_text(yaml.safe_dump(blocks, sort_keys=False), encoding="utf-8")
