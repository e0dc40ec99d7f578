"""`sora prune --heal`: a run that begins with a cut adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from methods.keep import Keep
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.report import RunReport, read_report
from sora_cli.search.heal import healing_recipe
from tests.helpers_errors import error_of, refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe
from tests.present import present


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with gates; its directory."""
    folder = tmp_path_factory.mktemp("origin")
    recipe = write_recipe(
        folder,
        tiny_bert(num_labels=2),
        method={"r_max": 6, "threshold": 0.0},
        training={"max_steps": 8, "evaluate": "no", "keep_checkpoints": [8], "compact_every": 4},
        output={"label": "its own"},
    )
    train(recipe)
    return folder / "out"


def _heal(origin: Path, out: Path, *words: str) -> RunReport:
    command = ["prune", str(origin), "-o", str(out), "--mean-rank", "1.5", "--heal", "4", *words]
    assert run(command) == 0
    return present(read_report(out))


def test_a_finished_run_is_cut_and_trained_on(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = _heal(origin, tmp_path / "out")
    said = capsys.readouterr()
    assert "of its 72 components, cut by mean_rank 1.5" in said.err
    assert report.start is not None
    assert (report.start.directory, report.start.rule) == (str(origin), {"mean_rank": 1.5})
    assert report.steps == 4
    assert sum(m.end for m in report.ranks.values()) == 18
    training, output = report.recipe["training"], report.recipe["output"]
    assert (training["warmup"], training["schedule"]) == (0.1, "linear")
    assert output["label"] is None
    method = report.recipe["method"]
    assert (method["r"], method["alpha"]) == (6, 16.0)  # the scaling it was trained with
    assert report.verification.verdict == "same"
    assert run(["inspect", str(tmp_path / "out")]) == 0


def test_what_is_pruned_is_where_it_begins(origin: Path, tmp_path: Path) -> None:
    assert run(["prune", str(origin), "-o", f"{tmp_path}/cut", "--mean-rank", "1.5"]) == 0
    report = _heal(origin, tmp_path / "out", "--no-verify")
    ranks = {path: m.start for path, m in report.ranks.items()}
    assert ranks == read_adapter(tmp_path / "cut").ranks()


def test_another_recipe_and_values(origin: Path, tmp_path: Path) -> None:
    """Here the recipe's method is the plain one: its options stay."""
    words = [
        "--recipe", str(origin.parent / "tiny.yaml"), "--no-verify", "training.train_head=false",
        "training.schedule=cosine", "method.alpha=4", "method.name=lora", "method.r=2",
    ]  # fmt: skip
    report = _heal(origin, tmp_path / "out", *words)
    assert report.recipe["training"]["schedule"] == "cosine"
    assert (report.recipe["method"]["r"], report.recipe["method"]["alpha"]) == (2, 4)
    before, after = read_adapter(origin), read_adapter(tmp_path / "out")
    assert all((before.head[name] == after.head[name]).all() for name in before.head)


def test_a_given_recipe_deals_rows_as_they_were_dealt(origin: Path, tmp_path: Path) -> None:
    """Else rows that a run of an earlier version was trained on would choose, or test, its cut."""
    earlier = tmp_path / "earlier"
    shutil.copytree(origin, earlier)
    report = json.loads((earlier / "report.json").read_text())
    del report["recipe"]["data"]["repeats"]
    report["recipe"]["data"]["selection"] = "half-validation"
    (earlier / "report.json").write_text(json.dumps(report))
    recipe = str(origin.parent / "tiny.yaml")
    for run_directory, repeats in ((origin, "together"), (earlier, "separate")):
        given, _ = healing_recipe(run_directory, tmp_path / "out", Keep(rank=1), 2, recipe, [])
        assert given.recipe.data.repeats == repeats


def test_an_adapter_alone_needs_a_recipe(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = tmp_path / "alone"
    assert run(["prune", str(origin), "-o", str(alone)]) == 0
    words = ["prune", str(alone), "-o", f"{tmp_path}/out", "--rank", "1", "--heal", "2"]
    refused(capsys, *words)
    assert run([*words, "--recipe", str(origin.parent / "tiny.yaml"), "--no-verify"]) == 0


def test_a_promise_that_cannot_be_computed_is_refused_before_training(
    origin: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["prune", origin, "-o", out, "--heal", "2", "--max-drop", "5pt", "task.metrics=[f1]"]
    lines = error_of(capsys, *words)
    assert "a bound of f1 needs 50 test rows with different inputs" in lines[0]
    assert "--max-differ 1% --unlabelled FILE" in lines[-1]
    assert not list(out.rglob("report.json"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--mean-rank", "2"], "rule: --mean-rank 2: pooled singular values"),
        (["--energy", "0.5"], "rule: --energy 0.5: each layer by itself"),
        ([], "rule: only exact zeros are removed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_prune_says_its_rule(
    origin: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    expected: str,
) -> None:
    assert run(["prune", str(origin), "-o", f"{tmp_path}/out", *words]) == 0
    assert expected in capsys.readouterr().out
