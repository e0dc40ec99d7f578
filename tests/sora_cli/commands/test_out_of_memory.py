"""Memory that runs out in commands that do not train: the place, its sizes, what to lower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sora_cli.app import run
from tests.helpers_chat import instruct_rows, write_chat_base
from tests.helpers_runs import Trained, pair_rows, write_rows

BITS = "fewer bits: model.dtype=bfloat16, or model.quantise=4bit"
BERT = "transformers.AutoModelForSequenceClassification.from_pretrained"
LLAMA = "transformers.AutoModelForCausalLM.from_pretrained"
BATCH = "sora_cli.train.trainer.AdapterTrainer.prediction_step"
WRITE = "sora_cli.tasks.causal_lm.CausalLm.write"
SHORTER = "a data.max_length below 128"
DRY = f"{SHORTER}, or a smaller base model (model.path), or fewer bits: model.dtype, model.quantise"
CASES = [
    ("eval RUN -r RECIPE", BERT, ["load model", BITS]),
    ("eval RUN -r RECIPE", BATCH,
     ["evaluation", "batches of 64 rows", f"training.eval_batch_size=32, or {SHORTER}"]),
    ("predict RUN PAIRS -o OUT", BERT, ["load model", BITS]),
    ("predict RUN PAIRS -o OUT", BATCH,
     ["predicting", "batches of 64 rows", f"--batch-size 32, or {SHORTER}"]),
    ("predict RUN PAIRS -o OUT --batch-size 1", BATCH,
     ["predicting", "batches of 1 rows", SHORTER]),
    ("predict BASE ASKED -o OUT", WRITE,
     ["predicting", "batches of 16 rows", f"--batch-size 8, or {SHORTER}"]),
    ("generate BASE -p dog", LLAMA, ["load model", "--dtype bfloat16"]),
    ("generate BASE -p dog", "sora_cli.use.speaker.decoding",
     ["the answer", "a prompt of 6 tokens, and an answer of up to 58",
      "a smaller --max-new-tokens, a shorter prompt, or --dtype bfloat16"]),
    ("train RECIPE --dry-run", "sora_cli.run.memory.predict_memory",
     ["forecast of memory", f"training.gradient_checkpointing=true, or {DRY}"]),
    ("train RECIPE --dry-run training.gradient_checkpointing=true",
     "sora_cli.run.step_time.run_passes", ["timing a step", DRY]),
]  # fmt: skip


@pytest.fixture(scope="module")
def places(classifier: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The files that the words of a command stand for."""
    folder = tmp_path_factory.mktemp("files")
    asked = [{"prompt": row["instruction"]} for row in instruct_rows(4)]
    return {
        "RUN": str(classifier.run),
        "RECIPE": str(classifier.recipe),
        "PAIRS": write_rows(folder / "pairs.jsonl", pair_rows(4)),
        "ASKED": write_rows(folder / "asked.jsonl", asked),
        "BASE": str(write_chat_base(folder / "base")),
    }


@pytest.mark.parametrize(("command", "ends", "lines"), CASES)
def test_the_place_is_named(
    command: str,
    ends: str,
    lines: list[str],
    places: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run_out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory. Tried to allocate 20.00 MiB.")

    monkeypatch.setattr(ends, run_out)
    files = {**places, "OUT": str(tmp_path / "out.jsonl")}
    assert run([files.get(word, word) for word in command.split()]) == 2
    shown = capsys.readouterr().err.splitlines()
    first = next(i for i, line in enumerate(shown) if line.startswith("error: "))
    what, *more = lines
    assert shown[first] == f"error: {what}: out of memory (for a tensor of 20.00 MiB)"
    assert [line.strip() for line in shown[first + 1 :]] == more
