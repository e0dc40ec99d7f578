"""Reading the JSON files in which commands record their progress."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from sora_cli.core.errors import SoraError, first_line, first_mistake

Record = TypeVar("Record", bound=BaseModel)


def read_record(file: Path, kind: type[Record], *, hint: str) -> Record | None:
    """Read a command's record of its progress; return None if there is no such file.

    A damaged file, or one with the layout of a later version, is an error.

    Args:
        kind: the pydantic class of the record.
        hint: the way out if the file is damaged.
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
        mistake = first_mistake(error) if isinstance(error, ValidationError) else first_line(error)
        what = f"{file} is damaged or of another version: {mistake}"
        raise SoraError(what, hint=hint) from error
    raise SoraError(
        f"{file} has layout {layout} (schema_version), and this version reads {known.default}",
        hint="pip install --upgrade sora_cli",
    )


class _Layout(BaseModel):
    """The layout number of a record, read before the record itself."""

    schema_version: int | None = None
