"""`sora merge` against `cp -r` of the same base model: wall time and memory.

    python -m benchmarks.merge [--gb 2 8] [--dtype bf16 fp32] [--shards 0 1] [--rounds N] [--quick]

The base is a synthetic Llama with random weights, in one file (`--shards 0`) or in shards of the
given size in GB. The adapter has r = 16 on every linear layer of every block, in float32, with a
scaling other than 1, so that nearly every byte has to be computed. Per combination and round, in
turns, with the base in the page cache:

- `cp -r BASE COPY`, then fsync of every file and directory of the copy;
- `sora merge --no-verify` in a process of its own, which reads back headers and samples, and does
  the same fsync. (Without `--no-verify` the command also compares outputs at the end.)

Printed are medians over the rounds. "merge" is the time from the call of the command's function to
its return; "command" is the whole process, including the start of Python and the imports of torch
and transformers, a few seconds for every size. Ratios are to the copy's time. "memory" is the
largest RssAnon of the process, sampled: mapped file pages do not count. "of it before" is the
RssAnon at the call of the function (Python, torch); "predicted" is the command's prediction. "load"
is the machine's load over the last minute, of which the benchmark itself causes one to two. Other
programs slow down the merge, which computes, more than the copy.

torch takes its default number of threads (OMP_NUM_THREADS). The files go to `--place`.
"""

from __future__ import annotations

import sys

# The directory of this file would hide the standard library's `inspect`.
sys.path[0] = __file__.rpartition("/")[0].rpartition("/")[0] or "."

import argparse  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import statistics  # noqa: E402
import subprocess  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

from sora_cli.core.atomic import sync_tree  # noqa: E402
from sora_cli.core.console import emit  # noqa: E402
from sora_cli.model.tensors import NewTensor, write_tensors  # noqa: E402

_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
_RANK = 16
_VOCABULARY = 32_000
_SAMPLE = 0.01
"""Seconds between two looks at the memory."""
_DRIVER = """
import json, sys, time
from pathlib import Path
import torch
import transformers.conversion_mapping
import transformers.models.llama.modeling_llama
from transformers import AutoModelForCausalLM
import sora_cli.merge.merge
from sora_cli.commands.merge import merge
from sora_cli.core.environment import process_memory
before = process_memory("RssAnon") or 0
merging = sora_cli.merge.merge
prepare = merging.prepare_merge
def watched(*args, **options):
    watched.plan = prepare(*args, **options)
    return watched.plan
merging.prepare_merge = watched
start = time.perf_counter()
merge(Path(sys.argv[1]), Path(sys.argv[2]), no_verify=True)
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "before": before, "predicted": watched.plan.memory or 0}))
"""


@dataclass(frozen=True)
class Shape:
    """The shape of a synthetic Llama."""

    layers: int
    hidden: int
    inner: int

    @classmethod
    def of(cls, numbers: float, hidden: int) -> Shape:
        """Return the shape whose number of parameters is nearest to `numbers`."""
        inner = hidden * 11 // 4 // 64 * 64
        layer = 4 * hidden**2 + 3 * hidden * inner
        return cls(max(1, round((numbers - 2 * _VOCABULARY * hidden) / layer)), hidden, inner)

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return module path -> (out, in) for the linear layers of all blocks."""
        inside = {f"self_attn.{n}_proj": (self.hidden, self.hidden) for n in "qkvo"}
        inside |= dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), (self.inner, self.hidden))
        inside["mlp.down_proj"] = self.hidden, self.inner
        return {f"model.layers.{i}.{n}": s for i in range(self.layers) for n, s in inside.items()}

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape for all tensors of the checkpoint."""
        sizes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (_VOCABULARY, self.hidden),
            "lm_head.weight": (_VOCABULARY, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        sizes |= {f"{path}.weight": shape for path, shape in self.linears().items()}
        for i in range(self.layers):
            for norm in ("input_layernorm", "post_attention_layernorm"):
                sizes[f"model.layers.{i}.{norm}.weight"] = (self.hidden,)
        return sizes


@dataclass(frozen=True)
class Run:
    """Figures of one merge, in seconds and bytes."""

    seconds: float
    command: float
    memory: int
    before: int
    predicted: int


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--gb", type=float, nargs="+", default=[2, 8])
    parser.add_argument("--dtype", nargs="+", choices=list(_DTYPES), default=list(_DTYPES))
    parser.add_argument(
        "--shards", type=float, nargs="+", default=[0, 1], help="GB each; 0: one file"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--place", type=Path, help="directory to write to (default: temporary)")
    parser.add_argument("--quick", action="store_true", help="0.1 GB, one round, as a trial")
    options = parser.parse_args()
    sizes, rounds = ([0.1], 1) if options.quick else (options.gb, options.rounds)
    shards = [size / 20 for size in options.shards] if options.quick else options.shards
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-", dir=options.place) as temporary:
        emit(
            f"torch {torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} cores, "
            f"medians of {rounds} rounds in turns"
        )
        emit(
            "   GB dtype shards      cp -r     merge  ratio   command  ratio    memory  "
            "of it before predicted   load"
        )
        for gb in sizes:
            for dtype in options.dtype:
                for shard in shards:
                    measure(Path(temporary), gb, dtype, shard, rounds)


def measure(place: Path, gb: float, dtype: str, shard: float, rounds: int) -> None:
    """Measure one combination, and print its line of the table."""
    base, adapter = place / "base", place / "adapter"
    shape = Shape.of(
        gb * 1e9 / _DTYPES[dtype].itemsize, 4096 if gb > 4 else 2048 if gb > 1 else 512
    )
    files = write_base(base, shape, _DTYPES[dtype], shard)
    write_adapter(adapter, shape, base)
    copies, runs = [], []
    for _ in range(rounds):
        copies.append(copy(base, place / "copy"))
        runs.append(merge(base, adapter, place / "merged"))
    total = sum(file.stat().st_size for file in base.iterdir()) / 1e9
    one = statistics.median(copies)
    two, three = (
        statistics.median(v) for v in zip(*((r.seconds, r.command) for r in runs), strict=True)
    )
    emit(
        f"{total:>5.2f} {dtype:<5} {files:>6} {one:>8.2f} s {two:>7.2f} s {two / one:>6.2f} "
        f"{three:>7.2f} s {three / one:>6.2f} {max(r.memory for r in runs) / 1e6:>6.0f} MB "
        f"{max(r.before for r in runs) / 1e6:>10.0f} MB "
        f"{max(r.predicted for r in runs) / 1e6:>6.0f} MB {os.getloadavg()[0]:>6.1f}"
    )
    shutil.rmtree(base)
    shutil.rmtree(adapter)


def write_base(directory: Path, shape: Shape, dtype: torch.dtype, shard: float) -> int:
    """Write a checkpoint like `save_pretrained`; return the number of weight files."""
    directory.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": shape.hidden,
        "intermediate_size": shape.inner, "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.hidden // 64, "num_key_value_heads": shape.hidden // 64,
        "vocab_size": _VOCABULARY, "tie_word_embeddings": False,
        "dtype": str(dtype).removeprefix("torch."),
    }  # fmt: skip
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    numbers = torch.randn(2**22, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(dtype)
    parts = list(_parts(shape.tensors(), dtype, shard))
    weight_map: dict[str, str] = {}
    for i, part in enumerate(parts):
        one = len(parts) == 1
        name = "model.safetensors" if one else f"model-{i + 1:05}-of-{len(parts):05}.safetensors"
        weight_map |= dict.fromkeys(part, name)
        write_tensors(directory / name, {
            key: NewTensor(dtype, size, lambda size=size: _filled(numbers, size))  # type: ignore[misc]
            for key, size in part.items()
        })  # fmt: skip
    if len(parts) > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    sync_tree(directory)
    return len(parts)


def _parts(
    tensors: dict[str, tuple[int, ...]], dtype: torch.dtype, shard: float
) -> Iterator[dict[str, tuple[int, ...]]]:
    part: dict[str, tuple[int, ...]] = {}
    filled = 0
    for name, size in tensors.items():
        length = torch.Size(size).numel() * dtype.itemsize
        if part and shard and filled + length > shard * 1e9:
            yield part
            part, filled = {}, 0
        part[name] = size
        filled += length
    yield part


def _filled(numbers: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    n = torch.Size(size).numel()
    return numbers.repeat(-(-n // numbers.numel()))[:n].view(size)


def write_adapter(directory: Path, shape: Shape, base: Path) -> None:
    """Write a PEFT LoRA directory."""
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for path, (n_out, n_in) in shape.linears().items():
        a = torch.randn(_RANK, n_in, generator=generator) / n_in**0.5
        b = torch.randn(n_out, _RANK, generator=generator) * 0.01
        tensors[f"base_model.model.{path}.lora_A.weight"] = a
        tensors[f"base_model.model.{path}.lora_B.weight"] = b
    directory.mkdir()
    save_file(tensors, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})
    # alpha / r = 1.5: a scaling other than 1 has to be multiplied in
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": _RANK, "lora_alpha": 24,
              "base_model_name_or_path": str(base), "target_modules": "all-linear",
              "init_lora_weights": True}  # fmt: skip
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def copy(base: Path, target: Path) -> float:
    """Copy the base with `cp -r` and flush it; return the seconds."""
    warm(base)
    start = time.perf_counter()
    subprocess.run(["cp", "-r", str(base), str(target)], check=True)
    sync_tree(target)
    seconds = time.perf_counter() - start
    shutil.rmtree(target)
    return seconds


def merge(base: Path, adapter: Path, target: Path) -> Run:
    """Run the command in a process of its own, and sample its memory."""
    warm(base)
    root = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-c", _DRIVER, str(adapter), str(target)]
    environment = {**os.environ, "PYTHONPATH": root}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as talk:
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=talk, env=environment)
        memory = 0
        while process.poll() is None:
            memory = max(memory, _anonymous(process.pid))
            time.sleep(_SAMPLE)
        seconds = time.perf_counter() - start
        output.seek(0)
        talk.seek(0)
        if process.returncode != 0:
            raise RuntimeError(talk.read().decode())
        figures = json.loads(output.read())
    shutil.rmtree(target)
    return Run(figures["seconds"], seconds, memory, figures["before"], figures["predicted"])


def warm(base: Path) -> None:
    """Read all files of a directory into the page cache."""
    for file in base.iterdir():
        with file.open("rb", buffering=0) as stream:
            buffer = bytearray(2**20)
            while stream.readinto(buffer):  # type: ignore[attr-defined]
                pass


def _anonymous(pid: int) -> int:
    """Return RssAnon of a process in bytes; 0 if it has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((1024 * int(x.split()[1]) for x in lines if x.startswith("RssAnon:")), 0)


if __name__ == "__main__":
    main()
