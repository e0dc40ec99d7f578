"""Thumbs up and down beside TRL's KTOTrainer, over micro-batches, and their scores and labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from torch import Tensor
from trl import KTOConfig, KTOTrainer

from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import OK
from sora_cli.data.places import Origin, RowError
from sora_cli.model.base import load_base
from sora_cli.recipe.recipe import DataBlock, ModelBlock, TaskBlock
from sora_cli.run.encode import encode
from sora_cli.tasks import create_task
from sora_cli.tasks.encoded import Encoded, Predictions
from sora_cli.tasks.language import IGNORED
from sora_cli.tasks.referenced import REFERENCE
from sora_cli.tasks.thumbs import GOOD, KL, MIXED, Thumbs, losses, mixed_with
from tests.helpers_chat import chat_tokenizer, write_chat_base
from tests.helpers_errors import refusal, refused
from tests.helpers_families import FAMILIES, thumb_rows
from tests.helpers_models import tiny_gpt2
from tests.helpers_runs import train, write_rows

LIMIT = 24


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def chats(rows: int) -> list[dict[str, Any]]:
    """Two rows have longer answers than fit; one answer is that of two rows."""
    made = thumb_rows(rows)
    made[1]["completion"] = made[2]["completion"]
    for row in made[3:5]:
        row["completion"] = " ".join([row["completion"]] * 24)
    return [
        {
            "prompt": [message("user", row["prompt"])],
            "completion": [message("assistant", row["completion"])],
            "label": row["label"],
        }
        for row in made
    ]


def bound(
    rows: list[dict[str, Any]] | Dataset, *, limit: int = LIMIT, **options: Any
) -> tuple[Thumbs, Dataset]:
    data = rows if isinstance(rows, Dataset) else Dataset.from_list(rows)
    task = create_task(
        TaskBlock(name="thumbs", **options), DataBlock(path="unused", max_length=limit)
    )
    assert isinstance(task, Thumbs)
    task.bind(data)
    task.check(data)
    return task, data


def moved(model: Any, seed: int) -> None:
    """Change a model, so that it is not its reference any more."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)


def with_reference(task: Thumbs, model: Any, rows: Encoded, collate: Any) -> Encoded:
    """Rows with the log-probabilities by the model as it is, as a run computes them."""
    batch = collate(list(rows.dataset))
    with torch.no_grad():
        kept = task.outputs_to_keep(model(**task.scored_inputs(batch)), batch)
    return task.with_reference(rows, task.measured(kept.numpy()))


def texts(ids: Tensor, mask: Tensor) -> list[tuple[int, ...]]:
    return [tuple(row[: int(n)].tolist()) for row, n in zip(ids, mask.sum(1), strict=True)]


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("seed", "estimate", "options"),
    [
        (0, True, {}),
        (4, True, {"beta": 0.2, "desirable_weight": 0.7, "undesirable_weight": 1.9}),
        (1, False, {}),
    ],
)
def test_a_batch_has_the_loss_the_gradients_and_the_estimate_of_trl(
    tmp_path: Path, seed: int, estimate: bool, options: dict[str, float]
) -> None:
    """The tokens, too. TRL mixes a batch's neighbours: its rows are in the order of our mixing."""
    folder, rows = write_chat_base(tmp_path / "base"), chats(8)
    task, data = bound(rows, **options)
    base = load_base(ModelBlock(path=str(folder)), task, dropout=0.0)
    model = base.model.double().train()  # type: ignore[operator]
    collate = task.collator(base.processor)
    encoded = task.encode(data, base.processor, training=True)
    encoded = with_reference(task, model, encoded, collate)
    moved(model, seed)
    batch = collate(list(encoded.dataset))
    with torch.no_grad():
        (whole,) = task.before_step(model, [batch])
    loss, _ = task.batch_loss(model, whole)
    ours = gradients(model, loss)

    settings = KTOConfig(
        str(tmp_path / "trl"), per_device_train_batch_size=8, use_cpu=True, report_to=[],
        max_length=LIMIT, bf16=False, gradient_checkpointing=False,
        **{"beta": 0.1, **options},
    )  # fmt: skip
    order = [0]  # the row before each, backwards
    while len(order) < 8:
        order.append(int(mixed_with(8)[order[-1]]))
    in_turn = Dataset.from_list([rows[i] for i in reversed(order)])
    trainer = KTOTrainer(
        model, args=settings, train_dataset=in_turn, processing_class=base.processor
    )
    (theirs,) = trainer.get_train_dataloader()
    for ids, mask, made in (
        ("input_ids", "attention_mask", batch),
        ("KL_input_ids", "KL_attention_mask", batch[MIXED]),
    ):
        own = texts(made["input_ids"], made["attention_mask"])
        assert [own[i] for i in reversed(order)] == texts(theirs[ids], theirs[mask])
    assert int(theirs["completion_mask"].sum()) == int((batch["labels"] != IGNORED).sum())
    assert theirs["attention_mask"].sum(1).max() == LIMIT
    ref_logps = trainer.compute_ref_log_probs(trainer.ref_model, theirs)
    for side, (name, found) in enumerate(
        zip(("ref_logps", "ref_KL_logps"), ref_logps, strict=True)
    ):
        theirs[name] = batch[REFERENCE][list(reversed(order)), side]
        torch.testing.assert_close(theirs[name].double(), found.double(), rtol=1e-6, atol=0)
    trainer.precompute_ref_logps = True  # both take the same: in float32 they round by 1e-6
    expected = trainer.compute_loss(model, dict(theirs))
    wanted = gradients(model, expected)
    (kl,) = trainer._metrics["train"]["kl"]
    assert (kl > 0.1) is estimate
    assert float(whole[KL]) == pytest.approx(kl, rel=1e-6, abs=1e-9)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert ours.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float((ours[name] - gradient).norm()) <= 1e-6 * float(gradient.norm()), name


@pytest.mark.parametrize("chunked", [False, True])
def test_micro_batches_change_nothing(tmp_path: Path, chunked: bool) -> None:
    """Of any size, with one row, too: the estimate is that of the step."""
    task, data = bound(chats(9))
    base = load_base(ModelBlock(path=str(write_chat_base(tmp_path / "b"))), task, dropout=0.0)
    model = base.model.double().train()  # type: ignore[operator]
    assert task.learned is not None
    if chunked:
        task.learned.chunk()
    collate = task.collator(base.processor)
    encoded = task.encode(data, base.processor, training=True)
    encoded = with_reference(task, model, encoded, collate)
    moved(model, 0)
    rows, found = list(encoded.dataset), []
    for sizes in ([9], [4, 4, 1], [1, 8]):
        ends = np.cumsum(sizes)
        parts = [rows[end - n : end] for end, n in zip(ends, sizes, strict=True)]
        with torch.no_grad():
            made = task.before_step(model, [collate(part) for part in parts])
        weighted = [task.batch_loss(model, part)[0] * task.loss_items(part) / 9 for part in made]
        loss = torch.stack(weighted).sum()
        assert float(made[0][KL]) > 0.1
        found.append({"loss": loss.detach()} | gradients(model, loss))
    for other in found[1:]:
        for name, value in found[0].items():
            assert float((other[name] - value).norm()) <= 1e-6 * float(value.norm()), name


def test_every_prompt_gets_the_answer_of_another_row() -> None:
    for rows in (2, 3, 10, 1000):
        others = mixed_with(rows)
        assert sorted(others) == list(range(rows))
        assert not (others == np.arange(rows)).any()
        assert (others == mixed_with(rows)).all()
    assert (np.abs(others - np.arange(1000)) > 1).mean() > 0.99  # and not of its neighbour


def test_rows_and_mixed_rows_are_cut_as_any_others() -> None:
    task, data = bound(chats(8))
    made = task.encode(data, chat_tokenizer(), training=True)
    long = "lose the end of their answers at data.max_length=24"
    assert (made.truncated, made.notes[long]) == (2, 2)
    assert made.longest > LIMIT
    assert made.lengths.max() == made.sizes.max() == LIMIT
    assert (made.sizes >= made.lengths).all()
    for row, i in zip(made.dataset, mixed_with(8), strict=True):
        own, other = (
            [t for t in labels if t != IGNORED]
            for labels in (row[f"{MIXED}_labels"], made.dataset[int(i)]["labels"])
        )
        assert own[: len(other)] == other[: len(own)]
        start = row["labels"].index(next(t for t in row["labels"] if t != IGNORED))
        assert row[f"{MIXED}_input_ids"][:start] == row["input_ids"][:start]


def test_mixed_rows_must_fit_the_model_s_positions(tmp_path: Path) -> None:
    """A long prompt and a long answer fit; together they have more tokens than positions."""
    tiny_gpt2().save_pretrained(tmp_path)
    chat_tokenizer().save_pretrained(tmp_path)
    rows = [
        {"prompt": " ".join(["red"] * 50), "completion": "no", "label": True},
        {"prompt": "red", "completion": " ".join(["no"] * 50), "label": False},
    ]
    task, data = bound(rows, limit=200)
    base = load_base(ModelBlock(path=str(tmp_path)), task)
    with pytest.raises(SoraError, match="do not fit the model, which has 64 positions"):
        encode(task, base, data, Origin("rows"), training=True)


def test_weights_and_the_paper_s_formula() -> None:
    task, _ = bound(chats(4), beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    made = losses(task.options, torch.tensor([1.0, 1.0]), torch.tensor([True, False]), 0.4)
    expected = [2 * (1 - 1 / (1 + np.exp(-0.3))), 3 * (1 - 1 / (1 + np.exp(0.3)))]
    assert made.tolist() == pytest.approx(expected)


WORDS: list[tuple[list[Any], Any]] = [
    ([True, False], None),
    ([1, 0], None),
    ([1.0, 0.0], None),
    (["Yes", " no "], None),
    (["UP", "down"], None),
    (["good", "bad"], None),
    (["True", "false"], None),
    (["\N{THUMBS UP SIGN}", "\N{THUMBS DOWN SIGN}"], None),
    ([1, 0], ClassLabel(names=["bad", "good"])),
    ([0, 1], ClassLabel(names=["chosen", "rejected"])),
]


@pytest.mark.parametrize(("labels", "feature"), WORDS, ids=str)
def test_the_usual_words_are_thumbs(labels: list[Any], feature: Any) -> None:
    columns = {"prompt": ["a", "red"], "completion": ["no", "old"], "label": labels}
    text = Value("string")
    types = None if feature is None else Features(prompt=text, completion=text, label=feature)
    task, data = bound(Dataset.from_dict(columns, types))
    assert task.encode(data, chat_tokenizer(), training=True).dataset[GOOD][:] == [True, False]


@pytest.mark.parametrize("label", ["maybe", 2, -1, None, 0.5, ""])
def test_another_label_is_refused_with_its_row(label: Any) -> None:
    rows = [*thumb_rows(3), {**thumb_rows(1)[0], "label": label}]
    columns = {name: [row[name] for row in rows] for name in ("prompt", "completion")}
    labels = [r["label"] if isinstance(label, bool) else int(r["label"]) for r in rows[:3]]
    kind = type(label) if label is not None else int
    labels = [*map(kind, labels), label]
    with pytest.raises(RowError, match="which is no thumb") as caught:
        bound(Dataset.from_dict({**columns, "label": labels}))
    assert caught.value.row == 3


def scored(ratios: list[list[float]], good: list[bool]) -> Predictions:
    logps = np.array(ratios) - 30.0
    sums = np.stack([-logps, np.full_like(logps, 8.0), np.zeros_like(logps)], axis=-1)
    rows = Encoded(Dataset.from_dict({GOOD: good}), np.full(len(good), 9), 0)
    return Predictions(sums, None, rows, reference=np.full(logps.shape, -30.0))


def test_scores_are_means_by_thumb_and_rounding_is_no_sign() -> None:
    task, _ = bound(
        chats(4),
        metrics=[
            "rewards/accuracies",
            "rewards/margins",
            "rewards/chosen",
            "rewards/rejected",
            "logps/rejected",
            "kl",
        ],
    )
    made = scored([[3, 1], [-2, 1], [1e-6, 2], [-4, 0], [5, -1]], [True, True, True, False,
                                                                       False])  # fmt: skip
    assert task.answer_columns(made)[0] == ["up", "down", "neither", "down", "up"]
    found = task.metrics(made)
    assert found["rewards/accuracies"] == 0.4
    assert found["rewards/chosen"] == pytest.approx(0.1 * (3 - 2) / 3, rel=1e-5)
    assert found["rewards/rejected"] == pytest.approx(0.1 * (5 - 4) / 2)
    assert found["rewards/margins"] == found["rewards/chosen"] - found["rewards/rejected"]
    assert found["logps/rejected"] == pytest.approx(-29.5)
    assert found["kl"] == pytest.approx(0.6)
    alone = task.metrics(scored([[3, -1]], [True]))
    assert alone["kl"] == 0
    assert not {"rewards/rejected", "rewards/margins"} & alone.keys()


@pytest.mark.parametrize("metric", ["rewards/chosen", "logps/rejected", "rewards/accuracies"])
def test_a_score_by_row_is_that_of_the_split(metric: str) -> None:
    task, _ = bound(chats(4), metrics=[metric])
    made = scored([[3, 1], [-2, 1], [-4, 0]], [True, False, False])
    assert task.row_scores(made).value == pytest.approx(task.metrics(made)[metric])


@pytest.mark.parametrize("metric", ["kl", "loss", "rewards/margins"])
def test_a_score_of_all_rows_has_none_by_row(metric: str) -> None:
    task, _ = bound(chats(4), metrics=[metric])
    with pytest.raises(SoraError, match="is of all rows together"):
        task.row_scores(scored([[3, 1], [-4, 0]], [True, False]))


def test_unequal_numbers_are_told_with_a_weight() -> None:
    def told(up: int, down: int, **options: float) -> list[str]:
        rows = [{"prompt": "a", "completion": "no", "label": i < up} for i in range(up + down)]
        task, data = bound(rows, **options)
        return task.remarks({"train": task.encode(data, chat_tokenizer(), training=True)})

    assert told(10, 10) == told(10, 9) == told(9, 10) == []
    (few,) = told(30, 10)
    assert few.endswith("task.undesirable_weight=2.6")
    assert told(30, 10, undesirable_weight=2.6) == []
    (few,) = told(10, 30)
    assert few.endswith("task.desirable_weight=3.5")
    assert told(10, 30, desirable_weight=3.5) == []
    (alone,) = told(3, 0)
    assert alone.startswith("all training rows are thumbs up")


@pytest.mark.parametrize(
    "rows",
    [
        [{"prompt": "a", "completion": "no", "label": True}],
        [{"completion": "no", "label": True}] * 2,
        [{"prompt": "a", "chosen": "no", "rejected": "old"}] * 2,
    ],
    ids=["one row", "no prompt", "pairs"],
)
def test_rows_of_other_kinds_are_refused(rows: list[dict[str, Any]]) -> None:
    with refusal():
        task, data = bound(rows)
        task.encode(data, chat_tokenizer(), training=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thumbs")
    train(FAMILIES["thumbs"](folder), f"output.dir={folder / 'run'}", "method.name=lora")
    return folder


def test_answers_need_no_thumbs_and_do_not_depend_on_other_rows(
    trained: Path, tmp_path: Path
) -> None:
    made = []
    for kept in (slice(None), slice(2, 4)):
        rows = [{k: row[k] for k in ("prompt", "completion")} for row in thumb_rows(6)[kept]]
        file, out = write_rows(tmp_path / "rows.jsonl", rows), tmp_path / "out.jsonl"
        assert run(["predict", str(trained / "run"), file, "-o", str(out), "--force"]) == OK
        made.append([json.loads(line) for line in out.read_text().splitlines()])
    assert list(made[0][0]) == ["prompt", "completion", "prediction", "reward"]
    for one, other in zip(made[0][2:4], made[1], strict=True):
        assert one["reward"] == pytest.approx(other["reward"], abs=1e-5)
        assert one["prediction"] == other["prediction"] == ("up" if one["reward"] > 0 else "down")


def test_a_step_of_one_row_is_refused_before_training(
    trained: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [
        "training.batch_size=1",
        "training.gradient_accumulation=1",
        f"output.dir={tmp_path / 'no'}",
    ]
    refused(capsys, "train", trained / "family.yaml", *words)
    assert not (tmp_path / "no").exists()
