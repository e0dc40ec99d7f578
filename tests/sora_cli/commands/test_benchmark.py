"""`sora eval --benchmark`: what is asked back, and scores of rows of a local file."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from sora_cli.app import run
from sora_cli.use import benchmark_choice
from tests.helpers_errors import error_text
from tests.helpers_models import tiny_bert
from tests.helpers_runs import save_base, write_rows

MISSING = "lm-evaluation-harness is not installed: pip install 'sora-cli[lm-eval]'"
installed = pytest.mark.skipif(find_spec("lm_eval") is None, reason=MISSING)

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files: {{test: {file}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
"""
ROWS = [
    {"question": "red dog", "choices": ["blue", "green cat"], "answer": 0},
    {"question": "two tall trees", "choices": ["cat", "dog"], "answer": 1},
    {"question": "a", "choices": ["old car", "red"], "answer": 1},
]


def test_a_harness_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_choice, "find_spec", lambda _: None)
    said = error_text(capsys, "eval", "a", "--benchmark", "hellaswag")
    assert "pip install 'sora-cli[lm-eval]'" in said


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run of a tiny decoder, a classifier, and a benchmark of local rows."""
    from tests.helpers_chat import write_chat_recipe

    folder = tmp_path_factory.mktemp("benchmark")
    recipe = write_chat_recipe(folder, training={"max_steps": 6, "learning_rate": 0.05})
    assert run(["train", str(recipe), "--no-verify", f"output.dir={folder / 'run'}"]) == 0
    save_base(tiny_bert(), folder / "encoder")
    tiny_bert(num_labels=2).save_pretrained(folder / "classifier")
    (folder / "tasks").mkdir()
    file = write_rows(folder / "rows.jsonl", ROWS)
    (folder / "tasks" / "choices.yaml").write_text(TASK.format(name="choices", file=file))
    gone = folder / "gone.jsonl"
    (folder / "tasks" / "gone.yaml").write_text(TASK.format(name="gone", file=gone))
    return folder


def _scored(folder: Path, *words: str) -> int:
    return run(["eval", *words, "--benchmark-tasks", str(folder / "tasks")])


@installed
@pytest.mark.long
def test_scores_are_those_of_the_model_itself(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _scored(folder, str(folder / "run"), "--benchmark", "choices", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads((folder / "run" / "benchmarks.json").read_text()) == report
    found = report["results"]["choices"]
    assert (found["rows"], found["few_shot"], report["limit"]) == (3, 0, None)
    with_adapter = _accuracy(folder / "run")
    assert found["scores"]["acc"] == pytest.approx(with_adapter)
    share = with_adapter * (1 - with_adapter) / (len(ROWS) - 1)
    assert found["errors"]["acc"] == pytest.approx(math.sqrt(share), abs=1e-6)
    table = [str(folder / "run"), "--benchmark", "choices", "--limit", "2"]
    assert _scored(folder, *table, "-o", str(folder / "b.json")) == 0
    shown = capsys.readouterr().out
    assert "choices" in shown
    assert "acc" in shown
    assert json.loads((folder / "b.json").read_text())["results"]["choices"]["rows"] == 2


def _accuracy(place: Path) -> float:
    """The share of rows whose answer gets the larger probability, by the model from PEFT."""
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model: Any = AutoPeftModelForCausalLM.from_pretrained(place / "adapter").eval()
    base = model.peft_config["default"].base_model_name_or_path
    tokenizer: Any = AutoTokenizer.from_pretrained(base)
    right = 0
    for row in ROWS:
        sums = []
        for choice in row["choices"]:
            start = tokenizer(row["question"], add_special_tokens=False)["input_ids"]
            ids = tokenizer(f"{row['question']} {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            sums.append(sum(float(logits[i - 1, ids[i]]) for i in range(len(start), len(ids))))
        right += int(sums.index(max(sums)) == row["answer"])
    return right / len(ROWS)


@installed
@pytest.mark.long
@pytest.mark.parametrize(
    ("target", "name", "says", "then"),
    [
        ("run", "choicse", "there is no benchmark 'choicse'", "did you mean 'choices'?"),
        ("run", "gone", "benchmark 'gone' cannot be loaded", "in the cache"),
        ("classifier", "choices", "is for sequence-classification", "--recipe RECIPE"),
        ("encoder", "choices", "does not say which task", "add --recipe RECIPE"),
    ],
)
def test_what_cannot_be_scored(
    folder: Path,
    target: str,
    name: str,
    says: str,
    then: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert _scored(folder, str(folder / target), "--benchmark", name) == 2
    told = capsys.readouterr().err
    assert says in told
    assert then in told
