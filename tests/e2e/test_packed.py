"""Packed files: what is left out of them, and that no command writes over them.

That commands take them as the directories that they were made from: `tests/machine`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from sora_cli.model.files import TRAINED_ON
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import files_of, train, write_recipe


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
    own = files_of(small)
    own.pop(TRAINED_ON)  # it stays on this machine
    assert files_of(tmp_path / "again") == own


LORA = "method={name: lora, r: 4}"


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
