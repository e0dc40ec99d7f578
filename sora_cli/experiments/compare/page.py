"""The page of `sora compare --html`: one file that needs no server and no network.

Everything in it comes from reports, which others may have written: all of it is escaped by the
template, and a Content-Security-Policy allows this page's own script only and forbids every load.
Its figures are SVG: their text can be searched, and their colours follow the page's.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sora_cli import __version__
from sora_cli.core.figures import INK
from sora_cli.experiments.compare.budget_table import budget_table
from sora_cli.experiments.compare.grouping import by_task, differing
from sora_cli.experiments.compare.notes import warnings_of
from sora_cli.experiments.compare.page_parts import (
    GroupPart,
    TablePart,
    environments,
    group_part,
    recipe_lines,
    shared_settings,
    summary_lines,
    table_parts,
)
from sora_cli.experiments.compare.plot_curves import draw_curves
from sora_cli.experiments.compare.plot_points import draw_points
from sora_cli.experiments.compare.plot_sizes import draw_sizes
from sora_cli.experiments.compare.plot_style import COLOURS, FAINT, QUIET
from sora_cli.experiments.compare.runs import Group
from sora_cli.experiments.compare.sizes import Sizes
from sora_cli.experiments.compare.table import comparison_table

if TYPE_CHECKING:
    from markupsafe import Markup


def write_page(
    groups: Sequence[Group],
    path: Path,
    *,
    baseline: str | None = None,
    paper: bool = False,
    sizes: Sizes | None = None,
    budgets: Sequence[float] = (),
) -> None:
    """Write a comparison as one HTML file; a file that is there is replaced.

    Args:
        groups: as `sora compare` has made them, ordered by task; at least one.
        path: where to.
        baseline: label of the group of each task that differences are to.
        paper: with the values that the recipes' `paper` blocks hold.
        sizes, budgets: with the comparison at equal size.

    Raises:
        SoraError: no group is called as the baseline is.
    """
    from sora_cli.core.atomic import write_text_atomic

    html = page(groups, baseline=baseline, paper=paper, sizes=sizes, budgets=budgets)
    write_text_atomic(path, html)


def page(
    groups: Sequence[Group],
    *,
    baseline: str | None = None,
    paper: bool = False,
    sizes: Sizes | None = None,
    budgets: Sequence[float] = (),
) -> str:
    """Return the HTML that `write_page` writes."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    table = comparison_table(groups, baseline=baseline, paper=paper)
    anchors = {(group.task, group.label): f"g{i}" for i, group in enumerate(groups)}
    tables = {part.section: part for part in table_parts(table, groups, anchors)}
    script, style = _resource("page.js"), _resource("page.css")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    html: str = environment.from_string(_resource("page.html")).render(
        policy=_policy(script),
        script=Markup(script),  # the package's own file
        style=Markup(style),
        summary=summary_lines(groups, baseline),
        warnings=list(warnings_of(groups)),
        equal=None if sizes is None else _equal_size(groups, sizes, budgets),
        means=tables.get(None),
        tasks=_tasks(groups, tables, anchors),
        footnotes=table.footnotes,
        shared=recipe_lines(shared_settings(groups)),
        environments=environments(groups),
        version=__version__,
    )
    return html


def _equal_size(groups: Sequence[Group], sizes: Sizes, budgets: Sequence[float]) -> dict[str, Any]:
    """Return what the template shows of a comparison at equal size."""
    table = budget_table(sizes, budgets)
    return {
        "tables": table_parts(table, groups, {}),
        "picture": picture(draw_sizes(sizes, budgets), "sizes"),
        "notes": table.footnotes,
    }


def _tasks(
    groups: Sequence[Group],
    tables: Mapping[str | None, TablePart],
    anchors: Mapping[tuple[str, str], str],
) -> list[dict[str, Any]]:
    """Return what the template shows of each task: table, pictures, groups."""
    tasks = []
    for i, (task, members) in enumerate(by_task(groups).items()):
        keys = set(differing([group.settings for group in members]))
        parts: list[GroupPart] = [
            group_part(group, anchors[task, group.label], keys) for group in members
        ]
        tasks.append(
            {
                "name": task,
                "anchor": f"t{i}",
                "table": tables[task],
                "points": points_picture(members, f"points{i}"),
                "curves": curves_picture(members, f"curves{i}"),
                "groups": parts,
                "mapped": [part for part in parts if part.ranks],
            }
        )
    return tasks


def _policy(script: str) -> str:
    """Return a policy under which nothing is loaded; style and script are the page's own."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )


def _resource(name: str) -> str:
    """Read a file of this package."""
    return files("sora_cli.experiments.compare").joinpath(name).read_text(encoding="utf-8")


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
    """Draw metric against parameters of one task's groups.

    Args:
        name: tells the picture's identifiers from those of others on the page.
    """
    return picture(draw_points(groups), name)


def curves_picture(groups: Sequence[Group], name: str) -> Markup | None:
    """Draw the ablation curves of one task's groups; None if there are none."""
    figure = draw_curves(groups)
    return None if figure is None else picture(figure, name)


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
