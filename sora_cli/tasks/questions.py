"""Rows as a person sees them to label them: what is shown, and which labels are allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Questions:
    """Rows to be labelled; nothing here depends on a model.

    Attributes:
        shown: (rows,) texts by column.
        answers: (rows,) by allowed label: the answer of a model that the label makes right.
    """

    shown: Mapping[str, Sequence[str]]
    answers: Sequence[Mapping[str, Any]]
