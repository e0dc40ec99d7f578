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
from tests.sora_cli.bad_input.runner import HERE, Case, bad, recipe

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
    "no such directory": bad("there is no model at ./m", r=recipe("model", "path: ./m"),
        then="a model is a directory"),
    "no such file": bad("there is no model at m.gguf", r=recipe("model", "path: m.gguf"),
        then="a .gguf file"),
    "nothing": bad("there is no model at", r=recipe("model", "path: ''"),
        then="a model is a directory"),
    "out of reach": bad("the model 'nobody/nothing' is neither",
        r=recipe("model", "path: nobody/nothing"), then="data.path=DIR"),
    "no such package": bad("'no_such_package' is not installed",
        r=recipe("model", "path: package://no_such_package/model"),
        then="pip install no-such-package"),
    "nothing in the package": bad("holds no 'nowhere'", r=recipe("model",
        "path: package://sora_cli/nowhere")),
    "out of the package": bad("holds no '../methods'", r=recipe("model",
        "path: package://sora_cli/../methods")),
    "an empty directory": bad("holds no config.json", r=OTHER, then="save_pretrained()",
        m=Path.mkdir),
    "a file for a directory": bad("is a file, but not a .gguf file",
        r=recipe("model", "path: models/base/model.safetensors"), then="directory"),
    "no GGUF": bad("m.gguf is not a GGUF file", r=recipe("model", "path: m.gguf"),
        then="name a model's own file", **{"m.gguf": "no GGUF"}),
    "a GGUF file that is cut off": bad("m.gguf is cut off", r=recipe("model", "path: m.gguf"),
        then="download it again", **{"m.gguf": "GGUF\3\0\0\0 or so"}),
    "an adapter": bad("holds an adapter of its own", r=recipe("model", "path: models/adapter"),
        then="sora merge models/adapter -o DIR"),
}  # fmt: skip
DAMAGE: dict[str, Case] = {
    name: bad(says, r=OTHER, then=then, m=made)
    for name, made, says, then in [
        ("weights cut", base(cut(WEIGHTS, 1000)), "cannot be loaded", "save_pretrained()"),
        ("weights cut in the data", base(cut(WEIGHTS, -10)), "cannot be loaded",
            "save_pretrained()"),
        ("weights empty", base(cut(WEIGHTS, 0)), "cannot be loaded", "save_pretrained()"),
        ("weights of nothing", base(write(WEIGHTS, "{}")), "cannot be loaded",
            "save_pretrained()"),
        ("no weights", base(remove("*.safetensors")), "cannot be loaded", "save_pretrained()"),
        ("weights of another shape", base(config(hidden_size=16, intermediate_size=32)),
            "does not fit", "model"),
        ("configuration cut", base(cut(CONFIG, 100)), "cannot be loaded", "save_pretrained()"),
        ("configuration empty", base(write(CONFIG, "")), "cannot be loaded", "save_pretrained()"),
        ("configuration a list", base(write(CONFIG, "[]")), "cannot be loaded",
            "save_pretrained()"),
        ("no configuration", base(remove(CONFIG)), "holds no config.json", "save_pretrained()"),
        ("no model type", base(write(CONFIG, "{}")), "cannot be loaded", "save_pretrained()"),
        ("unknown model type", base(config(model_type="brrt")), "cannot be loaded",
            "save_pretrained()"),
        ("size of another type", base(config(hidden_size="big")), "cannot be loaded",
            "save_pretrained()"),
        ("size of zero", base(config(num_attention_heads=0)), "cannot be loaded",
            "save_pretrained()"),
        ("quantised", base(config(quantization_config={"quant_method": "bitsandbytes",
            "load_in_4bit": True})),
         "is quantised", "the model it was made from"),
        ("pickles", base(pickled), "pickles, which can run any code",
            "convert it by from_pretrained()"),
        ("pickles that run code", base(evil), "pickles, which can run any code",
            "name that directory"),
        ("no tokenizer", base(remove("tokenizer*", "special*")), "holds no tokenizer",
            "copy tokenizer.json"),
        ("tokenizer cut", base(cut("tokenizer.json", 200)), "cannot be loaded",
            "save_pretrained()"),
        ("half a tokenizer", base(remove("tokenizer.json")), "cannot be loaded",
            "save_pretrained()"),
        ("nothing to pad with", base(tokenizer(pad_token=None, eos_token=None)),
            "neither a padding nor", "pad_token"),
        ("a tokenizer of more words", base(small_vocabulary), "the model has only 8",
            "model's own"),
        ("head of other classes", partial(whole, partial(tiny_bert, num_labels=5)),
            "does not fit the task's classes", "'classifier.bias' is (5,), not (2,)"),
        ("for pictures", partial(whole, tiny_vit), "cannot be loaded for sequence-classification",
            "ViT"),
        ("T5 without an end of text", partial(whole, tiny_t5),
            "answers at the end-of-text token", "tokenizer"),
        ("code of its own", base(config(model_type="mine", auto_map={"AutoConfig": "mine.Mine"}),
                                 write("mine.py", "open('ran', 'w')\n")), "its own Python code",
                                     "model.trust_remote_code=true"),
        ("weights of another model", base(renamed), "lacks ", "belong to the same model"),
    ]
}  # fmt: skip
TARGETS: dict[str, Case] = {
    "no such layer": bad("target 'qery' matches no linear layer; did you mean 'query'",
        r=recipe("method", "targets: [qery]")),
    "a pattern of nothing": bad("target '*.layer.9.*' matches no linear layer",
        r=recipe("method", "targets: ['*.layer.9.*']")),
    "a bracket left open": bad("target '[a-' matches no linear layer",
        r=recipe("method", "targets: ['[a-']")),
    "the head": bad("target 'classifier' matches no linear layer",
        r=recipe("method", "targets: [classifier]")),
    "no linear layer": bad("target 'LayerNorm' matches no linear layer",
        r=recipe("method", "targets: [LayerNorm]")),
    "a schedule that does not fit": bad("leave no step", r=recipe("method", "name: adalora",
        "r_max: 2", "t_init: 100", "t_final: 100").replace("  r_max: 2\n", ""),
        at=("r.yaml", "method:")),
}  # fmt: skip
EMPTY = '{"sentence1": "", "sentence2": "", "label": 0}\n'
ROWS: dict[str, Case] = {
    "of no tokens": bad("the tokenizer makes no token of it", r=OTHER.replace(HERE, ""),
        then="validation.jsonl:2, split 'validation'", m=base(no_special_tokens),
        **{"validation.jsonl": EMPTY.replace('""', '"cat"') + EMPTY}),
    "of no text": bad("there is nothing to learn: 1 of 1 rows have no text",
        r=OTHER.replace(HERE, ""), then="validation.jsonl, split 'validation'",
        m=base(no_special_tokens), **{"validation.jsonl": EMPTY}),
    "of no text, or cut before it": bad(
        "2 of 2 rows have no text or have no text within data.max_length",
        r=recipe("data", "max_length: 3").replace(HERE, ""), then="data.max_length=4",
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
