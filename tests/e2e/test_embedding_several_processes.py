"""Two gloo processes train as one does where a loss compares texts: embeddings, and rerankers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.app import run
from sora_cli.report import read_report
from tests.helpers_families import ranking_rows, retrieval_rows, write_family_recipe
from tests.helpers_models import tiny_bert
from tests.helpers_runs import save_base, write_rows
from tests.launched import launch_commands
from tests.sora_cli.tasks.test_embedding_rows import in_lists

pytestmark = pytest.mark.long


CASES: dict[str, tuple[dict[str, Any], Callable[..., Any], Any]] = {
    "embedding": ({"name": "embedding"}, retrieval_rows, tiny_bert()),
    "embedding, lists": ({"name": "embedding"}, retrieval_rows, tiny_bert()),
    "embedding, corpus": ({"name": "embedding"}, retrieval_rows, tiny_bert()),
    "queries": ({"name": "embedding", "adapt": "query"}, retrieval_rows, tiny_bert()),
    "queries, corpus": ({"name": "embedding", "adapt": "query"}, retrieval_rows, tiny_bert()),
    # micro-batches have different numbers of compared documents
    "reranking": ({"name": "reranking", "loss": "lambda"}, ranking_rows, tiny_bert(num_labels=1)),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_give_what_one_gives(case: str, tmp_path: Path) -> None:
    task, make, model = CASES[case]
    # 83 rows in steps of 16: the last step has 3, which fill no two micro-batches on either process
    rows = {"train": make(83), "validation": make(17, seed=1)}
    among, corpus = {}, case.endswith("corpus")
    if case.endswith("lists"):
        rows = {
            split: in_lists(make(len(part), seed=seed, negatives=3), [1, 0, 3])
            for seed, (split, part) in enumerate(rows.items())
        }
    if corpus:
        texts = sorted({row["positive"] for part in rows.values() for row in part})
        held = [{"id": f"{i}", "text": text} for i, text in enumerate(texts)]
        among = {"corpus": write_rows(tmp_path / "corpus.jsonl", held)}
    files = {split: write_rows(tmp_path / f"{split}.jsonl", part) for split, part in rows.items()}
    recipe = write_family_recipe(
        tmp_path,
        model={"path": str(save_base(model, tmp_path / "base"))},
        task=task,
        data={"files": files, **among},
        training={
            "batch_size": 16,
            "max_steps": 14,
            "model_dropout": 0,
            "evaluate": 7 if corpus else "no",
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
        if case == "reranking" and name.endswith("classifier.bias"):
            continue  # it moves all numbers alike: its gradient is rounding, which Adam enlarges
        # one process reads texts in parts of like length: rounding, which Adam enlarges
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=5e-4)
    first, second = (read_report(tmp_path / name) for name in ("one", "two"))
    assert first is not None
    assert second is not None
    for split, scores in first.metrics.items():
        assert second.metrics[split] == pytest.approx(scores, rel=1e-4)
    losses = [[e["loss"] for e in r.history if "loss" in e] for r in (first, second)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert len(losses[0]) == 14
