"""Find a base model that was moved, by the fingerprint of its weights."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sora_cli.adapter.metadata import BASES, BaseReference
from sora_cli.core.errors import SoraError
from sora_cli.model.files import MODEL_CONFIG
from sora_cli.model.fingerprint import fingerprint

_DEPTH = 4  # as deep as the Hub's cache has its snapshots: hub/models--A--B/snapshots/COMMIT


def located(base: BaseReference) -> BaseReference:
    """Return a base model with its new place, if it was moved into a directory of `BASES`.

    A base model that is still in its place, or whose name is not a path, is returned unchanged.
    """
    if base.fingerprint is None or base.here is not None or "://" in base.path:
        return base
    for place in _models():
        try:
            digest = fingerprint(place)
        except (SoraError, OSError):
            continue
        if digest == base.fingerprint:
            return replace(base, resolved=str(place.resolve()))
    return base


def _models() -> Iterator[Path]:
    """Yield the directories and GGUF files that hold models, in the order of `BASES`."""
    for named in filter(None, os.environ.get(BASES, "").split(os.pathsep)):
        top = Path(named).expanduser()
        for folder, inside, files in os.walk(top, followlinks=True):
            place = Path(folder)
            yield from (place / name for name in sorted(files) if name.lower().endswith(".gguf"))
            is_model = MODEL_CONFIG in files
            if is_model:
                yield place
            # no model lies inside a model; without a limit a link could lead in circles
            if is_model or len(place.relative_to(top).parts) >= _DEPTH:
                inside.clear()
            inside.sort()
