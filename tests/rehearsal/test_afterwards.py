"""The commands beside `sora train` on the rehearsal device; their results are the CPU's."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.report import read_report
from tests.helpers_families import FAMILIES
from tests.helpers_models import tiny_bert
from tests.helpers_runs import pair_rows, train, write_recipe, write_rows
from tests.present import present
from tests.rehearsal.test_commands import recipe_of
from tests.rehearsal.watch import LOOSER, Watch, computing, on_cpu
from tests.sora_cli.experiments.auto.support import auto_recipe, certificate_of
from tests.sora_cli.experiments.path.support import path_recipe, train_path

Said = Callable[[], str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().out


def close(one: Any, other: Any) -> None:
    """Compare nested data whose numbers were computed on two devices."""
    if isinstance(other, dict):
        assert one.keys() == other.keys()
        for key in other:
            close(one[key], other[key])
    elif isinstance(other, list):
        for mine, plain in zip(one, other, strict=True):
            close(mine, plain)
    elif isinstance(other, float):
        assert one == pytest.approx(other, rel=1e-3 * LOOSER, abs=1e-5 * LOOSER)
    else:
        assert one == other


@pytest.mark.usefixtures("watch")
def test_a_finished_run(tmp_path: Path, said: Said) -> None:
    recipe = recipe_of("sora", tmp_path, evaluate=4)
    assert run(["train", str(recipe)]) == 0  # and is verified
    out, results = tmp_path / "out", []
    asked = write_rows(tmp_path / "asked.jsonl", pair_rows(8, seed=5))
    for place, device in (("there", computing()), ("here", on_cpu())):
        folder = tmp_path / place
        folder.mkdir()
        said()
        with device:
            assert run(["eval", str(out), "--recipe", str(recipe), "--json"]) == 0
            scores = json.loads(said())
            assert run(["predict", str(out), asked, "-o", f"{folder}/p.jsonl"]) == 0
            rows = [json.loads(x) for x in (folder / "p.jsonl").read_text().splitlines()]
            words = ["--mean-rank", "2", "--no-verify"]
            assert run(["prune", str(out), "-o", f"{folder}/healed", *words, "--heal", "2"]) == 0
            healed = present(read_report(folder / "healed"))
            assert run(["merge", str(out), "-o", f"{folder}/merged"]) == 0
            assert run(["verify", str(out), f"{folder}/merged"]) == 0
            assert run(["train", str(recipe), "--dry-run", f"output.dir={folder}/new"]) == 0
        losses = [entry["loss"] for entry in healed.history if "loss" in entry]
        results.append([scores, rows, healed.metrics, losses])
    close(*results)


TALKS = [
    "generate {0}/out -p cat --greedy",
    "chat {0}/out {0}/base --seed 3",
]


@pytest.mark.usefixtures("watch")
@pytest.mark.parametrize("words", TALKS)
def test_texts(words: str, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, texts = FAMILIES["causal-lm"](tmp_path), []
    train(recipe, "task.metrics=[loss]", "training.max_steps=1", "training.evaluate=no")
    command = words.format(tmp_path).split()
    # the CPU draws other numbers
    for device in (computing(), on_cpu() if "--greedy" in words else computing()):
        monkeypatch.setattr(sys, "stdin", io.StringIO("cat sees\nred fish\n/base\na dog\n"))
        said()
        with device:
            assert run([*command, "--max-new-tokens", "5"]) == 0
        texts.append(said())
    assert texts[0] == texts[1]
    assert texts[0].strip()


def test_a_path(tmp_path: Path, watch: Watch) -> None:
    training = {"model_dropout": 0.0, "max_steps": 2}
    recipe = path_recipe(tmp_path, values=[0.0, 0.1], training=training)
    there = train_path(recipe, out=tmp_path / "there")
    assert watch.steps >= 4
    with on_cpu():
        here = train_path(recipe, out=tmp_path / "here")
    for one, other in zip(there.stages, here.stages, strict=True):
        assert (one.live, one.value) == (other.live, other.value)
        close(one.metrics, other.metrics)


def test_a_search(tmp_path: Path, watch: Watch) -> None:
    recipe = auto_recipe(tmp_path, training={"model_dropout": 0.0, "epochs": 1})
    results = []
    for place, device in (("there", computing()), ("here", on_cpu())):
        out = tmp_path / place
        with device:
            assert run(["auto", str(recipe), "--no-verify", f"output.dir={out}"]) == 0
        found = present(read_report(out))
        results.append([found.metrics, found.live_components, certificate_of(out).statement])
    close(*results)
    for device in (computing(), on_cpu()):
        with device:
            assert run(["verify", f"{tmp_path}/there", "--certificate"]) == 0
    assert watch.steps >= 4


@pytest.mark.usefixtures("watch")
def test_the_smallest_sizes(tmp_path: Path, said: Said) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"model_dropout": 0.0})
    write_rows(tmp_path / "validation.jsonl", pair_rows(60, seed=1))
    train(recipe)
    train(recipe, "method.name=full", "training.learning_rate=1e-3", f"output.dir={tmp_path}/whole")
    results = []
    for place, device in (("there", computing()), ("here", on_cpu())):
        folder = tmp_path / place
        folder.mkdir()
        certified = ["--max-drop", "40pt"]
        cut = ["prune", f"{tmp_path}/out", *certified]
        taken = ["extract", f"{tmp_path}/whole", "--base", f"{tmp_path}/base", *certified]
        said()
        with device:
            assert run([*cut, "--recipe", str(recipe), "-o", f"{folder}/small"]) == 0
            assert run([*taken, "--recipe", str(recipe), "-o", f"{folder}/taken"]) == 0
        results.append([sum(read_adapter(folder / name).ranks().values())
                        for name in ("small", "taken")])  # fmt: skip
    assert results[0] == results[1]


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_loss_that_is_not_finite(
    policy: str, tmp_path: Path, watch: Watch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_of("sora", tmp_path)
    words = ["train", str(recipe), "--no-verify", f"training.non_finite={policy}"]
    errors = []
    for place, device in (("there", computing()), ("here", on_cpu())):
        capsys.readouterr()
        with device:
            code = run([*words, "training.learning_rate=1e25", f"output.dir={tmp_path}/{place}"])
        lines = capsys.readouterr().err.splitlines()
        errors.append([code, [x for x in lines if x.startswith("error: step 3: ")]])
    assert errors[0] == errors[1]
    assert (errors[0][0], len(errors[0][1])) == ((2, 1) if policy == "stop" else (0, 0))
    assert watch.steps >= 3
