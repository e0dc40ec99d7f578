"""Share of a small update that survives a merge into 16 bits; verdicts of merge and verify.

    python -m benchmarks.merge_rounding [--ratios 1e-4 4e-4 1e-3 3e-3] [--hidden 512] [--layers 4]

The base is a Llama with random weights, stored in each dtype. The adapter has r = 8 on every linear
layer of the blocks, with |dW| = ratio |W| in each layer. Columns, all from the real commands:

- "share" and "noise" of the stored weights, as recorded by `sora merge --accept-loss`;
- "merge": the exit code of `sora merge --no-verify` without `--accept-loss` (2: refused);
- "verify": the verdict of `sora verify ADAPTER MERGED` on the written model, and its exit code;
- "in all": the exit code of a plain `sora merge`, which verifies at its end.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import tempfile
from pathlib import Path

import torch
import transformers

from benchmarks.measure import markdown
from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference, read_json
from sora_cli.app import run
from sora_cli.core.console import emit, say
from sora_cli.model.files import MERGE_RECORD
from sora_cli.model.fingerprint import fingerprint

_RANK = 8
_WAYS = {
    "bf16": ("bfloat16", ()),
    "fp16": ("float16", ()),
    "fp32": ("float32", ()),
    "bf16, stochastic": ("bfloat16", ("--round", "stochastic")),
    "bf16, --dtype float32": ("bfloat16", ("--dtype", "float32")),
}
_VERDICTS = {0: "verified", 1: "different", 3: "cannot tell"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--ratios", type=float, nargs="+", default=[1e-4, 4e-4, 1e-3, 3e-3])
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="sora-benchmark-") as temporary:
        place = Path(temporary)
        model = _llama(options.hidden, options.layers)
        for dtype in ("bfloat16", "float16", "float32"):
            model.to(getattr(torch, dtype)).save_pretrained(place / dtype)
            model = _llama(options.hidden, options.layers)
        for ratio, (name, (dtype, flags)) in itertools.product(options.ratios, _WAYS.items()):
            say(f"{ratio:g}, {name} ...")
            _write_adapter(place / "adapter", place / dtype, ratio)
            rows.append((f"{ratio:g}", name, *_measure(place, flags)))
    emit(f"Llama, hidden {options.hidden}, {options.layers} layers, r = {_RANK}\n")
    emit(markdown(("ratio", "stored as", "share", "noise", "merge", "verify", "in all"), rows))


def _llama(hidden: int, layers: int) -> transformers.LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=2000,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 64,
        max_position_embeddings=256,
        initializer_range=hidden**-0.5,  # activations near 1
    )
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(config)


def _write_adapter(directory: Path, base: Path, ratio: float) -> None:
    """Write an adapter with random updates of the given size relative to each weight."""
    generator = torch.Generator().manual_seed(1)
    layers = {}
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and path != "lm_head":
            weight = module.weight.detach().float()
            a = torch.randn(_RANK, weight.shape[1], generator=generator)
            b = torch.randn(weight.shape[0], _RANK, generator=generator)
            layers[path] = LowRankFactors(a, b * ratio * weight.norm() / (b @ a).norm())
    reference = BaseReference(str(base), str(base), None, fingerprint(base))
    write_adapter(directory, Adapter.of(layers, {}, (), "CAUSAL_LM", reference), force=True)


def _measure(place: Path, flags: tuple[str, ...]) -> tuple[str, ...]:
    adapter, merged = str(place / "adapter"), str(place / "merged")
    words = ("merge", adapter, "-o", merged, "--force", *flags)
    in_all = _quietly(*words)
    alone = _quietly(*words, "--no-verify")
    _quietly(*words, "--no-verify", "--accept-loss")
    record = read_json(Path(merged) / MERGE_RECORD)
    verdict = _quietly("verify", adapter, merged)
    noise = f"{record['noise']:.1%}" if "noise" in record else ""
    return (
        f"{record['share']:.1%}",
        noise,
        str(alone),
        f"{_VERDICTS.get(verdict, '?')} ({verdict})",
        str(in_all),
    )


def _quietly(*words: str) -> int:
    """Run a `sora` command without output, and return its exit code."""
    talk = io.StringIO()
    with contextlib.redirect_stderr(talk), contextlib.redirect_stdout(talk):
        return run(list(words))


if __name__ == "__main__":
    main()
