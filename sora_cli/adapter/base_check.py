"""Compare a base model's weights with the weights that an adapter or a delta was trained on.

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


def differing_weights(
    base: BaseReference, files: Path | None, source: str, result: str | Path
) -> str | None:
    """Return a sentence if a model is known to hold other weights than a result was trained on.

    Args:
        base: the base model that the result records.
        files: the model's, where they are on this disk.
        source: the model, for the sentence.
        result: an adapter or a delta, for the sentence.
    """
    found = None if files is None or base.fingerprint is None else fingerprint(files)
    if found is None or found == base.fingerprint:
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
    """Return a note on a model that is not known to be a result's base; None: it is, or not here.

    Args:
        force: other weights are accepted, with a note.
    """
    if base.fingerprint is None:
        return f"nothing says whether {source} is the base model of {result}"
    differing = differing_weights(base, files, source, result)
    if differing is not None and not force:
        raise SoraError(differing, where=f"that was: {base.path}", hint=hint)
    return differing
