"""Two gloo processes start from an adapter, or from a checkpoint, as one process does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.app import run
from sora_cli.report import RunReport, read_report
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, timeless, train, write_recipe
from tests.launched import launch_commands
from tests.present import present

pytestmark = pytest.mark.long

TOLERANCE = 1e-4
STEPS, STOPPED_AT = 12, 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process's runs, and two processes': healed, stopped and resumed, forked, only cut."""
    folder = tmp_path_factory.mktemp("start")
    model = tiny_bert(num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    recipe = write_recipe(
        folder,
        model,
        rows=83,
        method={"threshold": 0.0},
        training={"max_steps": 20, "batch_size": 8, "evaluate": "no", "keep_checkpoints": [0.5]},
    )
    train(recipe, "method.name=lora", "method.r=4", f"output.dir={folder}/origin")

    def heal(name: str, *words: str) -> list[str]:
        return ["prune", f"{folder}/origin", "-o", f"{folder}/{name}", "--mean-rank", "1.5",
                "--heal", str(STEPS), "--no-verify", *words]  # fmt: skip

    def fork(name: str) -> list[str]:
        return ["train", str(recipe), "--no-verify", f"output.dir={folder}/{name}",
                "method={name: cut, r_max: 4, target_r: 1, cut_at: 0.6}",
                f"start={{checkpoint: {folder}/origin, step: 0.5}}"]  # fmt: skip

    def cut(name: str) -> list[str]:
        return ["train", str(recipe), "--no-verify", f"output.dir={folder}/{name}",
                "method={name: lora, r: 4}", "training.keep_checkpoints=[]",
                f"start={{adapter: {folder}/origin, rank: 2}}", "training.max_steps=0"]  # fmt: skip

    for words in (heal("heal-one"), fork("fork-one"), cut("cut-one")):
        assert run(words) == 0
    commands = [
        {"words": heal("heal-two"), "stop": None},
        {"words": heal("heal-stopped"), "stop": STOPPED_AT},
        {"words": heal("heal-stopped", "--resume"), "stop": None},
        {"words": fork("fork-two"), "stop": None},
        {"words": cut("cut-two"), "stop": None},
    ]
    launch_commands(folder, commands)
    return folder


def _report(folder: Path) -> RunReport:
    return present(read_report(folder))


@pytest.mark.parametrize("kind", ["heal", "fork", "cut"])
def test_two_processes_give_what_one_gives(folder: Path, kind: str) -> None:
    one, two = (_report(folder / f"{kind}-{n}") for n in ("one", "two"))
    assert (one.status, one.steps) == (two.status, two.steps)
    assert one.ranks == two.ranks
    assert one.start == two.start
    assert one.live_components == two.live_components
    weights = [
        load_file(folder / f"{kind}-{n}" / "adapter" / "adapter_model.safetensors")
        for n in ("one", "two")
    ]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert float((tensor - weights[1][name]).abs().max()) < TOLERANCE
        assert bool(torch.isfinite(tensor).all())


def test_both_processes_have_the_same_ranks(folder: Path) -> None:
    told = [json.loads((folder / f"commands.{rank}.json").read_text()) for rank in (0, 1)]
    assert [command["code"] for command in told[0]] == [0, 143, 0, 0, 0]
    assert [command["live"] for command in told[0]] == [command["live"] for command in told[1]]


def test_a_healing_run_is_stopped_and_resumed(folder: Path) -> None:
    stopped, two = (_report(folder / f"heal-{n}") for n in ("stopped", "two"))
    assert timeless(stopped) == timeless(two)
    adapters = [files_of(folder / f"heal-{n}" / "adapter") for n in ("stopped", "two")]
    assert adapters[0] == adapters[1]
