"""Seconds of a step of instruction tuning, without a loss on prompts: ours against PEFT.

    python -m benchmarks.instructions [--learned 0.5] [--length 256] [--rounds 20] [--rank 8]
    python -m benchmarks.instructions --memory {peft,all,learned,chunked} [--length 1024] ...

SmolLM2-135M (49,152 tokens in its vocabulary), on rows that begin with a prompt. PEFT's side and
one of ours use the model's own loss, with logits of all tokens, like transformers' Trainer. Our
other sides run the head only at places whose next token is learned, like `sora train`; one of them
with `training.loss=chunked`. In every round each side takes one step, in random order. `--memory`
prints one side's peak memory above the loaded model instead, measured like in `benchmarks.memory`.
`--quick` only shows that the program runs.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from benchmarks.measure import in_turns, machine, markdown, timing_rows
from benchmarks.memory import measure
from benchmarks.models import DECODER, Setting, setting
from benchmarks.sides import Side, make
from sora_cli.core.allocator import keep_freed_memory
from sora_cli.core.console import emit
from sora_cli.core.device import device_type
from sora_cli.tasks.language import IGNORED
from sora_cli.tasks.learned import LEARNED, LearnedHead, learned_places

_SIDES = {
    "peft": "PEFT LoRA",
    "all": "LoRA, logits of all tokens",
    "learned": "LoRA",
    "chunked": "LoRA, loss in chunks",
}
_WARM_UP = 2


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--learned", type=float, default=0.5, help="learned share of each row")
    parser.add_argument("--length", type=int, help="tokens in a row (default 256)")
    parser.add_argument("--memory", choices=_SIDES, help="measure this side's memory")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="small batches, two rounds")
    options = parser.parse_args()
    device = device_type()
    if device == "cpu":
        keep_freed_memory()
    rounds = 2 if options.quick else options.rounds
    where = setting(DECODER, device, quick=options.quick)
    where = replace(where, length=options.length or where.length)
    about = f"{where.title}, {options.learned:.0%} of the tokens learned"
    if options.memory:
        memory = measure(_side(options.memory, where, options.rank, options.learned))
        figures = ", ".join(f"{kind} {size / 1e6:.0f} MB" for kind, size in memory.items())
        emit(f"{about}; {_SIDES[options.memory]}: {figures}")
        return
    emit(f"{machine(device)}; medians of {rounds} rounds, ratios with 90 % intervals")
    emit(about)
    sides = {name: _side(key, where, options.rank, options.learned) for key, name in _SIDES.items()}
    in_turns({name: side.step for name, side in sides.items()}, _WARM_UP)
    seconds = in_turns({name: side.step for name, side in sides.items()}, rounds)
    times = {name: [1000 * one for one in figures] for name, figures in seconds.items()}
    emit(markdown(("side", "ms, median (quartiles)", "/ PEFT"), timing_rows(times, _SIDES["peft"])))


def _side(key: str, where: Setting, rank: int, learned: float) -> Side:
    side = make("PEFT LoRA" if key == "peft" else "LoRA", where, rank=rank, dropout=0.0)
    side.batch["labels"] = side.batch["labels"].clone()
    side.batch["labels"][:, : round(where.length * (1 - learned))] = IGNORED
    if key in ("learned", "chunked"):
        if not LearnedHead.of(side.model).alone:
            raise SystemExit("the head does not run at single places")
        side.batch[LEARNED] = learned_places(side.batch["labels"])
    if key == "chunked":
        LearnedHead.of(side.model).chunk()
    return side


if __name__ == "__main__":
    main()
