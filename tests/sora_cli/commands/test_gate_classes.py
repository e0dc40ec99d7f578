"""Names of classes in the gate of `sora verify A B`: both orders of A and B end alike."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import permutations
from pathlib import Path

import peft
import pytest
import torch
import transformers

from methods.inject import inject
from methods.registry import create
from sora_cli.adapter.saving import save_adapter
from sora_cli.app import run
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import copied_here, pair_rows, train, write_recipe, write_rows

NAMES = ("no", "yes")
TARGETS = ["query", "value"]
TEXTS = ["data.files.train=train-texts.jsonl", "data.files.validation=validation-texts.jsonl"]
UNLABELLED = ["--max-differ", "90%", "--unlabelled", "inputs.jsonl"]
LABELLED = ["--max-drop", "90pt", "--recipe", "tiny.yaml"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters for two classes: by PEFT, by `save_adapter`, and of runs on numbers and on texts."""
    folder = tmp_path_factory.mktemp("classes")
    recipe = write_recipe(
        folder, tiny_bert(num_labels=2), method={"threshold": 0.0}, training={"max_steps": 3}
    )
    write_rows(folder / "inputs.jsonl", pair_rows(40, seed=5))
    files = {part: folder / f"{part}-texts.jsonl" for part in ("train", "validation")}
    for part, file in files.items():
        rows = map(json.loads, (folder / f"{part}.jsonl").read_text().splitlines())
        write_rows(file, [{**row, "label": NAMES[row["label"]]} for row in rows])
    train(recipe, f"output.dir={folder}/numbers")
    words = [f"data.files.{part}={file}" for part, file in files.items()]
    train(recipe, f"output.dir={folder}/texts", *words)
    torch.manual_seed(0)
    models = [
        transformers.AutoModelForSequenceClassification.from_pretrained(folder / "base")
        for _ in range(2)
    ]
    config = peft.LoraConfig("SEQ_CLS", target_modules=TARGETS, r=2, init_lora_weights=False)
    peft.get_peft_model(models[0], config).save_pretrained(folder / "theirs")
    method = create("lora", r=2, targets=TARGETS)
    inject(models[1], method, trainable=["classifier"], generator=torch.Generator().manual_seed(0))
    save_adapter(models[1], method, folder / "saved", head=["classifier"])
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return copied_here(made, tmp_path, monkeypatch)


@pytest.mark.long
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("words", [UNLABELLED, [*LABELLED, *TEXTS]], ids=["files", "recipe"])
def test_names_that_tell_nothing_agree_with_any(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    names = json.loads(Path("saved/sora.json").read_text())["labels"]
    assert names == ["LABEL_0", "LABEL_1"]
    found = {}
    for pair in permutations(["theirs", "saved", "numbers", "texts"], 2):
        capsys.readouterr()
        assert run(["verify", *pair, *words, "--json"]) in (OK, FAILED, NO_VERDICT)
        evidence = json.loads(capsys.readouterr().out)
        telling = "texts" in pair or words is not UNLABELLED
        wanted = list(NAMES) if telling else ["0", "1"]
        if words is UNLABELLED:
            assert evidence["recipe"]["data"]["label_names"] == wanted
        found[pair] = evidence["candidates"][0]["test"]["differing"]
    for a, b in found:
        assert found[a, b] == found[b, a]


@pytest.mark.long
@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("other", ["theirs", "saved", "numbers"])
def test_the_command_for_rows_with_numbers_works(
    other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for pair in ((other, "texts"), ("texts", other)):
        hint = refused(capsys, "verify", *pair, *LABELLED)[-1]
        (typed,) = shlex.split(hint.partition(": ")[2])
        assert run(["verify", *pair, *LABELLED, typed]) in (OK, FAILED, NO_VERDICT)


@pytest.mark.long
def test_names_that_differ_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("texts/adapter", "other")
    file = here / "other" / "sora.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "labels": ["bad", "good"]}))
    for pair in (("other", "texts"), ("texts", "other")):
        refused(capsys, "verify", *pair, *UNLABELLED)
        refused(capsys, "verify", *pair, *LABELLED)
    refused(capsys, "eval", "other", "--recipe", "tiny.yaml", *TEXTS)
