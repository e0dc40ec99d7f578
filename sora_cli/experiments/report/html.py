"""The page of `sora report`: its style, its template, and figures as SVG.

A page is one file that needs no server and no network. Its content comes from reports that somebody
else may have written. The template therefore escapes everything, and its Content-Security-Policy
forbids every load and every script. It has to allow two things: `unsafe-inline` styles, since
matplotlib's SVG has style attributes, and `data:` images, since large figures are PNGs. Figures are
SVG otherwise: their text can be searched, and their colours follow the page.
"""

from __future__ import annotations

import base64
import io
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sora_cli import __version__
from sora_cli.core.figures import COLOURS, FAINT, INK, QUIET
from sora_cli.core.outputs import MARK

if TYPE_CHECKING:
    from markupsafe import Markup

_LARGE = 300_000
"""An SVG with more characters than this may be replaced by a PNG."""
_VARIABLES = {
    INK: "var(--ink)",
    QUIET: "var(--quiet)",
    FAINT: "var(--grid)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(COLOURS)},
}
"""Colours of figures -> variables of page.css, which has other colours for dark screens."""
_ENLARGED = 1.25
"""Scale of figures on a page: their text is small for paper, and too small for screens."""


def render(**values: Any) -> str:
    """Fill in the template `page.html`; every value except `Markup` is escaped."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt variable is an error, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html: str = environment.from_string(_resource("page.html")).render(
        mark=MARK, style=Markup(_resource("page.css")), version=__version__, **values
    )
    return html


def _resource(name: str) -> str:
    return files("sora_cli.experiments.report").joinpath(name).read_text(encoding="utf-8")


def picture(figure: Any, name: str) -> Markup:
    """Return a figure as an HTML element: SVG, or PNG if the SVG is large and the PNG smaller."""
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
    """Return a figure's SVG element, without metadata, namespaces and fonts.

    A page has many pictures: `print_svg` draws each of them once, `savefig` would draw it twice.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for part in (figure, *figure.axes):
        part.set_facecolor("none")
    buffer = io.BytesIO()
    # "none": text stays text, not outlines; a salt per figure: two figures must not share ids
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text)
    text = re.sub(r'<g id="[\w.]+_\d+">', "<g>", text)  # ids that every figure would repeat
    text = re.sub(r' width="[\d.]+pt" height="[\d.]+pt"', _width(figure), text, count=1)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # figures use the page's font
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return re.sub(r"\n\s*", "\n", text)


def _width(figure: Any) -> str:
    """Return the HTML attribute for the picture's width; the browser derives the height."""
    return f' style="width: {_ENLARGED * figure.get_figwidth():.2f}in"'
