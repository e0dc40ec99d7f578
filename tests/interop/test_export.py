"""Whatever PEFT's LoRA, rsLoRA and AdaLoRA write is read, exported, and gives PEFT's own logits."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.adapter.export import export_adapter
from sora_cli.adapter.metadata import read_json, write_json
from sora_cli.adapter.packing import pack, unpack
from sora_cli.adapter.reading import open_adapter, read_adapter
from sora_cli.commands.prune import prune
from sora_cli.core.errors import SoraError
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from tests.helpers_adapters import assert_same, fill_peft, logits
from tests.helpers_errors import refusal
from tests.helpers_models import (
    tiny_bert,
    tiny_deberta,
    tiny_distilbert,
    tiny_gpt2,
    tiny_llama,
    tiny_roberta,
    tiny_t5,
    tiny_vit,
)

INIT_R = 4

Make = Callable[[], Any]
MODELS: dict[str, tuple[Make, dict[str, Any], list[str]]] = {
    # what makes the model; its options; two kinds of modules for patterns
    "bert": (tiny_bert, {"task_type": "SEQ_CLS"}, ["query", "output.dense"]),
    "roberta": (tiny_roberta, {"task_type": "SEQ_CLS"}, ["query", "output.dense"]),
    "deberta": (
        tiny_deberta,
        {"task_type": "SEQ_CLS", "modules_to_save": ["pooler"]},
        ["query_proj", "output.dense"],
    ),
    "distilbert": (
        tiny_distilbert,
        {"task_type": "SEQ_CLS", "modules_to_save": ["pre_classifier"]},
        ["q_lin", "ffn.lin2"],
    ),
    "gpt2": (tiny_gpt2, {"task_type": "CAUSAL_LM", "fan_in_fan_out": True}, ["c_attn", "mlp.c_fc"]),
    "gpt2-classifier": (
        lambda: tiny_gpt2(num_labels=3),
        {"task_type": "SEQ_CLS", "fan_in_fan_out": True},
        ["c_attn", "mlp.c_fc"],
    ),
    "llama": (tiny_llama, {"task_type": "CAUSAL_LM"}, ["q_proj", "down_proj"]),
    "llama-tied": (
        lambda: tiny_llama(tied=True),
        {"task_type": "CAUSAL_LM"},
        ["q_proj", "down_proj"],
    ),
    "llama-classifier": (
        lambda: tiny_llama(num_labels=3),
        {"task_type": "SEQ_CLS"},
        ["q_proj", "down_proj"],
    ),
    "t5": (tiny_t5, {"task_type": "SEQ_2_SEQ_LM"}, ["q", "wo"]),
    "vit": (tiny_vit, {"modules_to_save": ["classifier"]}, ["q_proj", "fc2"]),
}
KINDS = ["lora", "rslora", "patterns", "rslora-patterns", "adalora", "adalora-dead"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _config(kind: str, options: dict[str, Any], targets: list[str]) -> LoraConfig:
    common = {"target_modules": targets, **options}
    if kind.startswith("adalora"):
        return AdaLoraConfig(init_r=INIT_R, target_r=2, total_step=10, lora_alpha=6, **common)
    values: dict[str, Any] = {"r": 4, "lora_alpha": 10, "use_rslora": "rslora" in kind}
    if "patterns" in kind:
        first, second = targets
        escaped = second.replace(".", r"\.")
        values["rank_pattern"] = {first: 2, rf".*\.1\..*{escaped}": 7}
        values["alpha_pattern"] = {second: 3, rf"\b0\..*{first}": 5}
    return LoraConfig(**values, **common)


def _keep(model: Any, ranks: Callable[[int], int]) -> None:
    """Decide which components AdaLoRA keeps, as its allocator would record it."""
    names = [name for name, _ in model.base_model.model.named_parameters() if "lora_E" in name]
    model.peft_config["default"].rank_pattern = {
        name: [(j + i) % INIT_R < ranks(i) for j in range(INIT_R)] for i, name in enumerate(names)
    }


def _by_peft(tmp: Path, name: str, kind: str) -> tuple[Path, Tensor]:
    """A directory PEFT wrote, and the logits PEFT gives with it."""
    make, options, targets = MODELS[name]
    tuned = fill_peft(get_peft_model(make(), _config(kind, options, targets)))
    if kind == "adalora":
        for name_, parameter in tuned.named_parameters():
            if "lora_E" in name_:  # masked, but still stored
                parameter.data[1] = 0
    if kind == "adalora-dead":
        _keep(tuned, lambda i: i % (INIT_R + 1))
    tuned.save_pretrained(tmp / "peft")
    return tmp / "peft", _peft_logits(make, tmp / "peft")


def _peft_logits(make: Make, directory: Path) -> Tensor:
    return logits(PeftModel.from_pretrained(make(), directory).eval())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_export_keeps_the_logits(tmp_path: Path, name: str, kind: str) -> None:
    make = MODELS[name][0]
    directory, expected = _by_peft(tmp_path, name, kind)
    without = logits(make())
    assert (expected - without).abs().max() > 0.01 * without.abs().max()
    for layout in ("exact", "padded"):
        export_adapter(directory, tmp_path / layout, layout=layout)
        assert_same(_peft_logits(make, tmp_path / layout), expected)
    config = read_json(tmp_path / "padded" / ADAPTER_CONFIG)
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["r"] == config["lora_alpha"]
    shapes = {t.shape for k, t in load_file(tmp_path / "padded" / ADAPTER_WEIGHTS).items()
              if "lora_A" in k}  # fmt: skip
    assert {shape[0] for shape in shapes} == {config["r"]}
    assert read_adapter(tmp_path / "padded").ranks() == read_adapter(tmp_path / "exact").ranks()


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama"])
def test_a_packed_adapter_gives_pefts_logits(tmp_path: Path, name: str) -> None:
    """Packed and unpacked, a rounded adapter gives the same logits to the bit."""
    make = MODELS[name][0]
    directory, expected = _by_peft(tmp_path, name, "lora")
    prune(directory, tmp_path / "small", bits=4)
    before = _peft_logits(make, tmp_path / "small")
    assert 0 < (before - expected).abs().max() < 0.5 * (logits(make()) - expected).abs().max()
    pack(tmp_path / "small", tmp_path / "small.safetensors")
    unpack(tmp_path / "small.safetensors", tmp_path / "again")
    assert torch.equal(_peft_logits(make, tmp_path / "again"), before)


def _trained_adalora(steps: int) -> Any:
    """A tiny BERT after so many steps of PEFT's own allocator."""
    torch.manual_seed(0)
    _, options, targets = MODELS["bert"]
    tuned = fill_peft(get_peft_model(tiny_bert(), _config("adalora", options, targets)))
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    ids = torch.randint(3, 60, (4, 6))
    for step in range(steps):
        tuned(input_ids=ids, labels=torch.tensor([0, 1, 2, 0])).loss.backward()
        optimizer.step()
        tuned.base_model.update_and_allocate(step)
        optimizer.zero_grad()
    return tuned


@pytest.mark.parametrize("steps", [0, 4, 10, 12])
def test_adalora_at_any_time_of_its_budget(tmp_path: Path, steps: int) -> None:
    tuned = _trained_adalora(steps)
    tuned.save_pretrained(tmp_path / "peft")
    expected = _peft_logits(tiny_bert, tmp_path / "peft")
    export_adapter(tmp_path / "peft", tmp_path / "out")
    assert_same(_peft_logits(tiny_bert, tmp_path / "out"), expected)
    pattern = read_json(tmp_path / "peft" / ADAPTER_CONFIG)["rank_pattern"]
    adapter = read_adapter(tmp_path / "out")
    assert set(adapter.ranks_start().values()) == {INIT_R}
    if steps >= 4:
        kept = {name.removesuffix(".lora_E"): sum(keep) for name, keep in pattern.items()}
        assert sum(kept.values()) < INIT_R * len(kept)
        assert all(rank <= kept[path] for path, rank in adapter.ranks().items())


def test_adalora_factors_are_pefts_updates(tmp_path: Path) -> None:
    _by_peft(tmp_path, "bert", "adalora-dead")
    loaded = PeftModel.from_pretrained(tiny_bert(), tmp_path / "peft")
    adapter = read_adapter(tmp_path / "peft")
    assert set(adapter.ranks().values()) == set(range(INIT_R + 1))
    for path, rank in adapter.ranks().items():
        update = loaded.base_model.model.get_submodule(path).get_delta_weight("default")
        if rank:
            worst = (adapter.layers[path].dense() - update).abs().max()
            assert worst <= 1e-6 * update.abs().max()
        else:
            assert path not in adapter.layers
            assert not update.any()


def test_adalora_with_a_stored_divisor(tmp_path: Path) -> None:
    """Some files hold `ranknum`; PEFT takes it from there."""
    directory, _ = _by_peft(tmp_path, "bert", "adalora")
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    for key in [key for key in tensors if key.endswith("lora_E")]:
        tensors[key.replace("lora_E", "ranknum")] = torch.tensor([2.0])
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    export_adapter(directory, tmp_path / "out")
    assert_same(_peft_logits(tiny_bert, tmp_path / "out"), _peft_logits(tiny_bert, directory))


def test_all_dead_adalora_loads_everywhere(tmp_path: Path) -> None:
    make, options, targets = MODELS["llama"]
    tuned = fill_peft(get_peft_model(make(), _config("adalora", options, targets)))
    _keep(tuned, lambda _: 0)
    tuned.save_pretrained(tmp_path / "peft")
    adapter = read_adapter(tmp_path / "peft")
    assert set(adapter.ranks().values()) == {0}
    assert len(adapter.ranks()) == 4
    for layout in ("exact", "padded"):
        done = export_adapter(tmp_path / "peft", tmp_path / layout, layout=layout)
        assert (done.modules, done.rank) == (1, 1)
        assert read_adapter(tmp_path / layout).ranks() == adapter.ranks()
        assert torch.equal(_peft_logits(make, tmp_path / layout), logits(make()))


@pytest.mark.parametrize("tied", [False, True])
def test_adapter_on_lm_head(tmp_path: Path, tied: bool) -> None:
    """PEFT also stores the base weight of lm_head then."""
    tiny_llama(tied=tied).save_pretrained(tmp_path / "base")
    model = type(tiny_llama()).from_pretrained(tmp_path / "base")
    config = LoraConfig(r=3, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    fill_peft(get_peft_model(model, config)).save_pretrained(tmp_path / "peft")
    with open_adapter(tmp_path / "peft") as file:
        assert "lm_head" in file.paths
        assert not file.full
    done = export_adapter(tmp_path / "peft", tmp_path / "out")
    assert done.notes[0].startswith("'lm_head.weight' is stored in full but equals")
    expected = _peft_logits(lambda: tiny_llama(tied=tied), tmp_path / "peft")
    assert_same(_peft_logits(lambda: tiny_llama(tied=tied), tmp_path / "out"), expected)


@pytest.mark.versions
@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.6"),
    reason="load_adapter of transformers 5.4 and 5.5 leaves PEFT's prefix in a tensor's name",
)
def test_transformers_loads_what_is_exported(tmp_path: Path) -> None:
    directory, expected = _by_peft(tmp_path, "gpt2", "rslora-patterns")
    export_adapter(directory, tmp_path / "out")
    model = tiny_gpt2()
    model.load_adapter(str(tmp_path / "out"))
    assert_same(logits(model.eval()), expected)


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 4e-2), ("float16", 5e-3)])
def test_dtypes(tmp_path: Path, dtype: str, error: float) -> None:
    directory, expected = _by_peft(tmp_path, "llama", "patterns")
    export_adapter(directory, tmp_path / "low", dtype=dtype)
    again = export_adapter(tmp_path / "low", tmp_path / "again", layout="padded")
    assert again.dtype == dtype
    stored = load_file(tmp_path / "again" / ADAPTER_WEIGHTS)
    assert {str(t.dtype) for t in stored.values()} == {f"torch.{dtype}"}
    worst = (_peft_logits(tiny_llama, tmp_path / "again") - expected).abs().max()
    assert worst <= error * expected.abs().max()


def test_order_of_overlapping_patterns_is_pefts(tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "down_proj"],
        alpha_pattern={"layers.1.*": 3, "q_proj": 20},
    )
    fill_peft(get_peft_model(tiny_llama(), config)).save_pretrained(tmp_path / "peft")
    raw = read_json(tmp_path / "peft" / ADAPTER_CONFIG)
    for i, order in enumerate((["layers.1.*", "q_proj"], ["q_proj", "layers.1.*"])):
        raw["alpha_pattern"] = {key: {"layers.1.*": 3, "q_proj": 20}[key] for key in order}
        write_json(tmp_path / "peft" / ADAPTER_CONFIG, raw)
        done = export_adapter(tmp_path / "peft", tmp_path / f"out{i}")
        assert f"'{order[0]}' and '{order[1]}' both match" in done.notes[0]
        expected = _peft_logits(tiny_llama, tmp_path / "peft")
        assert_same(_peft_logits(tiny_llama, tmp_path / f"out{i}"), expected)


REFUSED: dict[str, dict[str, Any]] = {
    "pissa": {"init_lora_weights": "pissa"},
    "bias of B": {"lora_bias": True},
    "replication": {"layer_replication": [[0, 2], [0, 2]]},
}


@pytest.mark.parametrize("kind", REFUSED)
def test_variants_of_lora_are_refused(tmp_path: Path, kind: str) -> None:
    config = LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **REFUSED[kind]})
    get_peft_model(tiny_llama(), config).save_pretrained(tmp_path / "peft")
    with refusal():
        read_adapter(tmp_path / "peft")


def _others() -> dict[str, Any]:
    import peft

    targets = {"target_modules": ["q_proj"]}
    return {
        "IA3": peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[]),
        "VERA": peft.VeraConfig(r=2, **targets),
        "OFT": peft.OFTConfig(r=2, oft_block_size=0, **targets),
        "LN_TUNING": peft.LNTuningConfig(target_modules=["input_layernorm"]),
        "PREFIX_TUNING": peft.PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
    }


@pytest.mark.parametrize("kind", _others())
def test_other_methods_are_refused(tmp_path: Path, kind: str) -> None:
    get_peft_model(tiny_llama(), _others()[kind]).save_pretrained(tmp_path / "peft")
    with pytest.raises(SoraError, match=f"this is an? {kind} adapter: (it|its|all)"):
        read_adapter(tmp_path / "peft")


def test_several_adapters_of_one_model(tmp_path: Path) -> None:
    tuned = get_peft_model(tiny_llama(), LoraConfig(target_modules=["q_proj"]), adapter_name="one")
    tuned.add_adapter("two", LoraConfig(target_modules=["v_proj"]))
    tuned.save_pretrained(tmp_path / "peft")
    with pytest.raises(SoraError, match=r"there are adapters in .*one, .*two"):
        read_adapter(tmp_path / "peft")
    assert list(read_adapter(tmp_path / "peft" / "two").ranks()) == [
        f"model.layers.{i}.self_attn.v_proj" for i in range(2)
    ]
