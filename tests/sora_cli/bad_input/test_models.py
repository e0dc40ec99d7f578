"""Base models that are not there, damaged, of another kind, or not safe to read."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers_models import tiny_bert, tiny_t5, tiny_vit
from tests.helpers_runs import tiny_tokenizer
from tests.sora_cli.bad_input.runner import Case, bad, recipe

WEIGHTS, CONFIG = "model.safetensors", "config.json"
OTHER = recipe("model", "path: m")
Damage = Callable[[Path], object]


def base(*damage: Damage) -> Damage:
    """The usual model at a path, and what is done to it."""

    def make(path: Path) -> None:
        shutil.copytree(path.parent / "models" / "base", path)
        for change in damage:
            change(path)

    return make


def write(name: str, content: str | bytes) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def cut(name: str, keep: int) -> Damage:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


def remove(*patterns: str) -> Damage:
    def damage(folder: Path) -> None:
        for file in [file for pattern in patterns for file in folder.glob(pattern)]:
            file.unlink()

    return damage


def config(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        values = json.loads((folder / CONFIG).read_text())
        (folder / CONFIG).write_text(json.dumps({**values, **changes}))

    return damage


def tokenizer(**changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return damage


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path("ran").touch, ()


def evil(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil()))


def renamed(folder: Path) -> None:
    tensors = {f"x.{key}": value for key, value in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def no_special_tokens(folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**values, "post_processor": None}))


def small_vocabulary(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors = {k: v[:8].clone() if "word_embeddings" in k else v for k, v in tensors.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    config(vocab_size=8)(folder)


def whole(make: Callable[[], Any], path: Path) -> None:
    """A model with its head, and a tokenizer."""
    make().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)


PLACES: dict[str, Case] = {
    "no such directory": bad(r=recipe("model", "path: ./m")),
    "no such file": bad(r=recipe("model", "path: m.gguf")),
    "nothing": bad(r=recipe("model", "path: ''")),
    "out of reach": bad(r=recipe("model", "path: nobody/nothing")),
    "no such package": bad(r=recipe("model", "path: package://no_such_package/model")),
    "nothing in the package": bad(r=recipe("model",
        "path: package://sora_cli/nowhere")),
    "out of the package": bad(r=recipe("model",
        "path: package://sora_cli/../methods")),
    "an empty directory": bad(r=OTHER, m=Path.mkdir),
    "a file for a directory": bad(r=recipe("model", "path: models/base/model.safetensors")),
    "no GGUF": bad(r=recipe("model", "path: m.gguf"), **{"m.gguf": "no GGUF"}),
    "a GGUF file that is cut off": bad(r=recipe("model", "path: m.gguf"),
        **{"m.gguf": "GGUF\3\0\0\0 or so"}),
    "an adapter": bad(r=recipe("model", "path: models/adapter")),
}  # fmt: skip
DAMAGE: dict[str, Case] = {
    name: bad(r=OTHER, m=made)
    for name, made in [
        ("weights cut", base(cut(WEIGHTS, 1000))),
        ("weights cut in the data", base(cut(WEIGHTS, -10))),
        ("weights empty", base(cut(WEIGHTS, 0))),
        ("weights of nothing", base(write(WEIGHTS, "{}"))),
        ("no weights", base(remove("*.safetensors"))),
        ("weights of another shape", base(config(hidden_size=16, intermediate_size=32))),
        ("configuration cut", base(cut(CONFIG, 100))),
        ("configuration empty", base(write(CONFIG, ""))),
        ("configuration a list", base(write(CONFIG, "[]"))),
        ("no configuration", base(remove(CONFIG))),
        ("no model type", base(write(CONFIG, "{}"))),
        ("unknown model type", base(config(model_type="brrt"))),
        ("size of another type", base(config(hidden_size="big"))),
        ("size of zero", base(config(num_attention_heads=0))),
        ("quantised", base(config(quantization_config={"quant_method": "bitsandbytes",
            "load_in_4bit": True}))),
        ("pickles", base(pickled)),
        ("pickles that run code", base(evil)),
        ("no tokenizer", base(remove("tokenizer*", "special*"))),
        ("tokenizer cut", base(cut("tokenizer.json", 200))),
        ("half a tokenizer", base(remove("tokenizer.json"))),
        ("nothing to pad with", base(tokenizer(pad_token=None, eos_token=None))),
        ("a tokenizer of more words", base(small_vocabulary)),
        ("head of other classes", partial(whole, partial(tiny_bert, num_labels=5))),
        ("for pictures", partial(whole, tiny_vit)),
        ("T5 without an end of text", partial(whole, tiny_t5)),
        ("code of its own", base(config(model_type="mine", auto_map={"AutoConfig": "mine.Mine"}),
                                 write("mine.py", "open('ran', 'w')\n"))),
        ("weights of another model", base(renamed)),
    ]
}  # fmt: skip
TARGETS: dict[str, Case] = {
    "no such layer": bad(r=recipe("method", "targets: [qery]")),
    "a pattern of nothing": bad(r=recipe("method", "targets: ['*.layer.9.*']")),
    "a bracket left open": bad(r=recipe("method", "targets: ['[a-']")),
    "the head": bad(r=recipe("method", "targets: [classifier]")),
    "no linear layer": bad(r=recipe("method", "targets: [LayerNorm]")),
    "a schedule that does not fit": bad(r=recipe("method", "name: adalora",
        "r_max: 2", "t_init: 100", "t_final: 100").replace("  r_max: 2\n", "")),
}  # fmt: skip
EMPTY = '{"sentence1": "", "sentence2": "", "label": 0}\n'
ROWS: dict[str, Case] = {
    "of no tokens": bad(r=OTHER, m=base(no_special_tokens),
        **{"validation.jsonl": EMPTY.replace('""', '"cat"') + EMPTY}),
    "of no text": bad(r=OTHER, m=base(no_special_tokens), **{"validation.jsonl": EMPTY}),
    "of no text, or cut before it": bad(r=recipe("data", "max_length: 3"),
        **{"train.jsonl": EMPTY + EMPTY.replace('""', '"cat"', 1).replace("0", "1")}),
}  # fmt: skip
CASES = {
    f"{kind}-{name}": case
    for kind, table in [
        ("place", PLACES),
        ("damage", DAMAGE),
        ("targets", TARGETS),
        ("row", ROWS),
    ]
    for name, case in table.items()
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_model(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)
