"""The step's gradient, whatever the micro-batches; and evaluation that tells the truth."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from methods.inject import inject
from methods.registry import config_class, create
from sora_cli.core.errors import SoraError
from sora_cli.model import activation_offload
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe, TrainingBlock
from sora_cli.tasks import create_task, learned
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.learned import LearnedHead
from sora_cli.tasks.sequence import SequenceClassification
from sora_cli.train import switches
from sora_cli.train.callback import attach
from sora_cli.train.trainer import AdapterTrainer, build_trainer, training_arguments
from tests.helpers_device import computing_on
from tests.helpers_methods import EXAMPLES
from tests.helpers_models import tiny_bert, tiny_gpt2
from tests.helpers_runs import pair_rows, tiny_tokenizer
from tests.matrix import rest_is_long

PENALISED = {**EXAMPLES, "sora": {**EXAMPLES["sora"], "l1": 0.3}}
METHODS = {name: PENALISED[name] for name in EXAMPLES if not config_class(name).turns_basis}
"""With the penalties that a method has; a cut leaves layers without a gradient."""


class CausalLm(SequenceClassification):
    """The next-token loss on the same rows, enough of a family for the trainer's arithmetic."""

    def collator(self, tokenizer: Any) -> Any:
        def collate(rows: list[dict[str, Any]]) -> Any:
            inputs = [{"input_ids": r["input_ids"]} for r in rows]
            batch = tokenizer.pad(inputs, return_tensors="pt")
            labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            return {**batch, "labels": labels}

        return collate

    def loss_items(self, batch: Mapping[str, Any]) -> int:
        return int((batch["labels"][..., 1:] != -100).sum())


class Gradients(TrainerCallback):
    """Keeps every step's gradients, as the optimiser gets them."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        named = kwargs["model"].named_parameters()
        self.steps.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def _setup(kind: str, method: str, tmp_path: Path, rows: int, **training: Any) -> AdapterTrainer:
    regression = kind == "regression"
    recipe = Recipe(
        model={"path": "unused"},
        task={"name": "sequence-regression" if regression else "sequence-classification"},
        data={"path": "unused"},
        method={"name": method, **METHODS[method]},
        training={
            "epochs": 1, "batch_size": 8, "max_grad_norm": 0, "evaluate": "no",
            "checkpoint": "no", **training,
        },
    )  # fmt: skip
    if kind == "causal-lm":
        task = CausalLm(recipe.task, recipe.data)
        model = tiny_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    else:
        task = create_task(recipe.task, recipe.data)
        model = tiny_bert(
            num_labels=1 if regression else 2,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        model.config.problem_type = task.model_options()["problem_type"] if regression else None
    raw = Dataset.from_list(pair_rows(rows, regression=regression))
    task.bind(raw)
    tokenizer = tiny_tokenizer()
    encoded: Encoded = task.encode(raw, tokenizer)
    base = Base(model.double(), tokenizer, "tiny", "tiny", None, (), ("classifier",))
    if recipe.training.loss == "chunked":
        assert LearnedHead.of(model).alone
        LearnedHead.of(model).chunk()
    return build_trainer(recipe, task, base, tmp_path, train=encoded, select=encoded)


def _attach(trainer: AdapterTrainer, method: str) -> dict[str, Any]:
    made = create(method, **METHODS[method])
    generator = torch.Generator().manual_seed(0)
    layers = inject(trainer.model, made, exclude=["classifier"], generator=generator)
    for layer in layers.values():  # so that no gradient is zero by construction
        layer.B.data.normal_(generator=generator)
        if layer.d is not None:
            layer.d.data.normal_(generator=generator)
    attach(trainer, made, layers)
    return layers


def _gradients(
    kind: str, method: str, tmp_path: Path, accumulation: int, **training: Any
) -> list[Any]:
    options = {"gradient_accumulation": accumulation, **training}
    trainer = _setup(kind, method, tmp_path, rows=22, **options)
    _attach(trainer, method)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    return gradients.steps


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", rest_is_long(["causal-lm", "classification", "regression"]))
def test_accumulated_gradient_is_the_whole_batch_gradient(
    kind: str, method: str, tmp_path: Path
) -> None:
    """22 rows in steps of 8: the last step has 6 rows, in fewer and uneven micro-batches."""
    whole = _gradients(kind, method, tmp_path, 1)
    parts = _gradients(kind, method, tmp_path, 4)
    assert len(whole) == len(parts) == 3
    for one, four in zip(whole, parts, strict=True):
        assert one.keys() == four.keys()
        for name in one:
            scale = one[name].abs().max()
            assert scale > 0, name
            near = float(1e-6 * scale) + 1e-12
            torch.testing.assert_close(four[name], one[name], rtol=0, atol=near)


def test_chunks_of_the_loss_change_no_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In micro-batches of uneven numbers of tokens, each in chunks of three of them."""
    whole = _gradients("causal-lm", "lora", tmp_path, 1)
    monkeypatch.setattr(learned, "CHUNK", 1)
    monkeypatch.setattr(learned, "_FEWEST", 3)
    chunks = _gradients("causal-lm", "lora", tmp_path, 4, loss="chunked")
    assert len(whole) == len(chunks) == 3
    for one, four in zip(whole, chunks, strict=True):
        for name in one:
            near = float(1e-6 * one[name].abs().max()) + 1e-12
            torch.testing.assert_close(four[name], one[name], rtol=0, atol=near)


def test_offloaded_activations_change_no_gradient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[torch.Tensor] = []
    pack = activation_offload._Parcel.move
    monkeypatch.setattr(activation_offload, "SMALLEST", 64)
    monkeypatch.setattr(
        activation_offload._Parcel, "move", lambda self, to: (moved.append(self), pack(self, to))
    )
    plain = _gradients("causal-lm", "sora", tmp_path, 4)
    assert not moved
    found = _gradients("causal-lm", "sora", tmp_path, 4, activation_offload=True)
    assert len(moved) > 3 * 3 * 20  # of each micro-batch
    for one, other in zip(plain, found, strict=True):
        for name in one:
            near = float(1e-6 * one[name].abs().max()) + 1e-12
            torch.testing.assert_close(other[name], one[name], rtol=0, atol=near)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_first_step_gradient_is_that_of_loss_plus_penalty(kind: str, tmp_path: Path) -> None:
    """Against plain autograd, without any trainer."""
    trainer = _setup(kind, "adalora", tmp_path, rows=8, gradient_accumulation=2, epochs=2)
    layers = _attach(trainer, "adalora")
    batch = trainer.data_collator([trainer.train_rows.dataset[i] for i in range(8)])
    trainer.model.eval()
    loss = trainer.model(**batch).loss + create("adalora", **METHODS["adalora"]).penalty(layers)
    expected = torch.autograd.grad(loss, [layer.A for layer in layers.values()])
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    for path, gradient in zip(layers, expected, strict=True):
        got = gradients.steps[0][f"{path}.A"]
        torch.testing.assert_close(got, gradient, rtol=1e-5, atol=1e-9)


def test_evaluation_has_no_penalty_and_keeps_the_order_of_rows(tmp_path: Path) -> None:
    trainer = _setup("classification", "adalora", tmp_path, rows=21, eval_batch_size=4)
    _attach(trainer, "adalora")
    trainer.model.eval()
    rows = trainer.train_rows
    one_by_one = [
        trainer.model(**trainer.data_collator([rows.dataset[i]])).logits.detach() for i in range(21)
    ]
    expected = torch.cat(one_by_one).numpy()
    predictions = trainer.predictions_of(rows, [])
    outputs, labels = predictions.outputs, predictions.true_labels
    np.testing.assert_allclose(outputs, expected, rtol=1e-6, atol=1e-8)
    assert labels.tolist() == rows.dataset["labels"][:]
    loss = torch.nn.functional.cross_entropy(torch.tensor(expected), torch.tensor(labels))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(float(loss), rel=1e-6)


def test_step_order_does_not_depend_on_micro_batches(tmp_path: Path) -> None:
    orders = []
    for accumulation in (1, 2):
        trainer = _setup("classification", "lora", tmp_path, 22, gradient_accumulation=accumulation)
        sampler = trainer.get_train_dataloader().batch_sampler
        orders.append([i for batch in sampler for i in batch])
    assert orders[0] == orders[1]


@pytest.mark.parametrize("training", [{"epochs": 1.5}, {"epochs": 2}, {"max_steps": 5}])
def test_steps_are_those_the_recipe_predicts(tmp_path: Path, training: dict[str, Any]) -> None:
    trainer = _setup("classification", "lora", tmp_path, 22, gradient_accumulation=2, **training)
    _attach(trainer, "lora")
    trainer.train()
    assert trainer.state.global_step == trainer.recipe.training.total_steps(22)


@pytest.mark.parametrize(("kind", "pinned"), [("cpu", False), ("xpu", False), ("cuda", True)])
def test_what_transformers_is_told_of_the_device(
    kind: str, pinned: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _setup("classification", "lora", tmp_path, 4)
    monkeypatch.setattr("sora_cli.train.trainer.TrainingArguments", lambda **options: options)
    monkeypatch.setattr("sora_cli.train.trainer.use_one_gpu", lambda _: None)
    monkeypatch.setattr("sora_cli.train.trainer._world_size", lambda: 1)
    computing_on(kind, monkeypatch)
    options: Any = training_arguments(trainer.recipe, tmp_path, "accuracy", evaluates=False)
    assert options["use_cpu"] == (kind == "cpu")
    assert options["dataloader_pin_memory"] == pinned
    assert "fp16" not in options
    recipe = trainer.recipe.model_copy(update={"training": TrainingBlock(precision="fp16")})
    assert switches.arguments(recipe)["fp16"]
    if kind == "cuda":
        switches.check_machine(recipe)
    else:
        with pytest.raises(SoraError, match="precision fp16 needs a GPU"):
            switches.check_machine(recipe)


def test_several_gpus_without_a_launcher_are_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trainer's `DataParallel` would weigh every GPU's mean loss alike."""
    trainer = _setup("classification", "lora", tmp_path, 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    computing_on("xpu", monkeypatch)  # so that CUDA's devices are counted, but not used
    recipe = trainer.recipe
    arguments = training_arguments(recipe, tmp_path, "accuracy", evaluates=False)
    assert arguments.n_gpu == 1
    assert arguments.train_batch_size == recipe.training.batch_size
