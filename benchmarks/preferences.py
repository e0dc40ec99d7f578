"""Preference tuning: a step against one of instruction tuning, and a whole run against TRL's.

    python -m benchmarks.preferences [--data DIR] [--rounds 1] [--steps 5] [--pairs 16]

The step: our LoRA on SmolLM2-135M and on a tiny Llama, on the same tokens, the second half of each
row learned: as rows of `causal-lm`, and as pairs of `preference` (DPO, whose reference is known
before). In every round each side takes a step, in random order; "tensors" is explained in
`benchmarks.memory`.

The run: one epoch of pairs on SmolLM2-135M (`recipes/offline/own-preferences.yaml`, LoRA), with an
evaluation at the end and the adapter saved. The peer, `benchmarks/run_pair_peer.py`, is PEFT's LoRA
in TRL's DPOTrainer, with the reference computed in each step, and before the first
(`precompute_ref_log_probs`). All run in turns, in new processes, from the start of Python to its
end. The pairs are made of a directory's train.jsonl and validation.jsonl (`--data`, or
SORA_DATA/instruct: instruction, output): the rejected answer is another row's. Without such a
directory only steps are measured. `--quick` takes two small steps a side, and a run of two steps
without the peer.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from benchmarks.measure import (
    data_folder,
    in_turns,
    machine,
    markdown,
    of_commands,
    ratios,
    shown_ratio,
    spent,
    timed,
    timing_rows,
)
from benchmarks.memory import tensors
from benchmarks.models import DECODER, TINY, Setting, setting
from benchmarks.sides import Side, make
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.console import emit, say
from sora_cli.core.device import device_type
from sora_cli.recipe.recipe import DataBlock, TaskBlock
from sora_cli.tasks import create_task
from sora_cli.tasks.language import IGNORED
from sora_cli.tasks.learned import LearnedHead
from sora_cli.tasks.referenced import REFERENCE

SFT, DPO = "causal-lm", "preference"
_RANK = 8
_WARM_UP = 2
_OURS, _PEER = "sora train", "PEFT + TRL"
_PRECOMPUTED = f"{_PEER}, reference before"
_HELD_OUT = 8  # validation pairs
_SHORT = 2  # steps
_TOKENIZER = SimpleNamespace(pad_token_id=0)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=1, help="of whole runs")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each side")
    parser.add_argument("--pairs", type=int, default=16, help="training pairs of a run")
    parser.add_argument(
        "--processor-time",
        action="store_true",
        help="count processor seconds (see benchmarks.step)",
    )
    parser.add_argument("--quick", action="store_true", help="small batches, two steps")
    options = parser.parse_args()
    device, quick = device_type(), options.quick
    if device == "cpu":
        keep_freed_memory()
    emit(f"{machine(device)}; medians, ratios with 90 % intervals")
    place = data_folder(options.data, "instruct")
    if place is not None:
        clock = of_commands if options.processor_time else time.perf_counter
        _runs(place, options.pairs, 1 if quick else options.rounds, clock, quick=quick)
    for model in (TINY,) if quick else (TINY, DECODER):
        where = setting(model, device, quick=quick)
        where = replace(where, batch=max(where.batch, 4))  # two pairs
        _steps(where, _SHORT if quick else options.steps, processor=options.processor_time)


def _steps(where: Setting, rounds: int, *, processor: bool) -> None:
    sides = {task: _side(task, where) for task in (SFT, DPO)}
    if processor:
        for side in sides.values():
            side.clock = time.process_time
    steps = {task: side.step for task, side in sides.items()}
    in_turns(steps, _WARM_UP)
    taken = in_turns(steps, rounds)
    rows = timing_rows({task: [1000 * one for one in times] for task, times in taken.items()}, SFT)
    peaks = {task: tensors(side) for task, side in sides.items()}
    rows = [
        [*row, f"{peaks[row[0]] / 1e6:.1f} MB", f"{peaks[row[0]] / peaks[SFT]:.3f}"] for row in rows
    ]
    header = ("step of", "ms, median (quartiles)", f"/ {SFT}", "tensors", f"/ {SFT}")
    emit(f"\n{where.title}\n\n{markdown(header, rows)}")


def _side(name: str, where: Setting) -> Side:
    """Make a side as `sora train` sets a model up for a family, with that family's batch."""
    side = make("LoRA", where, rank=_RANK, dropout=0.0)
    task = create_task(TaskBlock(name=name), DataBlock(path="unused"))
    task.adapt_model(side.model, _TOKENIZER)
    side.loss = lambda model, batch: task.batch_loss(model, batch)[0]
    LearnedHead.of(side.model).chunk_if_frozen()
    rows: list[dict[str, Any]] = [
        {"input_ids": ids, "labels": [IGNORED] * (len(ids) // 2) + ids[len(ids) // 2 :]}
        for ids in side.batch["input_ids"].tolist()
    ]
    if name == DPO:
        pairs = zip(rows[::2], rows[1::2], strict=True)
        rows = [
            {key: [one[key], other[key]] for key in one} | {REFERENCE: [-1000.0, -1000.0]}
            for one, other in pairs
        ]
    batch = task.collator(_TOKENIZER)(rows)
    side.batch = {k: v.to(where.device) for k, v in batch.items() if isinstance(v, Tensor)}
    return side


def _runs(place: Path, pairs: int, rounds: int, clock: Callable[[], float], *, quick: bool) -> None:
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as temporary:
        folder = Path(temporary)
        for split, most in (("train", pairs), ("validation", _HELD_OUT)):
            _write_pairs(place / f"{split}.jsonl", folder / f"{split}.jsonl", most)
        commands = {_OURS: _ours(folder, _SHORT if quick else 0)}
        if not quick:
            commands[_PEER] = _peer(folder, "as-needed")
            commands[_PRECOMPUTED] = _peer(folder, "precomputed")
        work = {name: partial(timed, words, clock=clock) for name, words in commands.items()}
        say("measuring whole runs ...")
        times = in_turns(work, rounds)
        columns = ("run", "s, median (quartiles)", f"/ {_PEER}")
        emit(f"\n{pairs} pairs\n\n{markdown(columns, timing_rows(times, _PEER))}")
        if not quick:
            ratio = shown_ratio(ratios(times[_OURS], times[_PRECOMPUTED]))
            emit(f"\n{_OURS} / {_PRECOMPUTED}: {ratio}")
        emit(f"\n{_OURS}: {spent(folder / 'ours' / 'report.json')}")


def _write_pairs(source: Path, target: Path, most: int) -> None:
    """Write pairs of a file's rows; the rejected answer is the next row's."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()[:most]]
    pairs = [
        {
            "prompt": "\n\n".join(filter(None, (row["instruction"], row.get("input")))),
            "chosen": row["output"],
            "rejected": other["output"],
        }
        for row, other in zip(rows, [*rows[1:], rows[0]], strict=True)
    ]
    target.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def _ours(folder: Path, steps: int) -> list[str]:
    return [
        *(sys.executable, "-m", "sora_cli", "train", "recipes/offline/own-preferences.yaml"),
        *(f"data.files.{name}={folder / name}.jsonl" for name in ("train", "validation")),
        f"method={{name: lora, r: {_RANK}}}",
        *([f"training.max_steps={steps}"] if steps else []),
        *("--force", f"output.dir={folder / 'ours'}"),
    ]


def _peer(folder: Path, reference: str) -> list[str]:
    module = [sys.executable, "-m", "benchmarks.run_pair_peer"]
    return [*module, str(folder), str(folder / "peer"), "0", reference]


if __name__ == "__main__":
    main()
