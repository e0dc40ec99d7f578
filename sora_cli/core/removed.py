"""The table of what earlier versions had: recipe keys, values of keys, and flags that are gone.

What a user types is answered with the way out. In a stored recipe, which holds every key with its
default, an entry is dropped in silence if it had that default (`recipe/changes.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_ANY = object()


@dataclass(frozen=True)
class Removed:
    """Something that earlier versions had.

    Attributes:
        name: a recipe key ("auto.refit"), or a command with one of its flags ("sora auto --refit").
        instead: what to do now.
        value: the one value of the key that is gone; default: the whole key is.
        default: the key's value in stored recipes that did not use it.
        off: another such value.
    """

    name: str
    instead: str
    value: Any = _ANY
    default: Any = None
    off: Any = None

    @property
    def what(self) -> str:
        """The words for it in messages."""
        value = self.value if isinstance(self.value, str) else str(self.value).lower()
        return self.name if self.value is _ANY else f"{self.name}={value}"

    def used(self, value: Any) -> bool:
        """Return True if a stored recipe with this value of the key used what is gone."""
        if self.value is _ANY:
            return value not in (self.default, self.off)
        return bool(value == self.value)


_BY_LM_EVAL = (
    "type: lm_eval --model hf --model_args pretrained=BASE,peft=DIR --include_path DIR --tasks NAME"
)

REMOVED = (
    Removed(
        "model.trust_kernel",
        "attention is sdpa, eager, flash_attention_2 or flex_attention; leave trust_kernel out",
        default=False,
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
        default="auto",
        off=False,
    ),
    Removed(
        "auto.refit", "train a size on all rows: sora train, with method.max_params", default=False
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
    """Yield what a recipe's values have of the table: entry, (block, key), value."""
    for entry in REMOVED:
        block, _, key = entry.name.partition(".")
        values = recipe.get(block)
        if not isinstance(values, Mapping) or key not in values:
            continue
        if entry.value is _ANY or entry.value == values[key]:
            yield entry, (block, key), values[key]
