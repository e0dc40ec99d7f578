"""Decisions on stored scores: what is stored comes back, and a broken promise is seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from sora_cli.recipe.load import load_recipe
from sora_cli.search.statistic import Bound
from sora_cli.tasks.row_scores import answer_scores
from tests.shared_files import ROOT
from tests.sora_cli.experiments.auto.support import auto_recipe
from tools.auto.decide import Pool, Setting
from tools.auto.replay import main, replay, show
from tools.auto.stored import FULL, Stored, read_all, write_all
from tools.auto.synthetic import classes, numbers, right_or_wrong
from tools.auto.train import ANSWERS_FILE, FILE, numbered, store


@pytest.mark.parametrize(
    ("stored", "exact"),
    [
        (right_or_wrong(0.1, 0.2, rows=300), True),
        (classes(0.3, 0.1, rows=300), True),
        (numbers(0.2, rows=300), False),
    ],
)
def test_what_is_stored_comes_back(tmp_path: Path, stored: Stored, exact: bool) -> None:
    write_all(tmp_path / "scores.jsonl", [stored, stored])
    found, again = read_all(tmp_path / "scores.jsonl")
    assert found.sizes == again.sizes == stored.sizes
    assert (found.full, found.lora, found.planned) == (stored.full, stored.lora, stored.planned)
    for name in ("scores", "unhealed"):
        models, before = getattr(found, name), getattr(stored, name)
        assert list(models) == list(before)
        for model, scores in models.items():
            assert (scores.metric, scores.formula) == (before[model].metric, before[model].formula)
            tolerance = 0 if exact else 0.03
            np.testing.assert_allclose(scores.parts, before[model].parts, atol=tolerance)
            assert scores.value == pytest.approx(before[model].value, abs=0 if exact else 1e-3)
    assert found.to_json() == stored.to_json() if exact else found.to_json() == again.to_json()


def test_a_tolerance_comes_back(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=300)
    stored = right_or_wrong(0.1, 0.2, rows=300)
    models = {name: answer_scores(values.tolist(), 0.25) for name in stored.scores}
    few = {name: models[FULL].take(np.arange(stored.screening)) for name in stored.unhealed}
    write_all(tmp_path / "a.jsonl", [dataclasses.replace(stored, scores=models, unhealed=few)])
    (again,) = read_all(tmp_path / "a.jsonl")
    assert (again.scores[FULL].parts[:, 1] == 0.25).all()
    np.testing.assert_allclose(again.scores[FULL].parts[:, 0], values, atol=0.03)


def test_a_promise_that_all_keep_is_certified_and_one_that_rows_cannot_certify_is_not() -> None:
    pool = Pool(right_or_wrong(0.01, 0.5, rows=2000), Setting(500, 400))
    split = pool.split(0)
    found = pool.decide(split, 0.05)
    assert found.certified
    assert found.size == 5  # the smallest
    assert set(split.bounds) == {"healed-5"}
    beyond = pool.decide(pool.split(0), 0.005)  # 400 rows that all agree show 0.0075
    assert (beyond.certified, beyond.tested) == (False, 1)


def test_parts_of_a_split_share_no_row() -> None:
    pool = Pool(right_or_wrong(0.01, 0.5, rows=600), Setting(100, 400, with_replacement=False))
    split = pool.split(3)
    assert len(set(split.screening) | set(split.test)) == 500
    assert (pool.split(3).test == split.test).all()
    assert (pool.split(4).test != split.test).any()


def test_a_certificate_that_says_too_much_is_seen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the drop on the test rows itself in place of its bound, half the promises are broken."""
    stored, setting = right_or_wrong(0.15, 0, rows=4000), Setting(30, 70)
    kept = [one for one in replay(stored, setting, 150) if not one.multiple]
    assert len(kept) == 5  # of 6: such rows certify no less than 0.042
    assert max(one.broken for one in kept) <= 0.05 + 2 * kept[0].error
    monkeypatch.setattr(Bound, "keeps", lambda bound, promise: bound.drop <= promise)
    broken = [one for one in replay(stored, setting, 150) if not one.multiple]
    assert max(one.broken for one in broken) > 0.3
    show(kept)
    assert "| synthetic | 100 | 5 |" in capsys.readouterr().out


def test_sizes_are_compared_with_the_smallest_plain_rank_that_keeps_the_promise() -> None:
    stored = right_or_wrong(0.01, 0.5, rows=2000)
    worst = stored.scores["healed-5"]
    worst = dataclasses.replace(worst, parts=np.zeros_like(worst.parts))
    scores = {**stored.scores, "lora-1": worst}
    (_, twice, *_) = replay(dataclasses.replace(stored, scores=scores), Setting(500, 400), 20)
    assert twice.certified == 1
    smallest = stored.sizes[5].healed[0]
    assert twice.share == smallest / stored.full[0]
    assert twice.to_lora == pytest.approx(smallest / stored.lora["lora-2"])
    assert twice.to_certified == pytest.approx(twice.to_lora)  # its bound keeps the promise, too


def test_answers_are_numbered_row_by_row() -> None:
    full, same, other = (answer_scores(words) for words in (["a", "b"], ["a", "b"], ["b", "c"]))
    cut = answer_scores(["c"])  # the first row alone is a screening row
    scores = numbered({FULL: full, "healed-0": same, "healed-1": other}, {"cut-0": cut})
    parts = {name: one.parts[:, 0].tolist() for name, one in scores["scores"].items()}
    assert parts == {FULL: [0, 0], "healed-0": [0, 0], "healed-1": [1, 1]}
    assert scores["unhealed"]["cut-0"].parts.tolist() == [[2]]


def test_a_plain_rank_within_the_promise_need_not_be_certified() -> None:
    stored = right_or_wrong(0.06, 0.2, rows=2000)
    scores = {**stored.scores, "lora-1": stored.scores["healed-5"]}  # it loses 3.6 points
    (first, *_) = replay(dataclasses.replace(stored, scores=scores), Setting(500, 400), 20)
    assert first.certified > 0.5
    assert first.to_certified < first.to_lora


@pytest.mark.parametrize("path", [FILE, ANSWERS_FILE])
def test_the_stored_scores_can_be_read(path: Path) -> None:
    file = ROOT / path
    assert file.stat().st_size < 2**20
    for stored in read_all(file):
        drops = Pool(stored, Setting(*stored.planned)).drops
        assert len(drops) == len(stored.sizes) == 11
        assert drops[0] < 0.03 + 0.09 * (path == ANSWERS_FILE)
        assert max(drops) > 0
        assert set(stored.reported) == set(stored.scores)


def test_several_processes_find_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (ROOT / "docs/results/auto.jsonl").read_text(encoding="utf-8").splitlines()
    file = tmp_path / "some.jsonl"
    digits = [line for line in lines if '"offline-digits"' in line][:2]
    file.write_text("\n".join(digits) + "\n", encoding="utf-8")
    tables = []
    for jobs in ("1", "2"):
        monkeypatch.setattr("sys.argv", ["replay", str(file), "--splits", "2", "--jobs", jobs])
        main()
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]
    assert [tables[0].count(f"| offline-digits | {seed} |") for seed in (0, 1)] == [4, 4]


@pytest.mark.long
def test_all_sizes_of_a_run_are_trained_and_stored(tmp_path: Path) -> None:
    loaded = load_recipe(str(auto_recipe(tmp_path, auto={"sizes": 2})), [])
    stored = store(loaded, 60, tmp_path / "scratch")
    sizes = range(len(stored.sizes))
    assert len(sizes) > 3
    assert list(stored.scores) == [FULL, *(f"healed-{i}" for i in sizes), "lora-1", "lora-2",
                                   "lora-4"]  # fmt: skip
    assert {len(scores) for scores in stored.scores.values()} == {60}
    assert {len(scores) for scores in stored.unhealed.values()} == {15}
    parameters = [size.healed[0] for size in stored.sizes]
    assert parameters == sorted(parameters, reverse=True)
    assert all(size.healed[0] <= size.max_params for size in stored.sizes)
    assert stored.lora["lora-4"] == stored.full[0]
    assert set(stored.reported) == set(stored.scores)
