"""The curve of a certificate: bounds and promise on the side of the worse."""

from __future__ import annotations

import pytest

from sora_cli.experiments.report.certificate import draw_curve
from tests.sora_cli.run.test_certificate import certificate


@pytest.mark.parametrize(("greater_is_better", "sign"), [(True, -1), (False, 1)])
def test_bounds_and_promise(greater_is_better: bool, sign: int) -> None:
    """The full rank has 90 parameters and 0.8, the candidate 40, and its drop is below 0.004."""
    known = certificate()
    promise = known.promise.model_copy(update={"greater_is_better": greater_is_better})
    low = known.screened[0].screening.model_copy(update={"score": 0.3})
    screened = [known.screened[0].model_copy(update={"screening": low})]
    changed = known.model_copy(update={"promise": promise, "screened": screened})
    (axes,) = draw_curve(changed).axes
    lines = {line.get_label(): line for line in axes.lines}
    x, y = lines["test rows, healed"].get_data()
    assert list(x) == pytest.approx([100 * 40 / 90, 100])
    assert list(y) == [0.8, 0.8]
    assert list(lines["promise: 0.5pt"].get_ydata()) == pytest.approx([0.8 + sign * 0.005] * 2)
    (band,) = axes.collections
    corners = {(round(px, 3), round(py, 6)) for px, py in band.get_paths()[0].vertices}
    assert (44.444, 0.8 + sign * 0.004) in corners
    assert (100.0, 0.8) in corners
    assert list(lines["written"].get_data()[0]) == pytest.approx([100 * 40 / 90])
    assert not any("screening" in label for label in lines), "0.3 is far beyond the promise"
    bottom, top = axes.get_ylim()
    assert bottom < min(0.8, 0.8 + sign * 0.005)
    assert top > max(0.8, 0.8 + sign * 0.005)
