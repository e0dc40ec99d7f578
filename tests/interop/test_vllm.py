"""What vLLM does with adapters, beside what `sora inspect` says of them.

`make test-vllm` runs these tests, in an environment with vLLM; elsewhere they are skipped. Each
adapter is served right (the numbers are PEFT's, or our own model's), or refused. What the server
applies wrongly, or not at all, without a word is a case of its own, and `inspect` warns of it.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

if importlib.util.find_spec("vllm") is None:
    pytest.skip("needs vLLM: make test-vllm", allow_module_level=True)

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"

import torch
import transformers
from peft import LoHaConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from sora_cli.adapter.consumers import Consumer, consumers_of
from sora_cli.adapter.export import export_adapter
from sora_cli.adapter.programs import program
from sora_cli.adapter.reading import open_adapter
from sora_cli.app import run
from tests.interop.helpers_vllm import (
    CAUSAL,
    PROMPTS,
    QVD,
    WIDTH,
    Case,
    Engine,
    Load,
    engine,
    far,
    next_token,
    ours,
    write,
    write_base,
)

pytestmark = pytest.mark.long
CLOSE = 1e-4
"""Largest difference between log-probabilities that rounding explains; effects are above 1."""
BARE = transformers.AutoModel.from_pretrained
CLASSES = transformers.AutoModelForSequenceClassification.from_pretrained


def grown(load: Load, rows: int) -> Load:
    def loaded(base: Path) -> Any:
        model = load(base)
        if rows:
            model.resize_token_embeddings(model.config.vocab_size + rows)
        return model

    return loaded


def says(adapter: Path) -> Consumer:
    with open_adapter(adapter) as file:
        return next(found for found in consumers_of(file) if found.name == "vLLM")


def peft(base: Path, adapter: Path, load: Load = CAUSAL) -> Any:
    return PeftModel.from_pretrained(load(base), adapter).eval()


def check(model: Engine, base: Path, adapter: Path, case: Case, load: Load) -> None:
    """One adapter: what vLLM does, and what we say."""
    verdict = says(adapter)
    assert verdict.loads == (not case.says), verdict.advice
    assert case.says in verdict.advice
    if case.refused:
        with pytest.raises(Exception, match=case.refused):
            model.load(adapter)
        return
    expected, alone = next_token(peft(base, adapter, load)), next_token(load(base))
    assert far(expected, alone) > 0.1
    answers = model.next_token(model.load(adapter))
    assert far(answers, expected) < CLOSE


OLD, FULL = "before 0.32 applies one alpha / r", "only supports modules_to_save being either None"
CASES = {
    "plain": Case({"target_modules": "all-linear"}),
    "rslora": Case({"use_rslora": True}),
    "rslora, ranks vary": Case({"use_rslora": True, "rank_pattern": {"q_proj": 2}}, says=OLD),
    "ranks vary": Case({"rank_pattern": {"q_proj": 2}}, says=OLD),
    "strengths vary": Case({"alpha_pattern": {"v_proj": 3}}, says=OLD),
    "ranks vary, one strength": Case(
        {"lora_alpha": 8, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 4}}
    ),
    "one module": Case({"target_modules": ["gate_proj"]}),
    "one layer": Case({"layers_to_transform": [1]}),
    "rank 8": Case({"r": 8}),
    "rank 9": Case({"r": 9}, "LoRA rank 9 is greater than max_lora_rank 8"),
    "r that no module has": Case(
        {"r": 64, "lora_alpha": 64, "rank_pattern": {".*": 4}, "alpha_pattern": {".*": 4}},
        "LoRA rank 64 is greater than max_lora_rank 8",
    ),
    "embedding": Case({"target_modules": ["embed_tokens", "q_proj"]}),
    "lm_head": Case({"target_modules": ["lm_head", "q_proj"]}),
    "both": Case({"target_modules": ["embed_tokens", "lm_head"]}),
    "rows of tokens": Case(
        {"trainable_token_indices": [3, 5]}, "trainable_tokens_delta is unsupported",
        "refuses trained rows of an embedding",
    ),
    "new tokens in full": Case(
        {"modules_to_save": ["embed_tokens", "lm_head"]}, FULL, "stored in full", grow=6
    ),
    "new tokens, factors": Case(
        {"target_modules": ["embed_tokens"]}, "must be consistent with the base model's vocabulary",
        "model.embed_tokens.weight, stored in full", grow=6,
    ),
    "new tokens, untrained": Case(
        {}, "lm_head.weight is unsupported", "lm_head.weight, stored in full", grow=6
    ),
    "output layer in full": Case({"modules_to_save": ["lm_head"]}, FULL, "refuses lm_head"),
    "norms in full": Case({"modules_to_save": ["norm"]}, FULL, "stored in full"),
    "bias, of a model without": Case(
        {"bias": "all"}, "Adapter bias is not supported", "refuses bias: all: sora export"
    ),
    "dora": Case({"use_dora": True}, "does not yet support DoRA", "DoRA"),
    "initialised otherwise": Case({"init_lora_weights": False}),
    "loha": Case({"alpha": 6, "r": 2}, "Missing required configuration", "sora export", LoHaConfig),
}  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("llama") / "base", "llama", "LlamaForCausalLM")


@pytest.fixture(scope="module", params=["untied", "tied"])
def running(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Engine, Path]]:
    folder, tied = tmp_path_factory.mktemp(request.param), request.param == "tied"
    base = write_base(folder / "base", "llama", "LlamaForCausalLM", tie_word_embeddings=tied)
    with engine(base, max_logprobs=-1) as made:
        yield made, base


@pytest.mark.parametrize("name", CASES)
def test_rules(running: tuple[Engine, Path], name: str, tmp_path: Path) -> None:
    (model, base), case = running, CASES[name]
    load = grown(CAUSAL, case.grow)
    adapter = write(base, case, tmp_path / "adapter", load)
    check(model, base, adapter, case, load)
    if says(adapter).step == "exact":  # what inspect advises is served, and right
        for layout in ("exact", "padded"):
            export_adapter(adapter, tmp_path / layout, layout=layout)
            assert says(tmp_path / layout).loads
            answers = model.next_token(model.load(tmp_path / layout))
            assert far(answers, next_token(peft(base, adapter))) < CLOSE


def test_our_own(running: tuple[Engine, Path], tmp_path: Path) -> None:
    """Ranks that vary with modules left out; padded, cut, rounded; two in a batch."""
    model, base = running
    adapter, expected = ours(base, tmp_path / "adapter")
    assert far(expected, next_token(CAUSAL(base))) > 0.1
    one = model.load(adapter)
    assert far(model.next_token(one), expected) < CLOSE
    export_adapter(adapter, tmp_path / "padded", layout="padded")
    assert far(model.next_token(model.load(tmp_path / "padded")), expected) < CLOSE
    for name, options in (("cut", ["--mean-rank", "1"]), ("rounded", ["--bits", "4"])):
        assert run(["prune", str(adapter), "-o", str(tmp_path / name), *options]) == 0
        assert says(tmp_path / name).loads
        answers = model.next_token(model.load(tmp_path / name))
        assert far(answers, next_token(peft(base, tmp_path / name))) < CLOSE
    other, others = ours(base, tmp_path / "other", seed=1)
    two = model.load(other)
    assert far(model.next_token(two, one), [*others, *expected]) < CLOSE


def test_the_bare_base_in_a_batch_with_adapters(
    running: tuple[Engine, Path], tmp_path: Path
) -> None:
    """Served wrong: on the CPU the base's slot, -1, is the last one, with the adapter in it."""
    model, base = running
    (adapter, first), (other, last) = (ours(base, tmp_path / str(i), seed=i) for i in (0, 1))
    one, two = model.load(adapter), model.load(other)
    bare = next_token(CAUSAL(base))
    assert far(model.next_token(None), bare) < CLOSE  # alone it is right
    slots = model.slots()
    in_last = last if slots[-1] == two.lora_int_id else first
    assert far(model.next_token(one, None)[3:], in_last) < CLOSE
    assert far(in_last, bare) > 0.1


def test_one_slot_more_than_adapters(llama: Path, tmp_path: Path) -> None:
    """Then the last slot is empty, and the bare base right."""
    with engine(llama, max_logprobs=-1, max_loras=3) as model:
        loaded = [model.load(ours(llama, tmp_path / str(i), seed=i)[0]) for i in (0, 1)]
        answers = model.next_token(*loaded, None)
        assert far(answers[6:], next_token(CAUSAL(llama))) < CLOSE


HEADS = "expected target modules in"
KINDS: dict[str, dict[str, Case]] = {
    "qwen2": {
        "plain": Case({"target_modules": "all-linear"}),
        "lm_head": Case({"target_modules": ["lm_head"]}, HEADS, "refuses factors of lm_head"),
        "embedding": Case({"target_modules": ["embed_tokens"]}, HEADS,
                          "refuses factors of model.embed_tokens"),
    },
    "qwen3": {"plain": Case({"target_modules": "all-linear"}),
              "both": Case({"target_modules": ["embed_tokens", "lm_head"]})},
    "phi3": {"fused": Case({"target_modules": ["qkv_proj", "gate_up_proj"]})},
    "gemma3_text": {"plain": Case({"target_modules": "all-linear"})},
}  # fmt: skip
CLASS = {"qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "phi3": "Phi3ForCausalLM",
         "gemma3_text": "Gemma3ForCausalLM"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds(kind: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", kind, CLASS[kind])
    with engine(base, max_logprobs=-1) as model:
        for name, case in KINDS[kind].items():
            adapter = write(base, case, tmp_path / name, CAUSAL)
            check(model, base, adapter, case, CAUSAL)


@dataclass(frozen=True)
class Pooled:
    """An adapter of a model that gives a vector, or probabilities of classes.

    Attributes:
        base: model type and class of the base.
        options: of PEFT's configuration, and of the engine.
        task: of vLLM's pooling.
        load: the model that is trained.
        refused: vLLM's words about the adapter, or about the base.
        says: words of `inspect`.
    """

    base: tuple[str, str]
    options: dict[str, Any]
    task: str = "embed"
    load: Load = BARE
    refused: str = ""
    says: str = ""
    engine: dict[str, Any] = field(default_factory=dict)


QV = {"target_modules": ["query", "value"], "task_type": "FEATURE_EXTRACTION"}
ALL = {**QV, "target_modules": "all-linear"}
VECTOR = {"target_modules": QVD, "task_type": "FEATURE_EXTRACTION"}
LABELLED = {"target_modules": ["query"], "task_type": "SEQ_CLS"}
SCORED = {"target_modules": QVD, "task_type": "SEQ_CLS"}
NO_CLASS = "does not support LoRA yet"
POOLED = {
    "bert": Pooled(("bert", "BertModel"), ALL),
    "bert, word embeddings": Pooled(
        ("bert", "BertModel"), {**QV, "target_modules": ["word_embeddings"]},
        refused=HEADS, says="refuses factors of embeddings.word_embeddings",
    ),
    "bert with its output layer": Pooled(
        ("bert", "BertForMaskedLM"), QV, refused=NO_CLASS,
        says="takes no adapters for BertForMaskedLM",
    ),
    "bert with a classifier": Pooled(
        ("bert", "BertForSequenceClassification"), LABELLED, "classify", CLASSES, NO_CLASS,
        "takes no adapters for BertForSequenceClassification",
    ),
    "roberta": Pooled(("roberta", "RobertaModel"), ALL),
    "roberta with its output layer": Pooled(("roberta", "RobertaForMaskedLM"), ALL),
    "roberta with a classifier": Pooled(
        ("roberta", "RobertaForSequenceClassification"), LABELLED, "classify", CLASSES,
        "classifier.dense.bias is unsupported", "refuses classifier, stored in full",
    ),
    "llama": Pooled(("llama", "LlamaModel"), VECTOR),
    "llama that generates": Pooled(("llama", "LlamaForCausalLM"), VECTOR),
    "llama with a score": Pooled(
        ("llama", "LlamaForCausalLM"), SCORED, "classify",
        lambda base: CLASSES(base, num_labels=3), says="--runner pooling --convert classify",
        engine={"convert": "classify", "max_lora_cls_labels": 3},
    ),
}  # fmt: skip


@torch.no_grad()
def pooled(case: Pooled, model: Any) -> list[Tensor]:
    outputs = [model.eval()(input_ids=torch.tensor([ids])) for ids in PROMPTS]
    if case.task == "classify":
        return [output.logits[0].float().softmax(-1) for output in outputs]
    token = -1 if case.base[0] == "llama" else 0
    vectors = [output.last_hidden_state[0, token].float() for output in outputs]
    return [torch.nn.functional.normalize(vector, dim=-1) for vector in vectors]


@pytest.mark.parametrize("name", POOLED)
def test_pooling(name: str, tmp_path: Path) -> None:
    case = POOLED[name]
    base = write_base(tmp_path / "base", *case.base)
    adapter = write(base, Case(case.options), tmp_path / "adapter", case.load)
    verdict = says(adapter)
    assert verdict.loads == (not case.says), verdict.advice
    assert case.says in verdict.advice
    if case.refused:
        with pytest.raises(Exception, match=case.refused), engine(base, runner="pooling") as model:
            model.load(adapter)
        return
    assert ("--runner pooling" in verdict.advice) == (case.base[0] == "llama" or not case.says)
    expected = pooled(case, peft(base, adapter, case.load))
    with engine(base, runner="pooling", **case.engine) as model:
        assert far(model.pooled(model.load(adapter), case.task), expected) < CLOSE
    if case.task == "embed":
        assert far(expected, pooled(case, case.load(base))) > 0.01


def test_vectors_from_a_server_of_texts(llama: Path, tmp_path: Path) -> None:
    """Served wrong: without --runner pooling, names of a model without a head match no layer."""
    adapter = write(llama, Case(VECTOR), tmp_path / "adapter", BARE)
    unknown = write(llama, Case({**VECTOR, "task_type": None}), tmp_path / "unknown", BARE)
    with engine(llama, max_logprobs=-1) as model:
        for place in (adapter, unknown):
            loaded = model.load(place)
            assert not model.adapted(loaded)
            assert far(model.next_token(loaded), next_token(CAUSAL(llama))) < CLOSE
            assert " --runner pooling " in says(place).advice


def apart(base: Path, folder: Path, block: str, names: tuple[str, str, str]) -> Path:
    """An adapter with a pair of factors for each weight of each expert, as PEFT wrote before."""
    config = CAUSAL(base).config
    inner, tensors = config.to_dict().get("moe_intermediate_size") or config.intermediate_size, {}
    for layer in range(config.num_hidden_layers):
        for i, name in enumerate(names * config.num_local_experts):
            n_in, n_out = (inner, WIDTH) if i % 3 == 2 else (WIDTH, inner)
            key = f"base_model.model.model.layers.{layer}.{block}.experts.{i // 3}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.full((4, n_in), 0.1)
            tensors[f"{key}.lora_B.weight"] = torch.full((n_out, 4), 0.1)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    stored = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 4,
              "target_modules": list(names), "base_model_name_or_path": str(base)}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(stored))
    return folder


def without(adapter: Path, folder: Path, keep: Callable[[str], bool], rows: int = 4) -> Path:
    """A copy with some of the tensors, or with fewer components in the others."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    for key, tensor in tensors.items():
        if not keep(key):
            tensors[key] = tensor[:rows] if "lora_A" in key else tensor[:, :rows].contiguous()
    kept = {key: tensor for key, tensor in tensors.items() if tensor.numel()}
    folder.mkdir()
    save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    stored = json.loads((adapter / "adapter_config.json").read_text())
    if rows:
        stored["rank_pattern"] = {r"experts\.1\.\w+": rows}
        stored["alpha_pattern"] = {r"experts\.1\.\w+": rows}
    (folder / "adapter_config.json").write_text(json.dumps(stored))
    return folder


MOE = {
    "mixtral": ("MixtralForCausalLM", "block_sparse_moe", ("w1", "w3", "w2")),
    "qwen3_moe": ("Qwen3MoeForCausalLM", "mlp", ("gate_proj", "up_proj", "down_proj")),
}


@pytest.mark.parametrize("kind", MOE)
def test_experts(kind: str, tmp_path: Path) -> None:
    """They load; the build for the CPU lacks the kernel that computes experts with adapters."""
    class_name, block, names = MOE[kind]
    more = {"mlp_only_layers": []} if kind == "qwen3_moe" else {}
    base = write_base(tmp_path / "base", kind, class_name, **more)
    layers = {f"model.layers.{i}.{block}.experts" for i in (0, 1)}
    fused = {
        "target_modules": ["q_proj"],
        "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
    }
    whole = apart(base, tmp_path / "apart", block, names)
    some = without(whole, tmp_path / "some", lambda key: ".1." not in key, rows=0)
    uneven = without(whole, tmp_path / "uneven", lambda key: "experts.1." not in key, rows=2)
    together = write(base, Case(fused), tmp_path / "fused", CAUSAL)
    with engine(base) as model:
        assert model.adapted(model.load(whole)) == layers
        assert says(whole).loads
        with pytest.raises(AssertionError):
            model.load(some)
        assert "only with factors for each weight of each expert" in says(some).advice
        with pytest.raises(ValueError, match="have different LoRA ranks"):
            model.load(uneven)
        assert "before 0.32" in says(uneven).advice or "one rank for all" in says(uneven).advice
        assert "may drop them silently" in says(together).advice
        if kind == "mixtral":  # loaded, and left out without a word
            found = model.adapted(model.load(together))
            assert found
            assert not any("experts" in path for path in found)
        else:
            with pytest.raises(ValueError, match="fused 3D MoE weights"):
                model.load(together)


def test_kinds_without_adapters() -> None:
    """The classes of our table, by vLLM's own."""
    from transformers.models.auto import modeling_auto
    from vllm import ModelRegistry
    from vllm.model_executor.models.interfaces import supports_lora

    rules, kinds = program("vLLM"), dict[str, dict[str, Any]]()
    known = {}
    for name, model in ModelRegistry.models.items():
        try:
            known[name] = model.load_model_cls()
        except Exception:  # needs a package that is not here
            continue
    for table in vars(modeling_auto):
        if table.endswith("MAPPING_NAMES"):
            for kind, named in getattr(modeling_auto, table).items():
                for name in (named,) if isinstance(named, str) else named:
                    if name in known:
                        kinds.setdefault(kind, {})[name] = known[name]
    for kind, classes in kinds.items():
        takes = {name: supports_lora(of_name) for name, of_name in classes.items()}
        if not any(takes.values()):
            assert kind in rules.without, kind
        elif kind != "modernbert":  # its model without a head alone takes adapters
            assert kind not in rules.without, kind
            assert {name for name, took in takes.items() if not took} <= rules.classes, kind
    for kind in rules.embeddings & kinds.keys():
        modules = [getattr(of_name, "embedding_modules", {}) for of_name in kinds[kind].values()]
        assert any({"embed_tokens", "lm_head"} <= set(of_one) for of_one in modules), kind
