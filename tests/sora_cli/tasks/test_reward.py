"""Reward models beside TRL's trainer, and rows of single answers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
from trl import RewardConfig, RewardTrainer

from sora_cli.app import run
from sora_cli.core.exit_codes import OK
from sora_cli.model.base import load_base
from sora_cli.recipe.recipe import DataBlock, ModelBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.reward import Reward
from tests.helpers_chat import write_chat_base
from tests.helpers_errors import refusal, refused
from tests.helpers_families import FAMILIES, preference_rows
from tests.helpers_models import tiny_bert
from tests.helpers_runs import save_base, train, write_rows


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def dialogues(rows: int) -> list[dict[str, Any]]:
    return [
        {
            side: [message("user", row["prompt"]), message("assistant", row[side])]
            for side in ("chosen", "rejected")
        }
        for row in preference_rows(rows)
    ]


def bound(rows: list[dict[str, Any]], **options: Any) -> Reward:
    task = create_task(TaskBlock(name="reward", **options), DataBlock(path="unused", max_length=64))
    assert isinstance(task, Reward)
    task.bind(Dataset.from_list(rows))
    return task


@pytest.mark.parametrize("centring", [0.0, 0.3])
def test_loss_and_gradients_are_those_of_trl(tmp_path: Path, centring: float) -> None:
    """The tokens, too: TRL reads the same rows, in one batch without an order."""
    rows, folder = dialogues(8), write_chat_base(tmp_path / "base")
    task = bound(rows, centring=centring)
    torch.manual_seed(0)
    base = load_base(ModelBlock(path=str(folder)), task, dropout=0.0)
    model = base.model.double().train()  # type: ignore[operator]
    encoded = task.encode(Dataset.from_list(rows), base.processor, training=True)
    batch = task.collator(base.processor)(list(encoded.dataset))
    loss, _ = task.batch_loss(model, batch)
    loss.backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    options = RewardConfig(
        str(tmp_path / "trl"), per_device_train_batch_size=8, use_cpu=True, report_to=[],
        center_rewards_coefficient=centring or None, max_length=64, bf16=False,
        gradient_checkpointing=False,
    )  # fmt: skip
    trainer = RewardTrainer(
        model, options, train_dataset=Dataset.from_list(rows), processing_class=base.processor
    )
    (theirs,) = trainer.get_train_dataloader()
    read = {tuple(one[: n.sum()].tolist()) for one, n in
            zip(theirs["input_ids"], theirs["attention_mask"], strict=True)}  # fmt: skip
    made = {tuple(ids) for pair in encoded.dataset["input_ids"][:] for ids in pair}
    assert made == read
    expected = trainer.compute_loss(model, dict(theirs))
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    for name, parameter in model.named_parameters():
        if name in ours:
            assert torch.allclose(ours[name], parameter.grad, rtol=1e-6, atol=1e-9), name


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward")
    train(FAMILIES["reward"](folder), f"output.dir={folder / 'run'}", "method.name=lora")
    return folder


def test_peft_gives_the_same_rewards_with_the_head(trained: Path, tmp_path: Path) -> None:
    rows = preference_rows(6)
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    words = ["predict", str(trained / "run"), pairs, "-o", str(tmp_path / "out.jsonl")]
    assert run(words) == OK
    answers = read_lines(tmp_path / "out.jsonl")
    base = AutoModelForSequenceClassification.from_pretrained(trained / "base", num_labels=1)
    model = PeftModel.from_pretrained(base, trained / "run" / "adapter").eval()
    stored = load_file(trained / "run" / "adapter" / "adapter_model.safetensors")
    (head,) = (tensor for name, tensor in stored.items() if "score" in name)
    assert torch.equal(model.base_model.model.score.modules_to_save["default"].weight, head)
    task = bound(rows)
    loaded = load_base(ModelBlock(path=str(trained / "base")), task)
    encoded = task.encode(Dataset.from_list(rows), loaded.processor)
    model.config.pad_token_id = loaded.processor.pad_token_id
    for row, pair in zip(answers, encoded.dataset["input_ids"][:], strict=True):
        for side, ids in zip(("chosen", "rejected"), pair, strict=True):
            reward = float(model(input_ids=torch.tensor([ids])).logits)
            assert row[f"reward_{side}"] == pytest.approx(reward, abs=1e-5)
        assert row["prefers"] == max(("chosen", "rejected"), key=lambda s: row[f"reward_{s}"])


def test_a_single_answer_gets_the_reward_that_it_has_in_a_pair(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = preference_rows(6)
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    alone = write_rows(
        tmp_path / "alone.jsonl",
        [{"prompt": row["prompt"], "completion": row["rejected"]} for row in rows],
    )
    for file in (pairs, alone):
        assert run(["predict", str(trained / "run"), file, "-o", file + ".out.jsonl"]) == OK
    both, single = (read_lines(Path(file + ".out.jsonl")) for file in (pairs, alone))
    np.testing.assert_allclose(
        [row["reward"] for row in single], [row["reward_rejected"] for row in both], atol=1e-5
    )
    assert list(single[0]) == ["prompt", "completion", "reward"]
    other = write_rows(tmp_path / "other.jsonl", [{"prompt": "a", "text": "b"}])
    refused(capsys, "predict", trained / "run", other, "-o", tmp_path / "x.jsonl")
    new = [{**row, "prompt": f"new: {row['prompt']}"} for row in read_lines(Path(alone))]
    alone = write_rows(tmp_path / "alone.jsonl", new)
    refused(capsys, "prune", trained / "run", "-o", tmp_path / "small", "--max-differ", "5%",
            "--unlabelled", alone)  # fmt: skip


def test_a_model_that_reads_a_text_between_its_own_tokens_is_refused(tmp_path: Path) -> None:
    task = bound(preference_rows(2))
    with refusal():
        load_base(ModelBlock(path=str(save_base(tiny_bert(), tmp_path / "bert"))), task)


def test_one_number_for_all_answers_has_a_known_loss() -> None:
    task = bound(preference_rows(2))
    rewards = torch.full((3, 2), 0.0)
    assert float(task._losses(rewards).mean()) == pytest.approx(math.log(2))
    assert task.model_options()["num_labels"] == 1
