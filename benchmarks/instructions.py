"""Seconds of a step of instruction tuning, where prompts carry no loss: ours against PEFT.

    python -m benchmarks.instructions [--learned 0.5] [--rounds 20] [--rank 8]

SmolLM2-135M (49,152 words), rows of which the first part is a prompt. PEFT's side and one of ours
have the model's own loss, as transformers' Trainer takes it, with logits of all tokens; the other
of ours runs the head at the places alone whose next token is learned, as `sora train` does. In
every round each side takes one step, in random order. `--quick` shows that the program runs.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.measure import in_turns, machine, markdown, timing_rows
from benchmarks.models import DECODER, Setting, setting
from benchmarks.sides import Side, make
from sora_cli.core.console import emit
from sora_cli.tasks.language import IGNORED
from sora_cli.tasks.learned import LEARNED, learned_places, score_learned_only
from sora_cli.train.machine import keep_freed_memory

_PEER, _ALL, _OURS = "PEFT LoRA", "LoRA, logits of all tokens", "LoRA"
_WARM_UP = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--learned", type=float, default=0.5, help="share of each row's tokens")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="small batches, two rounds")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()
    rounds = 2 if options.quick else options.rounds
    where = setting(DECODER, device, quick=options.quick)
    emit(f"{machine(device)}; medians of {rounds} rounds, ratios with 90 % intervals")
    emit(f"{where.title}, {options.learned:.0%} of the tokens learned")
    sides = _sides(where, options.rank, options.learned)
    in_turns({name: side.step for name, side in sides.items()}, _WARM_UP)
    seconds = in_turns({name: side.step for name, side in sides.items()}, rounds)
    times = {name: [1000 * one for one in figures] for name, figures in seconds.items()}
    emit(markdown(("side", "ms, median (quartiles)", "/ PEFT"), timing_rows(times, _PEER)))


def _sides(where: Setting, rank: int, learned: float) -> dict[str, Side]:
    sides = {
        _PEER: make("PEFT LoRA", where, rank=rank, dropout=0.0),
        _ALL: make("LoRA", where, rank=rank, dropout=0.0),
        _OURS: make("LoRA", where, rank=rank, dropout=0.0),
    }
    for side in sides.values():
        side.batch["labels"] = side.batch["labels"].clone()
        side.batch["labels"][:, : round(where.length * (1 - learned))] = IGNORED
    ours = sides[_OURS]
    if not score_learned_only(ours.model):
        raise SystemExit("the head does not run at single places")
    ours.batch[LEARNED] = learned_places(ours.batch["labels"])
    return sides


if __name__ == "__main__":
    main()
