"""The sparsifying schedules, against those of the authors' code."""

from __future__ import annotations

import json
import math

import pytest

from methods.schedules import ramp
from tests.shared_files import golden_file


@pytest.mark.parametrize("kind", ["linear", "log_linear", "exp_linear"])
def test_ramps_are_the_references(kind: str) -> None:
    case = json.loads(golden_file("threshold_schedules.json").read_text())[kind]
    ours = ramp(kind, case["start"], case["stop"], case["num"])
    # theirs goes on with the last value when its stages are used up
    assert [*ours, ours[-1]] == pytest.approx(case["thresholds_then_hold"], rel=0, abs=1e-15)


@pytest.mark.parametrize("kind", ["linear", "log_linear", "exp_linear"])
def test_ends_are_exact_and_either_direction_works(kind: str) -> None:
    up, down = ramp(kind, 1e-4, 0.7, 6), ramp(kind, 0.7, 1e-4, 6)
    assert (up[0], up[-1], len(up)) == (1e-4, 0.7, 6)
    assert up == sorted(up)
    assert down == pytest.approx(up[::-1], rel=1e-12)


def test_what_is_equal_in_each() -> None:
    line, ratio, log = (ramp(kind, 1, 8, 4) for kind in ("linear", "exp_linear", "log_linear"))
    assert line == pytest.approx([1, 10 / 3, 17 / 3, 8])
    assert ratio == pytest.approx([1, 2, 4, 8])
    assert [math.exp(v) for v in log] == pytest.approx(
        [math.e + (math.exp(8) - math.e) * i / 3 for i in range(4)]
    )


@pytest.mark.parametrize(
    ("kind", "start", "stop", "num", "says"),
    [
        ("linear", 0, 1, 1, "at least 2"),
        ("linear", 1, 1, 3, "nothing would vary"),
        ("exp_linear", 0, 1, 3, "above 0"),
        ("log_linear", 0, 1000, 3, "at most 700"),
    ],
)
def test_impossible_ramps(kind: str, start: float, stop: float, num: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ramp(kind, start, stop, num)
