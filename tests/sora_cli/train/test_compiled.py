"""`training.compile`: what is traced, when it is in force, and where it is refused.

A whole run with compiled blocks is compared with one without in `tests/rehearsal/test_switches.py`.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.functional import cosine_similarity

from methods.base import Layers
from methods.baselines import Baseline, choose
from methods.compaction import DeadSteps, remove_components
from methods.inject import adapted_layers, inject
from methods.registry import create
from sora_cli.app import run
from sora_cli.core.errors import SoraError
from sora_cli.recipe.load import load_recipe
from sora_cli.run.preflight import check_recipe
from sora_cli.train import compiled as compilation
from sora_cli.train.compiled import Compilation, forget, repeated_blocks
from tests.helpers_device import computing_on
from tests.helpers_errors import error_text
from tests.helpers_models import model_inputs, tiny_bert, tiny_llama, tiny_t5
from tests.helpers_runs import resumes_as_if_whole, train, write_recipe
from tests.methods.support import generator, told

KEY = "training.compile"


@pytest.fixture(autouse=True)
def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trace forward passes into graphs, and run these without a compiler behind."""
    monkeypatch.setattr(compilation, "BACKEND", "eager")
    counters.clear()


class Block(nn.Module):
    """Two layers of one input, whose product is added."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.left, self.right = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(x)
        y: Tensor = x + self.left(u) * self.right(u)
        return y


class Net(nn.Module):
    """A layer, three blocks and a head, of a batch of vectors."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 1)
            self.blocks = nn.ModuleList(Block() for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.first(x)
        for block in self.blocks:
            x = block(x)
        return [self.head(x)]


def net_inputs(_model: Any = None) -> dict[str, Tensor]:
    return {"x": torch.randn(9, 8, generator=generator(2))}


def adapted(make: Callable[..., Any], name: str, **options: Any) -> Any:
    """A model in training, with an update in every layer that is not zero."""
    model, method = make().train(), create(name, **options)
    inputs = net_inputs if make is Net else model_inputs
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if isinstance(method, Baseline):
        head = [name for name in ("classifier", "score") if name in dict(model.named_children())]
        choose(model, method, head=head, train_head=True)
        return model
    layers = inject(model, method, exclude=["head"], generator=generator())
    for layer in layers.values():
        for _, p in layer.named_factors():
            nn.init.normal_(p, std=0.1, generator=generator(1))
    told(model, **inputs(model))
    return model


class Stub(SimpleNamespace):
    """What compilation needs of a trainer: a model; its steps return loss and gradients."""

    def __init__(self, model: Any, precision: str = "fp32") -> None:
        super().__init__(model=model, precision=precision, context=contextlib.nullcontext)

    @contextlib.contextmanager
    def compiled(self) -> Iterator[None]:
        with Compilation().in_training(self) as self.context:
            yield
        self.context = contextlib.nullcontext

    def training_step(self, rows: int = 4) -> dict[str, Tensor]:
        with self.context():
            return self.step(rows)

    def step(self, rows: int = 4) -> dict[str, Tensor]:
        self.model.zero_grad()
        make = net_inputs if isinstance(self.model, Net) else model_inputs
        batch: dict[str, Any] = {n: t[:rows] for n, t in make(self.model).items()}
        if not isinstance(self.model, Net) and self.model.config.model_type == "llama":
            batch["use_cache"] = False  # as tasks that train decoders have it
        with torch.autocast("cpu", enabled=self.precision == "bf16"):
            loss = self.model(**batch)[0].float().square().mean()
        loss.backward()
        found = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        return {"": loss.detach(), **found}


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Loss and gradient: all together, since a key's bias has none but for rounding."""
    assert found.keys() == expected.keys()
    a, b = (torch.cat([t[n].flatten() for n in expected if n]) for t in (found, expected))
    assert cosine_similarity(a.double(), b.double(), dim=0) > 0.9999
    assert float(a.norm()) == pytest.approx(float(b.norm()), rel=1e-3)
    assert float(found[""]) == pytest.approx(float(expected[""]), rel=1e-4)


def test_what_is_compiled_and_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    model = adapted(Net, "sora", r_max=4)
    layers, names = adapted_layers(model), list(model.state_dict())
    stub = Stub(model)
    with stub.compiled():
        assert list(model.state_dict()) == names
        stub.step()
        assert graphs() == 0  # no step of training
        assert_same(stub.training_step(), Stub(copy.deepcopy(model)).step())
        assert graphs() == 1  # of all blocks
        kill(layers)
        assert_same(stub.training_step(rows=5), Stub(copy.deepcopy(model)).step(rows=5))
        assert graphs() == 1
        model.zero_grad()
        remove_components(layers, ~DeadSteps(layers).alive(), {})
        forget()
        assert_same(stub.training_step(), Stub(copy.deepcopy(model)).step())
        stub.training_step(rows=5)
        assert graphs() == 2
    assert not counters["graph_break"]
    stub.training_step()
    assert graphs() == 2  # after the run nothing is compiled


def kill(layers: Layers) -> None:
    with torch.no_grad():
        for layer in layers.values():
            assert layer.d is not None
            layer.d[1] = 0


def test_dropout_of_adapters_is_traced() -> None:
    stub = Stub(adapted(Net, "lora", dropout=0.5))
    with stub.compiled():
        torch.manual_seed(0)
        one = stub.training_step()
        torch.manual_seed(0)
        assert_same(stub.training_step(), one)
        assert not torch.equal(stub.training_step()[""], one[""])
    assert not counters["graph_break"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("make", "name", "precision"), [(tiny_llama, "lora", "fp32"), (tiny_bert, "sora", "bf16")]
)
def test_the_same_gradients_from_whole_graphs(
    make: Callable[..., Any], name: str, precision: str
) -> None:
    """What the whole run is not: a decoder, without gates, under autocast."""
    model = adapted(make, name)
    expected, stub = Stub(copy.deepcopy(model), precision).step(), Stub(model, precision)
    with stub.compiled():
        assert_same(stub.training_step(), expected)
    assert graphs() > 0
    assert not counters["graph_break"]


@pytest.fixture
def soon_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "repeated_blocks", lambda model: [model.bert.embeddings])


@pytest.mark.usefixtures("soon_compiled")
def test_a_run_forgets_its_code_at_each_removal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[None] = []
    monkeypatch.setattr("sora_cli.train.fit.forget", lambda: forgotten.append(forget()))
    method = {"threshold": 0.08, "gate_lr": 1e-4}  # gates die and stay dead
    training = {"max_steps": 4, "compact_every": 3, "evaluate": 2, "compile": True}
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), method=method, training=training)
    report = train(recipe)
    assert graphs() > 0
    assert report.compaction is not None
    assert len(forgotten) == len(report.compaction.removals) > 0
    plain = train(recipe, f"output.dir={tmp_path}/plain", f"{KEY}=false")
    assert len(forgotten) == len(report.compaction.removals)
    assert report.compaction == plain.compaction


@pytest.mark.long
@pytest.mark.usefixtures("soon_compiled")
def test_a_run_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {"max_steps": 6, "checkpoint": 2, "evaluate": 2, "compile": True}
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training=training)
    assert resumes_as_if_whole(recipe, tmp_path, monkeypatch).recipe["training"]["compile"]
    assert graphs() > 0


def test_which_blocks_there_are() -> None:
    assert [type(block).__name__ for block in repeated_blocks(tiny_t5())] == ["T5Block"] * 4
    heads = nn.Module()
    heads.heads = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    with pytest.raises(SoraError, match="repeated blocks, but Module has none"):
        repeated_blocks(heads)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.quantise=4bit"], "model.quantise=4bit"),
        (["training.gradient_checkpointing=true"], "training.gradient_checkpointing"),
        (["model.attention=flex_attention"], "model.attention=flex_attention"),
    ],
)
def test_what_it_does_not_go_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"compile": True})
    error = error_text(capsys, "train", recipe, *words)
    assert f"{KEY} does not go with {said}" in error
    assert f"{KEY}=false" in error


def test_the_dry_run_says_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"compile": True})
    assert run(["train", str(recipe), "--dry-run"]) == 0
    assert ", not compiled" in capsys.readouterr().out


def test_several_processes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = write_recipe(tmp_path, tiny_bert(num_labels=2), training={"compile": True})
    with pytest.raises(SoraError, match="one process only"):
        check_recipe(load_recipe(recipe, []).recipe)


def test_what_the_machine_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [f"{KEY}=true"]
    recipe = load_recipe(write_recipe(tmp_path, tiny_bert(num_labels=2)), words).recipe
    with monkeypatch.context() as patched:
        patched.setattr(sys, "platform", "win32")
        with pytest.raises(SoraError, match="not supported on Windows"):
            Compilation().check_machine(recipe)
    with monkeypatch.context() as patched:
        computing_on("cuda", patched)
        patched.setattr(compilation, "find_spec", lambda _: None)
        with pytest.raises(SoraError, match="the package triton"):
            Compilation().check_machine(recipe)
        patched.setattr(compilation, "find_spec", lambda name: name)
        Compilation().check_machine(recipe)
    computing_on("cpu", monkeypatch)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(SoraError, match=r"the C\+\+ compiler no-such-compiler"):
        Compilation().check_machine(recipe)
    monkeypatch.setenv("CXX", "true")  # a program that is there
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(SoraError, match=r"C headers: .*Python\.h"):
        Compilation().check_machine(recipe)


@pytest.mark.long
@pytest.mark.skipif(which("g++") is None, reason="no C++ compiler")
def test_the_real_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "inductor")
    model = adapted(Net, "sora", r_max=4)
    expected, stub = Stub(copy.deepcopy(model)).step(), Stub(model)
    # it leaves variables in the environment that processes of `tests.warm` would be told apart by
    with mock.patch.dict(os.environ), stub.compiled():
        assert_same(stub.training_step(), expected)
