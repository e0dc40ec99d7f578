"""The HTML page: safe, self-contained, complete, small, and sorting in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sora_cli.core.errors import SoraError
from sora_cli.experiments.compare.finding import find_runs
from sora_cli.experiments.compare.grouping import group_runs
from sora_cli.experiments.compare.page import page, write_page
from sora_cli.experiments.compare.page_parts import environments
from sora_cli.experiments.compare.runs import Group, Run
from sora_cli.experiments.compare.table import comparison_tables
from sora_cli.experiments.page.parts import recipe_lines
from tests.helpers_reports import KINDS, report_of, write_study
from tests.sora_cli.experiments.compare.arena import rows_of

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
VOID = {"meta", "br", "img", "use", "path"}


class Elements(HTMLParser):
    """Every element with its attributes, and the text inside those of some names."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag, "elements are closed in order"

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.found if t == tag and attributes.items() <= a.items()]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Group]:
    return group_runs(find_runs([write_study(tmp_path_factory.mktemp("study"))]).runs).groups


@pytest.fixture(scope="module")
def html(study: Sequence[Group]) -> str:
    return page(study, baseline="lora r=8")


def groups(*about: dict[str, Any]) -> Sequence[Group]:
    runs = [Run.of(Path(f"runs/{i}"), report_of(**words)) for i, words in enumerate(about)]
    return group_runs(runs).groups


def policy(html: str) -> dict[str, str]:
    (meta,) = Elements(html).all("meta", **{"http-equiv": "Content-Security-Policy"})
    parts = [part.strip().split(" ", 1) for part in str(meta["content"]).split(";")]
    return {part[0]: part[1] for part in parts}


def test_nothing_may_be_loaded_and_only_this_script_may_run(html: str) -> None:
    rules = policy(html)
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"


def test_nothing_points_outside(html: str) -> None:
    elements = Elements(html)
    assert not elements.open
    assert not {tag for tag, _ in elements.found} & {"link", "iframe", "object", "base", "form"}
    for _, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            assert str(attributes.get(name) or "#").startswith(("#", "data:"))
        assert not [name for name in attributes if name.startswith("on")]
    assert "//" not in re.sub(r"package://|// A ", "", html)
    assert "@import" not in html


def test_links_lead_to_what_is_there_and_names_are_unique(html: str) -> None:
    found = Elements(html).found
    names = [a["id"] for _, a in found if a.get("id")]
    assert len(names) == len(set(names))
    targets = {str(a.get("href") or a.get("xlink:href")) for _, a in found} - {"None"}
    assert targets <= {f"#{name}" for name in names}


HOSTILE = "<script>alert(1)</script>'\"&$x^{$ </style> {{ 7*7 }}"


def test_what_reports_say_is_text() -> None:
    run = {"method": "lora", "metric": 0.5, "label": HOSTILE, "task": "<img src=x onerror=a>",
           "settings": {"model.path": f"{HOSTILE}/model"},
           "more": {"command": ["sora", HOSTILE], "environment": {HOSTILE: HOSTILE}}}  # fmt: skip
    made = groups(run, {**run, "method": "sora", "label": "other", "metric": 0.6})
    html = page(made)
    elements = Elements(html)
    assert not elements.open
    assert len(elements.all("script")) == 1
    assert not [a for a in elements.all("img") if a.get("src") == "x"]
    assert HOSTILE in elements.text["b"]
    assert any(text.startswith("<script>alert") for text in elements.text["text"])  # the picture
    assert "<script>alert" not in html
    assert "49 " not in "".join(elements.text["b"])


def test_every_cell_of_the_table_is_there(study: Sequence[Group], html: str) -> None:
    tables = comparison_tables(study, baseline="lora r=8")
    text = Elements(html).text
    for row in rows_of(tables):
        assert row.label in text["a"]
        assert {shown for key, shown in row.shown.items() if key != "label"} <= set(text["td"])
    for note in tables.footnotes:
        assert note in text["li"]
    assert any("baseline" in small for small in text["small"])


def test_cells_sort_by_numbers_not_by_what_is_shown(study: Sequence[Group], html: str) -> None:
    elements = Elements(html)
    sorts = {str(a["data-sort"]) for a in elements.all("td") if "data-sort" in a}
    assert {repr(float(run.parameters)) for run in (g.first for g in study if g.method == "lora")
            } <= sorts  # fmt: skip
    headings = elements.all("th", **{"aria-sort": "none"})
    assert len(headings) == len(elements.all("button", type="button")) > 0


def test_recipes_with_what_differs_marked(html: str) -> None:
    marks = [mark.strip() for mark in Elements(html).text["mark"]]
    assert {"r: 8", "r: 4", "threshold: 0.001", "threshold: 0.002"} <= set(marks)
    assert not any(mark.startswith("batch_size") for mark in marks)


def test_settings_as_yaml() -> None:
    settings = {"a.x": 1, "a.b.y": [1, 2], "a.b.z": None, "c": "text: more"}
    lines = [line.text for line in recipe_lines(settings)]
    assert lines == ["a:", "  x: 1", "  b:", "    y: [1, 2]", "    z: null", "c: 'text: more'"]


def test_ranks_pictures_and_runs(study: Sequence[Group], html: str) -> None:
    elements = Elements(html)
    tasks = {group.task for group in study}
    assert len(elements.all("svg")) == 2 * len(tasks)  # points and curves
    changed = [group for group in study if group.method == "sora"]
    assert len(elements.all("table", **{"class": "heat"})) == len(changed)
    for group in study:
        for run in group.runs:
            assert str(run.directory) in elements.text["code"]


def test_versions_are_counted() -> None:
    made = groups({"seed": 0}, {"seed": 1}, {"seed": 2, "more": {"environment": {"torch": "9"}}})
    assert dict(environments(made))["torch"] == [("2.6.0", 2), ("9", 1)]


def test_scores_that_can_not_be_compared_are_said() -> None:
    data = {"rows": {}, "fingerprints": {"train": "a", "validation": "b"}}
    made = groups({"method": "lora"}, {"method": "sora", "more": {"data": data}})
    assert "not comparable" in page(made)
    assert "not comparable" not in page(groups({"method": "lora"}, {"method": "sora"}))


def test_an_unknown_baseline(study: Sequence[Group], tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="no group is called 'lora r=9'"):
        write_page(study, tmp_path / "a.html", baseline="lora r=9")
    assert not (tmp_path / "a.html").exists()


def test_the_same_page_from_the_same_reports(study: Sequence[Group]) -> None:
    assert page(study[:1]) == page(study[:1])


def test_five_hundred_runs_make_a_page_of_at_most_five_megabytes(tmp_path: Path) -> None:
    (small,) = groups(*({"method": "sora", "seed": s, "ranks": dict.fromkeys(KINDS, 3),
                         "layers": 12} for s in range(5)))  # fmt: skip
    many = [
        replace(small, label=f"sora {i}", settings={**small.settings, "method.threshold": i / 1e4})
        for i in range(1, 101)
    ]
    write_page(many, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(html.encode()) < 5_000_000
    assert html.count('class="heat"') == 100
    assert html.count("<code>runs/") == 500


CLICKS = """
const order = (t) => Array.from(t.tBodies[0].rows, (r) => r.cells[0].textContent.trim());
const table = document.querySelector("#t0 table.sortable");
const buttons = Array.from(table.querySelectorAll("button"));
const button = buttons.find((b) => b.textContent === "parameters");
const seen = [order(table)];
for (let i = 0; i < 3; i++) {
  button.focus();
  button.click();
  seen.push([button.parentElement.getAttribute("aria-sort"), ...order(table)]);
}
document.querySelector("#t0 tbody a").click();
setTimeout(() => {
  seen.push([String(document.querySelector("#t0 details.group").open)]);
  document.title = "RESULT " + JSON.stringify(seen);
}, 100);
"""


def _title_in_a_browser(html: str, script: str, folder: Path, *, width: int = 1300) -> Any:
    """What a script puts into the title, as JSON behind "RESULT ", when a browser shows the page.

    The body is then removed by another script, which the page's policy must not allow.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = html.replace("script-src ", f"script-src &#39;sha256-{digest}&#39; ", 1)
    html = html.replace("</body>", f"<script>{script}</script><script>document.body.remove()"
                        "</script></body>")  # fmt: skip
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
               "--no-first-run", "--disable-background-networking", "--disable-component-update",
               "--disable-sync", f"--user-data-dir={folder / 'profile'}",
               f"--window-size={width},900", "--virtual-time-budget=2000", "--dump-dom",
               path.as_uri()]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    (title,) = re.findall(r"<title>RESULT (.*?)</title>", done.stdout)
    assert 'class="sortable"' in done.stdout, "the policy keeps other scripts from running"
    return json.loads(title)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.long
def test_sorting_in_a_browser(tmp_path: Path) -> None:
    html = page(groups(
        {"method": "lora", "label": "small", "start": 4, "settings": {"method.r": 4}},
        {"method": "lora", "label": "large", "start": 16, "settings": {"method.r": 16}},
        {"method": "lora", "label": "middle", "start": 8, "settings": {"method.r": 8}},
    ))  # fmt: skip
    start = ["small", "large", "middle"]
    assert _title_in_a_browser(html, CLICKS, tmp_path) == [
        start,
        ["ascending", "small", "middle", "large"],
        ["descending", "large", "middle", "small"],
        ["none", *start],
        ["true"],
    ]


WIDTHS = """
const wide = Array.from(document.querySelectorAll(".wide:has(.sortable)"));
document.title = "RESULT " + JSON.stringify(wide.map((x) => [x.scrollWidth, x.clientWidth]));
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
@pytest.mark.long
def test_tables_fit_a_laptops_screen(study: Sequence[Group], tmp_path: Path) -> None:
    """With every column that there is, intervals of differences among them."""
    html = page(study, baseline="lora r=8", paper=True)
    widths = _title_in_a_browser(html, WIDTHS, tmp_path)
    assert widths
    assert all(needed <= there for needed, there in widths), widths
