"""`training.optimizer`: resumed, cut down, refused, and its memory.

A whole run with each is compared with plain AdamW in `tests/rehearsal/test_switches.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from methods.compaction import remove_components
from methods.layer import LowRankLinear
from sora_cli.app import run
from sora_cli.model import quantisation
from sora_cli.recipe.load import load_recipe
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.preflight import check_recipe
from sora_cli.train import optimizers
from sora_cli.train.checkpoint.files import newest_checkpoint, with_prefix
from sora_cli.train.moments import plain_moments
from sora_cli.train.optimizers import OptimizerChoice, keep_embeddings, moment_bytes
from tests.helpers_device import computing_on
from tests.helpers_errors import refusal, refused
from tests.helpers_models import tiny_bert
from tests.helpers_runs import resumes_as_if_whole, train, write_recipe

KEY = "training.optimizer"
CODED = 128
"""A rank at which the tiny model's factors, (128, 32) and more, are large enough for 8 bits."""


@pytest.fixture
def bnb() -> Any:
    return pytest.importorskip("bitsandbytes")


def _recipe(folder: Path, optimizer: str, *, method: dict[str, Any], **training: Any) -> Path:
    folder.mkdir(exist_ok=True)
    block = {"max_steps": 12, "evaluate": "no", "optimizer": optimizer, **training}
    return write_recipe(folder, tiny_bert(num_labels=2), training=block, method=method)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(nn.functional.cosine_similarity(a.double(), b.double(), dim=0))


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


GATES = {"name": "sora", "r_max": CODED, "threshold": 0.08, "gate_lr": 1e-4}


@pytest.mark.usefixtures("bnb")
def test_a_resumed_run_is_byte_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With codes of 8 bits for the factors, and 32 bits for the gates."""
    recipe = _recipe(tmp_path / "a", "adamw_8bit", method=GATES)
    resumes_as_if_whole(recipe, tmp_path, monkeypatch)
    states = [newest_checkpoint(tmp_path / name / "checkpoints")[0] for name in ("whole", "cut")]
    assert states[0] is not None
    assert states[1] is not None
    whole, cut = (with_prefix(state.tensors, "optimizer.") for state in states if state is not None)
    assert sorted(whole) == sorted(cut)
    assert all(_same(whole[name], cut[name]) for name in whole)


def test_a_resume_with_another_optimiser_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _recipe(tmp_path / "a", "adamw", method={"name": "lora", "r": 4}, max_steps=2)
    train(recipe)
    refused(capsys, "train", recipe, "--resume", "--force", f"{KEY}=adamw_unfused")


def _layer(A: Tensor, B: Tensor) -> LowRankLinear:
    return LowRankLinear(nn.Linear(A.shape[1], B.shape[0]), A.clone(), B.clone(), scaling=1.0)


def test_coded_moments_are_cut_down_as_plain_ones(bnb: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    A, B = (torch.randn(shape, generator=generator) for shape in ((8, 768), (640, 8)))
    ours, theirs = _layer(A, B), _layer(A, B)
    coded = bnb.optim.AdamW8bit([ours.A, ours.B], lr=1e-3)
    plain = torch.optim.AdamW([theirs.A, theirs.B], lr=1e-3)

    def step() -> None:
        for one, other in ((ours.A, theirs.A), (ours.B, theirs.B)):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        coded.step()
        plain.step()

    def assert_close() -> None:
        with plain_moments(coded) as moments:
            for here, there in ((ours.A, theirs.A), (ours.B, theirs.B)):
                assert coded.state[here]["state1"].dtype == torch.uint8
                for name in ("exp_avg", "exp_avg_sq"):
                    assert moments[here][name].shape == there.shape
                    decoded, kept = moments[here][name].flatten(), plain.state[there][name]
                    assert _cosine(decoded, kept.flatten()) > 0.999

    for _ in range(20):
        step()
    assert_close()
    gone = torch.tensor([False, True, False, False, True, False, False, True])
    with plain_moments(coded) as moments:
        assert len(moments) == 2
        assert moments.get(theirs.A) is None
        remove_components({"layer": ours}, gone, moments)
    with plain_moments(plain) as moments:
        assert moments is plain.state
        remove_components({"layer": theirs}, gone, moments)
    assert ours.rank == theirs.rank == 5
    assert_close()
    step()
    assert_close()
    moved = [layer.A.detach() - A[~gone] for layer in (ours, theirs)]
    assert _cosine(moved[0].flatten(), moved[1].flatten()) > 0.99


class _Some(nn.Module):
    """A trained and a frozen embedding, layers above and below the sizes that matter."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(100, 64)
        self.frozen = nn.Embedding(100, 64).requires_grad_(requires_grad=False)
        self.large = nn.Linear(100, 50)
        self.half = nn.Linear(64, 70, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["adamw", "adamw_8bit"])
def test_the_memory_is_that_of_the_state(name: Any) -> None:
    model = _Some()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer: Any
    if name == "adamw":
        optimizer = torch.optim.AdamW(trained, fused=True)
    else:
        optimizer = pytest.importorskip("bitsandbytes").optim.AdamW8bit(trained)
        keep_embeddings(optimizer, model)
    for p in trained:
        p.grad = torch.randn_like(p)
    optimizer.step()
    moments = [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if key not in ("step", "qmap1", "qmap2")  # a number, and two tables that all share
    ]
    assert moment_bytes(name, model, "cpu") == sum(t.numel() * t.element_size() for t in moments)


def test_what_is_paged_does_not_count_on_a_gpu() -> None:
    model = nn.Linear(1000, 100, bias=False)
    scales = 2 * 4 * 391  # 100,000 / 256 blocks
    assert moment_bytes("paged_adamw_8bit", model, "cuda") == scales
    assert moment_bytes("adamw_8bit", model, "cuda") == scales + 200_000
    assert moment_bytes("adamw_unfused", model, "cuda") == 800_000


@pytest.mark.usefixtures("bnb")
def test_a_dry_run_predicts_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = _recipe(tmp_path, "adamw_8bit", method={"name": "lora", "r": CODED})
    assert run(["train", str(recipe), "--dry-run"]) == 0
    less = capsys.readouterr().out
    assert run(["train", str(recipe), "--dry-run", f"{KEY}=adamw"]) == 0
    more = capsys.readouterr().out
    shown = [next(line for line in out.splitlines() if "AdamW moments" in line)
             for out in (less, more)]  # fmt: skip
    assert shown[0] != shown[1]


CHOICE = OptimizerChoice()


def _asking(optimizer: str, method: str = "lora") -> Recipe:
    return Recipe(
        model={"path": "unused"},
        task={"name": "sequence-classification"},
        data={"path": "unused"},
        method={"name": method},
        training={"optimizer": optimizer},
    )


def _refusal(check: Any, optimizer: str, method: str = "lora") -> None:
    with refusal() as error:
        check(_asking(optimizer, method))
    assert error.value.key == KEY


def test_refused_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantisation, "find_spec", lambda _: None)
    CHOICE.check_recipe(_asking("adamw"))
    _refusal(CHOICE.check_recipe, "adamw_8bit")
    monkeypatch.setattr(quantisation, "find_spec", lambda name: name)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    _refusal(CHOICE.check_recipe, "adamw_8bit", "cut")
    CHOICE.check_recipe(_asking("adamw", "cut"))
    _refusal(CHOICE.check_recipe, "paged_adamw_8bit")


def test_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise NotImplementedError("no kernel")

    monkeypatch.setattr(quantisation, "find_spec", lambda name: name)
    computing_on("cpu", monkeypatch)
    monkeypatch.setattr(optimizers, "_take_step", none)
    _refusal(CHOICE.check_machine, "adamw_8bit")
    _refusal(CHOICE.check_machine, "paged_adamw_8bit")
    CHOICE.check_machine(_asking("adamw"))
    computing_on("cuda", monkeypatch)
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        CHOICE.check_machine(_asking(name))


def test_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = _recipe(tmp_path, "adamw_8bit", method={"name": "lora", "r": 4})
    monkeypatch.setattr(quantisation, "find_spec", lambda _: None)
    refused(capsys, "train", recipe)
    assert not (tmp_path / "out").exists()
    check_recipe(load_recipe(recipe).recipe, model=False)  # what only scores needs no optimiser
