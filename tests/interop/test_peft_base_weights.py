"""Weights of the base that PEFT stores beside factors on embeddings, and loads again.

Each adapter is written by the PEFT that is installed; what it gives, once loaded again, is what a
merge, an export or an adapter on a model in memory must give, changed weights or not.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.consumers import consumers_of
from sora_cli.adapter.reading import open_adapter, read_adapter
from sora_cli.app import run
from sora_cli.merge.incoming import incoming
from sora_cli.merge.merge import merge_adapter
from sora_cli.verify.verification import verify
from tests.helpers_adapters import assert_same, fill_peft, logits
from tests.helpers_errors import refused
from tests.helpers_models import tiny_llama

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TARGETS = {"embed_tokens": [EMBEDDING], "lm_head": [HEAD], "both": [HEAD, EMBEDDING]}
STORED = ".base_layer.weight"


def load(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()


@dataclass(frozen=True)
class Made:
    """A base at base/, an adapter of it at adapter/, and what PEFT makes of them."""

    base: Path
    adapter: Path
    expected: Tensor
    without: Tensor


def made(
    folder: Path,
    targets: str = "lm_head",
    *,
    tied: bool = False,
    change: float = 0.05,
    save: bool | str = "auto",
    **options: Any,
) -> Made:
    base = folder / "base"
    tiny_llama(tied=tied).save_pretrained(base)
    modules = [name.split(".")[-2] for name in TARGETS[targets]] if targets else []
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", *modules],
                        task_type="CAUSAL_LM", **options)  # fmt: skip
    model = fill_peft(get_peft_model(load(base), config))
    with torch.no_grad():
        for name in TARGETS.get(targets, ()):
            weight = model.get_submodule(f"base_model.model.{name.removesuffix('.weight')}")
            weight.base_layer.weight += change / (2 if tied and targets == "both" else 1)
    model.save_pretrained(folder / "adapter", save_embedding_layers=save)
    again = PeftModel.from_pretrained(load(base), folder / "adapter").eval()
    return Made(base, folder / "adapter", logits(again), logits(load(base)))


def merged(place: Made, *words: str) -> Tensor:
    """`sora merge`, with its check; the merged model's logits."""
    out = place.base.parent / "out"
    assert run(["merge", str(place.adapter), "-o", str(out), "--force", *words]) == 0
    return logits(load(out))


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_changed_weight_is_merged_as_peft_loads_it(
    tmp_path: Path, targets: str, tied: bool
) -> None:
    place = made(tmp_path, targets, tied=tied)
    assert_same(merged(place, *(["--untie"] if tied else [])), place.expected)
    with open_adapter(place.adapter) as file:
        assert list(file.base_weights) == TARGETS[targets]
        assert all("differs from the base model's" in note for note in file.source.notes)
        refused = {c.name: c.advice for c in consumers_of(file) if not c.loads}
    assert not {"PEFT", "transformers"} & refused.keys()
    assert targets != "lm_head" or refused["vLLM"].startswith("takes no lm_head.weight")


@pytest.mark.parametrize("targets", TARGETS)
def test_a_weight_of_the_base_itself_is_left_out(tmp_path: Path, targets: str) -> None:
    """As if PEFT had not stored it: the merge, its digest, what llama.cpp can load."""
    place, bare = made(tmp_path, targets, change=0), tmp_path / "bare"
    with open_adapter(place.adapter) as file:
        assert not file.full
        digest = incoming(file).digest()
    first = merged(place)
    assert_same(first, place.expected)
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    made(bare, targets, change=0, save=False)
    with open_adapter(bare / "adapter") as file:
        assert (file.base_weights, incoming(file).digest()) == ((), digest)
    merged(Made(place.base, bare / "adapter", first, first))
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == written
    command = ["export", str(place.adapter), "-o", str(tmp_path / "x.gguf"), "--format", "gguf"]
    assert run(command) == (0 if targets == "lm_head" else 2)  # it looks embeddings up
    assert run(["export", str(place.adapter), "-o", str(tmp_path / "plain")]) == 0
    plain = load_file(tmp_path / "plain" / "adapter_model.safetensors")
    assert not [key for key in plain if key.endswith(STORED)]


@pytest.mark.parametrize("words", [["export"], ["prune", "--rank", "4"]])
def test_an_adapter_that_is_written_anew_keeps_it(tmp_path: Path, words: list[str]) -> None:
    place, out = made(tmp_path), tmp_path / "new"
    command, *rule = words
    assert run([command, str(place.adapter), "-o", str(out), *rule]) == 0
    again = PeftModel.from_pretrained(load(place.base), out).eval()
    assert_same(logits(again), place.expected)
    assert_same(merged(Made(place.base, out, place.expected, place.without)), place.expected)


def test_a_module_without_factors_keeps_it(tmp_path: Path) -> None:
    """PEFT stores it under another key than where there are some, and loads both."""
    place, out = made(tmp_path), tmp_path / "new"
    file = place.adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    tensors["base_model.model.lm_head.lora_B.weight"] *= 1e-5
    save_file(tensors, file)
    assert run(["prune", str(place.adapter), "-o", str(out), "--mean-rank", "1"]) == 0
    with open_adapter(out) as small:
        assert (small.base_weights, "lm_head" in small.paths) == ((HEAD,), False)
    again = PeftModel.from_pretrained(load(place.base), out).eval()
    new = Made(place.base, out, logits(again), place.without)
    assert_same(merged(new), new.expected)


def test_an_adapter_in_memory_has_it(tmp_path: Path) -> None:
    """`sora predict` and `sora eval` put adapters onto their base like this."""
    for tied in (False, True):
        place = made(tmp_path / str(tied), tied=tied)
        model = load(place.base)
        apply_adapter(model, read_adapter(place.adapter))
        assert_same(logits(model), place.expected)
    merge_adapter(read_adapter(place.adapter), tmp_path / "memory", untie=True)
    assert_same(logits(load(tmp_path / "memory")), place.expected)


def test_a_model_without_the_change_is_different(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(tmp_path / "same", change=0)
    place = made(tmp_path / "other")
    out = str(tmp_path / "out")
    assert run(["merge", str(tmp_path / "same" / "adapter"), "-o", out]) == 0
    assert not verify(str(place.adapter), out).judgement.same
    combine = [str(tmp_path / name / "adapter") for name in ("same", "other")]
    refused(capsys, "combine", *combine, "-o", tmp_path / "sum", "--weights", "1,1")
    refused(capsys, "export", combine[1], "-o", tmp_path / "x.gguf", "--format", "gguf")


def test_a_base_that_is_not_where_it_was(tmp_path: Path) -> None:
    """Nothing is lost while it is not known; with --base it is compared again."""
    for change in (0.0, 0.05):
        place = made(tmp_path / str(change), change=change)
        moved = place.base.with_name("moved")
        shutil.move(place.base, moved)
        with open_adapter(place.adapter) as file:
            assert file.base_weights == (HEAD,)
            assert "may differ from the base model's" in file.source.notes[0]
        with open_adapter(place.adapter, base=str(moved)) as file:
            assert bool(file.base_weights) == bool(change)
        assert_same(merged(place, "--base", str(moved)), place.expected)


def test_dora_in_16_bits(tmp_path: Path) -> None:
    """The norms are those of the stored weight; it is rounded once, with the update in it."""
    place = made(tmp_path, "embed_tokens", use_dora=True)
    exact = merged(place, "--dtype", "float32")
    assert_same(exact, place.expected)
    wide = load_file(tmp_path / "out" / "model.safetensors")
    merged(place, "--dtype", "bfloat16")
    narrow = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(narrow[EMBEDDING], wide[EMBEDDING].bfloat16())


def test_resized_embeddings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """PEFT stores them whole: they belong to a base of that size, and to no other."""
    place = made(tmp_path, "", change=0)
    larger = load(place.base)
    rows = len(larger.get_input_embeddings().weight) + 3
    larger.resize_token_embeddings(rows)
    config = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model = fill_peft(get_peft_model(larger, config))
    with torch.no_grad():
        larger.get_input_embeddings().weight[-3:] += 1.0
    model.save_pretrained(tmp_path / "resized")
    with open_adapter(tmp_path / "resized") as file:
        assert set(file.base_weights) == {EMBEDDING, HEAD}
    command = ["merge", str(tmp_path / "resized"), "-o", str(tmp_path / "no")]
    refused(capsys, *command)
    base = load(place.base)
    base.resize_token_embeddings(rows)
    base.save_pretrained(tmp_path / "larger")
    again = PeftModel.from_pretrained(load(tmp_path / "larger"), tmp_path / "resized").eval()
    new = Made(tmp_path / "larger", tmp_path / "resized", logits(again), place.without)
    assert_same(merged(new, "--base", str(tmp_path / "larger")), new.expected)


@pytest.mark.parametrize("tied", [False, True])
def test_resized_embeddings_with_trained_rows(tmp_path: Path, tied: bool) -> None:
    """PEFT stores both, and of tied weights twice, though the configuration names one of them."""
    base = tiny_llama(tied=tied)
    base.save_pretrained(tmp_path / "base")
    base.name_or_path, rows = str(tmp_path / "base"), len(base.get_input_embeddings().weight)
    base.resize_token_embeddings(rows + 2)
    config = LoraConfig(
        r=2, target_modules=["q_proj"], task_type="CAUSAL_LM",
        trainable_token_indices={"embed_tokens": [rows, rows + 1]},
    )  # fmt: skip
    model = fill_peft(get_peft_model(base, config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter += 0.3
    model.save_pretrained(tmp_path / "adapter")
    adapter = read_adapter(tmp_path / "adapter")
    assert list(adapter.rows) == (["lm_head"] if tied else []) + ["model.embed_tokens"]
    assert set(adapter.base_weights) == {EMBEDDING, HEAD}
    assert run(["merge", str(tmp_path / "adapter"), "-o", str(tmp_path / "out")]) == 0
    assert_same(logits(load(tmp_path / "out")), logits(model))
