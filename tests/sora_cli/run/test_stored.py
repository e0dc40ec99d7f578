"""Runs of methods that are not low-rank: their files, their scores, what is refused for them."""

from __future__ import annotations

import json
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from methods.registry import low_rank_names, method_names
from sora_cli.adapter.digest import result_digest, result_digests
from sora_cli.app import run
from sora_cli.model.base import load_base
from sora_cli.model.tensors import open_tensors
from sora_cli.recipe.load import load_recipe
from sora_cli.report import RunReport, read_report
from sora_cli.run.prepare import load_task
from tests.helpers_errors import refused
from tests.helpers_models import tiny_bert, tiny_llama
from tests.helpers_runs import (
    files_of,
    pair_rows,
    signal_at,
    timeless,
    train,
    write_recipe,
)
from tests.present import present

BASELINES = [name for name in method_names() if name not in low_rank_names()]
FOLDERS = {"head": "delta", "bitfit": "delta", "full": "model"}
HEAD = {
    "classifier.weight",
    "classifier.bias",
    "bert.pooler.dense.weight",
    "bert.pooler.dense.bias",
}
HEAD_PARAMETERS = 2 * 32 + 2 + 32 * 32 + 32


class Runs:
    """One finished run of each baseline on the same recipe, and what training them said."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.recipe = folder, write_recipe(folder, tiny_bert(num_labels=2))
        self.base = load_file(folder / "base" / "model.safetensors")

    def place(self, name: str) -> Path:
        return self.folder / name

    def words(self, name: str) -> list[str]:
        return [str(self.recipe), f"method.name={name}", f"output.dir={self.place(name)}"]

    def report(self, name: str) -> RunReport:
        return present(read_report(self.place(name)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(tmp_path_factory.mktemp("baselines"))
    for name in BASELINES:
        assert run(["train", *made.words(name), "--no-verify"]) == 0
    return made


def test_every_baseline_has_a_place_here() -> None:
    assert set(FOLDERS) == set(BASELINES)


@pytest.mark.parametrize("name", BASELINES)
def test_files_and_report(runs: Runs, name: str) -> None:
    place, report = runs.place(name), runs.report(name)
    kept = {FOLDERS[name], "checkpoints", "history.json", "report.json"}
    assert {path.name for path in place.iterdir()} == kept
    parameters = report.parameters
    assert parameters.head == HEAD_PARAMETERS
    assert parameters.adapter_start == parameters.adapter_end
    assert parameters.trained == parameters.adapter_end + parameters.head
    biases = (
        sum(t.numel() for n, t in runs.base.items() if n.endswith(".bias")) - 32
    )  # the pooler's
    beside = {"head": 0, "bitfit": biases, "full": parameters.base - parameters.head}
    assert parameters.adapter_end == beside[name]
    assert (report.ranks, report.live_components, report.without_adapters) == ({}, [], {})
    told = json.loads((place / FOLDERS[name] / "sora.json").read_text(encoding="utf-8"))
    assert report.digests == result_digests(place / FOLDERS[name])
    assert report.digests[FOLDERS[name]] == result_digest(place / FOLDERS[name])
    assert (told["method"], told["labels"]) == (name, ["0", "1"])
    assert told["base"]["fingerprint"] == report.base.fingerprint


@pytest.mark.parametrize("name", ["head", "bitfit"])
def test_a_delta_holds_what_was_trained_and_no_more(runs: Runs, name: str) -> None:
    delta = load_file(runs.place(name) / "delta" / "delta.safetensors")
    biases = {f"bert.{n}" for n in runs.base if n.endswith(".bias")} if name == "bitfit" else set()
    assert set(delta) == HEAD | biases
    for key in biases:  # the keys' biases have no gradient: softmax does not see them
        moved = not torch.equal(delta[key], runs.base[key.removeprefix("bert.")])
        assert moved or key.endswith("attention.self.key.bias"), key


def test_a_whole_model_is_loaded_by_transformers_alone(runs: Runs) -> None:
    folder = runs.place("full") / "model"
    auto = transformers.AutoModelForSequenceClassification
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert transformers.AutoTokenizer.from_pretrained(folder)("cat dog").input_ids[0] == 2
    words = model.bert.embeddings.word_embeddings.weight
    assert not torch.equal(words, runs.base["embeddings.word_embeddings.weight"])


@pytest.mark.parametrize("name", BASELINES)
def test_scored_again_from_files(runs: Runs, capsys: pytest.CaptureFixture[str], name: str) -> None:
    for target in (runs.place(name), runs.place(name) / FOLDERS[name]):
        capsys.readouterr()
        assert run(["eval", str(target), "-r", str(runs.recipe), "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)
        assert scores == runs.report(name).metrics


@pytest.mark.parametrize("name", BASELINES)
def test_commands_on_ranks_answer_in_a_line(
    runs: Runs, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    output = str(runs.folder / "none")
    for command, lack in {
        ("inspect",): "there are no ranks to inspect",
        ("prune", "-o", output): "there are no ranks to prune",
        ("export", "-o", output): "there is no adapter to export",
        ("merge", "-o", output): "there is no adapter to merge",
        ("verify",): "there is no adapter to verify",
    }.items():
        for target in (runs.place(name), runs.place(name) / FOLDERS[name]):
            if command == ("verify",) and target.name == "model":
                continue  # a model can be compared with another
            capsys.readouterr()
            assert run([command[0], str(target), *command[1:]]) == 2
            first, *more = capsys.readouterr().err.splitlines()
            told = (
                f"error: {target} was trained by '{name}', which is not a low-rank method: {lack}"
            )
            assert first == told
            assert len(more) == 1
    assert not Path(output).exists()


@pytest.mark.parametrize("name", BASELINES)
def test_the_end_of_a_run(
    tmp_path: Path, runs: Runs, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Its files were compared with the model, and the commands it names work."""
    words = [*runs.words(name)[:2], f"output.dir={tmp_path / 'out'}", "training.max_steps=2"]
    assert run(["train", *words]) == 0
    told = capsys.readouterr().err
    assert f"verified: {tmp_path}/out/{FOLDERS[name]} gives all 41 tensors" in told
    lines = told.partition("\nnext:\n")[2].splitlines()
    commands = [shlex.split(line) for line in lines if line.startswith("  sora ")]
    assert [command[1] for command in commands][:1] == ["eval"]
    for command in [c for c in commands if c[1] == "eval"]:  # verify starts a process of its own
        assert run(command[1:]) == 0


def test_files_that_differ_from_the_model_fail_the_run(
    tmp_path: Path,
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from sora_cli.verify import run_check

    inner = run_check.load_baseline

    def load(*arguments: Any) -> Any:
        base = inner(*arguments)
        base.model.classifier.bias.data[0] += 1e-6
        return base

    monkeypatch.setattr(run_check, "load_baseline", load)
    words = [*runs.words("head")[:2], f"output.dir={tmp_path / 'out'}", "training.max_steps=2"]
    assert run(["train", *words]) == 1
    assert "DIFFERENT: " in capsys.readouterr().err


def test_stopped_and_resumed_it_ends_to_the_byte_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = {"gradient_accumulation": 2, "model_dropout": 0.1, "logging_steps": 4}
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), rows=43, training=training)
    name = "full"
    whole, cut = (
        [f"method.name={name}", f"output.dir={tmp_path / place}"] for place in ("whole", "cut")
    )
    expected = train(recipe, *whole)
    with monkeypatch.context() as patched:
        signal_at(patched, 8, signal.SIGTERM)
        stopped = run(["train", str(recipe), "--no-verify", *cut])
    assert stopped == 128 + signal.SIGTERM
    report = train(recipe, *cut, "--resume")
    assert [r.step for r in report.resumed] == [8]
    written = files_of(tmp_path / "cut" / FOLDERS[name])
    assert written == files_of(tmp_path / "whole" / FOLDERS[name])
    assert set(written) > {"sora.json"}
    assert timeless(report) == timeless(expected)


def test_full_is_a_plain_loop_of_adamw(tmp_path: Path) -> None:
    """All rows in every step, no schedule, no clipping: what anybody would write by hand."""
    training = {"epochs": 4, "batch_size": 24, "schedule": "constant", "warmup": 0,
                "max_grad_norm": 0, "model_dropout": 0.0, "learning_rate": 1e-3,
                "keep_best": False}  # fmt: skip
    path = write_recipe(tmp_path, tiny_bert(num_labels=2), rows=24, training=training)
    train(path, "method.name=full")
    recipe = load_recipe(str(path), ["method.name=full"]).recipe
    transformers.set_seed(0)  # the head is drawn from it
    task, _ = load_task(recipe)
    base = load_base(recipe.model, task, dropout=0.0)
    rows = pair_rows(24)
    texts = [[row[column] for row in rows] for column in ("sentence1", "sentence2")]
    batch = base.processor(*texts, padding=True, return_tensors="pt")
    labels = torch.tensor([row["label"] for row in rows])
    named = dict(base.model.named_parameters())
    decay, rest = ([p for p in named.values() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    base.model.train()
    for _ in range(4):
        loss = nn.functional.cross_entropy(base.model(**batch).logits, labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    stored = load_file(tmp_path / "out" / "model" / "model.safetensors")
    assert set(named) == set(stored)
    for name, parameter in named.items():
        if not name.endswith("self.key.bias"):  # its gradient is rounding noise, which Adam scales
            assert torch.allclose(stored[name], parameter, atol=1e-5), name


def test_another_method_in_the_same_place_leaves_one_result(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"max_steps": 2})
    results = {"adapter", "delta", "model", "ranks.png"}
    for name, kept in {
        "full": {"model"}, "sora": {"adapter", "ranks.png"}, "head": {"delta"}
    }.items():  # fmt: skip
        train(recipe, "--force", f"method.name={name}")
        assert {path.name for path in (tmp_path / "out").iterdir()} & results == kept


def test_what_is_refused(tmp_path: Path, runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    llama = write_recipe(tmp_path, tiny_llama(num_labels=2))
    for words in (
        (llama, "method.name=bitfit"),
        (runs.recipe, "method.name=head", "training.train_head=false"),
        (runs.recipe, "method.name=head", "training.compact_every=2"),
        (runs.recipe, "method.name=full", "method.alpha=2"),
    ):
        refused(capsys, "train", *words, f"output.dir={tmp_path / 'refused'}")
    assert not (tmp_path / "refused" / "report.json").exists()


@pytest.mark.parametrize("name", BASELINES)
def test_dry_run(runs: Runs, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert run(["train", *runs.words(name), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"none: method {name} trains" in told
    assert "one component" not in told
    beside = runs.report(name).parameters.adapter_end
    assert f"{'trained beside the head':<24} {beside:>15,}" in told


@pytest.mark.parametrize("words", [("method.name=head",), ()], ids=["delta", "adapter"])
def test_a_result_of_another_base_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"max_steps": 2})
    train(recipe, *words)
    weights = tmp_path / "base" / "model.safetensors"
    with open_tensors(weights) as file:
        tensors = {key: file.read(key) for key in file.keys}
    save_file({k: t + 1 for k, t in tensors.items()}, weights, metadata={"format": "pt"})
    capsys.readouterr()
    evaluation = ["eval", str(tmp_path / "out"), "-r", str(recipe)]
    refused(capsys, *evaluation)
    rows, answers = (str(tmp_path / name) for name in ("train.jsonl", "answers.jsonl"))
    predicting = ["predict", str(tmp_path / "out"), rows, "-o", answers]
    assert run(predicting) == 2
    assert run([*predicting, "--base", str(tmp_path / "base")]) == 0  # it may be tried on any
