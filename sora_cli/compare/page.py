"""The page of `sora compare --html`: one file that needs no server and no network.

Everything in it comes from reports, which others may have written: all of it is escaped by the
template, and a Content-Security-Policy allows this page's own script only and forbids every load.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from sora_cli import __version__
from sora_cli.compare.page_parts import (
    GroupPart,
    environments,
    group_part,
    recipe_lines,
    shared_settings,
    summary_lines,
)
from sora_cli.compare.page_pictures import curves_picture, points_picture
from sora_cli.compare.page_tables import TablePart, table_parts
from sora_cli.compare.plot_style import by_task, differing
from sora_cli.compare.remarks import warnings_of
from sora_cli.compare.runs import Group
from sora_cli.compare.table import comparison_table


def write_page(
    groups: Sequence[Group], path: Path, *, baseline: str | None = None, paper: bool = False
) -> None:
    """Write a comparison as one HTML file; a file that is there is replaced.

    Args:
        groups: as `sora compare` has made them, ordered by task; at least one.
        path: where to.
        baseline: label of the group of each task that differences are to.
        paper: with the values that the recipes' `paper` blocks hold.

    Raises:
        SoraError: no group is called as the baseline is.
    """
    from sora_cli.atomic import write_text_atomic

    write_text_atomic(path, page(groups, baseline=baseline, paper=paper))


def page(groups: Sequence[Group], *, baseline: str | None = None, paper: bool = False) -> str:
    """The HTML that `write_page` writes."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    table = comparison_table(groups, baseline=baseline, paper=paper)
    anchors = {(group.task, group.label): f"g{i}" for i, group in enumerate(groups)}
    tables = {part.task: part for part in table_parts(table, groups, anchors)}
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
        means=tables.get(None),
        tasks=_tasks(groups, tables, anchors),
        footnotes=table.footnotes,
        shared=recipe_lines(shared_settings(groups)),
        environments=environments(groups),
        version=__version__,
    )
    return html


def _tasks(
    groups: Sequence[Group],
    tables: Mapping[str | None, TablePart],
    anchors: Mapping[tuple[str, str], str],
) -> list[dict[str, Any]]:
    """What the template shows of each task: table, pictures, groups."""
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
    """Nothing is loaded from anywhere; styles are the page's own, and so is the script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        f"img-src data:; base-uri 'none'; form-action 'none'"
    )


def _resource(name: str) -> str:
    """A file of this package."""
    return files("sora_cli.compare").joinpath(name).read_text(encoding="utf-8")
