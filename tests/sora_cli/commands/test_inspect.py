"""`sora inspect`: the table, the JSON and the picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sora_cli.adapter import write_adapter
from sora_cli.commands.inspect import inspect
from sora_cli.commands.prune import prune
from sora_cli.errors import SoraError
from sora_cli.ranks import OTHER, Rank, rank_map, shortest_names
from tests.helpers_adapters import R_MAX, adapt, save_backbone
from tests.helpers_models import tiny_bert


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("inspect")
    model = tiny_bert()
    adapter = adapt(model, save_backbone(model, tmp / "base"), head=("bert.pooler", "classifier"))
    write_adapter(tmp / "run" / "adapter", adapter)
    return tmp / "run"


def test_table(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(directory, as_json=False, plot=None)
    out = capsys.readouterr().out
    for word in ("query", "intermediate", "bert.pooler, classifier", "yes, no, maybe", "sora"):
        assert word in out
    table = out.split("method:")[0].splitlines()
    assert max(len(line.rstrip()) for line in table if str(directory) not in line) <= 80
    start = 12 * R_MAX
    assert f"/{start}" in table[-2]


def test_json_agrees_with_the_files(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(directory / "adapter", as_json=True, plot=None)
    facts = json.loads(capsys.readouterr().out)
    ranks = facts["ranks"]
    assert len(ranks) == 12
    assert {cell["start"] for cell in ranks.values()} == {R_MAX}
    assert facts["components"]["live"] == sum(cell["live"] for cell in ranks.values())
    assert facts["modules"] == {"all": 12, "dead": sum(c["live"] == 0 for c in ranks.values())}
    assert facts["modules"]["dead"] > 0
    assert facts["labels"] == ["yes", "no", "maybe"]
    assert facts["bytes"] > 4 * sum(facts["parameters"].values())


def test_lineage_is_shown(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prune(directory, tmp_path / "p", energy=0.5, rank=None, max_params=None, force=False)
    capsys.readouterr()
    inspect(tmp_path / "p", as_json=False, plot=None)
    assert "prune: energy 0.5" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ranks.png", "ranks.svg"])
def test_plot(directory: Path, tmp_path: Path, name: str) -> None:
    inspect(directory, as_json=True, plot=tmp_path / name)
    head = (tmp_path / name).read_bytes()[:8]
    assert head == b"\x89PNG\r\n\x1a\n" if name.endswith("png") else head.startswith(b"<?xml")
    assert len(list(tmp_path.iterdir())) == 1


def test_plot_of_unknown_kind(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="xyz"):
        inspect(directory, as_json=True, plot=tmp_path / "ranks.xyz")
    assert not list(tmp_path.iterdir())


def test_rank_map_groups_by_the_first_number() -> None:
    live = {
        "model.layers.10.self_attn.q_proj": 1,
        "model.layers.9.self_attn.q_proj": 0,
        "model.layers.9.mlp.up_proj": 3,
        "lm_head": 2,
    }
    table = rank_map(live, {"model.layers.9.self_attn.q_proj": 8})
    assert table.rows == ("model.layers.9", "model.layers.10", OTHER)
    assert table.row_labels() == ["9", "10", OTHER]
    assert table.column_labels() == ["q_proj", "up_proj", "lm_head"]
    assert table.row_total("model.layers.9") == Rank(3, 11)
    assert table.column_total("self_attn.q_proj") == Rank(1, 9)
    assert table.total == Rank(6, 14)


def test_rank_map_of_several_stacks_and_of_bare_numbers() -> None:
    table = rank_map({"t.encoder.block.0.q": 1, "t.decoder.block.0.q": 1, "t.decoder.block.2.q": 1})
    assert table.row_labels() == ["decoder.block.0", "decoder.block.2", "encoder.block.0"]
    assert rank_map({"net.0": 1, "net.2": 2}).columns == ("net",)
    assert rank_map({"0": 1}).total == Rank(1, 1)


def test_shortest_names() -> None:
    assert shortest_names(["attention.output.dense", "output.dense", "a.query"]) == [
        "attention.output.dense",
        "output.dense",
        "query",
    ]
