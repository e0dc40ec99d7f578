"""The simulation of repeats: what it deals, and that it finds the fault of dealing by rows."""

from __future__ import annotations

import numpy as np
import pytest

from tools.auto.repeats import broken, pool_of
from tools.auto.repeats import test_rows as rows_that_test


@pytest.mark.parametrize("alike", [False, True])
def test_now_no_input_is_in_two_parts(alike: bool) -> None:
    pool = pool_of(300, 0.33, np.random.default_rng(1), alike=alike)
    assert (len(np.unique(pool.inputs)), pool.lost.mean()) == (300, pytest.approx(0.04))
    testing, every = rows_that_test(pool, 3, now=True)
    known = np.setdiff1d(np.arange(len(pool.inputs)), every)
    assert len(np.unique(pool.inputs[testing])) == len(testing)
    assert not np.isin(pool.inputs[testing], pool.inputs[known]).any()
    assert set(testing) <= set(every)


def test_dealing_by_rows_breaks_promises() -> None:
    pool = pool_of(300, 0.9, np.random.default_rng(1), alike=False)
    assert broken(pool, 40, now=False, answers=True)[0] == 1.0
    assert broken(pool, 40, now=True, answers=True)[0] < 0.2
