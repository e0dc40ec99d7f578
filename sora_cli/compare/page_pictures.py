"""Figures inside the HTML page: SVG whose text is text and whose colours follow the page's."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sora_cli.compare.plot_curves import draw_curves
from sora_cli.compare.plot_points import draw_points
from sora_cli.compare.plot_style import COLOURS, FAINT, INK, QUIET
from sora_cli.compare.runs import Group

if TYPE_CHECKING:
    from markupsafe import Markup

_LARGE = 300_000
"""Characters of an SVG from which on a PNG may take its place."""
_VARIABLES = {
    INK: "var(--ink)",
    QUIET: "var(--quiet)",
    FAINT: "var(--grid)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(COLOURS)},
}
"""Colours as page.css names them, which has others for dark screens."""
_ENLARGED = 1.25
"""Text in figures is small for paper, too small for screens."""


def points_picture(groups: Sequence[Group], name: str) -> Markup:
    """Metric against parameters of one task's groups.

    Args:
        name: tells the picture's identifiers from those of others on the page.
    """
    return picture(draw_points(groups), name)


def curves_picture(groups: Sequence[Group], name: str) -> Markup | None:
    """The ablation curves of one task's groups; None if there are none."""
    figure = draw_curves(groups)
    return None if figure is None else picture(figure, name)


def picture(figure: Any, name: str) -> Markup:
    """A figure as an element of HTML: SVG, or a PNG if that is smaller than a large SVG."""
    from markupsafe import Markup

    svg = _svg(figure, name)
    if len(svg) > _LARGE:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        data = base64.b64encode(buffer.getvalue()).decode()
        if len(data) < len(svg):
            return Markup(f'<img alt="" src="data:image/png;base64,{data}">')
    return Markup(svg)  # matplotlib escapes all texts


def _svg(figure: Any, name: str) -> str:
    """The element alone, without what HTML does not need; drawn once, where `savefig` draws twice,
    since a page has many pictures."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for part in (figure, *figure.axes):
        part.set_facecolor("none")
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[\w.]+_\d+">', "<g>", text)  # the same ones in every figure
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', _width(figure), text, count=1)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"\n\s*", "\n", text)


def _width(figure: Any) -> str:
    """The attribute that gives the picture's size; its height follows."""
    return f' style="width: {_ENLARGED * figure.get_figwidth():.2f}in"'
