"""Schedules: the values that an option takes from stage to stage of a regularisation path.

Ding et al. 2023 (arXiv 2311.11696, Algorithm 1) let the threshold grow from stage to stage; the
three ramps are those of the authors' code. No torch here: recipes are checked with it.
"""

from __future__ import annotations

import math
from typing import Literal

Ramp = Literal["linear", "log_linear", "exp_linear"]


def ramp(kind: Ramp, start: float, stop: float, num: int) -> list[float]:
    """Return `num` values from `start` to `stop`, both ends exact.

    Args:
        kind: linear: equal differences. exp_linear: equal ratios, exp of a linear ramp between
            log(start) and log(stop). log_linear: log of a linear ramp between exp(start) and
            exp(stop): large steps first, then ever smaller ones.
        num: at least 2.

    Raises:
        ValueError: fewer than two values, equal ends, a bound without a logarithm, or one whose
            exponential is out of range.
    """
    if num < 2:
        raise ValueError(f"num must be at least 2, not {num}")
    if start == stop:
        raise ValueError(f"start and stop are both {start:g}: nothing would vary")
    if kind == "linear":
        values = _line(start, stop, num)
    elif kind == "exp_linear":
        if min(start, stop) <= 0:
            raise ValueError(
                f"exp_linear needs a start and a stop above 0, not {min(start, stop):g}; "
                "for a first value of 0 use linear, or list"
            )
        values = [math.exp(v) for v in _line(math.log(start), math.log(stop), num)]
    else:
        if max(abs(start), abs(stop)) > 700:
            raise ValueError("log_linear takes the exponential of start and stop: at most 700")
        values = [math.log(v) for v in _line(math.exp(start), math.exp(stop), num)]
    return [start, *values[1:-1], stop]


def _line(start: float, stop: float, num: int) -> list[float]:
    return [start + (stop - start) * i / (num - 1) for i in range(num)]
