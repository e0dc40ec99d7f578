"""`sora inspect`: the tables, the JSON and the picture, of one adapter and of several."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.ranks import OTHER, Rank, rank_map, shortest_names
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.side_by_side import short_names
from sora_cli.app import run
from sora_cli.commands.inspect import inspect
from sora_cli.commands.prune import prune
from sora_cli.core.errors import SoraError
from sora_cli.model.files import ADAPTER_WEIGHTS
from tests.golden import NUMBER, told
from tests.helpers_adapters import R_MAX, adapt, save_backbone
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.sora_cli.adapter.test_spectra import SHAPES, write_peft


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("inspect")
    model = tiny_bert()
    adapter = adapt(model, save_backbone(model, tmp / "base"), head=("bert.pooler", "classifier"))
    write_adapter(tmp / "run" / "adapter", adapter)
    return tmp / "run"


def shown(capsys: pytest.CaptureFixture[str], *directories: Path) -> dict[str, Any]:
    """What `--json` prints."""
    capsys.readouterr()
    inspect(list(directories), as_json=True)
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def test_table(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect([directory])
    out = capsys.readouterr().out
    told(out, hide=NUMBER)
    table = out.split("method:")[0].splitlines()
    assert max(len(line.rstrip()) for line in table if str(directory) not in line) <= 80


def test_json_agrees_with_the_files(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect([directory / "adapter"], as_json=True)
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
    prune(directory, tmp_path / "p", energy=0.5)
    capsys.readouterr()
    inspect([tmp_path / "p"])
    told(capsys.readouterr().out, hide=NUMBER)


@pytest.mark.parametrize("name", ["ranks.png", "ranks.svg"])
def test_plot(directory: Path, tmp_path: Path, name: str) -> None:
    inspect([directory], as_json=True, plot=tmp_path / name)
    head = (tmp_path / name).read_bytes()[:8]
    assert head == b"\x89PNG\r\n\x1a\n" if name.endswith("png") else head.startswith(b"<?xml")
    assert len(list(tmp_path.iterdir())) == 1


def test_plot_of_unknown_kind(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(SoraError, match="xyz"):
        inspect([directory], as_json=True, plot=tmp_path / "ranks.xyz")
    assert not list(tmp_path.iterdir())


def test_figures_against_the_dense_updates(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = shown(capsys, directory)
    layers = read_adapter(directory).layers
    values = {path: torch.linalg.svdvals(f.dense()) for path, f in layers.items()}
    squares = {path: (s**2).cumsum(0) / (s**2).sum() for path, s in values.items()}
    for name, share in (("energy_90", 0.9), ("energy_99", 0.99)):
        expected = sum(int((kept < share).sum()) + 1 for kept in squares.values())
        assert facts["effective_rank"][name] == expected
    shares = [s[s > 0] / s.sum() for s in values.values()]
    entropy = sum(float((-p * p.log()).sum().exp()) for p in shares)
    assert facts["effective_rank"]["entropy"] == pytest.approx(entropy, rel=1e-5)
    norm = math.sqrt(sum(float((s**2).sum()) for s in values.values()))
    assert facts["norm"] == pytest.approx(norm, rel=1e-6)
    for path, spectrum in facts["spectra"].items():
        found = torch.tensor(spectrum["singular_values"], dtype=torch.float64)
        dense = values[path][: len(found)]
        assert (found - dense).abs().max() <= 1e-6 * dense[0]
    assert facts["dtype"] == "float32"


def test_what_pruning_would_save(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many numbers as `sora prune` then leaves out."""
    factors = write_peft(tmp_path / "a", SHAPES, dtype=torch.bfloat16)
    saved = shown(capsys, tmp_path / "a")["prune_saves"]
    assert saved["lossless"] == {"parameters": 0, "bytes": 0}
    prune(tmp_path / "a", tmp_path / "cut", energy=0.99)
    capsys.readouterr()
    left = sum(f.parameters for f in read_adapter(tmp_path / "cut").layers.values())
    number = sum(f.parameters for f in factors.values()) - left
    assert number > 0
    assert saved["energy_99"] == {"parameters": number, "bytes": 2 * number}
    inspect([tmp_path / "a"])
    assert f"{number} parameters" in capsys.readouterr().out


def test_cuts_are_what_pruning_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_peft(tmp_path / "a", SHAPES)
    facts = shown(capsys, tmp_path / "a")
    inspect([tmp_path / "a"], modules=True)
    out = capsys.readouterr().out
    stored = facts["parameters"]["adapter"]
    assert [cut["max_params"] for cut in facts["cuts"]] == [
        int(share * stored) for share in (0.5, 0.3, 0.15)
    ]
    for cut in facts["cuts"]:
        small = tmp_path / f"{cut['share']}"
        assert f"sora prune {tmp_path / 'a'} -o OUT --max-params {cut['max_params']}\n" in out
        prune(tmp_path / "a", small, max_params=cut["max_params"])
        left = shown(capsys, small)
        assert {p: r["live"] for p, r in left["ranks"].items() if r["live"]} == {
            path: rank for path, rank in cut["ranks"].items() if rank
        }
        assert cut["parameters"] == left["parameters"]["adapter"] <= cut["max_params"]
        assert cut["components"] == left["components"]["live"]
        assert cut["mean_rank"] == cut["components"] / 4
        assert cut["energy"] == pytest.approx((left["norm"] / facts["norm"]) ** 2, rel=1e-5)


def test_terms_that_are_zero_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_peft(tmp_path / "a", SHAPES, silent=True)
    facts = shown(capsys, tmp_path / "a")
    assert facts["components"]["live"] == 0
    assert facts["modules"] == {"all": 4, "dead": 4}
    assert facts["norm"] == facts["effective_rank"]["entropy"] == 0
    assert facts["cuts"] == []
    assert facts["prune_saves"]["lossless"]["parameters"] == facts["parameters"]["adapter"]
    inspect([tmp_path / "a"], plot=tmp_path / "dead.png", modules=True)
    told(capsys.readouterr().out, hide=NUMBER)


def test_modules_table(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect([directory])
    without = capsys.readouterr().out
    inspect([directory], modules=True)
    out = capsys.readouterr().out
    path = "bert.encoder.layer.0.attention.self.key"
    assert path not in without
    row = next(line for line in out.splitlines() if path in line).split()
    spectrum = shown(capsys, directory)["spectra"][path]
    assert row[3:5] == [str(spectrum["rank_90"]), str(spectrum["rank_99"])]
    assert float(row[6]) == pytest.approx(spectrum["norm"], rel=1e-2)


def test_consumers_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = {"task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base"}
    write_peft(tmp_path / "a", SHAPES, **config, use_rslora=True)
    inspect([tmp_path / "a"])
    told(capsys.readouterr().out, hide=NUMBER)
    loads = {c["name"]: c["loads"] for c in shown(capsys, tmp_path / "a")["consumers"]}
    assert [name for name, yes in loads.items() if yes] == ["PEFT", "transformers", "vLLM"]


def test_plot_of_equal_ranks(tmp_path: Path) -> None:
    write_peft(tmp_path / "a", SHAPES)
    inspect([tmp_path / "a"], as_json=True, plot=tmp_path / "flat.svg")
    assert (tmp_path / "flat.svg").stat().st_size > 10_000


def test_several_get_a_row_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rank in (2, 4, 6):
        write_peft(tmp_path / f"stage{rank}" / "adapter", SHAPES, rank=rank)
    directories = [tmp_path / f"stage{rank}" for rank in (2, 4, 6)]
    inspect(list(directories))
    rows = capsys.readouterr().out.splitlines()
    for rank in (2, 4, 6):
        row = next(line for line in rows if line.split()[:1] == [f"stage{rank}"])
        assert f"{4 * rank}/{4 * rank}" in row
    data = shown(capsys, *directories)
    assert set(data) == {"adapters"}
    assert [a["largest_rank"] for a in data["adapters"]] == [2, 4, 6]


def test_several_are_named_as_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("a", "b", "c/run/adapter", "d/run/adapter"):
        write_peft(tmp_path / place, SHAPES)
    for first, second, named in [
        (tmp_path / "a", Path("b"), [str(tmp_path / "a"), "b"]),
        (tmp_path / "a", tmp_path / "b", ["a", "b"]),
        (Path("c/run"), Path("d/run"), ["c", "d"]),
        (tmp_path / "c/run", Path("d/run"), [str(tmp_path / "c"), "d"]),
        (Path("a"), Path("a"), ["a", "a"]),
    ]:
        inspect([first, second])
        out = capsys.readouterr().out
        rows = [line.split()[0] for line in out.splitlines() if "/" in line]
        assert rows[-2:] == named, out
        assert "//" not in out
    assert short_names(["/x/a", "/y/b"]) == ["/x/a", "/y/b"]


def test_a_head_that_is_not_finite(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The ranks are shown all the same, and what is wrong; other commands refuse the adapter."""
    shutil.copytree(directory / "adapter", tmp_path / "a")
    file = tmp_path / "a" / ADAPTER_WEIGHTS
    tensors = load_file(file)
    name = next(key for key in tensors if key.endswith("classifier.bias"))
    tensors[name][0] = math.nan
    save_file(tensors, file)
    assert run(["inspect", str(tmp_path / "a")]) == 0
    told = f"'{name}' holds NaN or infinity: other commands refuse this adapter"
    assert told in capsys.readouterr().out
    assert shown(capsys, tmp_path / "a")["notes"] == [told]
    assert run(["inspect", str(tmp_path / "a"), str(directory)]) == 0
    assert told in capsys.readouterr().out
    words = ["-o", str(tmp_path / "new")]
    for command in ("export", "prune", "merge"):
        refused(capsys, command, str(tmp_path / "a"), *words)
        assert not (tmp_path / "new").exists()


def test_dead_modules_that_are_not_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = {
        "layers.0.q": LowRankFactors(torch.zeros(2, 8), torch.ones(8, 2)),
        "layers.1.q": LowRankFactors(torch.ones(2, 8), torch.ones(8, 2)),
    }
    base = BaseReference("org/base", "org/base")
    write_adapter(tmp_path / "a", Adapter.of(layers, {}, (), None, base))
    facts = shown(capsys, tmp_path / "a")
    assert facts["ranks"]["layers.0.q"] == {"live": 0, "stored": 0, "start": 2}
    assert list(facts["spectra"]) == ["layers.1.q"]
    assert facts["spectra"]["layers.1.q"]["rank_99"] == 1  # two equal terms are one direction


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
