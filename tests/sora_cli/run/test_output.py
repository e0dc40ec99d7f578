"""What a run replaces and deletes in its directory is its own, and nothing else."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sora_cli.core.atomic import tidy
from sora_cli.core.errors import SoraError
from sora_cli.core.outputs import check_apart
from sora_cli.recipe.load import load_recipe
from sora_cli.report import FILE_NAME, RunReport
from sora_cli.run.output import check_output, check_own, check_run_place, clear_run
from tests.helpers_errors import refusal
from tests.helpers_models import tiny_bert
from tests.helpers_runs import write_recipe

REPORT = RunReport(name="r", recipe={}, status="completed").model_dump_json()
OWN = {
    FILE_NAME: REPORT,
    "ranks.png": "x",
    "benchmarks.json": "{}",
    "adapter/sora.json": "{}",
    "adapter/adapter_model.safetensors": "x",
    "model/sora.json": "{}",
    "model/tokenizer.json": "{}",
    "checkpoints/step-000001/run.json": "{}",
    "checkpoints/.step-000002.0123abcd.partial/run.json": "{}",
}


def _write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def _files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_run_is_deleted_without_what_is_not_its_own(tmp_path: Path) -> None:
    mine = {"pruned/sora.json", "checkpoints/x.txt", "checkpoints/step-000003/x.txt",
            ".x.partial"}  # fmt: skip
    _write(tmp_path / "out", OWN | dict.fromkeys(mine, "x"))
    clear_run(tmp_path / "out")
    assert _files(tmp_path / "out") == mine
    _write(tmp_path / "other", OWN)
    clear_run(tmp_path / "other")
    assert not (tmp_path / "other").exists()
    merged = {"model/sora_merge.json": "{}", "model/sora.json": "{}"}
    _write(tmp_path / "third", OWN | merged)
    clear_run(tmp_path / "third")
    assert merged.keys() <= _files(tmp_path / "third")


@pytest.mark.parametrize(
    "extra",
    ["adapter/x.txt", "delta/x.txt", "model/sora_merge.json", "checkpoints/step-000001/x.txt",
     "checkpoints"],
)  # fmt: skip
def test_what_is_not_of_a_run_stops_it_at_once(tmp_path: Path, extra: str) -> None:
    own = {name: text for name, text in OWN.items() if not name.startswith(f"{extra}/")}
    _write(tmp_path, own)
    check_own(tmp_path)
    _write(tmp_path, {extra: "x"})
    with refusal():
        check_own(tmp_path)


@pytest.mark.parametrize("name", [name for name in OWN if not name.startswith("checkpoints/")])
def test_without_a_report_nothing_is_of_a_run(tmp_path: Path, name: str) -> None:
    _write(tmp_path, {name: "x"})
    with pytest.raises(SoraError, match=str(tmp_path / name.split("/")[0])):
        check_own(tmp_path)


def test_only_our_own_leftovers_are_tidied_up(tmp_path: Path) -> None:
    _write(tmp_path, {".x.0123abcd.partial": "", ".download.partial": "", ".y.replaced": ""})
    tidy(tmp_path)
    assert _files(tmp_path) == {".download.partial", ".y.replaced"}


def test_names_of_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(tmp_path, {"a/f": "x", "b/f": "x"})
    (tmp_path / "link").symlink_to("a")
    (tmp_path / "loop").symlink_to("loop")
    os.link(tmp_path / "a" / "f", tmp_path / "b" / "hard")
    monkeypatch.chdir(tmp_path)
    a = Path("a")
    for free in ("b", "a2", "b/a", "new/a", "loop", "x" * 300):
        check_apart(Path(free), a, Path("nowhere"), Path("loop") if free != "loop" else a)
    for output, says in {
        "link": "is an input", "b/../a": "is an input", "link/new/x": "lies inside",
        ".": "contains", "..": "contains", str(tmp_path / "a" / "f"): "lies inside",
    }.items():  # fmt: skip
        with pytest.raises(SoraError, match=says):
            check_apart(Path(output), a)
    with pytest.raises(SoraError, match="is an input"):
        check_apart(Path("b/hard"), Path("a/f"))


def test_what_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_recipe(write_recipe(tmp_path, tiny_bert(num_labels=2)))
    check_output(loaded, force=False, resume=False)

    def refused(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(SoraError, match="out cannot be written: permission denied"):
        check_output(loaded, force=False, resume=False)
    with pytest.raises(SoraError, match="out cannot be written"):
        check_run_place(loaded, force=True)
