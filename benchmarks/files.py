"""Seconds of commands on a 7B-class adapter's files, and of a dry run.

    python -m benchmarks.files [--rounds N] [--recipe R] [--quick]

Each command is a process of its own, in turns with `import torch`, which all of them need:

- `sora inspect`, `sora prune` by three rules and to 4 bits, `sora export` with and without a cut
  (and of the adapter of 4 bits, packed and unpacked), of a synthetic LoRA (32 layers x 7 modules of
  Llama 2 7B's shapes, r = 64; 160 million numbers), stored as bfloat16 and as float32. Its base
  model does not exist, so nothing is verified.
- `sora train R --dry-run` in turns with its imports.

The table also has processor time (user and system, all threads), which depends less on other
programs on the machine. `--quick` takes small modules, bfloat16 and one round: it only shows that
the program runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import save_file

from benchmarks.measure import in_turns, machine, markdown, median, quartiles, timed
from sora_cli.core.console import emit

_DTYPES = ("bfloat16", "float32")
_COMMANDS = (
    "inspect ADAPTER",
    "prune ADAPTER -o OUT --energy 0.99",
    "prune ADAPTER -o OUT --rank 16",
    "prune ADAPTER -o OUT --max-params SIZE",
    "export ADAPTER -o OUT",
    "export ADAPTER -o OUT --rank 16",
    "prune ADAPTER -o OUT --bits 4",
)
_PACKING = ("export ROUNDED -o FILE --format packed --force", "export FILE -o OUT")
_ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_TORCH, _ALL = "import torch", "import torch, transformers, peft"


@dataclasses.dataclass(frozen=True)
class Size:
    """The shape of the synthetic model, and the rank."""

    layers: int
    hidden: int
    inner: int
    rank: int

    def modules(self) -> dict[str, tuple[int, int]]:
        """Return module path -> (out, in)."""
        inside = dict.fromkeys(_ATTENTION, (self.hidden, self.hidden))
        inside |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (self.inner, self.hidden))
        inside["mlp.down_proj"] = self.hidden, self.inner
        return {f"model.layers.{i}.{n}": s for i in range(self.layers) for n, s in inside.items()}


FULL = Size(layers=32, hidden=4096, inner=11008, rank=64)
QUICK = Size(layers=2, hidden=192, inner=512, rank=8)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", default="quickstart", help="recipe of the dry run")
    parser.add_argument("--quick", action="store_true", help="small modules, one round")
    options = parser.parse_args()
    size, rounds = (QUICK, 1) if options.quick else (FULL, options.rounds)
    numbers = sum(size.rank * (n_out + n_in) for n_out, n_in in size.modules().values())
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as temporary:
        place, work = Path(temporary), {}
        processors: dict[str, list[float]] = {}

        def run(name: str, words: Sequence[str]) -> float:
            shutil.rmtree(place / "out", ignore_errors=True)
            before = _of_children()
            seconds = timed([sys.executable, *words])
            processors.setdefault(name, []).append(_of_children() - before)
            return seconds

        for dtype in _DTYPES[:1] if options.quick else _DTYPES:
            write_adapter(place / dtype, size, dtype)
            for command in _COMMANDS:
                given = {"ADAPTER": str(place / dtype), "OUT": str(place / "out"),
                         "SIZE": str(int(0.3 * numbers))}  # fmt: skip
                words = [given.get(word, word) for word in command.split()]
                shown = command.replace("ADAPTER", dtype).replace(" -o OUT", "")
                work[f"sora {shown}"] = partial(run, f"sora {shown}", ["-m", "sora_cli", *words])
        rounded, file = str(place / "rounded"), str(place / "rounded.safetensors")
        sora = [sys.executable, "-m", "sora_cli"]
        timed([*sora, "prune", str(place / _DTYPES[0]), "-o", rounded, "--bits", "4"])
        timed([*sora, "export", rounded, "-o", file, "--format", "packed"])
        for command in _PACKING:
            given = {"ROUNDED": rounded, "FILE": file, "OUT": str(place / "out")}
            words = [given.get(word, word) for word in command.split()]
            work[f"sora {command}"] = partial(run, f"sora {command}", [*sora[1:], *words])
        dry = f"sora train {options.recipe} --dry-run"
        work[dry] = partial(run, dry, ["-m", "sora_cli", "train", options.recipe, "--dry-run"])
        for imports in (_TORCH, _ALL):
            work[imports] = partial(run, imports, ["-c", imports])
        times = in_turns(work, rounds)
    emit(f"{machine('cpu')}; medians of {rounds} rounds")
    emit(markdown(["command", "s, median (quartiles)", "processor s"], _rows(times, processors)))
    ratio = median(times[dry]) / median(times[_ALL])
    emit(f"\n{dry} / {_ALL}: {ratio:.2f}")


def _rows(times: dict[str, list[float]], processors: dict[str, list[float]]) -> list[list[str]]:
    rows = []
    for name, figures in times.items():
        low, high = quartiles(figures)
        rows.append([name, f"{median(figures):.2f} ({low:.2f} to {high:.2f})",
                     f"{median(processors[name]):.2f}"])  # fmt: skip
    return rows


def _of_children() -> float:
    """Return the processor seconds, user and system, of all processes that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def write_adapter(directory: Path, size: Size, dtype: str) -> None:
    """Write a PEFT LoRA directory with decaying random components."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i, (path, (n_out, n_in)) in enumerate(size.modules().items()):
        # decays differ between modules, so that the rules keep different ranks
        decay = torch.exp(-torch.arange(size.rank) / (4 + i % 40))
        a = torch.randn(size.rank, n_in, generator=generator) / n_in**0.5
        b = torch.randn(n_out, size.rank, generator=generator) * decay * 0.02
        for name, factor in (("A", a), ("B", b)):
            key = f"base_model.model.{path}.lora_{name}.weight"
            tensors[key] = factor.to(getattr(torch, dtype))
    directory.mkdir()
    save_file(tensors, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": size.rank, "lora_alpha": 16,
              "target_modules": sorted({path.rpartition(".")[2] for path in size.modules()}),
              "init_lora_weights": True}  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
