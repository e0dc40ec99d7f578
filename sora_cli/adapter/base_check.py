"""Compares the weights of a base model with those that an adapter or a delta was trained on.

The rule: other weights are refused in a base model that nobody named. A base model that the user
names is taken with other weights where the result is put to work (`predict`, `generate`, `chat`,
`eval`), and a note says so. It is refused where the result is compared or another file is made of
it (`verify`, `merge`, `export`), but for the commands whose `--force` accepts it.
"""

from __future__ import annotations

from pathlib import Path

from sora_cli.adapter.metadata import BaseReference
from sora_cli.core.errors import SoraError
from sora_cli.model.fingerprint import fingerprint

_RIGHT = "name the right one: --base MODEL"
OR_FORCE = "give the right one with --base, or take it all the same with --force"


def other_weights(
    base: BaseReference, files: Path | None, source: str, result: str | Path
) -> str | None:
    """Return a sentence if a model is known to hold other weights than a result was trained on.

    Args:
        base: the base model that the result records.
        files: the model's, where they are on this disk.
        source: the model, for the sentence.
        result: an adapter or a delta, for the sentence.
    """
    if _holds(base, files) is not False:
        return None
    return f"{source} holds other weights than the base model of {result}"


def check_weights(
    base: BaseReference,
    files: Path | None,
    source: str,
    result: str | Path,
    *,
    force: bool = False,
    hint: str = _RIGHT,
) -> str | None:
    """Return a note unless a model is known to hold the weights that a result was trained on.

    Args:
        force: other weights are accepted, with a note.

    Raises:
        SoraError: it is known to hold other ones.
    """
    if _holds(base, files) is None:
        return f"nothing says whether {source} is the base model of {result}"
    other = other_weights(base, files, source, result)
    if other is not None and not force:
        raise SoraError(other, where=f"that was: {base.path}", hint=hint)
    return other


def _holds(base: BaseReference, files: Path | None) -> bool | None:
    """Tell whether files hold a base model's weights; None: that cannot be known."""
    found = None if files is None or base.fingerprint is None else fingerprint(files)
    return None if found is None else found == base.fingerprint
