"""Matrices of cases of which `make test` runs the first, and `make test-all` all."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def rest_is_long(cases: Iterable[Any], short: int = 1) -> list[Any]:
    """Return all cases for `pytest.mark.parametrize`, marked long but for the first.

    Args:
        cases: as they are given there; a case of several parameters is a tuple.
        short: how many are not long.
    """
    return [case if at < short else _long(case) for at, case in enumerate(cases)]


def _long(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.long)
