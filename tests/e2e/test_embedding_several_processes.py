"""Two gloo processes train embeddings as one process does: the loss compares all rows of a step."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.app import run
from sora_cli.report import read_report
from tests.helpers_families import retrieval_rows, write_family_recipe
from tests.helpers_models import tiny_bert
from tests.helpers_runs import save_base, write_rows
from tests.launched import launch_commands
from tests.sora_cli.tasks.test_embedding_rows import in_lists

pytestmark = pytest.mark.long


@pytest.mark.parametrize("form", ["columns", "lists", "corpus"])
def test_two_processes_give_what_one_gives(tmp_path: Path, form: str) -> None:
    # 83 rows in steps of 16: the last step has 3, which fill no two micro-batches on either process
    rows = {
        "train": retrieval_rows(83, negatives=3),
        "validation": retrieval_rows(17, seed=1, negatives=3),
    }
    if form == "lists":
        rows = {split: in_lists(part, [1, 0, 3]) for split, part in rows.items()}
    files = {split: write_rows(tmp_path / f"{split}.jsonl", part) for split, part in rows.items()}
    among = {}
    if form == "corpus":
        texts = sorted({row["positive"] for part in rows.values() for row in part})
        held = [{"id": f"{i}", "text": text} for i, text in enumerate(texts)]
        among = {"corpus": write_rows(tmp_path / "corpus.jsonl", held)}
    recipe = write_family_recipe(
        tmp_path,
        model={"path": str(save_base(tiny_bert(), tmp_path / "base"))},
        task={"name": "embedding"},
        data={"files": files, **among},
        training={
            "batch_size": 16,
            "max_steps": 14,
            "model_dropout": 0,
            "evaluate": 7 if form == "corpus" else "no",
        },
    )
    words = ["train", str(recipe), "--no-verify", "method={name: lora, r: 4}"]
    words += ["training.logging_steps=1"]
    assert run([*words, f"output.dir={tmp_path}/one"]) == 0
    launch_commands(tmp_path, [{"words": [*words, f"output.dir={tmp_path}/two"], "stop": None}])
    one, two = (
        load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("one", "two")
    )
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-4)
    first, second = (read_report(tmp_path / name) for name in ("one", "two"))
    assert first is not None
    assert second is not None
    for split, scores in first.metrics.items():
        assert second.metrics[split] == pytest.approx(scores, rel=1e-4)
    losses = [[e["loss"] for e in r.history if "loss" in e] for r in (first, second)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(losses[0]) == 14
