"""What `sora inspect` says of one kind of part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Section:
    """What `sora inspect` says of one kind of part.

    Attributes:
        facts: its entries in `--json`.
        lines: name and text of each line.
    """

    facts: Mapping[str, Any]
    lines: Sequence[tuple[str, str]] = ()
