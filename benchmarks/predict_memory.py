"""Memory of `sora predict` on files of increasing size: it should not grow with the rows.

    python -m benchmarks.predict_memory [--rows 10000 100000 1000000] [--kind csv]

A tiny encoder predicts each file in a process of its own, whose memory is sampled five times a
second. Printed are the largest figures of each process:

- "own": its anonymous pages (RssAnon), which no other process shares.
- "own, first fifth": the same figure in the first fifth of the time. Memory that grows with the
  file shows as a difference between the two.
- "mapped": pages of files, including the rows, which the system can take back.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from benchmarks.measure import machine, markdown
from sora_cli.core.console import emit, say

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_WORDS = [f"w{i}" for i in range(200)]
_BATCH = 1024
_LOOK = 0.2  # seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kind", choices=("csv", "jsonl", "parquet"), default="csv")
    parser.add_argument("--quick", action="store_true", help="two small files")
    options = parser.parse_args()
    rows = [2_000, 8_000] if options.quick else options.rows
    emit(f"{machine('cpu')}; {options.kind}, batches of {_BATCH}")
    lines = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        folder = Path(name)
        _write_model(folder / "model")
        for number in rows:
            file = folder / "rows.csv"
            _write_rows(file, number)
            say(f"{number:,} rows, {file.stat().st_size / 1e6:.0f} MB ...")
            lines.append([f"{number:,}", *_measured(folder, file, options.kind)])
    titles = ["rows", "seconds", "own, MB", "own, first fifth, MB", "mapped, MB"]
    emit(markdown(titles, lines))


def _measured(folder: Path, file: Path, kind: str) -> list[str]:
    out = folder / f"out.{kind}"
    words = ["predict", str(folder / "model"), str(file), "-o", str(out), "--force"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "sora_cli", *words, "--batch-size", str(_BATCH)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    seen: list[tuple[float, float]] = []
    while process.poll() is None:
        seen.append(_memory(process.pid))
        time.sleep(_LOOK)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise SystemExit(f"sora predict ended with {process.returncode}")
    own, mapped = [o for o, _ in seen], [m for _, m in seen]
    early = own[: max(len(own) // 5, 1)]
    return [f"{seconds:.0f}", *(f"{max(part):.0f}" for part in (own, early, mapped))]


def _memory(process: int) -> tuple[float, float]:
    """Return a process's own and mapped pages in MB; zeros if it has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0, 0.0
    facts = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    own, mapped = (int(facts.get(key, "0").split()[0]) for key in ("RssAnon", "RssFile"))
    return own * 1024 / 1e6, mapped * 1024 / 1e6


def _write_rows(file: Path, number: int) -> None:
    rng = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        out.write("id,text\n")
        for row in range(number):
            out.write(f"{row:07d},{' '.join(rng.choices(_WORDS, k=rng.randint(3, 12)))}\n")


def _write_model(folder: Path) -> None:
    config = BertConfig(
        vocab_size=len(_SPECIAL) + len(_WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=2,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    vocabulary = {word: i for i, word in enumerate([*_SPECIAL, *_WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair=None, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)


if __name__ == "__main__":
    main()
