"""An adapter whose modules have other names in today's transformers is loaded all the same."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.reading import read_adapter
from sora_cli.adapter.todays_names import todays_names, todays_paths
from sora_cli.app import run
from sora_cli.report import read_report
from tests.helpers_images import write_image_recipe
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train
from tests.present import present

_OLD = {
    "vit.layers": "vit.encoder.layer",
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Parts of a vision transformer's names, and what transformers 5.4 calls them."""


def _old(path: str) -> str:
    for today, before in _OLD.items():
        path = path.replace(today, before)
    return path


def _as_written_by_5_4(adapter: Adapter) -> Adapter:
    meta = adapter.meta.model_copy(
        update={
            key: {_old(path): rank for path, rank in getattr(adapter.meta, key).items()}
            for key in ("ranks", "ranks_start")
        }
    )
    layers = {_old(path): factors for path, factors in adapter.layers.items()}
    return adapter.with_layers(layers).with_meta(meta)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, beside it a run of it, and the same run with the names of transformers 5.4.

    One layer has lost all its components: only the ranks it began with tell of it.
    """
    folder = tmp_path_factory.mktemp("names")
    recipe = write_image_recipe(folder, method={"name": "lora", "r": 2})
    for name in ("now", "old"):
        train(recipe, f"output.dir={folder}/{name}")
    adapter = read_adapter(folder / "now")
    assert all(_old(path) != path for path in adapter.layers)
    dead, *alive = adapter.layers
    adapter = adapter.with_layers({path: adapter.layers[path] for path in alive})
    assert dead in adapter.meta.ranks_start
    write_adapter(folder / "now" / "adapter", adapter, force=True)
    write_adapter(folder / "old" / "adapter", _as_written_by_5_4(adapter), force=True)
    assert not read_adapter(folder / "old").layers.keys() & adapter.layers.keys()
    return recipe


def test_predictions_are_the_same(recipe: Path, tmp_path: Path) -> None:
    rows = str(recipe.parent / "validation.parquet")
    answers = [tmp_path / f"{name}.parquet" for name in ("now", "old")]
    for answer in answers:
        run_of = str(recipe.parent / answer.stem)
        assert run(["predict", run_of, rows, "-o", str(answer), "--probabilities"]) == 0
    assert pq.read_table(answers[0]).equals(pq.read_table(answers[1]))


def test_it_is_merged_and_verified(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("now", "old"):
        assert run(["merge", str(recipe.parent / name), "-o", str(tmp_path / name)]) == 0
        assert "verified" in capsys.readouterr().err
    weights = [(tmp_path / n / "model.safetensors").read_bytes() for n in ("now", "old")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("rule", [(), ("start.mean_rank=1",)], ids=["whole", "cut"])
def test_it_is_a_start(recipe: Path, tmp_path: Path, rule: tuple[str, ...]) -> None:
    ends = []
    for name in ("now", "old"):
        begun = f"start.adapter={recipe.parent / name}"
        train(recipe, begun, *rule, "training.max_steps=2", f"output.dir={tmp_path / name}")
        ends.append(read_adapter(tmp_path / name))
        report = present(read_report(tmp_path / name))
        assert report.start is not None
        start = report.start
        assert start.ranks.keys() >= ends[0].layers.keys()
        assert {ranks.start for ranks in start.ranks.values()} == {2}
    for path, factors in ends[0].layers.items():
        assert torch.equal(factors.A, ends[1].layers[path].A)
        assert torch.equal(factors.B, ends[1].layers[path].B)


def test_names_that_no_version_knows_stay() -> None:
    model = tiny_bert(num_labels=2)
    known, unknown = "bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.99.query"
    assert todays_paths(model, [unknown, known]) == {unknown: unknown, known: known}
    names = ["classifier.weight", "head.weight", "bert.embeddings.LayerNorm.gamma"]
    assert todays_names(model, names) == {
        "classifier.weight": "classifier.weight",
        "head.weight": "head.weight",
        "bert.embeddings.LayerNorm.gamma": "bert.embeddings.LayerNorm.weight",
    }
    assert todays_paths(torch.nn.Linear(2, 2), ["lost"]) == {"lost": "lost"}
