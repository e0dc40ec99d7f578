"""Packed base models against plain ones that hold the same, unpacked weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from methods.baselines import Baseline
from methods.inject import inject
from methods.layer import LowRankLinear
from methods.registry import create
from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.reading import read_adapter
from sora_cli.core.errors import SoraError
from sora_cli.model import quantisation
from sora_cli.model.base import Base, load_base
from sora_cli.model.fingerprint import fingerprint
from sora_cli.model.quantisation import check_quantise, check_selected, count_values, quantised_as
from sora_cli.recipe.recipe import DataBlock, ModelBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.causal_lm import CausalLm
from tests.helpers_chat import write_chat_base
from tests.helpers_errors import refusal
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama, token_ids
from tests.helpers_runs import glue_rows, save_base, train, write_recipe
from tests.methods.support import generator

KINDS = ["4bit", "8bit"]


@pytest.fixture
def bnb() -> Any:
    return pytest.importorskip("bitsandbytes")


def _load(path: Path, quantise: str | None, **options: Any) -> Base:
    task = create_task(TaskBlock(name="sequence-classification"), DataBlock(path="unused"))
    task.bind(glue_rows("rte", 6))
    transformers.set_seed(0)
    block = {"path": str(path), "quantise": quantise, **options.pop("block", {})}
    return load_base(ModelBlock.model_validate(block), task, **options)


def _unpacked(module: Any) -> Tensor:
    """By transformers: the weight (out, in) that a packed layer stands for."""
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    return dequantize_bnb_weight(module.weight, getattr(module, "state", None)).detach().float()


def _layer(base: nn.Module, **options: Any) -> LowRankLinear:
    layer = create("sora", r_max=3, **options).wrap(base, generator=generator())
    for _, factor in layer.named_factors():
        nn.init.normal_(factor, generator=generator(1))
    return layer


def _gradients(layer: LowRankLinear, x: Tensor, grad: Tensor) -> list[Tensor]:
    assert layer.d is not None
    return list(torch.autograd.grad(layer(x), (x, layer.A, layer.B, layer.d), grad))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [tiny_bert, tiny_llama, tiny_gpt2])
def test_what_is_packed(kind: str, make: Any, tmp_path: Path, bnb: Any) -> None:
    """The same layers are adapted, with the same factors; heads and embeddings stay plain."""
    folder = save_base(make(num_labels=2), tmp_path / "base")
    before = fingerprint(folder)
    plain, packed = _load(folder, None), _load(folder, kind)
    assert (quantised_as(plain.model), quantised_as(packed.model)) == (None, kind)
    assert packed.head == plain.head
    layers = [
        inject(b.model, create("lora"), exclude=b.head, trainable=b.head, generator=generator())
        for b in (plain, packed)
    ]
    assert layers[0].keys() == layers[1].keys()
    for one, other in zip(*(found.values() for found in layers), strict=True):
        assert type(other.base) in (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)
        assert other.A.dtype == torch.float32
    trained = {n: p for n, p in packed.model.named_parameters() if p.requires_grad}
    assert all(p.dtype == torch.float32 for p in trained.values())
    assert trained.keys() == {n for n, p in plain.model.named_parameters() if p.requires_grad}
    total = sum(p.numel() for p in plain.model.parameters())
    assert sum(map(count_values, packed.model.parameters())) == total
    assert fingerprint(folder) == before


@pytest.mark.usefixtures("bnb")
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_and_gradients(kind: str, tmp_path: Path) -> None:
    model = _load(save_base(tiny_bert(), tmp_path / "base"), kind).model.train()
    packed = model.bert.encoder.layer[0].intermediate.dense
    same = nn.Linear(packed.in_features, packed.out_features)
    same.load_state_dict({"weight": _unpacked(packed), "bias": packed.bias})
    x = torch.randn(4, 5, packed.in_features, generator=generator()).requires_grad_()
    grad = torch.randn(4, 5, packed.out_features, generator=generator(1))
    layer, plain = _layer(packed), _layer(same)
    assert not layer.base_is_plain()
    exact = kind == "4bit"  # 8 bits round what comes in, too
    outputs = (layer(x), plain(x))
    torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5 if exact else 0.05)
    for found, wanted in zip(_gradients(layer, x, grad), _gradients(plain, x, grad), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("bnb")
@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_leaves_the_gradients_as_they_were(kind: str, tmp_path: Path) -> None:
    model = _load(save_base(tiny_llama(num_labels=2), tmp_path / "base"), kind).model
    layer = _layer(model.model.layers[0].mlp.up_proj).train()
    x = torch.randn(6, layer.base.in_features, generator=generator()).requires_grad_()  # type: ignore[arg-type]
    grad = torch.randn(6, layer.base.out_features, generator=generator(1))  # type: ignore[arg-type]
    before, wanted = layer(x).detach(), _gradients(layer, x, grad)
    with torch.no_grad():
        loose = 1e-5 if kind == "4bit" else 0.05  # 8 bits round what comes in, too
        torch.testing.assert_close(layer.eval()(x), before, rtol=1e-5, atol=loose)
    for found, same in zip(_gradients(layer.train(), x, grad), wanted, strict=True):
        assert torch.equal(found, same)


def test_a_decoder_is_tried_without_being_packed_for_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bnb: Any
) -> None:
    """On a CPU with bf16 instructions that form lets no gradient through."""
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: True)
    seen, check = [], CausalLm.adapt_model

    def noted(task: CausalLm, model: nn.Module, processor: Any) -> None:
        seen.extend(getattr(m, "support_avx512bf16_for_cpu", False) for m in model.modules())
        check(task, model, processor)

    monkeypatch.setattr(CausalLm, "adapt_model", noted)
    task = create_task(TaskBlock(name="causal-lm"), DataBlock(path="unused"))
    block = ModelBlock(path=str(write_chat_base(tmp_path / "base")), quantise="4bit")
    model = load_base(block, task).model
    assert seen
    assert not any(seen)
    states = [m.quant_state for m in model.modules() if hasattr(m, "quant_state")]
    assert len(states) == 14
    assert not any(getattr(state, "packing_format_for_cpu", False) for state in states)


@pytest.mark.usefixtures("bnb")
@pytest.mark.parametrize(
    ("precision", "dtype", "expected"),
    [("fp32", "float32", "float32"), ("bf16", "float32", "bfloat16"),
     ("fp32", "bfloat16", "bfloat16"), ("fp32", "auto", "float32")],
)  # fmt: skip
def test_dtype_of_products(precision: str, dtype: str, expected: str, tmp_path: Path) -> None:
    folder = save_base(tiny_llama(num_labels=2), tmp_path / "base")
    model = _load(folder, "4bit", precision=precision, block={"dtype": dtype}).model
    assert model.model.layers[1].self_attn.q_proj.compute_dtype == getattr(torch, expected)


@pytest.mark.versions
@pytest.mark.usefixtures("bnb")
@pytest.mark.parametrize(
    "words", [["model.quantise=4bit", "training.gradient_checkpointing=true"],
              ["model.quantise=8bit", "training.precision=bf16"]]
)  # fmt: skip
def test_a_run(words: list[str], tmp_path: Path) -> None:
    """It learns, and the adapter is one of the plain model on disk."""
    options = {"epochs": 6, "logging_steps": 1}
    recipe = write_recipe(tmp_path, tiny_llama(num_labels=2), training=options)
    report = train(recipe, *words)
    losses = [entry["loss"] for entry in report.history if "loss" in entry]
    assert sum(losses[-6:]) < 0.9 * sum(losses[:6])
    adapter = read_adapter(tmp_path / "out" / "adapter")
    assert adapter.base.fingerprint == fingerprint(tmp_path / "base")
    plain = _load(tmp_path / "base", None).model
    assert apply_adapter(plain, adapter)
    assert plain(input_ids=token_ids()).logits.isfinite().all()


@pytest.mark.usefixtures("bnb")
@pytest.mark.parametrize("name", ["full", "bitfit", "head"])
def test_baselines(name: str, tmp_path: Path) -> None:
    model = _load(save_base(tiny_bert(), tmp_path / "base"), "4bit").model
    method = create(name)
    assert isinstance(method, Baseline)
    if name == "head":
        check_selected(model, method)
        return
    with pytest.raises(SoraError, match="whose layer is quantised"):
        check_selected(model, method)
    check_selected(tiny_bert(), method)


@pytest.mark.usefixtures("bnb")
def test_a_missing_layer_is_not_drawn_quantised(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_base(tiny_bert(), tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SoraError, match=r"layer\.1\.output\.dense.*quantised"):
        _load(folder, "4bit")


@pytest.mark.parametrize(
    "path",
    [
        "model.GGUF",
        "model",
    ],
)
def test_refused_early(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "find_spec", lambda _: None)
    check_quantise(ModelBlock(path=path))
    with refusal() as error:
        check_quantise(ModelBlock(path=path, quantise="4bit"))
    assert error.value.key == "model.quantise"


def test_refused_under_fsdp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "find_spec", lambda name: name)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SoraError, match="under FSDP"):
        check_quantise(ModelBlock(path="model", quantise="8bit"))
