"""Requests a second and resident memory of vLLM by the number of adapters, and by their ranks.

    .venv-vllm-0.32.0/bin/python -m benchmarks.vllm_ranks [--adapters 1 8 32] [--rounds 3] [--quick]

The environment is that of `make test-vllm`. The base has SmolLM2-135M's shape and random weights in
bfloat16. "r 8" has eight components at each linear layer; "cut" has 16 % of them, unevenly spread,
so that some layers have none. All engines get `--max-lora-rank 8`, and a slot for each adapter;
"bare" has no adapters at all. Each figure is of a process of its own, and all sides take turns. A
process loads its adapters by a first request to each; then it answers 64 requests for 8 tokens
after 32, spread over its adapters. "resident" is VmRSS at the end, with 1 GiB for the cache of
keys and values. Printed are medians, and ratios by round: speed and memory to those of "bare", and
the cut's to those of r 8.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks.measure import in_turns, machine, markdown, median, ratios, shown_ratio
from methods import inject, registry
from sora_cli.adapter.saving import save_adapter
from sora_cli.core.console import emit, say, size
from sora_cli.core.environment import process_memory

_RANK, _KEPT, _PROMPT, _ANSWER = 8, 0.16, 32, 8
_WIDTH, _VOCABULARY = 576, 49_152
_SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--adapters", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a tiny base, one round")
    parser.add_argument("--serve", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        emit(json.dumps(_serve(options.serve, options.requests)))
        return
    layers, rounds = (2, 1) if options.quick else (30, options.rounds)
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as temporary:
        say("writing a base and its adapters ...")
        sides = _write(Path(temporary), layers, options.adapters)
        figures = _measure(sides, options.requests, rounds)
    emit(f"{machine('cpu')}; medians of {rounds} rounds in turns, ratios with 90 % intervals\n")
    emit(_table(figures))


def _write(folder: Path, layers: int, numbers: Sequence[int]) -> dict[str, list[Path]]:
    """Write the base and the adapters; return each side's places, its base first."""
    config = transformers.LlamaConfig(
        vocab_size=_VOCABULARY, hidden_size=_WIDTH, intermediate_size=1536,
        num_hidden_layers=layers, num_attention_heads=9, num_key_value_heads=3,
        tie_word_embeddings=True, max_position_embeddings=512,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    base = folder / "base"
    model.save_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    method = registry.create("sora", r_max=_RANK)
    adapted = inject.inject(model, method, exclude=("lm_head",), generator=generator)
    made: dict[str, list[Path]] = {"r 8": [], "cut": []}
    for i in range(max(numbers)):
        for kind, places in made.items():
            _draw(adapted, kind == "cut", generator)
            places.append(folder / f"{kind.replace(' ', '')}-{i}")
            save_adapter(model, method, places[-1], base_model=str(base))
    sides = {f"{n} x {kind}": [base, *made[kind][:n]] for n in numbers for kind in made}
    return {"bare": [base], **sides}


@torch.no_grad()
def _draw(adapted: dict[str, Any], cut: bool, generator: torch.Generator) -> None:
    """Fill all layers with random components, of which a cut keeps the strongest."""
    for layer in adapted.values():
        layer.A.copy_(torch.randn(layer.A.shape, generator=generator) * 0.02)
        layer.B.copy_(torch.randn(layer.B.shape, generator=generator) * 0.02)
        layer.d.copy_(torch.randn(layer.d.shape, generator=generator))
    if cut:
        gates = torch.cat([layer.d.abs() for layer in adapted.values()])
        threshold = gates.quantile(1 - _KEPT)
        for layer in adapted.values():
            layer.d[layer.d.abs() < threshold] = 0


def _measure(
    sides: dict[str, list[Path]], requests: int, rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Return the figures of each side: its speeds and its memory, by round."""
    memory: dict[str, list[float]] = {name: [] for name in sides}
    last: dict[str, float] = {}

    def run(name: str) -> float:
        words = ["--requests", str(requests), "--serve", *map(str, sides[name])]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.vllm_ranks", *words],
            capture_output=True, text=True, env={**os.environ, **_SETTINGS},
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(done.stderr)
        last.update(json.loads(done.stdout.splitlines()[-1]))
        memory[name].append(last["resident"])
        say(f"{name}: {last['speed']:.2f} requests/s")
        return last["speed"]

    work = {name: lambda name=name: run(name) for name in sides}
    speeds = in_turns(work, rounds)
    return {name: {"speed": speeds[name], "resident": memory[name]} for name in sides}


def _serve(places: Sequence[Path], requests: int) -> dict[str, float]:
    """Answer requests by an engine in this process; return requests a second, and its memory."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    base, *adapters = places
    options: dict[str, Any] = {"enable_lora": True, "max_loras": len(adapters),
                               "max_lora_rank": _RANK} if adapters else {}  # fmt: skip
    engine = LLM(str(base), skip_tokenizer_init=True, dtype="bfloat16", enforce_eager=True,
                 max_model_len=128, max_num_seqs=32, enable_prefix_caching=False,
                 **options)  # fmt: skip
    loaded = [LoRARequest(p.name, i, str(p)) for i, p in enumerate(adapters, 1)] or [None]
    wanted = SamplingParams(max_tokens=_ANSWER, ignore_eos=True, temperature=0, detokenize=False)
    generator = torch.Generator().manual_seed(0)

    def ask(number: int) -> None:
        ids = torch.randint(3, _VOCABULARY, (number, _PROMPT), generator=generator).tolist()
        prompts = [{"prompt_token_ids": row} for row in ids]
        chosen = [loaded[i % len(loaded)] for i in range(number)]
        engine.generate(prompts, wanted, lora_request=chosen, use_tqdm=False)

    ask(len(loaded))
    start = time.perf_counter()
    ask(requests)
    seconds = time.perf_counter() - start
    return {"speed": requests / seconds, "resident": process_memory("VmRSS") or 0}


def _table(figures: dict[str, dict[str, list[float]]]) -> str:
    header = ("side", "requests/s", "/ bare", "cut / r 8", "resident", "/ bare", "cut / r 8")
    rows = []
    for name, of_side in figures.items():
        number, _, kind = name.partition(" x ")
        whole = figures.get(f"{number} x r 8") if kind == "cut" else None
        row = [name]
        for key, middle in of_side.items():
            shown = f"{median(middle):.2f}" if key == "speed" else size(int(median(middle)))
            row += [shown, shown_ratio(ratios(middle, figures["bare"][key])),
                    shown_ratio(ratios(middle, whole[key])) if whole else ""]  # fmt: skip
        rows.append(row)
    return markdown(header, rows)


if __name__ == "__main__":
    main()
