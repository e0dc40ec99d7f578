"""Adapters that are not there, do not fit, or name places they must not write to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, SORA_FILE
from tests.helpers_models import tiny_bert
from tests.helpers_runs import save_base
from tests.sora_cli.bad_input.runner import Case, bad

Damage = Callable[[Path], object]
P = "base_model.model."
QUERY = f"{P}bert.encoder.layer.0.attention.self.query.lora_A.weight"
HEAD = f"{P}classifier.weight"


def adapter(*damage: Damage) -> Damage:
    """The usual adapter at a path, and what is done to it."""

    def make(path: Path) -> None:
        models = next(up / "models" for up in path.parents if (up / "models").is_dir())
        shutil.copytree(models / "adapter", path)
        for change in damage:
            change(path)

    return make


def edit(name: str, **changes: Any) -> Damage:
    def damage(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, **changes}))

    return damage


def remove(*names: str) -> Damage:
    return lambda folder: [(folder / name).unlink() for name in names]


def renamed(old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / ADAPTER_WEIGHTS)
        tensors[new] = tensors.pop(old)
        save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    return damage


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def pickled(folder: Path) -> None:
    (folder / ADAPTER_WEIGHTS).rename(folder / ADAPTER_PICKLE)


def pickled_model(path: Path) -> None:
    shutil.copytree(path.parent / "models" / "base", path)
    torch.save(load_file(path / "model.safetensors"), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def other_base(path: Path) -> None:
    """A model of other sizes, without tensors of the adapter's shapes."""
    save_base(tiny_bert(num_labels=2, seed=1, type_vocab_size=3), path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "model_type": "roberta"}))


def wide(path: Path) -> None:
    import transformers

    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=64, hidden_size=48, num_hidden_layers=1,
                                num_attention_heads=2, intermediate_size=48, num_labels=2)
    )  # fmt: skip
    save_base(model, path)


BERT = {"m/config.json": '{"model_type": "bert"}'}
OUTSIDE = '{"weight_map": {"x": "../base/model.safetensors"}}'
NO_BASE = {"path": "gone/far", "resolved": "gone/far", "revision": None, "fingerprint": None}
OUT = ("-o", "new")
CASES: dict[str, Case] = {
    "inspect-an empty directory": bad("inspect", "a", a=Path.mkdir),
    "inspect-one of the files": bad("inspect", f"a/{ADAPTER_WEIGHTS}", a=adapter()),
    "inspect-another program's file": bad("inspect", "x.lora", **{"x.lora": ""}),
    "inspect-a damaged file": bad("inspect", "x.safetensors", **{"x.safetensors": ""}),
    "inspect-another program's directory": bad("inspect", "x", **{"x/adapter.safetensors": ""}),
    "merge-another program's directory": bad("merge", "a", *OUT, a=adapter(edit(ADAPTER_CONFIG,
        peft_type=None))),
    "verify-another program's directory": bad("verify", "x", **{"x/adapter.safetensors": ""}),
    "inspect-the directory above": bad("inspect", "x", **{"x/a": adapter()}),
    "inspect-no weights": bad("inspect", "a", a=adapter(remove(ADAPTER_WEIGHTS))),
    "prune-a pickle": bad("prune", "a", *OUT, a=adapter(pickled)),
    "prune-not an adapter of low rank": bad("prune", "a", *OUT, a=adapter(edit(ADAPTER_CONFIG,
        peft_type="OFT"))),
    "prune-names that climb": bad("prune", "a", *OUT, a=adapter(renamed(HEAD,
        f"{P}classifier.../../../x"))),
    "export-names that climb": bad("export", "a", *OUT, a=adapter(renamed(QUERY,
        f"{P}../../x.lora_A.weight"))),
    "merge-names that climb": bad("merge", "a", *OUT, a=adapter(renamed(HEAD,
        f"{P}classifier./etc/x"))),
    "export-ranks of names that climb": bad("export", "a", *OUT, a=adapter(edit(SORA_FILE,
        ranks={"../../x": 1}))),
    "merge-a head that climbs": bad("merge", "a", *OUT, a=adapter(edit(ADAPTER_CONFIG,
        modules_to_save=["../../x"], task_type=None))),
    "merge-a base that climbs": bad("merge", "a", *OUT, a=adapter(edit(SORA_FILE,
        base={**NO_BASE, "path": "../../../../etc/x", "resolved": "../../../../etc/x"}))),
    "merge-a base that is gone": bad("merge", "a", *OUT, a=adapter(edit(SORA_FILE, base=NO_BASE))),
    "merge-no base named": bad("merge", "a", *OUT, a=adapter(remove(SORA_FILE), edit(ADAPTER_CONFIG,
        base_model_name_or_path=None))),
    "merge-a base of another size": bad("merge", "models/adapter", *OUT, "--base", "m", m=wide),
    "merge-a base that is no model": bad("merge", "models/adapter", *OUT, "--base", "m", **BERT),
    "merge-a base of pickles": bad("merge", "models/adapter", *OUT, "--base", "m", **BERT,
        **{"m/pytorch_model.bin": "x"}),
    "merge-a base with places outside": bad("merge", "models/adapter", *OUT, "--base", "m", **BERT,
        **{"m/model.safetensors.index.json": OUTSIDE}),
    "verify-no weights": bad("verify", "m", **BERT),
    "verify-pickles": bad("verify", "m", m=pickled_model),
    "verify-another base": bad("verify", "models/adapter", "--base", "m", m=other_base),
    "eval-cut": bad("eval", "a", "-r", "r.yaml", a=adapter(
        lambda folder: cut(folder / ADAPTER_WEIGHTS))),
    "eval-an empty directory": bad("eval", "a", "-r", "r.yaml", a=Path.mkdir),
    "export-too large": bad("export", "a", *OUT, "--dtype", "float16",
        a=adapter(edit(ADAPTER_CONFIG, lora_alpha=1e6))),
    "eval-other classes": bad("eval", "a", "-r", "r.yaml", a=adapter(edit(SORA_FILE, labels=["yes",
        "no"]))),
    "eval-a base that is gone": bad("eval", "a", "-r", "r.yaml", a=adapter(edit(SORA_FILE,
        base=NO_BASE))),
    "eval-a base of another size": bad("eval", "a", "-r", "r.yaml", m=wide,
        a=adapter(edit(SORA_FILE, base={**NO_BASE, "path": "m", "resolved": "m"}))),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_bad_adapter(case: Case, checked: Callable[[Case], object]) -> None:
    checked(case)
