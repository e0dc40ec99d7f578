"""Odd values for the files of an adapter, and some good ones."""

from __future__ import annotations

from typing import Any

from sora_cli.adapter.peft.layout import PREFIX

NUMBERS = (0, 1, 2, 3, 4, 8, -1, -16, 2.5, 1000, 2**40, 10**30, 1e300, float("nan"), float("inf"))
WORDS = ("", "x", "2", "query", "classifier", "all-linear", "ALL-LINEAR", "false", "no", "yes",
         "auto", "\x1b[31m", "a\nb\nc\nd", "\ud800", "é", "x" * 5000, "SEQ_CLS", "none", "all",
         "~nobody/x", "a\0b", "/")  # fmt: skip
PATTERNS = (
    "query", "value", "self.query", ".*", "", ".", "^query", "q.*", r".*\.0\..*",
    r"layer\.[01]\..*",
    "query|value", "(?i)QUERY", r"bert\.encoder\.layer\.1\.attention\.self\.value", r"h\.\d\..*",
    r"^bert\.encoder\.layer\.0\.attention\.self\.query", "dense", "c_attn", "(?:query)",
    "(?#x)query",
    "(?x) query # )", "(", "[", "*", "\\", "a{1,99999999999}", "(?P<q>query)", r"(.)\1.*",
    r"(\w*\.?)*!", "(.*.*)*z", "(a+)+$", "base_model.model.query", "que\nry", "x" * 5000, "query$",
    r"(.*\.)?attention.*", ".*query.*|.*c_attn", r"\bquery", "(?!query).*", "query)|(value",
)  # fmt: skip
LISTS: tuple[Any, ...] = (
    [], ["query"], ["value"], ["query", "value"], ["self.query", "value", "dense"], ["self"], ["x"],
    ["classifier"], ["pooler", "classifier"], ["er"], ["classifier", "score"], ["encoder"], [""],
    ["c_attn", "c_proj"], ["0.attention.self.query"], ["query", 3], [None], [["query"]],
    ["query"] * 9,
    [0], [1], [0, 1], [-1], [True], [7], ["0"], [2**70], ["layer"], ["h"], ["layer", "h"],
    ["que.*"],
    ["bert.encoder.layer.0.attention.self.query"], [r"encoder\.layer"], ["*"], ["("],
)  # fmt: skip
CHOICES: dict[str, tuple[Any, ...]] = {
    # options of PEFT's that there are good values for
    "peft_type": ("LORA", "ADALORA", "lora", "LOHA", "VERA", "IA3", "X", "\x1b[31m", None, 3),
    "task_type": ("SEQ_CLS", "CAUSAL_LM", "TOKEN_CLS", "FEATURE_EXTRACTION", "x", None, 3,
                  "\ud800"),
    "use_rslora": (True, False, 0, 1, 2, "true", "false", "no", "yes", "off", None, [], 0.0, 1.0),
    "fan_in_fan_out": (True, False, 0, 1, "false", "no", "yes", None),
    "bias": ("none", "all", "lora_only", "NONE", "", None, False, 3),
    "init_lora_weights": (True, False, None, 0, 1, "gaussian", "eva", "orthogonal", "pissa",
                          "olora",
                          "pissa_niter_4", "loftq", "corda", "mini", "true", [], "x"),
    "lora_dropout": (0, 0.5, 1.0, 5.0, -1, None, "0.1"),
    "use_dora": (True, False, 0, 1, None, "false", []),
    "use_qalora": (True, False, "x", None),
    "lora_bias": (True, False, None, "false"),
    "use_bdlora": (None, False, True, {}, {"nblocks": 2}),
    "layer_replication": (None, [], [[0, 2]], [[0, 1], [0, 1]], "x"),
    "inference_mode": (True, False, None, "x"),
    "init_r": (1, 3, 4, 5, 0, -1, "4", 10**9),
    "target_r": (1, 2, 99, -1, None),
    "total_step": (None, 0, -5, 10, "x"),
    "tinit": (0, 5, 10**9, -1),
    "loftq_config": ({}, {"loftq_bits": 4}, None, 3),
    "eva_config": (None, {}, {"rho": 2.0}, 3),
    "megatron_config": (None, {}, {"x": 1}, "x"),
    "megatron_core": ("megatron.core", "os", None, 3),
    "runtime_config": (None, {}, {"ephemeral_gpu_offload": True}),
    "ensure_weight_tying": (False, True, None),
    "alora_invocation_tokens": (None, [], [1, 2]),
    "trainable_token_indices": (None, [], [1, 2], {"word_embeddings": [1]}),
    "target_parameters": (None, [], ["x"], "x"),
    "revision": (None, "main", "", 3, "\x1b[31m", "\ud800"),
    "base_model_name_or_path": WORDS,
    "auto_mapping": (None, {}, {"base_model_class": "X"}),
    "module_ranks": ({}, {"bert.encoder.layer.0.attention.self.query": 1}, 3),
    "arrow_config": (None, {}, {"top_k": 1}),
    "corda_config": (None, {}, 3),
    "peft_version": ("99.0", None, 3),
    "qalora_group_size": (16, 0, None),
    "orth_reg_weight": (0.5, 0, -1, "x"),
}  # fmt: skip
SORA_CHOICES: dict[str, tuple[Any, ...]] = {
    "method": WORDS,
    "sora_version": WORDS,
    "task": WORDS,
    "problem_type": WORDS,
    "labels": (None, ["a", "b"], [], ["\x1b[31m"], ["\ud800"], ["a\nb"], "ab", [1]),
    "num_labels": (*NUMBERS, None),
    "max_length": (*NUMBERS, None),
    "format_version": (0, 1, 2, -1, 1.0, "1", True),
    "method_config": ({}, {"x": float("nan")}, {"\x1b": 1}, {"a": {"b": [1]}}, [], None),
    "ranks": ({}, {"x": 1}, {"bert.pooler.dense": 0}, {"a/b": 1}, {"": 1}, {"x": -1}, {"x": True},
              {"bert.encoder.layer.0.attention.self.query": 2**20, "x.y": 3}, {"\ud800": 1}),
    "ranks_start": ({}, {"x": 2**20}, {"x": 2**40},
                    {"bert.encoder.layer.0.attention.self.query": 0}),
    "lineage": ([], [{}], [{"command": "\x1b[31m", "x": "a\nb"}], [{"command": 3}], [3], None,
                [{"command": "prune", "energy": 1e300, "components": [1, 2]}],
                [{"\ud800": "\ud800"}]),
    "base": (None, {}, {"path": "\x1b[31m", "resolved": "x"}, {"path": "", "resolved": ""}, 3,
             {"path": "\ud800", "resolved": "\ud800", "fingerprint": "x" * 9999},
             {"path": "a\0b", "resolved": "a\0b", "revision": "\x1b"},
             {"path": "x" * 9999, "resolved": "x" * 9999}),
}  # fmt: skip
DTYPES = (
    "F32",
    "F16",
    "BF16",
    "F64",
    "I32",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "C64",
    "",
    3,
)
NAMES = (
    "../../etc/passwd", "a/b", "a\0b", "", PREFIX, f"{PREFIX}x.weight", f"{PREFIX}..lora_A.weight",
    f"{PREFIX}classifier.weight", f"{PREFIX}classifier.bias", f"{PREFIX}classifier.x", "\x1b[31m",
    f"{PREFIX}bert.pooler.dense.weight", f"{PREFIX}x.lora_A.weight", f"{PREFIX}é.lora_B.weight",
    f"{PREFIX}bert.encoder.layer.9.attention.self.query.lora_A.weight",
    f"{PREFIX}bert.encoder.layer.0.attention.self.key.lora_A.weight",
    f"{PREFIX}bert.encoder.layer.0.attention.self.query.lora_A.default.weight",
    f"{PREFIX}bert.encoder.layer.0.attention.self.query.base_layer.weight",
    f"{PREFIX}bert.encoder.layer.0.attention.self.query.lora_magnitude_vector.weight",
    f"{PREFIX}bert.encoder.layer.0.attention.self.query.lora_B.bias", f"{PREFIX}classifier..weight",
    f"{PREFIX}bert.encoder.layer.0.attention.self.query.ranknum",
    f"{PREFIX}\ud83d\ude00.lora_A.weight",
    f"{PREFIX}{'x' * 600}.lora_A.weight", f"{PREFIX}classifier.modules_to_save.default.weight",
)  # fmt: skip
_LARGE = '[' * 50_000  # fmt: skip
JSON_TEXTS = ("", "{", "[]", "7", "null", "{}", '"x"', _LARGE, "\ufeff{}", '{"peft_type": "LORA"}',
              '{"peft_type": "LORA", "r": ' + "9" * 5000 + "}", "NaN", "{'a': 1}")  # fmt: skip
