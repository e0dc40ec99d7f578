"""`sora auto`: its trainings, refusals and exit codes. Its promises are in `test_promises`."""

from __future__ import annotations

import signal
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest

from sora_cli.app import run
from sora_cli.commands import auto
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.search import auto_search
from sora_cli.search.evidence import read_certificate
from sora_cli.search.record import read_auto
from tests.helpers_errors import error_of, refused
from tests.helpers_runs import files_of, train
from tests.present import present
from tests.sora_cli.commands.promises import LABELS, Makers, labelled, same_end
from tests.sora_cli.experiments.auto.support import auto_recipe, certificate_of


@pytest.fixture
def recipe(makers: Makers) -> Path:
    return makers.recipe(labelled)


@pytest.fixture
def done(makers: Makers) -> Path:
    """A finished search."""
    return makers.of(f"auto {LABELS}").out


def test_the_full_run_is_plain_training(recipe: Path, done: Path, tmp_path: Path) -> None:
    words = ["training.evaluate=no", "training.keep_best=false"]
    words += ["data.selection=train-rows", "data.selection_rows=60", "data.selection_seed=42"]
    plain = tmp_path / "plain"
    train(recipe, *words, f"output.dir={plain}")
    full, alone = (files_of(run / "adapter") for run in (done / "sizes/full", plain))
    for name in ("adapter_config.json", "adapter_model.safetensors"):  # others tell of the run
        assert full[name] == alone[name]


@pytest.mark.long
def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(
    recipe: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = tmp_path / "stopped"
    words = ["auto", str(recipe), "--no-verify", f"output.dir={out}"]
    with monkeypatch.context() as patched:
        patched.setattr(
            auto_search, "drop_bound", lambda *_, **__: signal.raise_signal(signal.SIGTERM)
        )
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        assert run([*words, "--force"]) != 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    told = capsys.readouterr().err
    assert "1 of the smaller sizes" not in told
    assert "the same command, without --force, continues from there" in told
    record = present(read_auto(out))
    assert record.full is not None
    assert record.candidates == []
    assert run(words) == 0
    assert "continuing in" in capsys.readouterr().err
    same_end(done, out)


@pytest.mark.parametrize(
    "word", ["auto.max_drop=0.4", "task.metrics=[f1]", "data.max_length=4", "model.dtype=bfloat16"]
)
def test_a_certificate_takes_no_other_recipe(
    done: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    said = error_of(capsys, "verify", str(done), "--certificate", word)
    assert f"{word.partition('=')[0]} would change nothing" in said[0]
    assert "data.path" in said[2]
    assert "model.path" in said[2]


def test_a_finished_search_is_not_repeated(
    recipe: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["auto", str(recipe), f"output.dir={done}"]
    assert "holds a finished run" in error_of(capsys, *words)[0]
    assert "training.seed was 0, is now 1" in error_of(capsys, *words, "training.seed=1")[0]


@pytest.mark.parametrize(
    ("certified", "differ", "code"),
    [(True, OK, OK), (False, OK, NO_VERDICT), (True, FAILED, FAILED), (False, FAILED, FAILED)],
)
def test_exit_codes(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    certified: bool,
    differ: int,
    code: int,
) -> None:
    found = SimpleNamespace(certified=certified)
    log = SimpleNamespace(epilogue=lambda _: nullcontext(), report=None)
    monkeypatch.setattr("sora_cli.experiments.auto.run.run", lambda *_, **__: (found, None, log))
    monkeypatch.setattr(auto, "conclude", lambda *_, **__: None)
    monkeypatch.setattr("sora_cli.verify.run_check.check_run", lambda *_: differ)
    assert run(["auto", str(recipe), f"output.dir={tmp_path}/out"]) == code


def test_there_is_no_smallest_loss_before_sizes_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = auto_recipe(tmp_path, task={"name": "sequence-regression"}, auto={"rows": 72})
    error = error_of(capsys, "auto", path, "--max-drop", "smallest")
    assert "is known only after sizes have been scored" in error[0]
    assert "--max-drop 2pt" in error[1]


@pytest.mark.long
def test_a_metric_that_is_not_right_or_wrong_by_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {"name": "sequence-regression"}
    auto = {"max_drop": "30pt", "serve": "llama.cpp", "rows": 72}
    path = auto_recipe(tmp_path, task=task, auto=auto)
    assert run(["auto", str(path), "--no-verify"]) in (0, NO_VERDICT)
    assert "test rows can be expected to certify" in capsys.readouterr().err
    found = certificate_of(tmp_path / "out")
    assert not found.bound.exact
    assert found.bound.method.startswith("approximate")
    first = next(size for size in found.screened if size.named)
    assert found.bound.smallest_drop == first.certifiable
    assert first.certifiable is not None
    written = found.candidates[0]
    assert written.parameters <= written.served <= found.full.served
    assert written.served % written.largest_rank == 0
    words = ["verify", str(tmp_path / "out"), "--certificate"]
    assert run(words) == 0
    file = tmp_path / "out" / "certificate.json"
    text = file.read_text(encoding="utf-8")
    assert written.test is not None
    file.write_text(text.replace(f"{written.test.upper}", f"{written.test.upper - 0.001}"))
    capsys.readouterr()
    assert run(words) == FAILED
    out = capsys.readouterr().out
    # if rounding has moved the scores, the number itself is within its tolerance
    assert "candidates[0].test.upper: " in out or "statement: " in out, out


@pytest.mark.long
def test_data_without_a_recipe(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data, base = recipe.parent / "train.jsonl", recipe.parent / "base"
    words = ["auto", "--data", str(data), "--model", str(base), "--max-drop", "50pt"]
    assert run([*words, "auto.rows=40", "training.max_steps=16", "--no-verify"]) == 0
    assert (tmp_path / "train.yaml").is_file()
    assert read_certificate(tmp_path / "runs" / "train-auto-s0") is not None


def test_too_few_steps_to_heal_are_told_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = auto_recipe(tmp_path)
    refused(capsys, "auto", recipe, "training.max_steps=4")
    refused(capsys, "auto", recipe, "training.max_steps=1", "--dry-run")
    assert not (tmp_path / "out").exists()
    assert run(["auto", str(recipe), "training.max_steps=8", "--dry-run"]) == OK


def test_rows_are_shown_in_a_dry_run_only(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = error_of(capsys, "auto", recipe, "--max-drop", "60pt", "--preview", "2")
    assert lines == ["error: --preview goes with --dry-run", "add --dry-run"]
