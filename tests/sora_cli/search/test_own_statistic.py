"""A statistic of one's own: one class, one line, and no other file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from sora_cli.search.right_or_wrong import RightOrWrong
from sora_cli.search.statistic import Bound, Nouns
from sora_cli.search.statistics import STATISTICS
from sora_cli.tasks.row_scores import RowScores
from tests.sora_cli.experiments.auto.support import auto_recipe, certificate_of


class Hoeffding(RightOrWrong):
    """The mean of rows between 0 and 1, by Hoeffding's inequality (1963, JASA 58, 13-30)."""

    name = "hoeffding"
    method = ": Hoeffding's inequality (1963)"

    def bound(
        self, full: RowScores, small: RowScores, confidence: float, *, seed: int, resamples: int
    ) -> Bound:
        del seed, resamples
        margin = self.best_case(len(full), confidence)
        return self.result(full, small, self.drop(full, small) + margin)

    def best_case(self, rows: int, confidence: float) -> float:
        return math.sqrt(-2 * math.log(1 - confidence) / rows)

    def following(self, drop: float, differing: int, rows: int, confidence: float) -> float:
        del differing
        return drop + self.best_case(rows, confidence)

    def nouns(self, promise: object, reference: str = "full rank") -> Nouns:
        words = super().nouns(promise, reference)  # type: ignore[arg-type]
        return Nouns(**{**vars(words), "promised": "the mean is hardly worse"})


def test_it_is_certified_written_verified_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sora_cli.search.statistics.STATISTICS", [Hoeffding(), *STATISTICS])
    out = tmp_path / "out"
    assert run(["auto", str(auto_recipe(tmp_path)), "--no-verify", f"output.dir={out}"]) == OK
    found = certificate_of(out)
    assert (found.bound.statistic, found.bound.exact) == ("hoeffding", True)
    assert found.written is not None
    assert found.written.test is not None
    margin = math.sqrt(-2 * math.log(0.05) / found.rows["test"].rows)
    assert found.written.test.upper == pytest.approx(found.written.test.drop + margin)
    assert "confidence the mean is hardly worse than at full rank" in found.statement
    capsys.readouterr()
    assert run(["verify", str(out), "--certificate", "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["verdict"] == "same"
    document = json.loads((out / "certificate.json").read_text(encoding="utf-8"))
    document["candidates"][found.chosen]["test"]["upper"] -= 0.01
    (out / "certificate.json").write_text(json.dumps(document), encoding="utf-8")
    assert run(["verify", str(out), "--certificate"]) != OK
    monkeypatch.undo()
    assert run(["report", str(out), "--force"]) != OK  # a program that does not know it says so
    assert "'hoeffding', which this program does not compare" in capsys.readouterr().err
