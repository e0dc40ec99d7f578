"""Layers that an adapter would be useless on: found by a trial, and listed."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from methods.inject import linear_paths
from sora_cli.app import run
from sora_cli.run.trial import _KERNELS, try_layers
from tests.architectures import CAUSAL, options_of, tiny
from tests.helpers_chat import write_chat_recipe
from tests.helpers_errors import refused


def _loss(model: nn.Module, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
    outputs = model(**batch)
    return outputs["loss"], outputs


class Net(nn.Module):
    """Runs two layers, one for nothing; multiplies by a third one's weight; looks at a dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.run, self.taken, self.looked_at = (nn.Linear(3, 3) for _ in range(3))
        self.lost, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.5)
        self.modes: list[bool] = []

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        self.modes.append(self.training)
        self.lost(x)
        y = self.dropout(self.run(x)).to(self.looked_at.weight.dtype) @ self.taken.weight
        return {"loss": y.sum()}


def test_layers_that_are_used_by_their_weight_and_that_are_not_used() -> None:
    net, names = Net().train(), ["run", "taken", "looked_at", "lost", "idle"]
    net.idle.requires_grad_(False)
    trained = [p.requires_grad for p in net.parameters()]
    state = torch.get_rng_state()
    found = try_layers(net, names, [{"x": torch.ones(2, 3)}] * 2, _loss)
    assert {path: why.split()[0] for path, why in found.items()} == {
        "taken": "used", "looked_at": "not", "lost": "not", "idle": "not"
    }  # fmt: skip
    assert net.modes == [False] * 3
    assert net.training
    assert [p.requires_grad for p in net.parameters()] == trained
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


class Mixture(nn.Module):
    """Each row has an expert; a gate runs where a row begins with 1."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(3, 3) for _ in range(4)])
        self.gate = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        expert = self.experts[int(x[0, 1])]
        return {"loss": expert(self.gate(x) if x[0, 0] == 1 else x).sum()}


def test_layers_that_some_rows_run_are_not_idle() -> None:
    names = ["gate", *(f"experts.{i}" for i in range(4))]
    short, long = ({"x": torch.tensor([[float(i), 2, 0]])} for i in range(2))
    assert try_layers(Mixture(), names, [short, long], _loss) == {}
    assert list(try_layers(Mixture(), names, [short, short], _loss)) == ["gate"]


def test_a_task_that_does_not_need_all_of_a_model() -> None:
    config = transformers.AutoConfig.for_model("longformer", **options_of("longformer"))
    model = transformers.AutoModelForTokenClassification.from_config(config)
    ids = torch.randint(4, 22, (1, 9))
    found = try_layers(
        model, linear_paths(model), [{"input_ids": ids, "labels": torch.zeros_like(ids)}] * 2, _loss
    )
    assert {path.rpartition(".")[2] for path in found} == {
        "query_global", "key_global", "value_global"
    }  # fmt: skip


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mamba")
    recipe = write_chat_recipe(folder, rows=8, task={"metrics": ["loss"]})
    tiny("mamba", CAUSAL).save_pretrained(folder / "base")
    return recipe


def test_a_dry_run_lists_them(mamba: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["train", str(mamba), "--dry-run"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    mixer = "2 x backbone.layers.{0-1}.mixer"
    assert f"{mixer}.dt_proj 4 -> 64 used only by its weight, so an adapter has no effect" in lines
    assert f"{mixer}.out_proj 64 -> 32 refused by PEFT in mamba models" in lines
    assert f"{mixer}.A_log 64 x 8 MambaMixer" in lines


@pytest.mark.parametrize("name", ["dt_proj", "out_proj"])
def test_one_that_is_named_is_refused(
    name: str, mamba: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, "train", mamba, f"method.targets=[in_proj, {name}]")


def test_the_kernels_table_is_what_transformers_does() -> None:
    """Weights of linear layers among the arguments of the state-space kernels, by model type."""
    kernels = ("mamba_inner_fn", "mamba2_split_conv1d_scan_combined")
    found: dict[str, set[str]] = {}
    for file in Path(transformers.__file__).parent.glob("models/*/modeling_*.py"):
        text = file.read_text(encoding="utf-8")
        if not any(f"{kernel}(" in text for kernel in kernels):
            continue
        for call in (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)):
            if ast.unparse(call.func).rpartition(".")[2] in kernels:
                names: Any = re.findall(r"self\.(\w+_proj)\.weight\b", ast.unparse(call))
                found.setdefault(file.parent.name, set()).update(names)
    assert found == {kind: set(names) for kind, names in _KERNELS.items()}
