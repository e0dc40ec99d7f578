"""From instructions to preferences: every command measures rewards against the same reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from sora_cli.adapter.metadata import read_sora_file
from sora_cli.app import run
from sora_cli.report import read_report
from sora_cli.search.evidence import required_certificate
from tests.helpers_chat import instruct_rows, write_chat_recipe
from tests.helpers_errors import refused
from tests.helpers_runs import write_rows
from tests.present import present


def _pairs(rows: int, *, seed: int) -> list[dict[str, Any]]:
    """The right answer beside another row's."""
    both = instruct_rows(2 * rows, seed=seed)
    return [
        {"prompt": a["instruction"], "chosen": a["output"], "rejected": b["output"]}
        for a, b in zip(both[::2], both[1::2], strict=True)
        if a["output"] != b["output"]
    ]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with instructions learned in sft/ and preferences learned in dpo/."""
    folder = tmp_path_factory.mktemp("tuned")
    chat = write_chat_recipe(folder, output={"dir": str(folder / "sft")})
    recipe = yaml.safe_load(chat.read_text()) | {"method": {"name": "lora", "r": 4}}
    chat.write_text(yaml.safe_dump(recipe))
    assert run(["train", str(chat)]) == 0
    files = {
        "train": write_rows(folder / "pairs.jsonl", _pairs(96, seed=2)),
        "validation": write_rows(folder / "held.jsonl", _pairs(60, seed=3)),
    }
    recipe["task"] = {"name": "preference"}
    recipe["data"]["files"] = files
    recipe["start"] = {"adapter": str(folder / "sft")}
    recipe["output"] = {"dir": str(folder / "dpo")}
    recipe["training"] |= {"learning_rate": 3e-3, "keep_best": False}
    (folder / "dpo.yaml").write_text(yaml.safe_dump(recipe))
    assert run(["train", str(folder / "dpo.yaml")]) == 0
    return folder


def test_the_reference_is_recorded(tuned: Path) -> None:
    report = present(read_report(tuned / "dpo"))
    assert report.base.reference == str(tuned / "sft")
    assert (tuned / "dpo" / "reference.safetensors").is_file()
    meta, _ = read_sora_file(tuned / "dpo" / "adapter" / "sora.json")
    assert meta.reference == report.base.reference_digest != ""


def test_a_scored_adapter_and_a_merged_model_have_the_runs_scores(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = present(read_report(tuned / "dpo"))
    merged = str(tuned / "merged")
    assert run(["merge", str(tuned / "dpo"), "-o", merged]) == 0
    for target in (str(tuned / "dpo"), merged):
        capsys.readouterr()
        assert run(["eval", target, "--recipe", str(tuned / "dpo.yaml"), "--json"]) == 0
        scores = json.loads(capsys.readouterr().out)
        assert scores["validation"] == pytest.approx(report.metrics["validation"], rel=1e-4)


def test_predictions_say_which_answer_is_preferred(tuned: Path) -> None:
    rows, out = tuned / "held.jsonl", tuned / "answers.jsonl"
    assert run(["predict", str(tuned / "dpo"), str(rows), "-o", str(out)]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    report = present(read_report(tuned / "dpo"))
    chosen = [a["prefers"] == "chosen" for a in answers]
    assert all((a["reward_chosen"] > a["reward_rejected"]) == c
               for a, c in zip(answers, chosen, strict=True))  # fmt: skip
    share = sum(chosen) / len(chosen)
    assert share == pytest.approx(report.metrics["validation"]["rewards/accuracies"])


def test_a_whole_models_answers_have_no_reference(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged = str(tuned / "whole")
    assert run(["merge", str(tuned / "dpo"), "-o", merged]) == 0
    for name in ("as written", "without sora.json"):
        if name == "without sora.json":
            (tuned / "whole" / "sora.json").unlink()
        words = ["predict", merged, str(tuned / "held.jsonl"), "-o", f"{tuned}/answers-of-it.jsonl"]
        refused(capsys, *words, "--task", "preference")
        assert not (tuned / "answers-of-it.jsonl").exists()


def test_healing_keeps_the_reference(tuned: Path) -> None:
    healed = tuned / "healed"
    words = ["prune", str(tuned / "dpo"), "-o", str(healed), "--energy", "0.6", "--heal", "2"]
    assert run(words) == 0
    report = present(read_report(healed))
    assert report.base.reference == str(tuned / "sft")  # and not the cut adapter it starts from
    assert report.start is not None
    assert report.start.directory == str(tuned / "dpo")


@pytest.mark.parametrize("change", ["gone", "another"])
def test_a_reference_that_is_gone_or_another_is_refused(
    change: str, tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (tuned / "sft").rename(tuned / "elsewhere")
    try:
        if change == "another":
            (tuned / "sft").symlink_to(tuned / "dpo")
        for words in (
            ["eval", str(tuned / "dpo"), "--recipe", str(tuned / "dpo.yaml")],
            ["predict", str(tuned / "dpo"), str(tuned / "held.jsonl"), "-o", f"{tuned}/no.jsonl"],
            ["prune", str(tuned / "dpo"), "-o", str(tuned / "no"), "--max-drop", "3pt",
             "--recipe", str(tuned / "dpo.yaml")],
        ):  # fmt: skip
            capsys.readouterr()
            assert run(words) == 2
            told = "error:" + capsys.readouterr().err.partition("error:")[2]
            assert str(tuned / "sft") in told
            assert len(told.splitlines()) <= 3
            assert not list(tuned.glob("no*"))
        words = ["eval", str(tuned / "dpo"), "--recipe", str(tuned / "dpo.yaml"),
                 f"task.reference={kept}"]  # fmt: skip
        if change == "another":  # of the recipe's two places only the reference has moved
            assert run(words) == 0
    finally:
        if change == "another":
            (tuned / "sft").unlink()
        kept.rename(tuned / "sft")


def test_the_base_model_is_another_reference(
    tuned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["eval", str(tuned / "dpo"), "--recipe", str(tuned / "dpo.yaml"), "task.reference=base"]
    refused(capsys, *words)


def test_a_certified_size_says_its_reference(tuned: Path) -> None:
    out = tuned / "auto"
    words = ["auto", str(tuned / "dpo.yaml"), "--max-drop", "30pt", f"output.dir={out}"]
    assert run(words) in (0, 3)
    certificate = required_certificate(out)
    assert f"measured against the base model with {tuned / 'sft'}" in certificate.scope
    assert certificate.bound.exact
    assert run(["verify", str(out), "--certificate"]) == 0


def test_such_a_model_speaks(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run(["generate", str(tuned / "dpo"), "-p", "dog likes", "--json"]) == 0
    assert "dog likes" in capsys.readouterr().out


def test_the_page_orders_pairs_by_their_margins(tuned: Path) -> None:
    file = tuned / "dpo" / "predictions.jsonl"
    words = ["eval", str(tuned / "dpo"), "--recipe", str(tuned / "dpo.yaml")]
    assert run([*words, "--predictions", str(file)]) == 0
    assert run(["report", str(tuned / "dpo")]) == 0
    page = (tuned / "dpo" / "report.html").read_text()
    assert "margin of the rewards" in page
    assert "Wrong, the surest first" in page
