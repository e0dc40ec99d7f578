"""Adapters with their merges on disk, and `sora verify` on them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers

from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.app import run
from tests import helpers_errors as errors
from tests.helpers_adapters import CLASSIFIERS, adapt, save_backbone

Facts = dict[str, Any]


class Made:
    """A base, an adapter of it and the merged model, as directories."""

    def __init__(self, folder: Path, model: Any, head: tuple[str, ...] = ()) -> None:
        self.folder = folder
        self.base = save_backbone(model, folder / "base")
        self.adapter = folder / "adapter"
        self.stored: Adapter = adapt(model, self.base, head=head)
        write_adapter(self.adapter, self.stored)
        self.merged = folder / "merged"
        assert run(["merge", str(self.adapter), "-o", str(self.merged)]) == 0


def classifier_of(name: str) -> tuple[Any, tuple[str, ...]]:
    """The model and the paths of its head."""
    make, head = CLASSIFIERS[name]
    return make(), head


def facts_of(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, Facts]:
    """Exit code and what --json prints."""
    capsys.readouterr()
    code = run(["verify", *map(str, words), "--json"])
    captured = capsys.readouterr()
    assert captured.out, captured.err
    facts: Facts = json.loads(captured.out)
    assert code == {"same": 0, "DIFFERENT": 1, "cannot tell": 3}[facts["verdict"]]
    assert facts["same"] == (code == 0)
    return code, facts


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> None:
    """Store what it says of bad input."""
    errors.refused(capsys, "verify", *words)


def one_number_changed(source: Path, target: Path, name: str, delta: float, at: int = 0) -> Path:
    """A copy of a model directory with one number changed."""
    shutil.copytree(source, target)
    file = target / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[at] += delta
    save_file(tensors, file, metadata={"format": "pt"})
    return target


def letter_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """One token a letter, small enough for the tiny models."""
    names = ["[PAD]", "[UNK]", *"abcdefghijklmnopqrstuvwxyzSTENI.,"]
    tokenizer = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
