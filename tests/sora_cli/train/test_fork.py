"""`start.checkpoint`: a run that goes on from the middle of another, byte-equal."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.report import read_report
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, signal_at, timeless, train, write_recipe
from tests.matrix import rest_is_long

STEP, TOTAL = 6, 10  # an epoch has 6 steps


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of plain factors that keeps two checkpoints: at an epoch's end, and within."""
    folder = tmp_path_factory.mktemp("trunk")
    recipe = write_recipe(
        folder,
        tiny_bert(num_labels=2),
        rows=43,
        method={"name": "lora", "r": 4, "dropout": 0.1},
        training={
            "max_steps": TOTAL, "evaluate": "no", "checkpoint": "no", "model_dropout": 0.1,
            "gradient_accumulation": 2, "logging_steps": 4, "keep_checkpoints": [4, 0.6],
        },
    )  # fmt: skip
    train(recipe, f"output.dir={folder}/trunk")
    return recipe


def _fork(trunk: Path, step: object) -> list[str]:
    return [f"start.checkpoint={trunk.parent}/trunk", f"start.step={step}"]


def _cut(at: object) -> str:
    return f"method={{name: cut, r_max: 4, target_r: 1.5, dropout: 0.1, cut_at: {at}}}"


def _assert_equal(first: Path, second: Path) -> None:
    reports = [read_report(folder) for folder in (first, second)]
    told = [timeless(report) for report in reports if report is not None]
    for report in told:
        report["recipe"]["start"] = report["recipe"]["training"]["keep_checkpoints"] = None
    assert told[0] == told[1]
    assert files_of(first / "adapter") == files_of(second / "adapter")


@pytest.mark.parametrize(("step", "cut_at"), rest_is_long([(4, 7), (6, 0.6), (4, 4)]))
def test_a_fork_is_what_the_whole_run_would_be(
    trunk: Path, tmp_path: Path, step: int, cut_at: float
) -> None:
    whole, fork = f"output.dir={tmp_path}/whole", f"output.dir={tmp_path}/fork"
    train(trunk, whole, _cut(cut_at))
    report = train(trunk, fork, _cut(cut_at), *_fork(trunk, step))
    _assert_equal(tmp_path / "fork", tmp_path / "whole")
    assert report.start is not None
    assert report.start.step == step
    assert report.start.sentence().startswith("forked from")
    assert report.resumed == []
    kept = f"{trunk.parent}/trunk/checkpoints/step-{step:06d}"
    assert report.start.directory == kept


def test_a_share_and_a_checkpoints_own_directory(trunk: Path, tmp_path: Path) -> None:
    """The method is the same: the fork ends as the trunk did."""
    place = f"{trunk.parent}/trunk/checkpoints/step-000004"
    for name, words in (
        ("share", _fork(trunk, 0.6)),
        ("own", [f"start.checkpoint={place}"]),
    ):
        train(trunk, f"output.dir={tmp_path}/{name}", *words)
        _assert_equal(tmp_path / name, trunk.parent / "trunk")


def test_a_fork_is_resumed_like_any_run(
    trunk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [_cut(6), *_fork(trunk, 4), "training.checkpoint=epoch"]
    whole = train(trunk, f"output.dir={tmp_path}/whole", *words)
    with monkeypatch.context() as patched:
        signal_at(patched, 8)
        stopped = run(["train", str(trunk), "--no-verify", f"output.dir={tmp_path}/out", *words])
    assert stopped == 128 + signal.SIGTERM
    report = train(trunk, f"output.dir={tmp_path}/out", *words, "--resume")
    _assert_equal(tmp_path / "out", tmp_path / "whole")
    assert [r.step for r in report.resumed] == [8]
    assert report.start == whole.start
    assert "forked from" in capsys.readouterr().err


def test_the_forks_own_evaluations_choose_its_checkpoint(trunk: Path, tmp_path: Path) -> None:
    report = train(
        trunk, f"output.dir={tmp_path}/out", *_fork(trunk, 4), "training.evaluate=2",
        "training.checkpoint=2",
    )  # fmt: skip
    assert report.best_step is not None
    assert report.best_step > 4


def test_a_dry_run_shows_the_fork(
    trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*_fork(trunk, 4), _cut(6), f"output.dir={tmp_path}/out"]
    assert run(["train", str(trunk), "--dry-run", *words]) == 0
    assert "step-000004 after step 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["start.step=5"],
        [],
        ["start.step=4", "training.learning_rate=0.1"],
        ["start.step=4", "training.seed=1"],
        ["start.step=4", "training.max_steps=12"],
        ["start.step=4", "method.targets=[query]"],
        ["start.step=4", "method.alpha=8"],
        ["start.step=4", "method.r=2"],
        ["start.step=4", "method.use_rslora=true"],
        ["start.step=4", "data.max_train_rows=20"],
        ["start.step=4", "method={name: sora, r_max: 4, dropout: 0.1}"],
        ["start.step=4", "start.rank=2"],
        ["start.step=6", _cut(5)],
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_said(
    trunk: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    given = [f"start.checkpoint={trunk.parent}/trunk", *words, f"output.dir={tmp_path}/out"]
    refused(capsys, "train", trunk, *given)


def test_places_that_are_no_checkpoint(
    trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = tmp_path / "run" / "checkpoints" / "step-000010"
    train(trunk, f"output.dir={tmp_path}/run", "training.checkpoint=5")
    for place in (tmp_path / "nowhere", tmp_path, last):
        refused(capsys, "train", trunk, f"start.checkpoint={place}")
    (last.with_name("step-000004") / "state.safetensors").write_bytes(b"")
    words = [f"start.checkpoint={last.with_name('step-000004')}", f"output.dir={tmp_path}/out"]
    refused(capsys, "train", trunk, *words)
    shutil.rmtree(last.with_name("step-000004"))


def test_other_data_under_the_same_name_is_noticed(
    trunk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = trunk.parent / "train.jsonl"
    text = rows.read_text()
    rows.write_text(text.replace("cat", "dog"))
    try:
        words = [*_fork(trunk, 4), f"output.dir={tmp_path}/out"]
        assert run(["train", str(trunk), *words]) == 2
    finally:
        rows.write_text(text)
    assert "the data (train) is not the same as in the run of" in capsys.readouterr().err
