"""Seconds of a whole `sora auto` against one plain LoRA run with the same number of steps.

    python -m benchmarks.auto [--recipe FILE] [--steps 600] [--rounds 5] [KEY=VALUE ...]

Both commands run with their defaults, in new processes and in turns, after one run of each that
fills the caches of data. The promise is large enough for the rows to certify it, so sizes are cut,
healed and tested; their number is printed, because a failed test ends the search. LoRA is trained
at the rank at which the search begins, and scores the validation rows after each epoch; the search
scores only full rank and the written size there. Overrides go to both sides. `--quick` takes one
round of a few steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measure import (
    in_turns,
    machine,
    markdown,
    spent,
    timed,
    timing_rows,
)
from sora_cli.core.console import emit, say
from sora_cli.core.exit_codes import NO_VERDICT, OK

_AUTO, _PLAIN = "sora auto", "LoRA"
_TARGET = 1.3


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--recipe", default="recipes/quickstart.yaml")
    parser.add_argument("--steps", type=int, default=600, help="steps of the run at full rank")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--max-drop", default="5pt")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a few steps, one round")
    options, words = parser.parse_known_args()
    rounds, steps = (1, 20) if options.quick else (options.rounds, options.steps)
    emit(f"{machine('cpu')}; medians of {rounds} rounds in turns, ratios with 90 % intervals")
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as temporary:
        output = Path(temporary)
        shared = [f"method={{name: lora, r: {options.rank}}}", f"training.max_steps={steps}"]
        if options.quick:
            shared += ["data.max_train_rows=200", "data.max_validation_rows=50"]
        shared += words
        auto = [options.recipe, "--max-drop", options.max_drop, *shared]
        work = {
            _AUTO: _command("auto", [*auto, f"output.dir={output / 'auto'}"]),
            _PLAIN: _command("train", [options.recipe, *shared, f"output.dir={output / 'lora'}"]),
        }
        if not options.quick:
            say("filling caches ...")
            for run in work.values():
                run()
        say("measuring ...")
        times = in_turns(work, rounds)
        emit(f"\n{options.recipe}, {steps} steps, r {options.rank}\n")
        emit(
            markdown(
                ("command", "s, median (quartiles)", f"/ {_PLAIN}"), timing_rows(times, _PLAIN)
            )
        )
        emit(f"\ntarget: {_TARGET}, for runs longer than ten of their evaluations")
        emit(f"{_AUTO}: {_sizes(output / 'auto')}; {spent(output / 'auto' / 'auto.json')}")
        emit(f"{_PLAIN}: {spent(output / 'lora' / 'report.json')}")


def _command(name: str, words: list[str]) -> Callable[[], float]:
    command = [sys.executable, "-m", "sora_cli", name, *words, "--force"]
    return lambda: timed(command, codes=(OK, NO_VERDICT))


def _sizes(run: Path) -> str:
    """Describe the last search from its certificate: sizes, rows, status."""
    certificate = json.loads((run / "certificate.json").read_text(encoding="utf-8"))
    sizes, rows = certificate["candidates"], certificate["rows"]
    return (
        f"{len(sizes)} sizes of {sizes[0]['heal_steps']} steps each, {rows['screening']['rows']} "
        f"rows screen and {rows['test']['rows']} test, {certificate['status']}"
    )


if __name__ == "__main__":
    main()
