"""torchrun with two gloo processes gives what one process gives, for every method."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.app import run
from sora_cli.report import RunReport, read_report
from tests.helpers_methods import VARIANTS, method_words
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, timeless, write_recipe
from tests.launched import launch, launch_commands
from tests.present import present

STEPS, STOPPED_AT = 30, 17
TOLERANCE = 1e-4  # AdamW enlarges what is rounded otherwise where gradients are tiny
METHODS = sorted(VARIANTS)


@pytest.fixture(
    scope="module",
    params=[m if m == "sora" else pytest.param(m, marks=pytest.mark.long) for m in METHODS],
)
def method(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, method: str) -> Path:
    """One process's run of a method, and two processes': whole, stopped, and resumed.

    83 rows in steps of 8: the last step of an epoch has 3, which fill no two micro-batches on
    either process.
    """
    folder = tmp_path_factory.mktemp(f"processes-{method}")
    model = tiny_bert(num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    training = {
        "max_steps": STEPS, "batch_size": 8, "gradient_accumulation": 2, "evaluate": 10,
        "checkpoint": 7, "logging_steps": 4,
    }  # fmt: skip
    recipe = write_recipe(folder, model, rows=83, training=training)
    words = ["train", str(recipe), "--no-verify", *method_words(method)]
    words += ["training.learning_rate=auto"]  # the first process's choice
    assert run([*words, f"output.dir={folder}/one"]) == 0
    stopped = f"output.dir={folder}/stopped"
    commands = [
        {"words": [*words, f"output.dir={folder}/two"], "stop": None},
        {"words": [*words, stopped], "stop": STOPPED_AT},
        {"words": [*words, stopped, "--resume"], "stop": None},
    ]
    (folder / "said").write_text(launch_commands(folder, commands))
    return folder


def _told(folder: Path, rank: int) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads((folder / f"commands.{rank}.json").read_text())
    return told


def _report(folder: Path) -> RunReport:
    return present(read_report(folder))


def _largest_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_two_processes_give_what_one_gives(folder: Path) -> None:
    one, two = (_report(folder / n) for n in ("one", "two"))
    adapters = [
        load_file(folder / n / "adapter" / "adapter_model.safetensors") for n in ("one", "two")
    ]
    assert _largest_difference(*adapters) < TOLERANCE
    assert one.steps == two.steps == STEPS
    assert one.learning_rate == two.learning_rate is not None
    assert one.live_components == two.live_components
    assert one.ranks == two.ranks
    for split, scores in one.metrics.items():
        assert two.metrics[split] == pytest.approx(scores, abs=TOLERANCE)
    for key in ("loss", "eval_loss", "grad_norm"):
        values = [[e[key] for e in report.history if key in e] for report in (one, two)]
        assert values[1] == pytest.approx(values[0], rel=1e-4)
        assert values[0]


def test_both_processes_agree_after_every_step(folder: Path) -> None:
    """Ranks of all layers, so budgets and dead gates, too."""
    first, second = (_told(folder, rank)[0]["live"] for rank in (0, 1))
    assert len(first) == STEPS
    assert first == second


def test_stopped_by_a_signal_to_one_of_them_and_resumed(folder: Path) -> None:
    for rank in (0, 1):
        told = _told(folder, rank)
        assert [command["code"] for command in told] == [0, 143, 0]
        assert len(told[1]["live"]) == STOPPED_AT
        assert len(told[2]["live"]) == STEPS - STOPPED_AT
    two, stopped = folder / "two", folder / "stopped"
    assert files_of(stopped / "adapter") == files_of(two / "adapter")
    assert timeless(_report(stopped)) == timeless(_report(two))
    assert [r.step for r in _report(stopped).resumed] == [STOPPED_AT]


def test_one_of_them_writes_and_talks(folder: Path) -> None:
    names = {path.name for path in (folder / "two").iterdir()}
    assert names == {"adapter", "checkpoints", "history.json", "ranks.png", "report.json"}
    results = [line for line in (folder / "said").read_text().splitlines() if "kept (" in line]
    assert len(results) == 2  # the whole run and the resumed one


def test_an_error_is_told_once_in_full(folder: Path) -> None:
    done = launch("-m", "sora_cli", "train", str(folder / "tiny.yaml"), "training.epoch=3")
    assert done.returncode != 0
    ours = [
        line for line in done.stderr.splitlines() if "'epoch'" in line or "training.epochs" in line
    ]
    main = [line for line in ours if line.startswith("error: ")]
    other = [line for line in ours if line.startswith("[process 1] ")]
    assert max(len(main), len(other)) == 1  # the launcher may end one before it has said anything
    assert "sora_cli/" not in done.stderr  # the launcher's traceback is its own
