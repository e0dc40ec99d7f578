"""What other people's programs ask of adapter directories: one table of data.

Each row says which version was read or tried, on which day and where. `consumers` judges a
directory by it, `serving` and `serving_many` print commands from it, `search/size` takes the cost
of a rank from it, and docs/reference/programs.md is made from it. No server warns about a directory
that it applies wrongly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date


@dataclass(frozen=True)
class Program:
    """A program that loads adapters, and its demands on them.

    Attributes:
        version: the version or commit whose rules these are.
        day: the day on which they were read or tried.
        source: its files that were read, or our tests that run it.
        tried: it was run here.
        only: the one task type of PEFT's that a verdict is given for; "": any.
        no_task: task types of PEFT's that it does not serve, with the reason.
        without: model types that it serves without adapters, or not at all.
        classes: model classes that it serves without adapters, of other types; a base's
            config.json names its class under `architectures`.
        layers: model type -> last parts of paths of layers whose factors it refuses.
        gguf_note: the objection to a base model in a GGUF file; "": it takes one.
        takes: "types": all types of PEFT's, with all their parts, but no layer that the installed
            PEFT loses; "LORA": the same of that type alone, see `other_types`; "pairs":
            LoRA's pairs of factors alone, without magnitudes, biases or modules stored in full.
        heads: modules stored in full that a sequence classifier may have nevertheless, by
            `heads_note`, with RANK.
        broken: first digits of its own versions that load no adapter, by `broken_note`.
        strength: "module": of each module, as in PEFT; "tensor": `alpha / rank of the tensor`;
            "r": one `alpha / r` for all modules. `strength_note` says it in an objection.
        rslora: it divides by the square root if the configuration says so.
        layout: the form that `sora export` writes for it: "exact" or "gguf".
        conv1d: the reason against factors of GPT-2's Conv1D; "": it takes them.
        converts: it takes a directory, if only through its own converter.
        then: the command after the export for a program that takes no directory.
        steps: values of its option for the largest rank, ascending; empty: any rank.
        step_name: the words before such a value.
        command: loads one adapter; with BASE, DIR and RANK.
        anchored: the versions that match anchored patterns; "": all.
        draws: modules that the file lacks may get random factors.
        server: the name of its server, if that is another one than its own.
        merged: commands that serve the merged model in the directory `merged`.
        many: starts its server with several adapters; with BASE, RANK, COUNT and ITEMS.
        item: one of ITEMS, with NAME and DIR; `between` joins them.
        refused: characters that a directory in an item may not have.
        request: the part of a request that chooses an adapter, with NAME and ID.
        reserves: bytes of a number that it reserves for each rank of each adapter at every linear
            layer; 0: it reserves nothing. For models of the types `embeddings` also at
            `embed_tokens` and `lm_head`, whose factors it takes for these types only.
        pooling: the option after BASE for adapters of a model without a head; else the server
            loads them, and leaves them out of its answers without a word.
    """

    name: str
    version: str
    day: date
    source: str
    tried: bool = False
    only: str = ""
    no_task: Mapping[str, str] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    classes: frozenset[str] = frozenset()
    layers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    gguf_note: str = ""
    takes: str = "pairs"
    other_types: str = ""
    heads: frozenset[str] = frozenset()
    heads_note: str = ""
    broken: tuple[str, ...] = ()
    broken_note: str = ""
    strength: str = "module"
    strength_note: str = ""
    rslora: bool = True
    layout: str = "exact"
    conv1d: str = ""
    converts: bool = True
    then: str = ""
    steps: tuple[int, ...] = ()
    step_name: str = ""
    command: str = ""
    anchored: str = ""
    draws: bool = False
    server: str = ""
    merged: tuple[str, ...] = ()
    many: str = ""
    item: str = ""
    between: str = " "
    refused: str = ""
    request: str = ""
    reserves: int = 0
    embeddings: frozenset[str] = frozenset()
    pooling: str = ""

    def starts(self, command: str, task_type: str | None, paths: Iterable[str]) -> str:
        """Return a command with the option that adapters of this task and these modules need."""
        # AutoModel's names of a decoder's layers; a model with a head has them below `model`
        bare = task_type is None and any(path.startswith("layers.") for path in paths)
        headless = bare or task_type == "FEATURE_EXTRACTION"
        option = f"BASE {self.pooling}" if headless and self.pooling else "BASE"
        return command.replace("BASE", option)

    def rank_option(self, rank: int) -> int:
        """Return the smallest value of its option for the largest rank that takes a rank."""
        return next((step for step in self.steps if step >= rank), rank)

    def is_old(self, today: date) -> bool:
        """Return true if the rules were read over a year ago."""
        return (today - self.day).days > 365


_PEFT = Program(
    name="PEFT",
    version="0.21.2",
    day=date(2026, 11, 30),
    source="tests/interop; adapter/peft/refused.py",
    tried=True,
    takes="types",
    command="PeftModel.from_pretrained(model, directory)",
    anchored="from PEFT 0.15 on",
    draws=True,
)

_TRANSFORMERS = Program(
    name="transformers",
    version="5.24.0",
    day=date(2026, 11, 30),
    source="tests/interop/test_export.py; cli/serving/model_manager.py",
    tried=True,
    takes="LORA",
    other_types="load it with PEFT's PeftModel, or sora export first",
    broken=("5.4.", "5.5."),  # until: transformers 5.6
    broken_note="load_adapter of 5.4 and 5.5 misreads the tensors' names: use PeftModel, or 5.6",
    command="model.load_adapter(directory), with PEFT installed, from transformers 5.6 on",
    server="transformers serve",
    merged=("transformers serve merged",),  # it needs a config.json: no adapter directory has one
)

_VLLM = Program(
    name="vLLM",
    version="0.32.0",
    day=date(2026, 12, 1),
    source="tests/interop/test_vllm.py; lora/peft_helper.py, lora/model_manager.py",
    tried=True,
    no_task={"SEQ_2_SEQ_LM": "serves no text-to-text model, such as T5 or BART"},
    gguf_note="takes no GGUF file as the base model",
    # its classes without SupportsLoRA, by transformers' table of architectures; from arctic to
    # persimmon: removed from it. A kind that it does not know goes to its Transformers backend,
    # with adapters.
    without=frozenset((
        "aria", "bloom", "clip", "cohere2_moe", "cohere2_vision", "cohere_asr", "dbrx", "falcon",
        "falcon_mamba", "gemma3n", "gemma3n_text", "gpt-sw3", "gpt2", "gptj", "gte", "kimi_linear",
        "llava_onevision", "mamba", "mamba2", "mimo_v2_flash", "minimax_m3_vl", "modernbert",
        "modernvbert", "nomic_bert", "openai_privacy_filter", "paddleocr_vl", "qwen2_audio",
        "siglip", "stablelm", "step3p7", "zamba2",
        "colmodernvbert", "cosmos3_edge", "deepseek_v4", "diffusion_gemma", "embedding_gemma2",
        "hrm_text",
        "arctic", "aya_vision", "bamba", "chameleon", "dots1", "fuyu", "minimax", "mllama", "mpt",
        "persimmon",
    )),
    classes=frozenset((
        "BertForMaskedLM", "BertForSequenceClassification", "BertForTokenClassification",
        "Gemma3TextModel", "RobertaForTokenClassification", "XLMRobertaForTokenClassification",
    )),
    # fused in its checkpoints; tried
    layers={"glm4": frozenset(("gate_up_proj",))},
    # of decoders; `classifier` of BERT's and RoBERTa's classes is refused
    heads=frozenset(("score",)),
    heads_note="before 0.31 refuses a classifier's head (later ones take it with "
    "--runner pooling --convert classify --max-lora-rank RANK)",
    strength="r",  # before 0.32, which is still in use
    strength_note="before 0.32 applies one alpha / r to all modules",
    steps=(8, 16, 32, 64, 128, 256, 320, 512),  # newer versions also take 1
    step_name="max_lora_rank",
    command="vllm serve BASE --enable-lora --max-lora-rank RANK --lora-modules adapter=DIR",
    merged=("vllm serve merged",),
    many="vllm serve BASE --enable-lora --max-loras COUNT --max-lora-rank RANK "
    "--lora-modules ITEMS",
    item="NAME=DIR",
    refused=",",  # with a comma it is read as JSON
    request='"model": "NAME"',
    reserves=2,  # it serves float32 models in 16 bits, too
    pooling="--runner pooling",
    # those with both in `embedding_modules`
    embeddings=frozenset((
        "apertus", "ernie4_5", "exaone", "exaone4", "exaone_moe", "falcon_h1", "granite",
        "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared",
        "hyperclovax", "internlm3", "iquestcoder", "jamba", "lfm2", "lfm2_moe",
        "llama", "llama4_text", "minicpm3", "mixtral", "nemotron", "nemotron_h", "phi3", "qwen3",
        "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe",
    )),
)  # fmt: skip

_LLAMA_CPP = Program(
    name="llama.cpp",
    version="00dc8057",
    day=date(2026, 11, 29),
    source="tests/interop/test_gguf_lora.py; tools/server/README.md, convert_lora_to_gguf.py of "
    "0b03adaa",
    tried=True,
    strength="tensor",
    strength_note="applies alpha / rank of each tensor",
    rslora=False,
    layout="gguf",
    conv1d="transposes the factors of Conv1D layers once too often",
    step_name="padded to rank",
    command="convert_lora_to_gguf.py DIR --base BASE",
    merged=("convert_hf_to_gguf.py merged --outfile merged.gguf", "llama-server -m merged.gguf"),
    # At scale 0 until a request names one: all would be added up else, also with
    # --lora-init-without-apply (tried). Given twice, an option warns that only the last one counts.
    many="llama-server -m BASE --lora-scaled ITEMS",
    item="NAME.gguf:0",
    between=",",
    request='"lora": [{"id": ID, "scale": 1.0}]',
)

_OLLAMA = Program(
    name="Ollama",
    version="fb307609",
    day=date(2026, 11, 27),
    source="llm/llama_server.go, convert/",
    only="CAUSAL_LM",
    strength="tensor",
    rslora=False,
    layout="gguf",
    conv1d="transposes the factors of Conv1D layers once too often",
    # its own conversion of directories (convert/convert_llama_adapter.go) uses other names and
    # another order of rows than llama.cpp, whose server it starts with `--lora`
    converts=False,
    then="then ollama create NAME -f adapter.Modelfile",
)

PROGRAMS = (_PEFT, _TRANSFORMERS, _VLLM, _LLAMA_CPP, _OLLAMA)
SERVERS = (_VLLM, _TRANSFORMERS, _LLAMA_CPP)
"""Those with a server whose commands are told."""


def program(name: str) -> Program:
    """Return a program by its name, in capitals or not."""
    return next(known for known in PROGRAMS if known.name.lower() == name.lower())


def old_rules(today: date) -> list[str]:
    """Return a sentence on each program whose rules were read over a year ago."""
    return [
        f"the rules of {known.name} {known.version} were read on {known.day}, over a year ago: "
        "newer versions may differ"
        for known in PROGRAMS
        if known.is_old(today)
    ]
