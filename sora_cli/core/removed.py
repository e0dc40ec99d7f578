"""The table of removals: recipe keys, values of keys, and flags that earlier versions had.

A typed one is an error that names the way out. In a stored recipe, which holds every key with its
default, a key is dropped in silence if it had that default (`recipe/changes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any


@dataclass(frozen=True)
class Removed:
    """A key, a text value of a key, or a flag of earlier versions.

    Attributes:
        name: a recipe key ("auto.refit"), or a command with one of its flags ("sora auto --refit").
        instead: the way out.
        value: pattern (`fnmatch`) of the values that are gone; None: the whole key is.
        unused: the key's values in stored recipes that did not use it.
    """

    name: str
    instead: str
    value: str | None = None
    unused: tuple[Any, ...] = (None,)

    def has(self, value: Any) -> bool:
        """Return True if this value of the key is gone."""
        return self.value is None or (isinstance(value, str) and fnmatchcase(value, self.value))

    def gone(self, value: Any = None) -> str:
        """Return the first line of the error for a typed key, with its value, or a typed flag."""
        return f"there is no {self.name if self.value is None else f'{self.name}={value}'} any more"


_BY_LM_EVAL = (
    "type: lm_eval --model hf --model_args pretrained=BASE,peft=DIR --include_path DIR --tasks NAME"
)

REMOVED = (
    Removed(
        "model.trust_kernel",
        "attention is sdpa, eager, flash_attention_2 or flex_attention; leave trust_kernel out",
        unused=(False,),
    ),
    Removed(
        "model.attention",
        "model.attention=flash_attention_2, with the package flash-attn; or sdpa",
        value="*/*",
    ),
    *(
        Removed(name, _BY_LM_EVAL)
        for name in (
            "sora eval --benchmark",
            "sora eval --benchmark-tasks",
            "sora eval --limit",
            "sora eval --few-shot",
            "sora eval --batch-size",
            "sora eval --output",
            "sora eval -o",
        )
    ),
    Removed(
        "auto.cross_fit",
        "leave it out: rows are held out; rows without labels can test, too: --unlabelled FILE",
        unused=("auto", False),
    ),
    Removed(
        "auto.refit",
        "train a size on all rows: sora train, with method.max_params",
        unused=(False,),
    ),
    Removed("auto.basis", "leave it out: whichever certifies more is planned", value="both"),
    Removed("data.half", "leave it out; half-validation, and train-rows, stay in data.selection"),
    Removed("data.selection", "data.selection=train-rows holds rows out", value="half-train"),
    Removed("sora auto --cross-fit", "leave it out: rows are held out"),
    Removed("sora auto --no-cross-fit", "leave it out: rows are held out"),
    Removed("sora auto --refit", "train a size on all rows: sora train, with method.max_params"),
    Removed(
        "sora compare --html",
        "for tables: -o FILE.md; for pictures: --plot FILE.png; for the page of a run: sora report",
    ),
)
"""Every entry names one way out, and is told in CHANGELOG.md under "Removed"."""


def removed_flag(command: str, flag: str) -> Removed | None:
    """Return the entry of a command's flag, such as ("sora auto", "--refit")."""
    return next((entry for entry in REMOVED if entry.name == f"{command} {flag}"), None)


def removed_keys(recipe: Mapping[str, Any]) -> Iterator[tuple[Removed, tuple[str, str], Any]]:
    """Yield the entries that a recipe's values match: entry, (block, key), value."""
    for entry in REMOVED:
        block, _, key = entry.name.partition(".")
        values = recipe.get(block)
        if isinstance(values, Mapping) and key in values and entry.has(values[key]):
            yield entry, (block, key), values[key]
