"""Prepare the files of an adapter or merged model for upload, without paths of this machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sora_cli.adapter.card import BASE, THIS, adapter_card, stored, without_folder
from sora_cli.adapter.metadata import BaseReference, read_json
from sora_cli.adapter.moved import located
from sora_cli.adapter.reading import open_adapter
from sora_cli.core.atomic import is_leftover
from sora_cli.core.errors import SoraError, first_line
from sora_cli.model.files import (
    ADAPTER_CONFIG,
    ADAPTER_FILES,
    CARD,
    MODEL_CONFIG,
    SORA_FILE,
    TRAINED_ON,
)
from sora_cli.model.references import is_hub_id, local_checkpoint

Content = Path | bytes
_TEXTS = (".json", ".md", ".jinja", ".txt")
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_NAMES = ("_name_or_path", "name_or_path", "base_model_name_or_path")
"""Keys of configurations that may hold the path of their source."""
_LARGEST_TEXT = 20_000_000  # bytes


@dataclass(frozen=True)
class Shared:
    """The files to upload, and the names of the files that stay.

    Attributes:
        files: name in the repository -> the file, or its content if it has to be changed.
        left: names in the directory that stay, since they are not part of the adapter or model.
    """

    directory: Path
    files: Mapping[str, Content]
    left: tuple[str, ...]

    @property
    def card(self) -> str:
        """The text of the model card."""
        card = self.files[CARD]
        return (card if isinstance(card, bytes) else card.read_bytes()).decode(errors="replace")

    def size(self, name: str) -> int:
        """Return a file's bytes."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def for_repository(self, repository: str) -> Shared:
        """Return the same files with the repository's name in the card's commands."""
        card = self.card.replace(THIS, repository).encode()
        return Shared(self.directory, {**self.files, CARD: card}, self.left)


def shared_adapter(directory: Path, *, base_id: str | None, license_: str | None) -> Shared:
    """Return an adapter's files, with its base model named by the Hub id.

    The base model's Hub id has to be known, or nobody could load the adapter.

    Args:
        base_id: of the base model; None: the id that the adapter knows.
        license_: for the card; None: unchanged.
    """
    with open_adapter(directory) as file:
        base, new_card = file.base, adapter_card(file)
    hub_id = base_id or base.hub_id
    if hub_id is None:
        raise _unknown_base(directory, base)
    if not is_hub_id(hub_id):
        raise SoraError(f"--base-id {hub_id!r} is not a Hub id", hint="--base-id OWNER/NAME")
    names = sorted(entry.name for entry in directory.iterdir() if not is_leftover(entry))
    own = [name for name in names if name in ADAPTER_FILES]
    files: dict[str, Content] = {}
    for name in own:
        files |= _files(directory, name)
    revision = base.revision if hub_id == base.hub_id else None
    config = _read_object(directory / ADAPTER_CONFIG)
    config |= {"base_model_name_or_path": hub_id, "revision": revision}
    files[ADAPTER_CONFIG] = _json(config)
    if SORA_FILE in own:
        files[SORA_FILE] = _json(_sora_file(directory, hub_id, revision))
    card = (directory / CARD).read_text(encoding="utf-8") if CARD in own else new_card
    files[CARD] = _card(card.replace(BASE, hub_id), base=hub_id, license_=license_)
    return _check_no_paths(Shared(directory, files, tuple(n for n in names if n not in own)), base)


def shared_model(directory: Path, *, base_id: str | None, license_: str | None) -> Shared:
    """Return the files of a merged model, which needs no base model; see `shared_adapter`."""
    if not (directory / MODEL_CONFIG).is_file():
        raise SoraError(f"{directory} holds no {MODEL_CONFIG}: it is not a merged model",
                        hint="sora merge RUN -o DIR writes one")  # fmt: skip
    files: dict[str, Content] = {}
    left_out = []
    for entry in sorted(directory.iterdir()):
        if entry.name.startswith(".") or entry.name == TRAINED_ON or entry.is_symlink():
            left_out.append(entry.name)
        else:
            files |= _files(directory, entry.name)
    files[MODEL_CONFIG] = _json(_without_paths(_read_object(directory / MODEL_CONFIG)))
    if SORA_FILE in files:
        raw = _read_object(directory / SORA_FILE)
        base = raw.get("base") or {}
        files[SORA_FILE] = _json(_sora_file(directory, base_id or base.get("hub_id"), None))
    card = directory / CARD
    text = card.read_text(encoding="utf-8") if card.is_file() else "---\n---\n"
    files[CARD] = _card(text, base=base_id, license_=license_)
    return _check_no_paths(Shared(directory, files, tuple(left_out)), None)


def _files(directory: Path, name: str) -> dict[str, Content]:
    """Return a file, or all files of a folder; configurations lose the path of their source."""
    place = directory / name
    if place.is_dir():
        inside = (file for file in sorted(place.rglob("*")) if file.is_file())
        return {str(file.relative_to(directory)): file for file in inside}
    config = read_json(place) if name.endswith("_config.json") else None
    return {name: _json(_without_paths(config)) if isinstance(config, dict) else place}


def _sora_file(directory: Path, base_id: str | None, revision: str | None) -> dict[str, Any]:
    raw = _read_object(directory / SORA_FILE)
    base = {**(raw.get("base") or {}), "hub_id": base_id, "revision": revision}
    base |= {key: base_id or without_folder(base.get(key)) for key in ("path", "resolved")}
    return {**raw, "base": base, "lineage": without_folder(raw.get("lineage") or [])}


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without places on this disk."""
    places = [key for key in _NAMES if Path(str(config.get(key) or "")).is_absolute()]
    return {key: value for key, value in config.items() if key not in places}


def _card(text: str, *, base: str | None, license_: str | None) -> bytes:
    """Return a card with these header values, after checking that the Hub accepts the card."""
    from huggingface_hub import ModelCard

    try:
        card = ModelCard(text)
        header: Any = card.data
    except Exception as error:  # of YAML, or a ValueError or TypeError of the values
        raise SoraError(
            f"the Hub does not accept {CARD}: {first_line(error)}",
            hint="correct its header, or delete the file: a new one is made from the adapter",
        ) from error
    if base is not None:
        header.base_model = base
        others = [tag for tag in header.tags or [] if not tag.startswith("base_model:")]
        kind = "adapter" if header.library_name == "peft" else "finetune"
        header.tags = [f"base_model:{kind}:{base}", *others]
    if license_ is not None:
        header.license = license_
    for name in ("license", "library_name", "pipeline_tag"):
        value = getattr(header, name)
        if value is not None and not isinstance(value, str):
            raise SoraError(f"{CARD}: {name} must be a word, not {value!r}", hint=f"{name}: ...")
    return stored(str(card))


def _check_no_paths(shared: Shared, base: BaseReference | None) -> Shared:
    """Return the files, after checking that no text among them names a place on this machine."""
    places = {str(Path.home()), str(shared.directory.resolve()), str(Path.cwd())} - {"/"}
    places |= {base.resolved} if base is not None and Path(base.resolved).is_absolute() else set()
    for name, content in shared.files.items():
        if name in _VOCABULARIES or not name.endswith(_TEXTS):  # "/root" may well be a token
            continue
        if shared.size(name) <= _LARGEST_TEXT:
            read = content if isinstance(content, bytes) else content.read_bytes()
            path = next((place for place in sorted(places) if place.encode() in read), None)
            if path is not None:
                raise SoraError(f"{name} names a path on this machine: {path}",
                                where=str(shared.directory),
                                hint="remove it from the file, and push again")  # fmt: skip
    return shared


def _unknown_base(directory: Path, base: BaseReference) -> SoraError:
    """Return the error for a base model that nobody else could find."""
    base = located(base)
    place = local_checkpoint(base.resolved or base.path, base.revision)
    made_from = None
    if place is not None and (place / MODEL_CONFIG).is_file():
        made_from = _read_object(place / MODEL_CONFIG).get("_name_or_path")
    named = isinstance(made_from, str) and is_hub_id(made_from)
    return SoraError(
        f"nobody else can find the base model of {directory}: its Hub id is not known",
        where=f"its configuration names {made_from}, which may have other weights"
        if named else None,
        hint="the same command with --base-id OWNER/NAME; for later runs: "
        "output.base_id=OWNER/NAME",
    )  # fmt: skip


def _read_object(file: Path) -> dict[str, Any]:
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise SoraError(f"{file} is not a JSON object")
    return raw


def _json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2) + "\n").encode()
