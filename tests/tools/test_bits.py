"""The tool that rounds finished adapters: its page, its budget, and the score of what it stores."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from methods.factors import LowRankFactors
from methods.grid import GROUP, round_factors
from sora_cli.adapter.rounding import factor_bytes
from sora_cli.core.figures import save_figure
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe
from tests.shared_files import ROOT
from tools import bits_picture
from tools.bits import WAYS, mixed, score, table

RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize(
    ("file", "steps"), [("bytes", 150), ("bytes", 1000), ("bytes-small", 1000)]
)
def test_the_page_has_the_tables_that_are_printed(file: str, steps: int) -> None:
    lines = (RESULTS / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()
    of_steps = [line for line in map(json.loads, lines) if line["steps"] == steps]
    assert table(of_steps) in (RESULTS / "arena-bytes.md").read_text(encoding="utf-8")


def test_the_picture_shows_what_nothing_smaller_beats(tmp_path: Path) -> None:
    lines = (RESULTS / "bytes.jsonl").read_text(encoding="utf-8").splitlines()
    found = bits_picture.read([x for x in map(json.loads, lines) if x["steps"] == 150])
    assert {p.way for p in found} == {*bits_picture.WAYS}
    assert not {p.label for p in found if "unilora" in p.label}  # in 16 bits
    kept = bits_picture.front(found)
    kinds = [(p.text, p.way) for p in kept[-3:]]
    assert kinds == [("15 %", "b3"), ("r 1, alpha 4", "b4"), ("r 8", "b4")]
    assert all(a.share < b.share and a.lost < b.lost for a, b in pairwise(kept))
    save_figure(bits_picture.draw(found), tmp_path / "bytes.png")
    assert (tmp_path / "bytes.png").stat().st_size > 20_000


def test_mixed_bits_keep_their_budget_and_lose_less_than_equal_bits() -> None:
    g = torch.Generator().manual_seed(0)
    layers = {}
    for i in range(3):
        A = torch.randn(6, 2 * GROUP, generator=g) * torch.logspace(0, -2, 6)[:, None]
        layers[f"l.{i}"] = LowRankFactors(A, torch.randn(GROUP, 6, generator=g)).truncate(6)
    ranks, shapes = dict.fromkeys(layers, 6), dict.fromkeys(layers, (GROUP, 2 * GROUP))
    budget = factor_bytes(ranks, shapes, 3)
    made, used = mixed(layers, budget)
    assert 0.95 * budget < used <= budget

    def lost(after: dict[str, LowRankFactors]) -> float:
        return sum(f.minus(after[path]).norm() ** 2 for path, f in layers.items())

    assert lost(dict(made)) < 0.7 * lost({p: round_factors(f, 3) for p, f in layers.items()})


def test_every_way_is_scored_on_the_reported_rows(tmp_path: Path) -> None:
    report = train(write_recipe(tmp_path, tiny_bert(num_labels=2), method={"threshold": 0.0}))
    lines = {line["way"]: line for line in score(tmp_path / "out", WAYS)}
    assert set(lines) == set(WAYS)
    assert lines["32"]["score"] == report.metrics["validation"]["accuracy"]
    assert lines["32"]["bytes"] == 4 * report.parameters.adapter_end
    errors = [lines[way]["error"] for way in ("32", "16", "b8", "b4", "b3", "b2")]
    assert errors == sorted(errors)
    assert errors[0] < 1e-6 < errors[1]
    assert lines["mixed-2"]["bytes"] <= lines["b2"]["bytes"] < lines["b4"]["bytes"]
