"""The parts that HTML pages of runs share: style, policy, template, and figures as SVG.

A page is one file that needs no server and no network. What it shows comes from reports, which
others may have written: templates escape all of it, and a Content-Security-Policy allows the page's
own script only, if it has one, and forbids every load. Figures are SVG: their text can be
searched, and their colours follow the page's.
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


def render(package: str, *, script: str = "", style: str = "", **values: Any) -> str:
    """Fill in the template `page.html` of a package.

    Args:
        package: the one that holds it, named as the command whose page it is; `macros.html` and
            the style are those of all pages.
        script: the page's only script, from this program's own files.
        style: what the page adds to the style, likewise.
        values: what the template shows; everything is escaped but `Markup`.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
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
    """Read a file of a package."""
    return files(package).joinpath(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Return a policy under which nothing is loaded; style and script are the page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; " if script else ""
    return (
        f"default-src 'none'; {allowed}style-src 'unsafe-inline'; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )


def picture(figure: Any, name: str) -> Markup:
    """Return a figure as an element of HTML: SVG, or PNG where a large SVG would be larger."""
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
    """Return a figure's SVG element, without what HTML does not need.

    It is drawn once, where `savefig` draws twice, since a page has many pictures.
    """
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
    """Return the attribute that gives the picture's width; its height follows."""
    return f' style="width: {_ENLARGED * figure.get_figwidth():.2f}in"'
