"""Make a folder of tiny runs with the program that is installed: what later programs must open.

    PYTHON tests/stored/make.py DIR [LEFT]

PYTHON has the program of any commit, and DIR is made new. `tests/e2e/test_stored_runs.py` has the
present program open copies of the folders beside this file. LEFT is a JSON file with more commands,
which later programs do not have: `left.json` in a folder. Nothing else of the project is imported
here, because other commits lack it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any

WORDS = ["cat", "dog", "bird", "fish", "sees", "hears", "red", "blue", "the", "a", "not", "some"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
BASE: dict[str, Any] = {
    "model": {"path": "base"},
    "task": {"name": "sequence-classification"},
    "data": {"files": {"train": "train.jsonl", "validation": "validation.jsonl"}},
    "training": {
        "max_steps": 12, "batch_size": 8, "learning_rate": 0.02, "model_dropout": 0.1,
        "checkpoint": 5,
    },
}  # fmt: skip
SEARCH: dict[str, Any] = {
    "method": {"name": "lora", "r": 3},
    "training": {**BASE["training"], "max_steps": 16},
    "auto": {"max_drop": "60pt", "rows": 60, "sizes": 2},
}
RECIPES: dict[str, dict[str, Any]] = {
    "cut": {"method": {"name": "cut", "r_max": 3, "target_r": 1.5, "cut_at": 8}},
    "sora": {"method": {"name": "sora", "r_max": 3, "threshold": 0.02, "dropout": 0.1}},
    "path": {
        "method": {"name": "sora", "r_max": 3},
        "path": {
            "vary": "method.threshold",
            "schedule": {"kind": "list", "values": [0, 0.02]},
            "epochs": 1,
            "memorisation_rows": 8,
        },
    },
    "auto": SEARCH,
    "answers": {
        **SEARCH,
        "auto": {"max_differ": "60%", "unlabelled": "inputs.jsonl", "sizes": 1},
    },
}
SWEEP = {"recipe": "cut.yaml", "grid": {"method.target_r": [1, 2]}}
HEAL = ["--mean-rank", "1", "--heal", "7", "training.checkpoint=3"]
SMALL = "training.checkpoint=no"  # a checkpoint has 40 kB
COMMANDS: dict[str, list[str]] = {
    "cut": ["train", "cut.yaml", SMALL],
    "sora": ["train", "sora.yaml"],
    "path": ["path", "path.yaml"],
    "sweep": ["sweep", "sweep.yaml", "--jobs", "1", SMALL],
    "auto": ["auto", "auto.yaml"],
    "answers": ["auto", "answers.yaml"],
    "healed": ["prune", "runs/auto", "-o", "runs/healed", *HEAL],
    "pruned": ["prune", "runs/cut", "-o", "runs/pruned", "--max-drop", "60pt", "-r", "cut.yaml"],
    "sized": ["prune", "runs/cut", "-o", "runs/sized", "--max-drop", "60pt", "--heal", "3"],
}
"""The name of each run in runs/, and its command."""
KILLED: dict[str, tuple[str, int, list[str]]] = {
    "sora-killed": ("state.safetensors", 2, COMMANDS["sora"]),
    "path-killed": ("stages/01/", 2, COMMANDS["path"]),
    "auto-killed": ("sizes/1/", 1, COMMANDS["auto"]),
    "healed-killed": (
        "state.safetensors", 2, ["prune", "runs/auto", "-o", "runs/healed-killed", *HEAL],
    ),
}  # fmt: skip
"""Runs that die in a write: part of the file's path, the number of such a write, the command."""
ROOT = "/stored"
"""Written in place of the path of DIR; a test writes the path of its copy there."""
PIXEL = b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)


def _rows(rows: int, seed: int) -> list[dict[str, Any]]:
    """Sentence pairs; the label says whether they share their first word."""
    rng = random.Random(seed)
    made = []
    for i in range(rows):
        first, second = (rng.choices(WORDS, k=rng.randint(2, 5)) for _ in range(2))
        if i % 2:
            second[0] = first[0]
        same = int(first[0] == second[0])
        made.append({"sentence1": " ".join(first), "sentence2": " ".join(second), "label": same})
    return made


def _write_rows(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _write_base() -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config = BertConfig(
        vocab_size=len(SPECIAL + WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=16, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained("base")
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    special = {f"{name[1:-1].lower()}_token": name for name in SPECIAL}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=16, **special
    ).save_pretrained("base")


def machine() -> dict[str, str]:
    """Return what decides the last bits of a run on this machine."""
    import torch

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    processor = dict(line.replace("\t", "").split(": ", 1) for line in lines if ": " in line)
    names = ("vendor_id", "cpu family", "model", "model name")
    return {
        "torch": torch.__version__,
        "kernels": torch.backends.cpu.get_cpu_capability(),
        "cpu": ", ".join(processor[name] for name in names if name in processor),
    }


def _die_in(part: str, number: int) -> None:
    """Have this process killed in a write: half of the file is there."""
    inner, left = os.fsync, [number]

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        if part in str(path) and path.is_file():
            left[0] -= 1
            if not left[0]:
                os.truncate(path, path.stat().st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
        inner(descriptor)

    os.fsync = fsync


def _run(words: list[str], name: str, *, killed: tuple[str, int] | None = None) -> None:
    """Run a command in a process of its own, as each is run by a user."""
    place = [f"output.dir=runs/{name}"] if words[0] != "prune" else []
    begin = [sys.executable, __file__, "--run", *map(str, killed or ("", 0))]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*begin, *words, *place], check=False, env=variables)
    if done.returncode != (-signal.SIGKILL if killed else 0):
        sys.exit(f"{name}: {' '.join(words)} ended with {done.returncode}")


def make(folder: Path, left: dict[str, Any]) -> None:
    """Write the base model, the rows, the recipes and the runs."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    _write_base()
    _write_rows("train.jsonl", _rows(124, 0))
    _write_rows("validation.jsonl", _rows(60, 1))
    _write_rows("inputs.jsonl", [{**row, "label": "?"} for row in _rows(100, 2)])
    for name, blocks in RECIPES.items():
        # JSON is YAML, too
        Path(f"{name}.yaml").write_text(json.dumps({**BASE, **blocks}, indent=1) + "\n")
    Path("sweep.yaml").write_text(json.dumps(SWEEP, indent=1) + "\n")
    Path("machine.json").write_text(json.dumps(machine(), indent=1) + "\n")
    for name, words in {**COMMANDS, **left.get("made", {})}.items():
        _run(words, name)
    for name, (part, number, words) in {**KILLED, **left.get("killed", {})}.items():
        _run(words, name, killed=(part, number))
    for checkpoints in sorted(Path("runs").rglob("checkpoints")):
        if checkpoints.relative_to("runs").parts[0] not in KILLED:
            shutil.rmtree(checkpoints)  # each has 40 kB, and nothing goes on from there
    for path in Path("runs").rglob("*"):
        if path.suffix == ".png":
            path.write_bytes(PIXEL)
        elif path.suffix in {".json", ".md", ".log"}:
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace(str(Path.cwd()), ROOT), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--run":
        from sora_cli.app import main

        if sys.argv[2]:
            _die_in(sys.argv[2], int(sys.argv[3]))
        sys.argv[1:4] = []
        main()
    else:
        make(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_bytes()) if sys.argv[2:] else {})
