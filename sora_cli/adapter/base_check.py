"""Check a base model's weights against the fingerprint in an adapter or a delta.

The rule: if nobody named the base model, other weights are refused. If the user named it, other
weights are accepted with a note where the result is used (`predict`, `generate`, `chat`, `eval`),
and refused where the result is compared or another file is made of it (`verify`, `merge`,
`export`), unless `--force` is given.
"""

from __future__ import annotations

from pathlib import Path

from sora_cli.adapter.metadata import BaseReference
from sora_cli.core.errors import SoraError
from sora_cli.model.fingerprint import fingerprint

_RIGHT = "name the right base model: --base MODEL"
OR_FORCE = "name the right base model with --base, or accept this one with --force"


def unrecorded(source: str, result: str | Path) -> str:
    """Return the note on a base model that was chosen without knowing the right one's weights."""
    return f"{source} may not be the base model of {result}: its fingerprint is not recorded"


def check_weights(
    base: BaseReference,
    files: Path | None,
    source: str,
    result: str | Path,
    *,
    force: bool = False,
    hint: str = _RIGHT,
) -> str | None:
    """Return a note if a model is not known to be a result's base model.

    None means that the fingerprints agree, or that the model's files are not on this disk. Weights
    that are known to differ are an error.

    Args:
        base: the base model that the result records.
        files: the model's files on this disk; None: they are not here.
        source: the model's name in the note.
        result: the adapter's or delta's name in the note.
        force: accept other weights, with a note.
    """
    if base.fingerprint is None:
        return unrecorded(source, result)
    actual = None if files is None else fingerprint(files)
    if actual is None or actual == base.fingerprint:
        return None
    differing = f"{source} holds other weights than the base model of {result}"
    if not force:
        raise SoraError(differing, where=f"trained on: {base.path}", hint=hint)
    return differing
