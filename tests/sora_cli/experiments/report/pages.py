"""Runs to make pages of, and what a test reads of a page."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from sora_cli.app import run
from sora_cli.experiments.path.record import PathReport, Stage
from tests.helpers_reports import KINDS, write_report
from tests.sora_cli.adapter.test_spectra import write_peft

VOID = {"meta", "br", "img", "use", "path"}


class Page(HTMLParser):
    """A page's elements with their attributes, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.html = file.read_text(encoding="utf-8")
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(self.html)
        assert not self.open, "all elements are closed"

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
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        """All text on one line."""
        return re.sub(r"\s+", " ", " ".join(self.words))

    def section(self, name: str) -> str:
        """The text of one section."""
        (inside,) = re.findall(rf'<section id="{name}".*?</section>', self.html, re.DOTALL)
        return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", inside))


def page_of(directory: Path, *words: str) -> Page:
    """`sora report` on a run, which must end well; the page."""
    assert run(["report", str(directory), *words]) == 0
    return Page(directory / "report.html")


def full_run(folder: Path, **about: Any) -> Path:
    """A run with ranks that changed, an adapter that fits them, and curves."""
    known: dict[str, Any] = {"method": "sora", "layers": 2, "start": 6, "steps": 40,
                             "ranks": dict.fromkeys(KINDS, 6)}  # fmt: skip
    about = known | about
    kept = [6] * 10 + [5] * 30
    more = {"live_components": [12 * n for n in kept], "without_adapters": {"validation": 0.5},
            "events": ["a gate came back"], **about.pop("more", {})}  # fmt: skip
    directory = write_report(folder, more=more, **about)
    shapes = {f"bert.encoder.layer.{i}.{kind}": (n_out, n_in)
              for i in range(2) for kind, (n_in, n_out) in KINDS.items()}  # fmt: skip
    write_peft(directory / "adapter", shapes)
    return directory


def write_predictions(file: Path, records: list[dict[str, Any]]) -> Path:
    """Records as `sora eval --predictions` writes them."""
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return file


def class_records(right: int, wrong: int) -> list[dict[str, Any]]:
    """Predictions of a classifier; every one is surer than the one before."""
    return [
        {"split": "validation", "row": i, "input": {"sentence": f"text {i}"},
         "prediction": "yes", "label": "yes" if i < right else "no", "logits": [float(i), 0.0]}
        for i in range(right + wrong)
    ]  # fmt: skip


def write_path(folder: Path, *, finished: int = 2) -> Path:
    """The directory of a path of two stages; the second lost half of its components."""
    stages = []
    for i in range(finished):
        score, alive = 0.8 - 0.2 * i, {"layer.0.q": [0, 1][: 2 - i], "layer.1.q": [0, 1][: 2 - i]}
        stages.append(
            Stage(index=i, value=0.5 * i, directory=f"stages/{i:02d}", epochs=1.0, steps=5,
                  live=4 - 2 * i, total=4, alive=alive, parameters=40 - 20 * i,
                  metrics={name: {"accuracy": score} for name in ("train-subset", "validation")},
                  relative=dict.fromkeys(("train-subset", "validation"), score / 0.8),
                  norm=1.0, energy_removed=None, seconds=3.0)
        )  # fmt: skip
    report = PathReport(
        status="completed" if finished == 2 else "running", name="ways <of> old",
        recipe={"model": {"path": "M"}, "task": {"name": "sequence-classification"}},
        command=["sora", "path", "r.yaml"], vary="method.threshold", method="sora",
        main_metric="accuracy", generalisation="validation", choice="validation",
        rows={"validation": 30}, selection="as reported", stage_count=2, stages=stages,
        seconds={"stages": 6.0}, peak_memory_bytes=1_000_000,
    )  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "path.json").write_text(report.model_dump_json(), encoding="utf-8")
    return folder
