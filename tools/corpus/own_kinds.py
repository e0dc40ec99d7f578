"""Adapters that this program writes: of all methods, rounded, packed, extracted, as GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from sora_cli.adapter.directory import write_adapter
from sora_cli.app import run
from tests.helpers_adapters import CAUSAL, CLASSIFIERS, adapt, save_backbone
from tests.helpers_chat import write_chat_recipe
from tests.helpers_families import FAMILIES
from tests.helpers_images import write_image_recipe
from tests.helpers_models import tiny_bert, tiny_llama
from tests.helpers_runs import write_recipe
from tests.helpers_tuned import change, save_pair
from tests.interop import test_new_tokens
from tests.sora_cli.gguf import test_merged_file

Make = Callable[[Path], None]
"""Writes base/, adapter/ and, if its base can be trained, recipe.yaml and rows.jsonl."""

METHODS = {
    "lora": {"name": "lora", "r": 3},
    "sora": {"name": "sora", "r_max": 4, "threshold": 0.02},
    "adalora": {"name": "adalora", "target_r": 2, "t_init": 1, "t_final": 1},
    "cut": {"name": "cut", "r_max": 4, "target_r": 2, "cut_at": 2},
}
MODELS: dict[str, tuple[Callable[[], Any], tuple[str, ...]]] = {
    **CLASSIFIERS,
    **{f"causal-{name}": (make, ()) for name, make in CAUSAL.items()},
}
_SETS = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
STEPS = {"max_steps": 4, "evaluate": "no", "checkpoint": "no", "batch_size": 8}
_STORED = Path("tests/stored/d2d0db02")


def _random(name: str, ranks: str, folder: Path) -> None:
    """Write an adapter with random factors; "mixed" ranks are 0 to 4."""
    make, head = MODELS[name]
    model = make()
    base = save_backbone(model, folder / "base")
    write_adapter(folder / "adapter", adapt(model, base, head=head, ranks=ranks))


def _trained(write: Callable[[Path], Path], folder: Path) -> None:
    """Train the recipe that a function writes into a folder, and keep its adapter alone."""
    recipe = write(folder)
    _do("train", recipe, "--no-verify", f"output.dir={folder}/run")
    shutil.move(folder / "run" / "adapter", folder / "adapter")
    shutil.rmtree(folder / "run")
    keep_recipe(folder, recipe)


def keep_recipe(folder: Path, recipe: Path) -> None:
    """Name a recipe and its validation rows as the steps expect it; it trains any adapter on."""
    with_method(recipe, "lora").rename(folder / "recipe.yaml")
    rows = next(iter(sorted(folder.glob("valid*.json*"))), None)
    if rows is not None:
        shutil.copy(rows, folder / "rows.jsonl")


def _new_tokens(tied: bool, folder: Path) -> None:
    def write(place: Path) -> Path:
        # its base's tokenizer is written by the recipe's helper
        return test_new_tokens.write(place, tied=tied, loss="logits", evaluate="no")

    _trained(write, folder)


def _pruned(words: str, folder: Path) -> None:
    _trained(partial(_classes, "lora"), folder)
    shutil.move(folder / "adapter", folder / "whole")
    _do("prune", folder / "whole", "-o", folder / "adapter", *words.split())


def _packed(words: str, folder: Path) -> None:
    _pruned(words, folder)
    shutil.move(folder / "adapter", folder / "rounded")
    out = folder / "adapter.safetensors"
    _do("export", folder / "rounded", "-o", out, "--format", "packed")


def _exported(words: str, folder: Path) -> None:
    _random("causal-llama", "mixed", folder)
    shutil.move(folder / "adapter", folder / "whole")
    name = "adapter.gguf" if "gguf" in words else "adapter"
    _do("export", folder / "whole", "-o", folder / name, *words.split())


def _extracted(pattern: str, folder: Path) -> None:
    """Write the difference of two models; with biases where they have changed."""
    base = tiny_bert() if "bert" in pattern else tiny_llama(attention_bias=True)
    tuned, before = save_pair(base, change(base, pattern), folder)
    words = ("--base", before, "--rank", "3", "-o", folder / "adapter")
    _do("extract", tuned, *words)


def _on_gguf(kind: str, folder: Path) -> None:
    """Write an adapter of a base model that is a GGUF file."""
    file = test_merged_file.base_file(folder / "base.gguf", query=kind)
    test_merged_file.adapter_for(folder / "adapter", file, scale=0.1)


def _stored(name: str, folder: Path) -> None:
    """Copy a run that an earlier version of the program has stored."""
    shutil.copytree(_STORED, folder, dirs_exist_ok=True)
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".md", ".log"):
            text = path.read_text(encoding="utf-8")
            path.write_text(text.replace("/stored", str(folder)), encoding="utf-8")
    shutil.move(folder / "runs" / name, folder / "adapter")
    shutil.rmtree(folder / "runs")
    for name in ("train.jsonl", "validation.jsonl", "base"):
        place = folder / name
        recipe = (folder / "cut.yaml").read_text()
        (folder / "cut.yaml").write_text(recipe.replace(f'"{place.name}"', json.dumps(str(place))))
    keep_recipe(folder, folder / "cut.yaml")


def _classes(method: str, folder: Path) -> Path:
    recipe = write_recipe(folder, tiny_bert(num_labels=2), training=STEPS)
    return with_method(recipe, method)


def _chat(method: str, folder: Path) -> Path:
    return with_method(write_chat_recipe(folder, training=STEPS), method)


def with_method(recipe: Path, method: str) -> Path:
    """Put a method and its options in place of the recipe's."""
    blocks = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    recipe.write_text(yaml.safe_dump({**blocks, "method": METHODS[method]}), encoding="utf-8")
    return recipe


def sort_sets(folder: Path) -> None:
    """Sort the lists in PEFT's configuration that were sets: their order differs by process."""
    for file in folder.rglob("adapter_config.json"):
        with suppress(ValueError):  # a damaged one
            config = json.loads(file.read_text(encoding="utf-8"))
            for key in _SETS:
                if isinstance(config.get(key), list):
                    config[key] = sorted(config[key])
            file.write_text(json.dumps(config, indent=2), encoding="utf-8")


def _do(*words: str | Path) -> None:
    code = run([str(word) for word in words])
    if code:
        raise RuntimeError(f"sora {' '.join(map(str, words))} ended with {code}")


def _family(name: str, folder: Path) -> Path:
    return FAMILIES[name](folder)


def _images(folder: Path) -> Path:
    return write_image_recipe(folder, training=STEPS)


KINDS: dict[str, Make] = {
    **{f"random-{name}": partial(_random, name, "mixed") for name in MODELS},
    **{f"random-bert-{ranks}": partial(_random, "bert", ranks) for ranks in ("full", "dead")},
    "random-causal-gpt2-full": partial(_random, "causal-gpt2", "full"),
    **{f"bert-{method}": partial(_trained, partial(_classes, method)) for method in METHODS},
    **{f"chat-{method}": partial(_trained, partial(_chat, method)) for method in METHODS},
    "seq2seq": partial(_trained, partial(_family, "seq2seq")),
    "images": partial(_trained, _images),
    "new-tokens-tied": partial(_new_tokens, True),
    "new-tokens-untied": partial(_new_tokens, False),
    **{f"bits-{bits}": partial(_pruned, f"--bits {bits}") for bits in (2, 3, 4, 8)},
    "bits-head": partial(_pruned, "--rank 2 --bits 4 --head-bits 8"),
    "packed-4": partial(_packed, "--bits 4"),
    "packed-head": partial(_packed, "--rank 2 --bits 2 --head-bits 8"),
    "padded": partial(_exported, "--layout padded"),
    "bfloat16": partial(_exported, "--dtype bfloat16"),
    "float16": partial(_exported, "--dtype float16"),
    "gguf": partial(_exported, "--format gguf"),
    "extracted": partial(_extracted, r"bert.*(query|dense)\.(weight|bias)"),
    "extracted-embeddings": partial(_extracted, r"(embed_tokens|lm_head|q_proj|norm)\."),
    **{f"on-gguf-{kind}": partial(_on_gguf, kind) for kind in ("Q4_1", "Q8_0", "F16")},
    **{f"stored-{name}": partial(_stored, name)
       for name in ("cut", "sora", "path", "auto", "healed", "pruned")},
}  # fmt: skip
