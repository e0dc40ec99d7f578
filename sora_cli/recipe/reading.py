"""Recipe keys that evaluating commands read, and a check of their overrides.

A recipe is written for training. Many of its keys have no effect on a command that does not train,
so that an override of such a key is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sora_cli.core.errors import SoraError
from sora_cli.recipe.auto import Basis
from sora_cli.recipe.changes import flat
from sora_cli.recipe.layers import COMMAND_LINE, override_layers
from sora_cli.recipe.load import LoadedRecipe

_BASE = ("model", "path")


@dataclass(frozen=True)
class Reading:
    """The recipe keys that a command reads.

    Attributes:
        keys: whole blocks ("data") and single keys ("data.path").
        but: exceptions: keys of these blocks that the command does not read.
    """

    command: str
    keys: tuple[str, ...]
    but: tuple[str, ...] = ()

    def reads(self, key: str) -> bool:
        """Return True if the command reads a key."""
        return _among(key, self.keys) and not _among(key, self.but)

    def without(self, *keys: str) -> Reading:
        """Return a copy without some keys."""
        return replace(self, keys=tuple(key for key in self.keys if key not in keys))

    def words(self) -> str:
        """List the keys in words, for an error."""
        names = [key if "." in key else f"{key}.*" for key in self.keys]
        return ", ".join(names) + (f" (not {', '.join(self.but)})" if self.but else "")


_TRUST = "model.trust_remote_code"
_LOADING = ("model.dtype", "model.attention", "model.quantise", _TRUST, "training.precision")
_PASSES = ("training.eval_batch_size", "training.workers")
_ROWS = ("text_columns", "label_column", "columns", "label_names", "max_length")
_TRAINED_ON = ("data.max_train_rows", "task.packing")
_CHOICE = ("task.best_metric", "task.greater_is_better")
_NAMED = "task.top_k"  # the documents that `sora predict` names; scores look at ten

EVAL = Reading(
    "sora eval",
    ("data", "task", "model.path", *_LOADING, *_PASSES),
    (*_TRAINED_ON, "data.selection_rows", *_CHOICE, _NAMED),
)
MAX_DROP = Reading(
    "--max-drop",
    ("data", "task", "auto.basis", *_LOADING, *_PASSES),
    (*_TRAINED_ON, _NAMED),
)
_OF_ROWS = ("task", *(f"data.{name}" for name in _ROWS), *_LOADING, *_PASSES)
_NOT_OF_ROWS = ("task.metrics", *_CHOICE, "task.packing", "task.label_all_pieces")
PREDICT = Reading(
    "sora predict", (*_OF_ROWS, "data.corpus"), (*_NOT_OF_ROWS, "task.max_target_length")
)
NEXT_TOKENS = Reading(
    "--next-tokens",
    _OF_ROWS,
    (*_NOT_OF_ROWS, "task.max_new_tokens", "task.generation_batch_size"),
)
CERTIFICATE = Reading(
    "sora verify --certificate",
    (
        *("data.path", "data.name", "data.revision", "data.files", "data.corpus"),
        "auto.unlabelled",
        *("model.path", _TRUST),
    ),
)

_COLUMNS = ("data.text_columns", "data.columns", "task.prompt")
"""Overrides by which the user chooses the columns of rows without labels."""

Load = Callable[[Sequence[str]], LoadedRecipe]
"""A function that loads a recipe with the given overrides."""


def load_read(load: Load, overrides: Sequence[str], reading: Reading) -> LoadedRecipe:
    """Load a recipe for a command that does not train; check its overrides.

    An override of a key that the command does not read is an error, except if the override changes
    no value or the recipe is invalid without it.
    """
    # loaded twice, with and without the unread overrides: the difference shows which change a value
    loaded, kept = load(overrides), _without_unread(load, overrides, reading)
    if kept is None:
        return loaded
    before, now = (dict(flat(recipe.resolved())) for recipe in (kept[1], loaded))
    changed = {".".join(p) for p in {*before, *now} if before.get(p) != now.get(p)}
    for word in overrides:
        for key in _keys(word):
            if not reading.reads(key) and any(_among(other, (key,)) for other in changed):
                raise SoraError(
                    f"{key} would change nothing: {reading.command} does not read it",
                    where=f"{COMMAND_LINE}: {word}",
                    hint=f"keys that it reads: {reading.words()}",
                )
    return loaded


def names_columns(overrides: Sequence[str]) -> bool:
    """Return True if overrides name the columns that a model reads."""
    return any(word.startswith(_COLUMNS) for word in overrides)


def words_read(load: Load, overrides: Sequence[str], reading: Reading) -> Sequence[str]:
    """Return the overrides of keys that a command reads; all, if the recipe is invalid without."""
    kept = _without_unread(load, overrides, reading)
    return overrides if kept is None else kept[0]


def _without_unread(
    load: Load, overrides: Sequence[str], reading: Reading
) -> tuple[Sequence[str], LoadedRecipe] | None:
    """Return the overrides that are read, with their recipe; None: all are, or it is invalid."""
    kept = [word for word in overrides if all(map(reading.reads, _keys(word)))]
    if len(kept) == len(overrides):
        return None
    try:
        return kept, load(kept)
    except SoraError:
        return None


def named_base(loaded: LoadedRecipe) -> str | None:
    """Return `model.path` if an override sets it, else None."""
    named = loaded.origin(*_BASE).file == COMMAND_LINE
    return loaded.recipe.model.path if named else None


def named_basis(loaded: LoadedRecipe) -> Basis | None:
    """Return `auto.basis` if an override sets it, else None: a run's own is of another promise."""
    auto = loaded.recipe.auto
    named = loaded.origin("auto", "basis").file == COMMAND_LINE
    return auto.basis if auto is not None and named else None


def _keys(word: str) -> list[str]:
    values: Mapping[str, Any] = override_layers([word])[0].values
    return [".".join(path) for path, _ in flat(values)]


def _among(key: str, blocks: Sequence[str]) -> bool:
    return any(key == block or key.startswith(f"{block}.") for block in blocks)
