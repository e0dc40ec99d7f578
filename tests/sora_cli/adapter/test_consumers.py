"""Who can load a directory: each rule of each program, from configurations as they are found."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.consumers import Consumer, consumers
from sora_cli.adapter.directory import write_adapter
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.parts.kinds import peft_types
from sora_cli.adapter.peft.config import parse_config
from sora_cli.adapter.programs import program
from sora_cli.adapter.reading import open_adapter
from tests.golden import told

PATHS = "layers.0.q", "layers.0.v", "layers.1.q"


def verdicts(
    ranks: dict[str, int] | None = None,
    *,
    head: tuple[str, ...] = (),
    base_config: dict[str, object] | None = None,
    tables: tuple[str, ...] = (),
    **config: object,
) -> dict[str, Consumer]:
    raw = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "org/base",
           "r": 16, "lora_alpha": 32, **config}  # fmt: skip
    parsed = parse_config(raw, "adapter_config.json", peft_types())
    if ranks is None:
        ranks = {path: parsed.rank(path) for path in PATHS}
    found = consumers(
        parsed, ranks, head=head, directory="out", base_config=base_config, tables=tables
    )
    assert [c.name for c in found] == [
        *("PEFT", "transformers", "vLLM", "llama.cpp"),
        *(["Ollama"] if parsed.task_type == "CAUSAL_LM" else ()),
    ]
    return {c.name: c for c in found}


def loading(found: dict[str, Consumer]) -> set[str]:
    return {name for name, verdict in found.items() if verdict.loads}


def test_a_plain_lora_loads_everywhere() -> None:
    found = verdicts()
    assert loading(found) == {"PEFT", "transformers", "vLLM", "llama.cpp"}
    assert "vllm serve org/base" in found["vLLM"].advice
    assert "--max-lora-rank 16 " in found["vLLM"].advice
    assert found["llama.cpp"].advice == (
        "sora export out -o adapter.gguf --format gguf, or "
        "convert_lora_to_gguf.py out --base org/base"
    )
    assert "0.15" not in found["PEFT"].advice


@pytest.mark.parametrize(
    ("r", "option"),
    [(1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (65, 128), (257, 320), (512, 512)],
)
def test_the_smallest_max_lora_rank_that_fits(r: int, option: int) -> None:
    assert option in program("vLLM").steps
    assert f"--max-lora-rank {option} " in verdicts(r=r)["vLLM"].advice


def test_too_large_for_vllm() -> None:
    found = verdicts(r=513)
    assert loading(found) == {"PEFT", "transformers", "llama.cpp"}
    assert "sora prune out -o OUT --rank 512" in found["vLLM"].advice


def test_vllm_compares_the_option_with_r_even_where_all_modules_are_smaller() -> None:
    found = verdicts(
        dict.fromkeys(PATHS, 4), r=64, lora_alpha=64, rank_pattern={".*": 4},
        alpha_pattern={".*": 4},
    )  # fmt: skip
    assert "--max-lora-rank 64 " in found["vLLM"].advice


def ours(directory: Path, ranks: dict[str, int]) -> dict[str, Consumer]:
    """What is said of a directory that `write_adapter` wrote."""
    layers = {p: LowRankFactors(torch.ones(r, 16), torch.ones(8, r)) for p, r in ranks.items()}
    base = BaseReference("org/base", "org/base")
    write_adapter(directory, Adapter.of(layers, {}, (), "CAUSAL_LM", base))
    with open_adapter(directory) as file:
        found = consumers(
            file.source.config, file.stored_ranks, head=file.head_modules, directory="out"
        )
    return {c.name: c for c in found}


def test_our_exact_layout_with_mixed_ranks(tmp_path: Path) -> None:
    """Scaling folded: right with one alpha / r, wrong with alpha / rank of each tensor."""
    found = ours(tmp_path / "a", {"layers.0.q": 12, "layers.0.v": 3, "layers.1.q": 1})
    assert loading(found) == {"PEFT", "transformers", "vLLM"}
    assert "--max-lora-rank 16 " in found["vLLM"].advice
    assert "sora export out -o adapter.gguf --format gguf" in found["llama.cpp"].advice
    assert found["Ollama"].advice == (
        "sora export out -o adapter.gguf --format gguf first, "
        "then ollama create NAME -f adapter.Modelfile"
    )
    assert "from PEFT 0.15 on" in found["PEFT"].advice  # older ones match no anchored pattern


def test_our_exact_layout_with_one_rank_needs_nothing(tmp_path: Path) -> None:
    assert len(loading(ours(tmp_path / "a", dict.fromkeys(PATHS, 5)))) == 4


@pytest.mark.parametrize(
    "patterns",
    [
        {"alpha_pattern": {"layers.1.q": 7}},
        {"rank_pattern": {"v": 4}, "alpha_pattern": {"v": 7}},
        {"rank_pattern": {"q": 8}, "use_rslora": True},
    ],
)
def test_patterns_that_vllm_and_llama_cpp_ignore(patterns: dict[str, object]) -> None:
    found = verdicts(**patterns)
    assert loading(found) == {"PEFT", "transformers"}
    assert "sora export out -o OUT first" in found["vLLM"].advice
    assert "sora export out -o adapter.gguf --format gguf first" in found["llama.cpp"].advice


def test_rank_pattern_alone() -> None:
    """alpha / r is then 32 / 4 for one module, which is what llama.cpp takes; vLLM takes 2."""
    assert loading(verdicts(rank_pattern={"v": 4})) == {"PEFT", "transformers", "llama.cpp"}


def test_rank_pattern_that_keeps_one_strength() -> None:
    """rank 4 with alpha 8 is 2, and so is 32 / 16; llama.cpp takes 32 / 4."""
    found = verdicts(rank_pattern={"v": 4}, alpha_pattern={"v": 8})
    assert loading(found) == {"PEFT", "transformers", "vLLM"}


def test_rslora_with_one_rank() -> None:
    """vLLM knows rsLoRA; llama.cpp takes alpha / rank, unless that is the same: rank 1."""
    assert loading(verdicts(use_rslora=True)) == {"PEFT", "transformers", "vLLM"}
    assert len(loading(verdicts(use_rslora=True, r=1))) == 4


def test_a_classifier() -> None:
    found = verdicts(head=("score",), task_type="SEQ_CLS", modules_to_save=["score"])
    assert loading(found) == {"PEFT", "transformers"}
    assert "--runner pooling --convert classify --max-lora-rank 16" in found["vLLM"].advice
    assert "sora merge" in found["llama.cpp"].advice
    head = ("bert.pooler", "classifier")
    found = verdicts(head=head, task_type="SEQ_CLS", modules_to_save=list(head))
    assert found["vLLM"].advice.startswith("refuses bert.pooler, classifier, stored in full")


LAYER = {"layers.0.self_attn.q_proj": 16}


def test_vectors_of_a_decoder_need_an_option() -> None:
    """Without it vLLM loads the adapter, finds no layer of its names, and answers as the base."""
    for task_type, ranks in (("FEATURE_EXTRACTION", None), (None, LAYER)):
        advice = verdicts(ranks, task_type=task_type)["vLLM"].advice
        assert advice.startswith("vllm serve org/base --runner pooling --enable-lora ")
    assert "pooling" not in verdicts({"model.layers.0.self_attn.q_proj": 16})["vLLM"].advice


@pytest.mark.parametrize(
    ("kind", "path", "taken"),
    [
        ("llama", "lm_head", True),
        ("llama", "model.embed_tokens", True),
        ("qwen2", "lm_head", False),
        ("qwen2", "model.embed_tokens", False),
        (None, "lm_head", False),
        ("llama", "model.wte", False),
    ],
)
def test_vllm_takes_embeddings_of_some_kinds(kind: str | None, path: str, taken: bool) -> None:
    tables = () if path == "lm_head" else (path,)
    found = verdicts({path: 16}, base_config={"model_type": kind}, tables=tables)
    assert found["vLLM"].loads == taken
    assert taken or found["vLLM"].advice.startswith(f"refuses factors of {path}: sora merge")
    assert found["llama.cpp"].loads == (path == "lm_head")


def test_a_class_of_the_base_that_vllm_serves_without_adapters() -> None:
    named = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
    advice = verdicts(BERT, base_config=named)["vLLM"].advice
    assert advice.startswith("takes no adapters for BertForSequenceClassification models")
    assert verdicts(BERT, base_config={**named, "architectures": ["BertModel"]})["vLLM"].loads


def test_vllm_refuses_a_bias_that_no_layer_has() -> None:
    found = verdicts(bias="all")
    assert found["vLLM"].advice == "refuses bias: all: sora export out -o OUT first"
    assert found["llama.cpp"].loads


def expert(number: int, ranks: tuple[int, int, int]) -> dict[str, int]:
    names = ("gate_proj", "up_proj", "down_proj")
    return {
        f"model.layers.0.mlp.experts.{number}.{n}": r for n, r in zip(names, ranks, strict=True)
    }


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        (expert(0, (16,) * 3) | expert(1, (16,) * 3), ""),
        (expert(0, (16, 8, 4)) | expert(1, (16, 8, 4)), ""),
        (expert(0, (16,) * 3), "for each weight of each expert: sora merge"),
        (dict([*expert(0, (16,) * 3).items(), *expert(1, (16,) * 3).items()][1:]), "sora merge"),
        (expert(0, (16,) * 3) | expert(1, (8,) * 3), "sora export out -o OUT --layout padded"),
    ],
)
def test_vllm_takes_experts_whole(ranks: dict[str, int], words: str) -> None:
    config = {"model_type": "qwen3_moe", "num_experts": 2}
    verdict = verdicts(ranks, base_config=config, r=16, lora_alpha=16)["vLLM"]
    assert verdict.loads == (not words)
    assert words in verdict.advice


def test_an_output_layer_in_full() -> None:
    found = verdicts(head=("lm_head",), modules_to_save=["lm_head"])
    assert loading(found) == {"PEFT", "transformers"}
    for name in ("vLLM", "llama.cpp"):
        assert "refuses lm_head" in found[name].advice


def test_adapters_of_peft_s_adalora_are_exported_first() -> None:
    found = verdicts(
        dict.fromkeys(PATHS, 3), peft_type="ADALORA", init_r=6, lora_alpha=12,
        rank_pattern={f"{path}.lora_E": [True] * 3 + [False] * 3 for path in PATHS},
    )  # fmt: skip
    assert loading(found) == {"PEFT"}
    for name in ("transformers", "vLLM", "llama.cpp"):
        assert "sora export" in found[name].advice


def test_a_head_that_no_export_would_help() -> None:
    pattern = {f"{path}.lora_E": [True] * 2 for path in PATHS}
    found = verdicts(dict.fromkeys(PATHS, 2), head=("lm_head",), peft_type="ADALORA", init_r=2,
                     rank_pattern=pattern, modules_to_save=["lm_head"])  # fmt: skip
    for name in ("vLLM", "llama.cpp"):
        assert "sora merge first" in found[name].advice


def test_random_factors_for_missing_modules_are_told() -> None:
    for init in (False, "orthogonal"):
        assert "random" in verdicts(init_lora_weights=init)["PEFT"].advice


def test_scaling_is_compared_as_numbers() -> None:
    assert len(loading(verdicts(r=3, lora_alpha=math.pi, rank_pattern={"v": 3}))) == 4


LLAMA = {"model.layers.0.self_attn.q_proj": 16, "model.layers.31.mlp.down_proj": 16}
BERT = {"bert.encoder.layer.0.attention.self.query": 16}


@pytest.mark.parametrize(
    ("ranks", "base_config", "words"),
    [
        (LLAMA, {"model_type": "llama"}, "convert_lora_to_gguf.py"),
        (LLAMA, {"model_type": "mistral"}, "convert_lora_to_gguf.py"),
        (LLAMA, {"model_type": "gemma3_text", "tie_word_embeddings": True}, "convert_lora"),
        (BERT, {"model_type": "bert"}, "convert_lora_to_gguf.py"),
        (LLAMA, {"model_type": "bart"}, "knows no bart models: sora merge"),
        (LLAMA, {"model_type": "t5"}, "has no place for model.layers.0.self_attn.q_proj of a t5"),
        ({**LLAMA, "lm_head": 16}, {"model_type": "llama"}, "convert_lora_to_gguf.py"),
        (
            {**LLAMA, "lm_head": 16},
            {"model_type": "llama", "tie_word_embeddings": True},
            "cannot adapt lm_head, which is tied",
        ),
        (LLAMA, {}, "convert_lora_to_gguf.py"),
    ],
)
def test_llama_cpp_must_know_the_layers(
    ranks: dict[str, int], base_config: dict[str, object], words: str
) -> None:
    verdict = verdicts(ranks, base_config=base_config)["llama.cpp"]
    assert words in verdict.advice
    assert verdict.loads == ("convert" in words)


def test_vllm_refuses_fused_layers_of_glm4() -> None:
    ranks = {"model.layers.0.mlp.gate_up_proj": 16, **LLAMA}
    verdict = verdicts(ranks, base_config={"model_type": "glm4"})["vLLM"]
    assert not verdict.loads
    told(verdict.advice)
    assert verdicts(LLAMA, base_config={"model_type": "glm4"})["vLLM"].loads
    assert verdicts(ranks, base_config={"model_type": "phi3"})["vLLM"].loads


def test_vllm_runs_a_model_for_text_and_images_whole() -> None:
    """An adapter of its decoder alone has names that vLLM does not find, and drops."""
    whole = {"model_type": "qwen3_5", "text_config": {},
             "architectures": ["Qwen3_5ForConditionalGeneration"]}  # fmt: skip
    verdict = verdicts(LLAMA, base_config=whole)["vLLM"]
    assert not verdict.loads
    told(verdict.advice)
    inside = {f"model.language_model.{path.removeprefix('model.')}": 16 for path in LLAMA}
    assert verdicts(inside, base_config=whole)["vLLM"].loads
    assert verdicts(LLAMA, base_config={"model_type": "qwen3_5_text"})["vLLM"].loads


MLP = {"model.layers.0.mlp.gate_proj": 16, "model.layers.0.mlp.up_proj": 16}


@pytest.mark.parametrize(
    ("ranks", "model_type", "words"),
    [
        (MLP, "qwen3_next", "model.layers.0.mlp.gate_proj and 1 more: lost by PEFT"),
        ({"backbone.layers.0.mixer.out_proj": 16}, "mamba2", "refused by PEFT"),
        (dict.fromkeys(["model.layers.0.mlp.experts.3.up_proj"], 16), "qwen3_moe", None),
        (MLP, "llama", None),
    ],
)
def test_what_peft_does_not_load(ranks: dict[str, int], model_type: str, words: str | None) -> None:
    found = verdicts(ranks, base_config={"model_type": model_type})
    for name in ("PEFT", "transformers"):
        assert found[name].loads == (words is None)
        assert words is None or (words in found[name].advice and "merge" in found[name].advice)


def test_a_base_in_a_gguf_file_has_no_config_to_convert_by() -> None:
    advice = verdicts(base_model_name_or_path="/models/a.gguf")["llama.cpp"].advice
    assert "config.json of the model the GGUF file was made from" in advice


def test_vllm_takes_no_base_in_a_gguf_file() -> None:
    base = "package://made/model.Q4_1.GGUF"
    found = verdicts(base_model_name_or_path=base)
    assert loading(found) == {"PEFT", "transformers", "llama.cpp"}
    assert found["vLLM"].advice == "takes no GGUF file as the base model: sora merge first"
    # factors of several strengths, which an export would mend, are no way out
    uneven = verdicts(base_model_name_or_path=base, alpha_pattern={"q": 5})
    assert uneven["vLLM"] == found["vLLM"]


def test_vllm_serves_no_text_to_text_model() -> None:
    assert loading(verdicts(task_type="SEQ_2_SEQ_LM")) == {"PEFT", "transformers", "llama.cpp"}


@pytest.mark.parametrize("model_type", ["falcon", "gpt2", "clip"])
def test_vllm_serves_some_models_without_adapters(model_type: str) -> None:
    found = verdicts(BERT, base_config={"model_type": model_type}, task_type="SEQ_CLS",
                     head=("classifier",))  # fmt: skip
    assert found["vLLM"].advice == f"takes no adapters for {model_type} models: sora merge first"
    assert not found["vLLM"].loads
    assert verdicts(LLAMA, base_config={"model_type": "llama"})["vLLM"].loads


@pytest.mark.parametrize(("installed", "loads"), [("5.5.2", False), ("5.6.0", True)])
def test_transformers_that_lose_the_prefix(
    installed: str, loads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of 5.4 and 5.5 fail on every plain LoRA: tests/interop/test_export.py."""
    monkeypatch.setattr("sora_cli.adapter.consumers.installed", lambda _: installed)
    found = verdicts()["transformers"]
    assert found.loads == loads
    assert "5.6" in found.advice
