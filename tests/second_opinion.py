"""A second opinion on certificates: their bounds by enumeration, the first failure, the choice.

Nothing of `sora_cli` is imported: the search and its check share their code, and this shares none.
`conftest.py` asks it about every certificate that a test writes.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

_MOST = 120  # rows whose outcomes are enumerated
_NEAR = 1e-4
_NUISANCE = 1e-3  # of the error, for an interval of the probability that a row is won


@cache
def share(differing: int, rows: int, error: float) -> float:
    """The largest share that leaves more than this error to so few differing rows."""
    low, high = 0.0, 1.0
    for _ in range(50):
        p = (low + high) / 2
        few = sum(math.comb(rows, k) * p**k * (1 - p) ** (rows - k) for k in range(differing + 1))
        low, high = (p, high) if few > error else (low, p)
    return high


@cache
def drop(lost: int, won: int, rows: int, error: float, unknown: int = 0) -> float:
    """Buehler's bound: outcomes in the order of Tango's score, up to the one that was seen.

    So many of the lost rows have no label, and may have been won.
    """
    a, b = (n.ravel() for n in np.mgrid[0 : rows + 1, 0 : rows + 1])
    a, b = a[a + b <= rows], b[a + b <= rows]
    limits = _limits(a, b, rows, error)
    seen = limits[(a == lost) & (b == won)][0]
    a, b = a[limits <= seen + 1e-9], b[limits <= seen + 1e-9]
    little, error = error * _NUISANCE / 2, error * (1 - _NUISANCE)
    least, most = 1 - share(rows - won, rows, little), share(won + unknown, rows, little)
    factorial = np.cumsum(np.log(np.maximum(np.arange(rows + 1), 1)))
    ways = factorial[rows] - factorial[a] - factorial[b] - factorial[rows - a - b]
    low, high = (lost - won) / rows, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        ends = max(-middle, least, 0) + 1e-9, min((1 - middle) / 2, most) - 1e-9
        p = np.linspace(*ends, 200)[:, None]
        rest = np.log(np.maximum(1 - 2 * p - middle, 1e-300))
        log = ways + a * np.log(np.maximum(p + middle, 1e-300)) + b * np.log(np.maximum(p, 1e-300))
        likely = np.exp(log + (rows - a - b) * rest).sum(axis=1).max()
        low, high = (middle, high) if likely > error else (low, middle)
    return high


def _limits(a: np.ndarray, b: np.ndarray, rows: int, error: float) -> np.ndarray:
    """The drop that Tango's test just rejects, for each outcome."""
    z = {0.05: 1.6448536269514722}.get(round(error, 9)) or _normal(1 - error)
    low, high = (a - b) / rows, np.ones(len(a))
    for _ in range(40):
        d = (low + high) / 2
        linear = (2 * rows - a + b) * d - a - b
        p = (np.sqrt(np.maximum(linear**2 + 8 * rows * b * d * (1 - d), 0)) - linear) / (4 * rows)
        spread = np.sqrt(np.maximum(rows * (2 * p + d * (1 - d)), 1e-300))
        kept = (a - b - rows * d) / spread > -z
        low, high = np.where(kept, d, low), np.where(kept, high, d)
    return high


def _normal(level: float) -> float:
    low, high = -9.0, 9.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 + math.erf(middle / 2**0.5)) / 2 < level else (low, middle)
    return high


def check(document: dict[str, Any]) -> None:
    """Hold a certificate against what its counts give."""
    promise, rows = document["promise"], document["rows"]["test"]["rows"]
    error, passed, ended = 1 - promise["confidence"], None, None
    for number, test in enumerate(size["test"] for size in document["candidates"]):
        if test is None:
            continue
        upper = math.inf if test["upper"] is None else test["upper"]
        differing, name = test["differing"], document["bound"]["statistic"]
        if test["refused"] is None and rows <= _MOST:
            lost = round((differing + test["drop"] * rows) / 2)
            if name == "differing answers":
                assert math.isclose(upper, share(differing, rows, error), abs_tol=1e-6)
            elif name == "right or wrong":
                assert abs(upper - drop(lost, differing - lost, rows, error)) <= _NEAR
            elif name == "asked labels":
                _check_asked(test, rows, error)
        kept = upper <= promise["max_drop"]
        assert test["kept"] is kept
        assert ended is None or test["refused"], "a size was tested after a failure"
        if ended is None and kept:
            passed = number
        elif not kept and not test["passed_over"]:
            ended = number if ended is None else ended
    if (document.get("asked") or {}).get("changed"):
        assert document["status"] == "not certified"
    else:
        certified = passed is not None or document["chosen"] is None
        assert (document["status"] == "certified") is certified
    assert passed is None or document["chosen"] == passed


def _check_asked(test: dict[str, Any], rows: int, error: float) -> None:
    counts = test["labelled"]
    unknown, won = counts["missing"] + counts["disagree"], counts["won"]
    lost, neither = counts["lost"] + unknown, counts["neither"]
    assert lost + won + neither == test["differing"] == round((1 - test["score"]) * rows)
    assert math.isclose(test["drop"], (lost - won) / rows, abs_tol=1e-9)
    assert abs(test["upper"] - drop(lost, won, rows, error, unknown)) <= _NEAR
    strict = drop(lost + neither, won, rows, error, unknown + neither)
    assert abs(counts["strict"] - strict) <= _NEAR
