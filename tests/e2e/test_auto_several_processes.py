"""Two gloo processes find the size that one finds: one decides, the other is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sora_cli.app import run
from tests.helpers_chat import instruct_rows, write_chat_recipe
from tests.helpers_runs import files_of, pair_rows, write_rows
from tests.launched import launch_commands
from tests.sora_cli.experiments.auto.support import auto_recipe, certificate_of

pytestmark = pytest.mark.long

STOPPED_AT = 16  # in the healing of the first size, too: the full run has its checkpoint by then


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process's search, two processes', and one of two processes stopped and continued."""
    folder = tmp_path_factory.mktemp("auto")
    recipe = auto_recipe(folder, training={"model_dropout": 0})

    def words(name: str) -> list[str]:
        return ["auto", str(recipe), "--no-verify", f"output.dir={folder}/{name}"]

    def by_answers(name: str) -> list[str]:
        rows = write_rows(folder / "inputs.jsonl", pair_rows(100, seed=9))
        return [*words(name), "--max-differ", "70%", "--unlabelled", rows]

    def by_next_tokens(name: str) -> list[str]:
        chats = write_chat_recipe(
            folder / "chats", training={"model_dropout": 0, "learning_rate": 0.02}
        )
        rows = write_rows(folder / "given.jsonl", instruct_rows(100, seed=9))
        differ = ["--max-differ", "65%", "--unlabelled", rows, "--next-tokens", "--no-verify"]
        return ["auto", str(chats), *differ, f"output.dir={folder}/{name}"]

    assert run(words("one")) == 0
    assert run(by_answers("one-alike")) == 0
    assert run(by_next_tokens("one-tokens")) == 0
    commands = [
        {"words": by_answers("two-alike"), "stop": None},
        {"words": by_next_tokens("two-tokens"), "stop": None},
        {"words": words("two"), "stop": None},
        {"words": words("stopped"), "stop": STOPPED_AT},
        {"words": words("stopped"), "stop": None},
    ]
    launch_commands(folder, commands, timeout=500)
    return folder


@pytest.mark.parametrize("kind", ["", "-alike", "-tokens"])
def test_two_processes_find_what_one_finds(folder: Path, kind: str) -> None:
    one, two = certificate_of(folder / f"one{kind}"), certificate_of(folder / f"two{kind}")
    assert one.promise == two.promise
    assert one.rows == two.rows
    for mine, theirs in zip(one.screened, two.screened, strict=True):
        assert mine.max_params == theirs.max_params
    assert [s.max_params for s in one.candidates] == [s.max_params for s in two.candidates]
    assert one.chosen == two.chosen
    for mine, theirs in zip(one.candidates, two.candidates, strict=True):
        assert mine.test is not None
        assert theirs.test is not None
        assert mine.test.differing == theirs.test.differing
        for place in (one.full.directory, mine.directory, "."):
            _check_alike(folder / f"one{kind}" / place, folder / f"two{kind}" / place)
    assert one.full.test == two.full.test


def _check_alike(one: Path, two: Path) -> None:
    """Check that adapters differ by rounding alone: gradients were averaged in every run."""
    mine, theirs = (load_file(at / "adapter" / "adapter_model.safetensors") for at in (one, two))
    assert mine.keys() == theirs.keys()
    for name, tensor in mine.items():
        assert torch.allclose(tensor, theirs[name], rtol=1e-3, atol=1e-4), (one, name)


def test_one_process_scores_what_two_certified(folder: Path) -> None:
    """The adapters in the files are those that were scored."""
    assert run(["verify", str(folder / "two"), "--certificate"]) == 0


def test_both_processes_stop_and_continue_to_the_same_bytes(folder: Path) -> None:
    codes = [json.loads((folder / f"commands.{rank}.json").read_text()) for rank in (0, 1)]
    assert codes[0][3]["code"] == codes[1][3]["code"] == 143
    for name in ("adapter", "sizes/full/adapter", "sizes/1/adapter"):
        assert files_of(folder / "stopped" / name) == files_of(folder / "two" / name)
    whole = (folder / "two" / "certificate.json").read_bytes()
    assert (folder / "stopped" / "certificate.json").read_bytes() == whole
