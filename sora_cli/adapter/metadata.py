"""`sora.json`: facts about an adapter that PEFT's configuration has no key for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sora_cli import __version__
from sora_cli.core.errors import SoraError, first_mistake
from sora_cli.core.hub import looks_local
from sora_cli.core.json_text import distinct
from sora_cli.model.files import is_there
from sora_cli.model.references import is_hub_id
from sora_cli.recipe.tolerance import AGREEMENT

FORMAT_VERSION = 1
BASES = "SORA_BASES"
"""Environment variable: directories in which moved base models are searched."""
LARGEST_JSON = 50_000_000  # bytes; anybody may have written it, and parsed it takes many times that

_Rank = Annotated[int, Field(ge=0, le=2**20)]


@dataclass(frozen=True)
class BaseReference:
    """The base model of an adapter: its names, and the fingerprint of its weights."""

    path: str
    """The reference as the user wrote it: Hub id, directory, `package://...`, .gguf file."""
    resolved: str
    """The local path of this reference, or the Hub id."""
    revision: str | None = None
    fingerprint: str | None = None
    """See `sora_cli.model.fingerprint`."""
    hub_id: str | None = None
    """Its id on the Hub, if known."""

    def __post_init__(self) -> None:
        """Remove an invalid Hub id: anybody may have written the file."""
        if self.hub_id is not None and not is_hub_id(self.hub_id):
            object.__setattr__(self, "hub_id", None)

    @property
    def here(self) -> str | None:
        """The path `resolved`, if it is on this disk."""
        return self.resolved if self.resolved and is_there(self.resolved) else None

    def name(self) -> str:
        """Return the reference that loads the base model.

        It is an error if none is recorded, or if the recorded place on a disk is gone.
        """
        if self.here is not None:
            return self.here
        if "://" in self.path or (self.path and is_there(self.path)):
            return self.path
        known = self.hub_id or self.path or self.resolved
        if not known:
            raise SoraError("the adapter does not name its base model", hint="add --base MODEL")
        if looks_local(known):
            raise SoraError(
                f"there is no model at {known}, where the base model was",
                hint=f"to verify or merge, say where it is: --base MODEL; or set {BASES}=DIR in "
                "the environment to find it below DIR by its weights",
            )
        return known


class Training(BaseModel):
    """The run that made an adapter, with the facts for its card."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    name: str
    """The recipe's name."""
    data: tuple[str, ...] = ()
    """A data set's Hub id or name, or the names of files."""
    hub_data: bool = False
    """True for a data set of the Hub."""
    configuration: str | None = None
    """The data set's configuration."""
    data_revision: str | None = None
    rows: dict[str, int] = Field(default_factory=dict)
    """By split."""
    seed: int | None = None
    steps: int | None = None
    """Optimiser steps."""
    found_rate: float | None = None
    """The number that training.learning_rate: auto became; None: the recipe named one."""
    metric: str | None = None
    """The main metric."""
    metrics: dict[str, dict[str, float | None]] = Field(default_factory=dict)
    """By split; null for a score that is not a number."""
    selection: str = ""
    """A note on the rows that chose the checkpoint."""
    base_parameters: int | None = None
    license: str | None = None
    """The adapter's licence, by the Hub's name."""


class AdapterMeta(BaseModel):
    """The content of `sora.json` beside the base model; unknown for other tools' adapters."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    format_version: int = FORMAT_VERSION
    sora_version: str | None = None
    method: str | None = None
    method_config: dict[str, Any] = Field(default_factory=dict)
    task: str | None = None
    labels: tuple[str, ...] | None = None
    num_labels: int | None = None
    problem_type: str | None = None
    max_length: int | None = None
    input_columns: tuple[str, ...] = ()
    """Columns of the training rows that formed the model's input."""
    row_recipe: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """The part of the run's recipe for reading new rows: see `adapter/row_recipe`."""
    reference: str | None = None
    """Digest of the adapter that rewards were measured against; null: none, or the base model."""
    quantise: str | None = None
    """The form of the base's frozen weights in training, if packed: "4bit" or "8bit"."""
    ranks_start: dict[str, _Rank] = Field(default_factory=dict)
    """Module path -> components at the start of training."""
    ranks: dict[str, _Rank] = Field(default_factory=dict)
    """Module path -> live components, 0 for dead modules; filled in by `write_adapter`."""
    bits: int | None = None
    """Bits of each number, if all factors lie on a grid (`methods.grid`); null: they do not. Filled
    in by `write_adapter`."""
    rounding_errors: dict[str, float] = Field(default_factory=dict)
    """Module path -> ||rounded dW - dW||_F / ||dW||_F; empty without a grid."""
    training: Training | None = None
    lineage: tuple[dict[str, Any], ...] = ()
    """The changes made to the adapter after training, in order."""

    @property
    def new_tokens(self) -> list[str]:
        """The tokens that the run added to its base model."""
        return list(self.row_recipe.get("model", {}).get("new_tokens") or [])

    @property
    def adapts(self) -> str | None:
        """The only texts that the adapter is for: "query"; None: all."""
        adapts = self.row_recipe.get("task", {}).get("adapt")
        return None if adapts == "both" else adapts

    def check_whole(self) -> None:
        """Raise `SoraError` if a merged model would change texts that the adapter is not for."""
        if self.adapts is not None:
            raise SoraError(
                "the adapter is for queries alone (task.adapt=query): in a merged model documents "
                "would change, too, and an index of the base model's vectors would be void",
                hint="serve it as an adapter: queries with it, documents with the base model alone",
            )


QUERIES_ALONE = "queries alone; the base model embeds documents, without this adapter"
"""What an adapter with `adapts` is for."""


class _SoraFile(AdapterMeta):
    base: BaseReference | None = None


def read_sora_file(path: Path) -> tuple[AdapterMeta, BaseReference | None]:
    """Read the metadata and the base model; everything is unknown if there is no such file."""
    if not path.is_file():
        return AdapterMeta(), None
    try:
        read = _SoraFile.model_validate(read_json(path))
    except ValidationError as error:
        raise SoraError(first_mistake(error), where=str(path)) from error
    if read.format_version > FORMAT_VERSION:
        raise SoraError(
            f"a newer sora wrote this adapter (format {read.format_version}, not {FORMAT_VERSION})",
            where=str(path),
            hint="pip install --upgrade sora-cli",
        )
    return AdapterMeta(**read.model_dump(exclude={"base"})), read.base


def write_sora_file(path: Path, meta: AdapterMeta, base: BaseReference) -> None:
    """Write the metadata, stamped with this program's version."""
    stamp = {"format_version": FORMAT_VERSION, "sora_version": __version__}
    file = _SoraFile(**{**meta.model_dump(), **stamp}, base=base)
    write_json(path, file.model_dump(mode="json"))


def read_json(path: Path) -> Any:
    """Parse a JSON file that anybody may have written.

    Files above `LARGEST_JSON` bytes and objects with a repeated key are refused.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_JSON:
            raise SoraError(f"{path} is too large to be a configuration: {size:,} bytes")
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=distinct)
    except RecursionError as error:
        raise SoraError(f"{path} is nested too deep to be a configuration") from error
    except ValueError as error:
        raise SoraError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise SoraError(f"{path} cannot be read: {error.strerror}") from error


def write_json(path: Path, data: Any) -> None:
    """Write indented JSON."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def step_words(entry: Mapping[str, Any]) -> str:
    """Format one entry of the lineage: the command, then its values."""
    return f"{entry.get('command', '?')}: {', '.join(_step_values(entry))}".removesuffix(": ")


def _step_values(entry: Mapping[str, Any]) -> Iterator[str]:
    for name, value in entry.items():
        if name in ("command", "given", "recipe_digest") or value is None:
            continue
        if name in ("max_drop", "max_differ"):  # as typed, if that is known
            value = entry.get("given", value)
        elif name == "drop" and entry.get("metric") == AGREEMENT:
            name = "share that differs"
        between = " -> " if name in ("components", "parameters") else ", "
        yield f"{name.replace('_', ' ')} {_in_words(value, between)}"


def _in_words(value: Any, between: str) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return between.join(_in_words(part, between) for part in value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
