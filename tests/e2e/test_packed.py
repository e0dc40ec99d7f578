"""Every command that takes an adapter takes its packed file, with the same result."""

from __future__ import annotations

import json
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, train, write_recipe, write_rows


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A rounded adapter of a tiny run, and its packed file; the recipe is beside them."""
    folder = tmp_path_factory.mktemp("packed")
    train(write_recipe(folder, tiny_bert(num_labels=2), method={"threshold": 0.0}))
    small, file = folder / "small", folder / "small.safetensors"
    assert run(["prune", str(folder / "out"), "-o", str(small), "--bits", "4", "--rank", "2"]) == OK
    assert run(["export", str(small), "-o", str(file), "--format", "packed"]) == OK
    return small, file


def test_the_tokenizer_is_left_out_and_made_again(
    places: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, file = places
    assert (small / "tokenizer.json").is_file()
    assert file.stat().st_size < (small / "tokenizer.json").stat().st_size + 8000
    assert run(["export", str(file), "-o", str(tmp_path / "again"), "--json"]) == OK
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert files_of(tmp_path / "again") == files_of(small)


LORA = "method={name: lora, r: 4}"
COMMANDS: dict[str, list[str]] = {
    "eval": ["eval", "{}", "--recipe", "RECIPE", "--json"],
    "predict": ["predict", "{}", "ROWS", "-o", "OUT.jsonl"],
    "merge": ["merge", "{}", "-o", "OUT"],
    "prune": ["prune", "{}", "-o", "OUT", "--rank", "1"],
    "combine": ["combine", "{}", "SMALL", "-o", "OUT", "--method", "linear"],
    "export": ["export", "{}", "-o", "OUT", "--layout", "padded"],
    "pack": ["export", "{}", "-o", "OUT.safetensors", "--format", "packed"],
    "push": ["push", "{}", "--base-id", "owner/base", "--dry-run", "--json"],
    "verify": ["verify", "SMALL", "{}", "--json"],
    "train": [
        "train",
        "RECIPE",
        LORA,
        "start.adapter={}",
        "training.max_steps=1",
        "output.dir=OUT",
    ],
}
_OTHER = ("report.json", "history.json", "checkpoints", "ranks.png")
"""Names of files with times in them."""


@pytest.mark.parametrize(
    ("command", "output"),
    [
        (["eval", "K", "--recipe", "RECIPE", "--predictions"], "K.safetensors"),
        (["predict", "K", "ROWS", "-o"], "link.jsonl"),
        (["combine", "K", "SMALL", "-o"], "."),
        (["train", "RECIPE", LORA, "start.adapter=K"], "."),
    ],
)
def test_a_command_does_not_write_over_it(
    places: tuple[Path, Path],
    command: list[str],
    output: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small, file = places
    copied = tmp_path / "K.safetensors"
    copied.write_bytes(file.read_bytes())
    (tmp_path / "link.jsonl").symlink_to(copied)
    rows = str(small.parent / "validation.jsonl")
    given = {"K": copied, "RECIPE": small.parent / "tiny.yaml", "ROWS": rows, "SMALL": small}
    words = [str(given.get(word, word.replace("=K", f"={copied}"))) for word in command]
    to = str(tmp_path / output)
    words += [to] if command[-1].startswith("-") else [f"output.dir={to}"]
    refused(capsys, *words, "--force")
    assert copied.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_takes_it(
    places: tuple[Path, Path], command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, file = places
    rows = write_rows(tmp_path / "rows.jsonl", [{"sentence1": "a b", "sentence2": "c d"}])
    results: list[dict[str, Any]] = []
    for place in (small, file):
        out = tmp_path / place.name
        out.mkdir()
        given = {"RECIPE": str(small.parent / "tiny.yaml"), "ROWS": rows, "SMALL": str(small)}
        words = [given.get(word, word.replace("{}", str(place)).replace("OUT", str(out / "out")))
                 for word in COMMANDS[command]]  # fmt: skip
        assert run(words) == OK
        out_said, err = capsys.readouterr()
        assert f"{gettempdir()}/sora-" not in out_said + err
        said = out_said if "--json" in words else ""
        results.append({"said": said.replace(str(file), str(small))})
        for name, content in files_of(out).items():
            assert f"{gettempdir()}/sora-".encode() not in content, name
            if not Path(name).name.startswith(_OTHER) and "checkpoints" not in name:
                results[-1][name] = content.replace(file.name.encode(), small.name.encode())
    assert results[0].keys() == results[1].keys()
    for name, content in results[0].items():
        assert results[1][name] == content, name
    assert results[0]["said"] or len(results[0]) > 1
