"""Reading the JSON files in which commands keep a record of their work."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from sora_cli.core.errors import SoraError

Record = TypeVar("Record", bound=BaseModel)


def read_record(file: Path, kind: type[Record], *, hint: str) -> Record | None:
    """Read the record that a command keeps of its own work; None if there is no such file.

    Args:
        kind: what the file holds.
        hint: what to do about one that is damaged.

    Raises:
        SoraError: there is one that cannot be read, or its layout is one of a later version.
    """
    if not file.is_file():
        return None
    try:
        text = file.read_text(encoding="utf-8")
        layout = _Layout.model_validate_json(text).schema_version
        known = kind.model_fields.get("schema_version")
        if layout is None or known is None or 1 <= layout <= known.default:
            return kind.model_validate_json(text)
    except (OSError, ValueError) as error:
        what = f"{file} is damaged or of another version: {type(error).__name__}"
        raise SoraError(what, hint=hint) from error
    raise SoraError(
        f"{file} has layout {layout} (schema_version), and this version reads {known.default}",
        hint="pip install --upgrade sora_cli",
    )


class _Layout(BaseModel):
    """The number of a record's layout, which is read before all else."""

    schema_version: int | None = None
