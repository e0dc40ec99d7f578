"""Certificates that are scored again: the same wherever the files are, and not to be edited."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from sora_cli.adapter.card import rewrite_card
from sora_cli.adapter.places import locate_adapter
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.run import stored
from sora_cli.search.binomial import share_bound
from sora_cli.search.differing_answers import DifferingAnswers
from sora_cli.search.evidence import Evidence
from sora_cli.search.paired import exact_bound
from sora_cli.verify import again, again_finished, again_search
from sora_cli.verify import certificate as recheck
from tests.helpers_errors import error_of, error_text
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, save_base, write_rows
from tests.sora_cli.commands.promises import (
    ANSWERS,
    BY_ANSWERS,
    KINDS,
    LABELS,
    REPEATS,
    Made,
    Makers,
)
from tests.sora_cli.experiments.auto.support import certificate_of


@pytest.mark.parametrize("name", KINDS)
def test_it_is_scored_again(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = shutil.copytree(made.out, tmp_path / "elsewhere")
    assert run(["verify", str(moved), "--certificate", "--json"]) == OK
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "same"
    assert all(one["stored"] == one["here"] for one in facts["compared"])


@pytest.mark.parametrize(
    ("name", "key", "file", "found", "changed"),
    [
        (f"auto {LABELS}", "data.files.train", "train.jsonl", "where it is now: {}=FILE",
         "rows are not those of the certificate"),
        (f"auto {ANSWERS}", "auto.unlabelled", "inputs.jsonl", "say where it is now: {}=FILE",
         "the test rows are not those of the certificate"),
    ],
)  # fmt: skip
def test_it_is_scored_again_where_the_rows_have_moved(
    made: Made, key: str, file: str, found: str, changed: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    moved, here = shutil.copytree(made.out, tmp_path / "elsewhere"), made.recipe.parent / file
    report = moved / "report.json"
    gone = report.read_text(encoding="utf-8").replace(str(here), f"/gone/{file}")
    report.write_text(gone, encoding="utf-8")
    words = ["verify", str(moved), "--certificate"]
    said = error_of(capsys, *words)
    assert f"/gone/{file}" in said[0]
    assert found.format(key) in said[-1]
    assert run([*words, f"{key}={here}"]) == OK
    rows = write_rows(tmp_path / "other.jsonl", pair_rows(124, seed=7))
    assert run([*words, f"{key}={rows}"]) == FAILED
    assert changed in capsys.readouterr().out


def test_it_is_scored_again_where_the_base_has_moved(
    makers: Makers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A base that is named is the one that is loaded, and must hold the same weights."""
    made = makers.of(f"auto {LABELS}")
    moved = shutil.copytree(made.recipe.parent / "base", tmp_path / "moved")
    words = ["verify", str(made.out), "--certificate"]
    with pytest.MonkeyPatch.context() as patch:
        loaded = list[str]()
        inner = stored.load_base
        patch.setattr(
            stored,
            "load_base",
            lambda block, *a, **o: loaded.append(block.path) or inner(block, *a, **o),
        )
        assert run([*words, f"model.path={moved}"]) == OK
    assert set(loaded) == {str(moved)}
    other = save_base(tiny_bert(num_labels=2, seed=1), tmp_path / "other")
    assert f"{other} holds other weights" in error_text(capsys, *words, f"model.path={other}")


# nothing in it can be edited


_OTHER = {
    ("status",): {"certified": "not certified", "not certified": "certified"},
    ("promise", "kind"): {"drop": "differ", "differ": "drop"},
    ("promise", "basis"): {"labels": "answers", "answers": "labels", "asked": "labels"},
}
"""Other values of fields that take few."""


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield each value of a JSON document that is no object and no list, with its place."""
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from _leaves(inner, (*path, key))
    else:
        yield path, value


def _other(path: tuple[Any, ...], value: Any) -> Any:
    """Return another value that the field takes."""
    if path in _OTHER:
        return _OTHER[path][value]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + (1 if isinstance(value, int) else 0.0123)
    numbers = {"next_smaller", "differing", "held", "inputs", "every"}
    return f"{value}x" if value is not None else 1 if path[-1] in numbers else "vllm"


def _placed(document: Any, path: tuple[Any, ...], value: Any) -> str:
    """Return a JSON document with another value at a place."""
    changed = json.loads(json.dumps(document))
    place = changed
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(changed)


@pytest.fixture
def scored_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load the rows and score each adapter once, however often their run is verified."""

    def once(compute: Callable[..., Any], key: Callable[..., Any]) -> Callable[..., Any]:
        known: dict[Any, Any] = {}

        def cached(*words: Any, **more: Any) -> Any:
            if key(*words, **more) not in known:
                known[key(*words, **more)] = compute(*words, **more)
            return known[key(*words, **more)]

        return cached

    def read(maker: Any, place: str, **rows: bool) -> Any:
        """With what the first one has found out about the rows."""
        found = read_of(maker, place, **rows)
        maker.sets = maker.sets or sets[0]
        sets[:] = [maker.sets]
        return found

    sets: list[Any] = [{}]
    read_of = once(again_search.StoredRuns.read, lambda _, place, **rows: (place, repr(rows)))
    monkeypatch.setattr(again_search.StoredRuns, "read", read)
    for module, name in ((again, "load_task"), (again_search, "deciding_rows"),
                         (again_finished, "score_adapter")):  # fmt: skip
        monkeypatch.setattr(module, name, once(getattr(module, name), lambda *_: ()))
    chosen = once(again_finished.choosing_rows, lambda options, *_: repr(options))
    monkeypatch.setattr(again_finished, "choosing_rows", chosen)
    searched = once(again_finished.FinishedAgain._searched, lambda *words: repr(words[2]))
    monkeypatch.setattr(again_finished.FinishedAgain, "_searched", searched)


EVERY = [f"auto {what}" for what in (LABELS, ANSWERS, BY_ANSWERS)]
EVERY += [f"{command} {LABELS}" for command in ("prune", "heal", "extract")]


@pytest.mark.usefixtures("scored_once")
@pytest.mark.parametrize("name", EVERY)
def test_no_field_of_the_certificate_can_be_changed(made: Made, tmp_path: Path) -> None:
    copy = shutil.copytree(made.out, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    passing = []
    for path, value in _leaves(document):
        file.write_text(_placed(document, path, _other(path, value)), encoding="utf-8")
        with suppress(SoraError):  # exit code 2, or 3: it cannot be computed again
            if recheck.recheck(copy)[1].exit_code == OK:
                passing.append(path)
    assert passing == []
    file.write_text(json.dumps(document), encoding="utf-8")
    assert recheck.recheck(copy)[1].exit_code == OK


Document = dict[str, Any]


def _a_row_differs(by: int) -> Callable[[Document], None]:
    """Changed together, so that share, count and bound fit each other."""

    def edit(document: Document) -> None:
        document["full"]["test"] = 1 + by / 75
        document["candidates"][0]["test"]["score"] += by / 75

    return edit


def _not_tested(document: Document) -> None:
    """As if nothing had been tested."""
    for size in document["candidates"]:
        size["test"] = None
    document |= {"chosen": 0, "statement": "nothing is lost", "saved": "all of it"}


def _lost_rows_less(document: Document) -> None:
    """As if the first size had lost five rows less, with the bound that follows."""
    test, rows = document["candidates"][0]["test"], document["rows"]["test"]["rows"]
    answers = document["bound"]["statistic"] == DifferingAnswers.name
    lost = test["differing"] if answers else (test["differing"] + round(test["drop"] * rows)) // 2
    by = min(5, lost) or -5  # a size that has lost none loses five
    lost, won = lost - by, test["differing"] - lost
    for key, more in (("score", by / rows), ("drop", -by / rows), ("differing", -by)):
        test[key] += more
    test["upper"] = share_bound(lost, rows, 0.95) if answers else exact_bound(lost, won, rows, 0.95)


def _a_size_less(document: Document) -> None:
    """As if the last size had not been made."""
    document["candidates"].pop()


def _another_promise(document: Document) -> None:
    """As if twice as much had been promised."""
    promise, block = document["promise"], (document["recipe"] or {}).get("auto", {})
    kind = f"max_{promise['kind']}"
    promise["max_drop"] *= 2
    promise["given"] = block[kind] = str(promise["max_drop"])


@pytest.mark.usefixtures("scored_once")
@pytest.mark.parametrize("change", [_lost_rows_less, _a_size_less, _another_promise])
@pytest.mark.parametrize("name", EVERY)
def test_no_consistent_change_is_called_the_same(
    made: Made, change: Callable[[Document], None], tmp_path: Path
) -> None:
    """All that follows is changed, too, as by one who knows how it is computed; so is the card."""
    copy = shutil.copytree(made.out, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    change(document)
    changed = Evidence.model_validate(document)
    file.write_text(changed.text(), encoding="utf-8")
    rewrite_card(locate_adapter(copy), changed.lines())
    assert recheck.recheck(copy)[1].exit_code == FAILED


EDITS: Mapping[str, tuple[str, Callable[[Document], None], int]] = {
    "a row more": (ANSWERS, _a_row_differs(1), FAILED),
    "a row less": (ANSWERS, _a_row_differs(-1), FAILED),
    "all held rows test": (REPEATS, lambda d: d["rows"]["test"].update(held=None), FAILED),
    "other rows test": (REPEATS, lambda d: d["rows"]["test"].update(rows=60), FAILED),
    "nothing was tested": (LABELS, _not_tested, FAILED),
    "an earlier version's words": (
        LABELS, lambda d: d.update(schema_version=1, statement="in other words"), OK,
    ),
    "this version's words": (
        LABELS, lambda d: d.update(schema_version=4, statement="in other words"), FAILED,
    ),
    "before next tokens": (ANSWERS, lambda d: d["promise"].pop("next_tokens") and None, OK),
}  # fmt: skip


@pytest.mark.usefixtures("scored_once")
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_certificate(makers: Makers, edit: str, tmp_path: Path) -> None:
    what, change, code = EDITS[edit]
    copy = shutil.copytree(makers.of(f"auto {what}").out, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    change(document)
    file.write_text(json.dumps(document), encoding="utf-8")
    if edit == "before next tokens":
        report = json.loads((copy / "report.json").read_text(encoding="utf-8"))
        assert report["recipe"]["auto"].pop("next_tokens") is False
        (copy / "report.json").write_text(json.dumps(report), encoding="utf-8")
    assert recheck.recheck(copy)[1].exit_code == code


@pytest.mark.usefixtures("scored_once")
def test_what_follows_from_the_figures_is_not_believed(
    makers: Makers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(makers.of(f"auto {LABELS}").out, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    _not_tested(document)
    file.write_text(json.dumps(document), encoding="utf-8")
    found = certificate_of(copy)
    assert not found.certified
    assert "cannot show that accuracy is at most 0.5 worse" in found.statement
    assert run(["verify", str(copy), "--certificate"]) == FAILED
    said = capsys.readouterr().out
    assert "not certified" in said.splitlines()[0]
    assert 'statement: "nothing is lost" in the certificate, ' in said
    assert 'saved: "all of it" in the certificate, ' in said
    assert run(["report", str(copy), "--force"]) == OK
    page = (copy / "report.html").read_text(encoding="utf-8")
    assert "Not certified:" in page
    assert "nothing is lost" not in page


def _card(copy: Path) -> str:
    card = copy / "adapter" / "README.md"
    text = card.read_text(encoding="utf-8")
    card.write_text(text.replace("at most 0.5 worse", "at most 0.001 worse"), encoding="utf-8")
    return f"the card in {copy / 'adapter'} does not say: Certified: "


def _classes(size: str) -> Callable[[Path], str]:
    def edit(copy: Path) -> str:
        file = copy / size / "adapter" / "sora.json"
        facts = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps(facts | {"labels": ["1", "0"]}), encoding="utf-8")
        return "has the labels 1, 0, and the run 0, 1"

    return edit


def _other_adapter(copy: Path) -> str:
    shutil.copytree(copy / "sizes/full/adapter", copy / "adapter", dirs_exist_ok=True)
    return "is not the adapter of the certificate"


@pytest.mark.parametrize("edit", [_card, _classes("."), _classes("sizes/full"), _other_adapter])
def test_edited_files_beside_the_certificate(
    makers: Makers, edit: Callable[[Path], str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    copy = shutil.copytree(makers.of(f"auto {LABELS}").out, tmp_path / "copy")
    said = edit(copy)
    assert run(["verify", str(copy), "--certificate"]) == FAILED
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("name", [f"{command} {LABELS}" for command in ("heal", "auto")])
def test_a_size_that_is_missing(made: Made, tmp_path: Path) -> None:
    """The plan names one more size, and none of those that are left has failed."""
    copy = shutil.copytree(made.out, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    *before, left, last = document["candidates"]
    left["reported"] = last["reported"]
    document["candidates"].pop()
    changed = {"chosen": len(before), "adapter": left["digest"]}
    file.write_text(json.dumps(document | changed), encoding="utf-8")
    shutil.rmtree(copy / last["directory"])
    shutil.copytree(copy / left["directory"] / "adapter", copy / "adapter", dirs_exist_ok=True)
    found, done = recheck.recheck(copy)
    assert (found.chosen, done.exit_code) == (len(before), FAILED)
    named, tested = len(before) + 2, len(before) + 1
    said = f"{named} sizes were named, {tested} were tested, and none failed"
    assert said in done.differs


@pytest.mark.parametrize("name", [f"{command} {LABELS}" for command in ("prune", "extract")])
def test_a_reference_that_is_gone_cannot_be_told(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(made.out, tmp_path / "copy")
    file = copy / "certificate.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    place = document["full"]["directory"]
    document["full"]["directory"] = str(tmp_path / "gone")
    file.write_text(json.dumps(document), encoding="utf-8")
    assert run(["verify", str(copy), "--certificate"]) == NO_VERDICT
    assert "say where it is now: sora verify A B --certificate" in capsys.readouterr().err
    moved = shutil.copytree(place, tmp_path / "moved")
    assert run(["verify", str(copy), str(moved), "--certificate"]) == OK


def test_a_promise_of_an_earlier_version_cannot_be_told(
    makers: Makers, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (f"prune {LABELS}", f"heal {LABELS}"):
        copy = shutil.copytree(makers.of(name).out, tmp_path / name)
        (copy / "certificate.json").rename(copy / "sizes.json")
        assert run(["verify", str(copy), "--certificate"]) == NO_VERDICT
        assert "was recorded by an earlier version" in capsys.readouterr().err
