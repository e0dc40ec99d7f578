"""Replays with asked labels: they decide as the search does, and see a promise that is broken."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sora_cli.search.ask_table import NONE, Given, Question
from sora_cli.search.asked_labels import AskedLabels
from sora_cli.search.asked_search import AskedSearch, TooManyLabelsError
from sora_cli.search.evidence import Screened
from sora_cli.search.paired import exact_bound
from sora_cli.search.row_set import SCREENING
from sora_cli.search.statistic import Labelled
from sora_cli.tasks.questions import Questions
from sora_cli.tasks.row_scores import RowScores, asked_scores
from tests.sora_cli.search.test_asked_search import Invented, Search, certificate
from tools.auto import asked
from tools.auto.asked import FILLS, AskedPool, Decision, Verdicts, broken, promise_of
from tools.auto.asked_runs import RIGHT, by_accuracy, cases, labelled, pools
from tools.auto.label_noise import SMALL, WAYS, _count, _labels
from tools.auto.stored import FULL, Stored, read_all
from tools.auto.synthetic import right_or_wrong
from tools.auto.train import FILE


def pool_of(differing: float, won: float, rows: int = 400, *, ask_all: bool = False) -> AskedPool:
    stored = labelled(right_or_wrong(differing, won, rows=2000), None)
    return AskedPool(stored, rows, 3, ask_all=ask_all)


class Drawn(Invented):
    """The sizes of a pool, on rows that were drawn from it."""

    def __init__(self, pool: AskedPool, named: list[Screened], places: list[int]) -> None:
        super().__init__()
        self.pool, self.named, self.places = pool, named, places

    def screened(self, *_: Any) -> list[Screened]:
        return self.named

    def draw(self, rows: int) -> Any:
        rng = np.random.default_rng((self.pool.stored.seed, 0, 7))
        self.drawn = rng.integers(self.pool.stored.rows, size=rows)
        shown = Questions({"text": [str(n) for n in range(rows)]}, [{"1.0": "1.0"}] * rows)
        return SimpleNamespace(
            task=SimpleNamespace(questions=lambda *_: shown), rows=None, unused=None
        )

    def _answers(self, model: str) -> RowScores:
        codes = self.pool.stored.scores[model].parts[self.drawn, 0]
        return asked_scores([str(code) for code in codes])

    def scored(self, number: int, named: Screened) -> RowScores:
        del named
        return self._answers(f"healed-{self.places[number]}")

    def scores_at_full_rank(self) -> RowScores:
        return self._answers(FULL)


def searched(pool: AskedPool, screened: list[Screened], named: list[int], drop: float) -> Decision:
    """The outcome of a real search, whose labels are the truth."""
    sizes = [screened[place].model_copy(update={"named": True}) for place in named]
    record, most = Search().record, pool.setting
    record.rows[SCREENING].rows = most.screening
    maker = Drawn(pool, sizes, named)
    bound = AskedLabels().method_on(most.test, 0.95)
    seeds = {"training": 0, "rows": 0}
    promise = promise_of(drop).model_copy(update={"ask_all": pool.ask_all})
    search = AskedSearch(maker, record, promise, bound, most.test, seeds)
    table: dict[str, Given] = {}

    def read(rows: Mapping[str, Question]) -> Mapping[str, Given]:
        return {key: table.get(key, NONE) for key in rows}

    search.read = read
    while True:  # as long as rows are asked that nobody was asked before
        try:
            for _ in search.run():
                pass
        except TooManyLabelsError:
            return Decision(None, None, len(maker.drawn))
        if search.wanted.rows.keys() <= table.keys():
            break
        table |= dict.fromkeys(search.wanted.rows, (str(RIGHT), ""))
    found = certificate(search)
    size = named[found.chosen] if found.certified and found.chosen is not None else None
    return Decision(size, len(search.wanted.rows), len(maker.drawn))


@pytest.mark.parametrize("ask_all", [False, True])
@pytest.mark.parametrize(
    ("differing", "won", "drop"), [(0.06, 0.4, 0.04), (0.03, 0.2, 0.02), (0.9, 0.3, 0.05)]
)
def test_a_replay_decides_as_the_search_does(
    differing: float, won: float, drop: float, ask_all: bool
) -> None:
    pool = pool_of(differing, won, ask_all=ask_all)
    screened = pool.screened(0)
    *named, rows = plan = pool.plan(screened, drop)
    (everything,) = pool.test(plan, drop, (0, 7), [FILLS["all"]])
    assert everything == searched(pool, screened, named, drop)
    assert everything.rows == rows


def test_verdicts_are_those_of_the_exact_bound() -> None:
    rows, promise = 60, 0.12
    verdicts, rng = Verdicts(rows, promise), np.random.default_rng(0)
    kept = 0
    for lost, won, missing in rng.integers(0, 9, size=(60, 3)):
        counts = Labelled(lost=int(lost), won=int(won), neither=0, missing=int(missing))
        unknown = int(missing)
        wanted = exact_bound(int(lost) + unknown, int(won), rows, 0.95, unknown) <= promise
        assert verdicts.keeps(counts) == wanted
        kept += wanted
    assert 5 < kept < 55


def test_a_bound_that_says_too_little_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the drop on the test rows itself in place of its bound, many promises are broken."""
    monkeypatch.setattr(asked, "PROMISES", (0.04,))
    (kept,) = broken(pool_of(0.15, 0.2), 1, 120)
    assert max(kept) <= 0.05 + 2 * (0.05 * 0.95 / 120) ** 0.5
    monkeypatch.setattr(
        asked, "bound_of", lambda counts, rows, _: (counts.lost - counts.won) / rows
    )
    (too_often,) = broken(pool_of(0.15, 0.2), 1, 120)
    assert too_often[0] > 0.2
    assert len(too_often) == len(FILLS)


def test_answers_with_labels_have_the_drop_of_right_or_wrong_rows() -> None:
    found = [*cases([0])]
    assert found
    for one in found:
        full, right = one.by_asking.scores[FULL], one.by_labels.scores[FULL]
        assert (full.parts[:, 1] == RIGHT).all()
        for name, scores in one.by_asking.scores.items():
            drop = AskedPool(one.by_asking, 400, 2).drop(name)
            assert drop == pytest.approx(right.value - one.by_labels.scores[name].value, abs=1e-9)
            is_more = full.differs(scores) | ~right.differs(one.by_labels.scores[name])
            assert is_more.all()


def test_stored_runs_are_the_seven_tasks_and_cola() -> None:
    tasks = [one.by_asking.task for one in cases([0])]
    assert tasks == [
        "sst2", "cola", "mrpc", "rte", "quickstart",
        *(f"offline-{name}" for name in ("digits", "endings", "numbers")),
    ]  # fmt: skip
    codes = {one.by_asking.task: codes_of(one.by_asking) for one in cases([0])}
    assert len(codes["offline-digits"]) > 2  # wrong answers are told apart
    assert len(codes["offline-endings"]) == len(codes["sst2"]) == 2


def codes_of(stored: Stored) -> set[float]:
    return {code for scores in stored.scores.values() for code in scores.parts[:, 0].tolist()}


def test_classes_are_right_where_they_are_the_wanted_ones() -> None:
    cola = next(one for one in read_all(FILE) if one.task == "cola")
    given, wanted = cola.scores[FULL].parts.T
    assert by_accuracy(cola).scores[FULL].value == (given == wanted).mean()


def test_made_pools_have_their_shares() -> None:
    for name, stored in pools():
        full, last = stored.scores[FULL], stored.scores["healed-5"]
        assert f"up to {full.differs(last).mean():.0%} differ" in name


@pytest.mark.parametrize(("labellers", "disagree"), [("one", 0), ("two", 18), ("half", 9)])
def test_wrong_labels_are_as_many_as_said(labellers: str, disagree: int) -> None:
    """Of 100 lost rows, with a tenth of wrong labels: two people disagree on 2 x 0.1 x 0.9."""
    rng, truth = np.random.default_rng(0), np.zeros(20_000, dtype=np.int64)
    wrong = WAYS["the small model's answer"]
    labels = _labels(truth, 2, wrong, 0.1, labellers, rng)
    counts = _count(truth, labels)
    assert counts.differing == 20_000
    assert counts.disagree / 200 == pytest.approx(disagree, abs=1)
    both = {"one": 10, "two": 1, "half": 5.5}[labellers]
    assert counts.won / 200 == pytest.approx(both, abs=0.8)
    assert (labels[:, 0] == SMALL).mean() == pytest.approx(0.1, abs=0.01)
