"""What servers make of adapter directories: one table of data, with the version that was read.

`consumers` judges one directory by it, `serving_many` a set; docs/reference/servers.md is made
from it. None of these servers warns about a directory that it applies wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

_DECODER = frozenset(
    ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
)  # layers of Llama and its kin


@dataclass(frozen=True)
class Rules:
    """The rules of one server.

    Attributes:
        version: the version or commit that was read.
        files: its files that were read.
        read: the day on which they were read.
        strength: "module": of each module, as in PEFT; "tensor": `alpha / rank of the tensor`;
            "r": one `alpha / r` for all modules.
        rslora: it divides by the square root if the configuration says so.
        before: end of a sentence about older versions, if they have another strength.
        uneven: modules may have different ranks.
        every_layer: a kind of module has to be adapted in all layers of the model or in none; if
            not, the kind is ignored without a warning.
        modules: last parts of the paths that may be adapted; None: any.
        steps: the values of its option for the largest rank, ascending; empty: any rank.
        without: model types that it serves without adapters, or not at all.
        layout: of the directory that `sora export` writes for it: "exact" or "padded"; "gguf": a
            GGUF file.
        command: starts the server with one adapter; with BASE, DIR and RANK.
        many: starts it with several, as far as it was read; with BASE, RANK, COUNT and ITEMS.
        item: one of ITEMS, with NAME and DIR; `between` joins them.
        refused: characters that a directory in an item may not have.
        request: the part of a request that chooses an adapter, with NAME, DIR and ID.
    """

    name: str
    version: str
    files: str
    read: date
    strength: str
    layout: str
    command: str = ""
    rslora: bool = True
    before: str = ""
    uneven: bool = True
    every_layer: bool = False
    modules: frozenset[str] | None = None
    steps: tuple[int, ...] = ()
    without: frozenset[str] = frozenset()
    many: str = ""
    item: str = ""
    between: str = " "
    refused: str = ""
    request: str = ""

    def rank_option(self, rank: int) -> int:
        """Return the smallest value of its option for the largest rank that takes a rank."""
        return next((step for step in self.steps if step >= rank), rank)

    def is_old(self, today: date) -> bool:
        """Return true if the rules were read over a year ago."""
        return (today - self.read).days > 365


VLLM = Rules(
    name="vLLM",
    version="0.33.0",
    files="config/lora.py, lora/peft_helper.py, lora/layers, lora/model_manager.py, "
    "model_executor/models/registry.py",
    read=date(2026, 11, 29),
    strength="r",  # before 0.33, which is still in use
    before="before 0.33 applies one alpha / r to all modules",
    layout="exact",
    steps=(8, 16, 32, 64, 128, 256, 320, 512),  # newer versions also take 1
    # its classes without SupportsLoRA, by transformers' table of architectures; the last line:
    # removed from it. A kind that it does not know goes to its Transformers backend, with adapters.
    without=frozenset((
        "aria", "bloom", "clip", "cohere2_moe", "cohere2_vision", "cohere_asr", "dbrx", "falcon",
        "falcon_mamba", "gemma3n", "gemma3n_text", "gpt-sw3", "gpt2", "gptj", "gte", "kimi_linear",
        "llava_onevision", "mamba", "mamba2", "mimo_v2_flash", "minimax_m3_vl", "modernbert",
        "modernvbert", "nomic_bert", "openai_privacy_filter", "paddleocr_vl", "qwen2_audio",
        "siglip", "stablelm", "step3p7", "zamba2",
        "arctic", "aya_vision", "bamba", "chameleon", "dots1", "fuyu", "minimax", "mllama", "mpt",
        "persimmon",
    )),
    command="vllm serve BASE --enable-lora --max-lora-rank RANK --lora-modules adapter=DIR",
    many="vllm serve BASE --enable-lora --max-loras COUNT --max-lora-rank RANK "
    "--lora-modules ITEMS",
    item="NAME=DIR",
    refused=",",  # with a comma it is read as JSON
    request='"model": "NAME"',
)  # fmt: skip

LLAMA_CPP = Rules(
    name="llama.cpp",
    version="00dc8057",
    files="tools/server/README.md; convert_lora_to_gguf.py of 0b03adaa",
    read=date(2026, 11, 29),
    strength="tensor",
    rslora=False,
    layout="gguf",
    # At scale 0 until a request names one: all would be added up else, also with
    # --lora-init-without-apply (tried). Given twice, an option warns that only the last one counts.
    many="llama-server -m BASE --lora-scaled ITEMS",
    item="NAME.gguf:0",
    between=",",
    request='"lora": [{"id": ID, "scale": 1.0}]',
)

OLLAMA = Rules(
    name="Ollama",
    version="fb307609",
    files="llm/llama_server.go, convert/",
    read=date(2026, 11, 27),
    strength="tensor",
    rslora=False,
    layout="gguf",
)

SERVERS = (
    Rules(
        name="SGLang",
        version="0.5.23",
        files="srt/lora/lora.py, mem_pool.py, utils.py",
        read=date(2026, 11, 27),
        strength="r",
        rslora=False,
        uneven=False,  # load_lora_weight_tensor asserts the shape that r gives
        modules=_DECODER | {"qkv_proj", "gate_up_proj"},
        layout="padded",
        command="python -m sglang.launch_server --model-path BASE --enable-lora "
        "--max-lora-rank RANK --lora-paths adapter=DIR",
    ),
    Rules(
        name="TensorRT-LLM",
        version="007e181b",
        files="tensorrt_llm/lora_manager.py (load_from_hf)",
        read=date(2026, 11, 27),
        strength="tensor",
        modules=_DECODER | {"gate_up_proj"},
        layout="padded",
        command="LoRARequest('adapter', 0, 'DIR') and LoraConfig(lora_dir=['DIR'], "
        "max_lora_rank=RANK) in its Python API",
    ),
    Rules(
        name="LoRAX",
        version="a7394ba3",
        files="server/lorax_server/adapters/lora.py (LoraWeights.load), server.py, "
        "launcher/src/main.rs",
        read=date(2026, 11, 29),
        strength="r",
        uneven=False,  # torch.stack over the layers
        every_layer=True,
        modules=_DECODER,
        layout="padded",
        command="lorax-launcher --model-id BASE --adapter-source local --adapter-id DIR",
        many="lorax-launcher --model-id BASE --preloaded-adapter-source local ITEMS",
        item="--preloaded-adapter-ids DIR",
        request='"parameters": {"adapter_id": "DIR", "adapter_source": "local"}',
    ),
    Rules(
        name="TGI",
        version="db931fcf",
        files="server/text_generation_server/adapters/lora.py (prepare_weights), utils/adapter.py",
        read=date(2026, 11, 29),
        strength="r",
        uneven=False,
        every_layer=True,
        modules=_DECODER,
        layout="padded",
        command="LORA_ADAPTERS=adapter=DIR text-generation-launcher --model-id BASE",
        many="LORA_ADAPTERS=ITEMS text-generation-launcher --model-id BASE",
        item="NAME=DIR",
        between=",",
        refused=",=@",
        request='"parameters": {"adapter_id": "NAME"}',
    ),
)
"""Servers of language models that load PEFT's directories without conversion."""

ALL = (VLLM, LLAMA_CPP, *SERVERS, OLLAMA)

VLLM_EMBEDDINGS = frozenset((
    "apertus", "ernie4_5", "exaone", "exaone4", "exaone_moe", "falcon_h1", "granite", "granite_swa",
    "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared", "hyperclovax",
    "inkling_text", "internlm3", "iquestcoder", "jamba", "lfm2", "lfm2_moe", "llama", "llama4_text",
    "minicpm3", "mixtral", "nemotron", "nemotron_h", "phi3", "qwen3", "qwen3_5_moe_text",
    "qwen3_5_text", "qwen3_moe",
))  # fmt: skip
"""Model types with `embed_tokens` and `lm_head` in `embedding_modules`: vLLM reserves for both."""


def old_rules(today: date) -> list[str]:
    """Return a sentence on each server whose rules were read over a year ago."""
    return [
        f"the rules of {rules.name} {rules.version} were read on {rules.read}, over a year ago: "
        "newer versions may differ"
        for rules in ALL
        if rules.is_old(today)
    ]
