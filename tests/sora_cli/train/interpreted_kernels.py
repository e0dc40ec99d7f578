"""Liger's kernels against the models' own layers, in Triton's interpreter on a CPU.

`test_kernels.py` runs this file, in a process of its own: the interpreter is chosen by environment
as Triton is imported.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import triton
import triton.language as tl
from liger_kernel.ops import geglu, layer_norm, rms_norm
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from triton.runtime import interpreter

from methods.inject import inject
from methods.registry import create
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.model import activation_offload
from sora_cli.model.activation_offload import offloaded
from sora_cli.model.gradient_checkpointing import checkpointed
from sora_cli.tasks.learned import LEARNED, LearnedHead, learned_places
from sora_cli.train.kernels import KEY, Kernels, LigerKernels, check_family
from tests.helpers_models import HIDDEN, VOCABULARY, model_inputs, tiny_bert, tiny_llama
from tests.helpers_runs import train, write_recipe
from tests.methods.support import generator, told


@triton.jit
def _rsqrt(x):  # type: ignore[no-untyped-def]
    return 1.0 / tl.sqrt(x)


@triton.jit
def _tanh(x):  # type: ignore[no-untyped-def]
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@pytest.fixture(autouse=True)
def mended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter hands floats on as Python's, and has none of the GPU's library of functions.

    A compiled kernel gets them as numbers of 32 bits.
    """
    inner = interpreter._implicit_cvt

    def converted(value: Any) -> Any:
        if isinstance(value, float):
            handle = interpreter.TensorHandle(np.array([value], dtype=np.float32), tl.float32)
            return tl.tensor(handle, tl.float32)
        return inner(value)

    monkeypatch.setattr(interpreter, "_implicit_cvt", converted)
    monkeypatch.setattr(rms_norm, "rsqrt", _rsqrt)
    monkeypatch.setattr(layer_norm, "rsqrt", _rsqrt)
    monkeypatch.setattr(geglu, "tanh", _tanh)
    monkeypatch.setattr(LigerKernels, "check_machine", lambda *_: None)


def tiny(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=HIDDEN // 2,
        max_position_embeddings=64,
        pad_token_id=0,
        **options,
    )
    return getattr(transformers, f"{name}ForCausalLM")(config)


def adapted(model: Any, name: str, exclude: tuple[str, ...] = ("lm_head",)) -> Any:
    """With siblings, and updates that are not zero."""
    layers = inject(model.train(), create(name), exclude=exclude, generator=generator())
    for layer in layers.values():
        for _, p in layer.named_factors():
            nn.init.normal_(p, std=0.1, generator=generator(1))
    told(model, **model_inputs(model))
    return model


def learning(model: Any) -> dict[str, Any]:
    ids = model_inputs(model)["input_ids"][:2]
    inputs = {"input_ids": ids, "labels": ids, "use_cache": False}
    return {**inputs, LEARNED: learned_places(ids)} if LearnedHead.of(model).alone else inputs


def gradients(model: Any, inputs: dict[str, Any]) -> dict[str, Tensor]:
    model.zero_grad()
    out = model(**inputs)
    loss = out["loss"] if "labels" in inputs else out[0].float().square().mean()
    loss.backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"": loss.detach(), **found}


def assert_same(found: dict[str, Tensor], plain: dict[str, Tensor]) -> None:
    """But for rounding, which shows that something else has run."""
    assert found.keys() == plain.keys()
    a, b = (torch.cat([t[n].flatten() for n in plain if n]).double() for t in (found, plain))
    assert cosine_similarity(a, b, dim=0) > 0.9999
    assert float(a.norm()) == pytest.approx(float(b.norm()), rel=1e-4)
    assert float(found[""]) == pytest.approx(float(plain[""]), rel=1e-5)
    assert not torch.equal(a, b)


MODELS: dict[str, Callable[[], Any]] = {
    "llama": tiny_llama,
    "classifier": lambda: tiny_llama(num_labels=2),
    **{name: lambda name=name: tiny(name) for name in ("Mistral", "Qwen3", "Gemma2", "Phi3")},
}


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients(name: str) -> None:
    model = adapted(MODELS[name](), "sora", ("score",) if name == "classifier" else ("lm_head",))
    inputs = model_inputs(model) if name == "classifier" else learning(model)
    plain = gradients(model, inputs)
    module = transformers.models.llama.modeling_llama
    before = [dict(vars(space)) for space in (*model.modules(), module, nn)]
    kernels = Kernels(model)
    with kernels.running():
        assert_same(gradients(model, inputs), plain)
    after = [dict(vars(space)) for space in (*model.modules(), module, nn)]
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys()
        assert all(old[key] is new[key] for key in old if key not in ("training", "siblings"))
    again = gradients(model, inputs)
    assert all(torch.equal(again[key], plain[key]) for key in plain)


@contextlib.contextmanager
def moved(model: Any) -> Iterator[None]:
    with offloaded([*model.parameters(), *model.buffers()], device="cpu"):
        yield


@pytest.mark.parametrize("how", [checkpointed, moved])
@pytest.mark.parametrize("chunked", [False, True])
def test_with_other_switches(
    how: Callable[[Any], Any], chunked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with an adapter on the head, whose loss is no fused one."""
    monkeypatch.setattr(activation_offload, "SMALLEST", 64)
    model = adapted(tiny_llama(), "lora", exclude=())
    inputs = learning(model)
    assert LEARNED in inputs
    plain = gradients(model, inputs)
    if chunked:
        LearnedHead.of(model).chunk()
    with Kernels(model).running(), how(model):
        assert_same(gradients(model, inputs), plain)


def test_in_16_bits() -> None:
    """Of fp16: the interpreter takes numbers of bf16 for whole numbers."""
    model = adapted(tiny_llama(), "lora")
    inputs = learning(model)
    plain = gradients(model, inputs)
    with Kernels(model).running(), torch.autocast("cpu", dtype=torch.float16):
        found = gradients(model, inputs)
    a, b = (torch.cat([t[n].flatten() for n in plain if n]).double() for t in (found, plain))
    assert cosine_similarity(a, b, dim=0) > 0.999


def test_a_run(tmp_path: Path) -> None:
    training = {"max_steps": 3, "logging_steps": 1, "evaluate": 2}
    recipe = write_recipe(tmp_path, tiny_llama(num_labels=2), training=training)
    plain = train(recipe, f"output.dir={tmp_path}/plain")
    found = train(recipe, f"output.dir={tmp_path}/on", f"{KEY}=liger")
    assert found.recipe["training"]["kernels"] == "liger"

    def losses(report: Any) -> list[float]:
        return [e[key] for e in report.history for key in ("loss", "eval_loss") if key in e]

    assert losses(found) == pytest.approx(losses(plain), rel=1e-4)
    assert losses(found) != losses(plain)


def test_the_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = write_recipe(tmp_path, tiny_llama(num_labels=2))
    assert run(["train", str(recipe), "--dry-run", f"{KEY}=liger"]) == 0
    assert "predicted for the model's own layers" in capsys.readouterr().out


def test_another_activation_is_noticed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Liger's MLP takes no notice of `hidden_act`."""
    model = tiny_llama(num_labels=2, hidden_act="gelu")
    recipe = write_recipe(tmp_path, model, training={"max_steps": 3, "kernels": "liger"})
    assert run(["train", str(recipe)]) == 2
    error = capsys.readouterr().err
    assert "changes the loss or gradient of LlamaForSequenceClassification" in error
    assert f"{KEY}=null" in error


def test_families() -> None:
    with pytest.raises(SoraError, match="no kernels for bert models"):
        check_family(tiny_bert())
    model = tiny_llama()
    model.config.model_type = "llama9"
    with pytest.raises(SoraError) as error:
        check_family(model)
    assert error.value.where == "closest name: llama"
    model.config.model_type = "gemma3"
    with pytest.raises(SoraError, match="cannot be applied to LlamaForCausalLM: The model must be"):
        Kernels(model)
