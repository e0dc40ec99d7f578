"""The curve of a certificate on a page: drops, the bound, the promise, in the page's colours."""

from __future__ import annotations

import pytest

from sora_cli.core.figures import COLOURS
from sora_cli.experiments.report.certificate import draw_sizes
from tests.sora_cli.search.test_certificate import certificate


def test_bounds_and_promise() -> None:
    """The full rank has 90 parameters; the candidate 40, a drop of 0 and the bound 0.004."""
    known = certificate()
    (axes,) = draw_sizes(known).axes
    lines = {str(line.get_label()): line for line in axes.lines}
    assert list(lines["promise: 0.5pt"].get_ydata()) == [0.005, 0.005]
    (trained,) = (line for name, line in lines.items() if name.startswith("trained, passed"))
    assert list(trained.get_xdata()) == pytest.approx([100 * 40 / 90])
    bounds = [line.get_ydata() for line in axes.lines if list(line.get_ydata()) == [0.0, 0.004]]
    assert len(bounds) == 1
    assert {line.get_color() for line in axes.lines} >= set(COLOURS[:1])
    bottom, top = axes.get_ylim()
    assert bottom < 0 < 0.005 < top
