"""Shared parts of HTML pages: style, security policy, template, and figures as SVG.

A page is one file that needs no server and no network. Its content comes from reports that somebody
else may have written. Templates therefore escape everything, and a Content-Security-Policy allows
only the page's own script and forbids every load. Figures are SVG: their text can be searched, and
their colours follow the page.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from sora_cli import __version__
from sora_cli.core.figures import COLOURS, FAINT, INK, QUIET
from sora_cli.core.outputs import MARK

if TYPE_CHECKING:
    from markupsafe import Markup

_HERE = "sora_cli.experiments.page"
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


def render(package: str, *, script: str = "", style: str = "", **values: Any) -> str:
    """Fill in the template `page.html` of a package.

    Args:
        package: package with the template; its last part is the name of the command. All pages
            share `macros.html` and `page.css` of this package.
        script: the page's only script, from this program's own files.
        style: additional CSS of the page, from this program's own files.
        values: variables of the template; everything except `Markup` is escaped.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt variable is an error, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(lambda name: resource(_HERE, name)),
    )
    html: str = environment.from_string(resource(package, "page.html")).render(
        mark=f"{MARK} {package.rpartition('.')[2]}",
        policy=_policy(script),
        script=Markup(script),
        style=Markup(resource(_HERE, "page.css") + style),
        version=__version__,
        **values,
    )
    return html


def resource(package: str, name: str) -> str:
    """Return the text of a file in a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Return a Content-Security-Policy that forbids every load and every script except `script`."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; " if script else ""
    # the SVG of matplotlib has style attributes, which need 'unsafe-inline'; PNGs are data: URLs
    return (
        f"default-src 'none'; {allowed}style-src 'unsafe-inline'; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )


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
