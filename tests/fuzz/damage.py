"""Adapter directories with something wrong with them: real ones, damaged in one to three ways.

A directory is a mapping of file names to contents, so that hypothesis can shrink and show it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import torch
from safetensors.torch import load, save

from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, SORA_FILE
from tests.fuzz.odd_adapters import (
    CHOICES,
    DTYPES,
    JSON_TEXTS,
    LISTS,
    NAMES,
    NUMBERS,
    PATTERNS,
    SORA_CHOICES,
    WORDS,
)

Draw = Callable[..., Any]
Pairs = list[tuple[str, Any]]  # of a JSON object; a key may be there twice
DIRECTORY, LOOP, LINK, PIPE = "directory", "loop", "link", "pipe"
"""What may stand in a file's place; LINK is a symbolic link to the content, elsewhere."""


@dataclass
class Damaged:
    """An adapter directory to be.

    Attributes:
        source: name of the real adapter it was made from.
        files: name -> content.
        places: name -> what stands there instead of a plain file.
        steps: what was done to it, in words.
    """

    source: str
    files: dict[str, bytes]
    places: dict[str, str] = field(default_factory=dict)
    steps: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"<{self.source}: {'; '.join(self.steps)}>"


json_values = st.recursive(
    st.sampled_from([None, True, False, *NUMBERS, *WORDS]) | st.sampled_from(LISTS),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(PATTERNS), inner, max_size=3)
    ),
    max_leaves=5,
)
by_pattern = st.dictionaries(
    st.sampled_from(PATTERNS), st.sampled_from([1, 2, 3, 4, 6, 0, -1, 2.5, 10**6, "2", True, None]),
    max_size=3,
)  # fmt: skip
positions = st.floats(0, 1, exclude_max=True)
"""Where in something of unknown length."""


@st.composite
def damaged(draw: Draw, sources: Mapping[str, Mapping[str, bytes]]) -> Damaged:
    """One of the adapters (name -> file name -> content), damaged."""
    name = draw(st.sampled_from(sorted(sources)))
    case = Damaged(name, dict(sources[name]))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 2, 3]))):
        draw(st.sampled_from(_KINDS))(draw, case)
    return case


def _config_option(draw: Draw, case: Damaged) -> None:
    """An option set to one of its usual values."""
    key = draw(st.sampled_from(sorted(CHOICES)))
    _set(case, ADAPTER_CONFIG, key, draw(st.sampled_from(CHOICES[key])))


def _config_strength(draw: Draw, case: Damaged) -> None:
    """What ranks and scalings follow from."""
    key = draw(
        st.sampled_from(["r", "lora_alpha", "rank_pattern", "alpha_pattern", "alpha_pattern"])
    )
    value = by_pattern if key.endswith("pattern") else st.sampled_from([*NUMBERS, "4", None, True])
    _set(case, ADAPTER_CONFIG, key, draw(value))


def _config_targets(draw: Draw, case: Damaged) -> None:
    """Which modules are adapted, and which are stored in full."""
    key = draw(st.sampled_from(["target_modules", "exclude_modules", "modules_to_save",
                                "layers_to_transform", "layers_pattern"]))  # fmt: skip
    value = (
        st.sampled_from(LISTS) | st.sampled_from(PATTERNS) | st.sampled_from([None, 0, 1, 2, True])
    )
    _set(case, ADAPTER_CONFIG, key, draw(value | st.sampled_from(["all-linear"])))


def _config_any(draw: Draw, case: Damaged) -> None:
    """Any value for any key, or none."""
    _any_key(draw, case, ADAPTER_CONFIG)


def _sora_any(draw: Draw, case: Damaged) -> None:
    """The same in `sora.json`, which need not have been there."""
    case.files.setdefault(SORA_FILE, b'{"ranks": {"x": 1}, "method": "lora"}')
    _any_key(draw, case, SORA_FILE)


def _sora_option(draw: Draw, case: Damaged) -> None:
    """A key of `sora.json` set to what it may be, or nearly."""
    case.files.setdefault(SORA_FILE, b"{}")
    key = draw(st.sampled_from(sorted(SORA_CHOICES)))
    _set(case, SORA_FILE, key, draw(st.sampled_from(SORA_CHOICES[key])))


def _any_key(draw: Draw, case: Damaged, file: str) -> None:
    pairs = _pairs(case.files.get(file, b""))
    if pairs is None:
        return
    keys = [key for key, _ in pairs]
    key = draw(st.sampled_from([*keys, "unknown", "\x1b[31m"]))
    what = draw(st.sampled_from(["set", "set", "remove", "twice", "rename"]))
    if what == "set":
        _set(case, file, key, draw(json_values))
    elif what == "twice":
        case.files[file] = _dumps([*pairs, (key, draw(json_values))])
    else:
        left = [(k, v) for k, v in pairs if k != key]
        value = dict(pairs).get(key)
        case.files[file] = _dumps(left if what == "remove" else [*left, (f"{key}s", value)])
    case.steps.append(f"{file}: {what} {key!r:.60}")


def _json_text(draw: Draw, case: Damaged) -> None:
    """A JSON file that is none, or another."""
    file = draw(st.sampled_from([ADAPTER_CONFIG, SORA_FILE]))
    text = draw(st.sampled_from(JSON_TEXTS))
    case.files[file] = text.encode(draw(st.sampled_from(["utf-8", "utf-16", "utf-8"])))
    case.steps.append(f"{file}: the text {text[:30]!r}")


def _bytes(draw: Draw, case: Damaged) -> None:
    """Bytes of a file cut off, added or changed."""
    file = draw(st.sampled_from([ADAPTER_CONFIG, ADAPTER_WEIGHTS, SORA_FILE]))
    content = bytearray(case.files.get(file, b""))
    at = int(draw(positions) * len(content))
    what = draw(st.sampled_from(["cut", "add", "change", "insert", "remove"]))
    junk = draw(st.binary(min_size=1, max_size=9))
    if what == "cut":
        del content[at:]
    elif what == "add":
        content += junk
    elif what == "change":
        content[at : at + len(junk)] = junk
    elif what == "insert":
        content[at:at] = junk
    else:
        del content[at : at + len(junk)]
    case.files[file] = bytes(content)
    case.steps.append(f"{file}: {what} {junk!r} at {at}")


def _place(draw: Draw, case: Damaged) -> None:
    """Something else in the place of a file, or nothing."""
    file = draw(st.sampled_from([ADAPTER_CONFIG, ADAPTER_WEIGHTS, SORA_FILE, ADAPTER_PICKLE]))
    what = draw(st.sampled_from(["nothing", "empty", "swapped", DIRECTORY, LOOP, LINK, LINK, PIPE]))
    if what == "nothing":
        case.files.pop(file, None)
    elif what == "empty":
        case.files[file] = b""
    elif what == "swapped":
        other = draw(st.sampled_from([ADAPTER_CONFIG, ADAPTER_WEIGHTS]))
        case.files[file] = case.files.get(other, b"")
    else:
        case.places[file] = what
    case.steps.append(f"{file}: {what}")


def _header_length(draw: Draw, case: Damaged) -> None:
    """The number at the start of the weights."""
    content = case.files.get(ADAPTER_WEIGHTS, b"")
    length = draw(st.sampled_from([0, 1, 8, len(content), 2**31, 2**63, 2**64 - 1])
                  | st.integers(0, 2**64 - 1))  # fmt: skip
    case.files[ADAPTER_WEIGHTS] = struct.pack("<Q", length) + content[8:]
    case.steps.append(f"a header of {length} bytes")


def _header_entry(draw: Draw, case: Damaged) -> None:
    """What the header of the weights says of one tensor, or its key."""
    parsed = _header(case.files.get(ADAPTER_WEIGHTS, b""))
    if parsed is None:
        return
    pairs, body = parsed
    i = draw(st.integers(0, len(pairs) - 1))
    key, entry = pairs[i]
    what = draw(st.sampled_from(["dtype", "shape", "offsets", "name", "remove", "twice", "odd",
                                 "more", "metadata"]))  # fmt: skip
    if what == "metadata":
        pairs.append(("__metadata__", draw(json_values)))
    elif what == "name":
        pairs[i] = (draw(st.sampled_from(NAMES)), entry)
    elif what == "remove":
        del pairs[i]
    elif what == "twice":
        pairs.append((key, pairs[draw(st.integers(0, len(pairs) - 1))][1]))
    elif what == "odd" or not isinstance(entry, dict):
        pairs[i] = (key, draw(json_values))
    elif what == "dtype":
        pairs[i] = (key, {**entry, "dtype": draw(st.sampled_from(DTYPES))})
    elif what == "more":
        pairs[i] = (key, {**entry, draw(st.sampled_from(["x", "strides"])): draw(json_values)})
    else:
        pairs[i] = (key, {**entry, **_lies(draw, what, entry, len(body))})
    case.files[ADAPTER_WEIGHTS] = _with_header(_dumps(pairs), body)
    case.steps.append(f"header: {what} of {key!r:.80}")


def _lies(draw: Draw, what: str, entry: Mapping[str, Any], size: int) -> dict[str, Any]:
    numbers = st.sampled_from([0, 1, 2, 4, 32, 64, -1, 2**31, 2**62, 2**64, 10**30, 1.0, "2", None,
                               size, size + 4, True])  # fmt: skip
    if what == "shape":
        shape = entry.get("shape")
        turned = shape[::-1] if isinstance(shape, list) else []
        return {"shape": draw(st.lists(numbers, max_size=4) | st.just(turned))}
    start, end = (*entry.get("data_offsets", (0, 0)), 0, 0)[:2]
    near = st.sampled_from(
        [[start, start], [end, start], [start + 4, end + 4], [0, end], [0, size]]
    )
    return {"data_offsets": draw(near | st.lists(numbers, max_size=3))}


def _tensor(draw: Draw, case: Damaged) -> None:
    """Other numbers, shapes, dtypes or names, in a file that is valid."""
    try:
        tensors = load(case.files.get(ADAPTER_WEIGHTS, b""))
    except Exception:  # damaged before
        return
    if not tensors:
        return
    key = draw(st.sampled_from(sorted(tensors)))
    what = draw(st.sampled_from(["a number", "another name", *sorted(_PLAIN)]))
    tensor = tensors.pop(key)
    if what == "another name":
        tensors[draw(st.sampled_from([name for name in NAMES if name.isprintable()]))] = tensor
    else:
        changed = _with_number(draw, tensor) if what == "a number" else _PLAIN[what](tensor)
        tensors |= {} if changed is None else {key: changed.contiguous()}
    case.files[ADAPTER_WEIGHTS] = save(tensors, {"format": "pt"})
    case.steps.append(f"{what} of {key}")


def _module(draw: Draw, case: Damaged) -> None:
    """All tensors of a module: left out, at another name, or at another rank."""
    try:
        tensors = load(case.files.get(ADAPTER_WEIGHTS, b""))
    except Exception:  # damaged before
        return
    modules = sorted({key.partition(".lora_")[0] for key in tensors if ".lora_" in key})
    if not modules:
        return
    module = draw(st.sampled_from(modules))
    what = draw(st.sampled_from(["remove", "rename", "rank", "zero", "half", "double"]))
    other = module.replace(".0.", ".9.") if draw(st.booleans()) else f"{module}x"
    for key in [key for key in tensors if key.startswith(f"{module}.lora_")]:
        tensor, rank_first = tensors[key], ".lora_B" not in key
        if what == "remove":
            del tensors[key]
        elif what == "rename":
            tensors[key.replace(module, other)] = tensors.pop(key)
        elif what == "rank":
            tensors[key] = (tensor[:1] if rank_first else tensor[:, :1]).contiguous()
        elif what == "zero":
            tensors[key] = torch.zeros_like(tensor)
        else:
            tensors[key] = tensor.to(torch.bfloat16 if what == "half" else torch.float64)
    case.files[ADAPTER_WEIGHTS] = save(tensors, {"format": "pt"})
    case.steps.append(f"{what} of {module}")


def _with_number(draw: Draw, tensor: torch.Tensor) -> torch.Tensor:
    changed = tensor.clone()
    if tensor.is_floating_point() and tensor.numel():
        numbers = [float("nan"), float("inf"), float("-inf"), 1e38, -1e30, 0.0, 1e-45]
        changed.view(-1)[int(draw(positions) * tensor.numel())] = draw(st.sampled_from(numbers))
    return changed


_PLAIN: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
    "zeros": torch.zeros_like,
    "a zero row": lambda t: torch.cat([torch.zeros_like(t[:1]), t[1:]]) if t.ndim else t,
    "a zero column": lambda t: (
        torch.cat([torch.zeros_like(t[:, :1]), t[:, 1:]], 1) if t.ndim == 2 else t
    ),
    "the transpose": lambda t: t.T if t.ndim == 2 else t,
    "one dimension": lambda t: t.reshape(-1),
    "a dimension more": lambda t: t[None],
    "a row less": lambda t: t[1:] if t.ndim else t,
    "a column less": lambda t: t[:, 1:] if t.ndim == 2 else t,
    "nothing": lambda _: None,
    "another size": lambda t: t * 1e6,
    "numbers near 0": lambda t: t * 1e-30,
    "huge numbers": lambda t: t * 1e30,
    "float16": lambda t: t.half(),
    "bfloat16": lambda t: t.bfloat16(),
    "float64": lambda t: t.double(),
    "integers": lambda t: t.int(),
    "truth values": lambda t: t.bool(),
}
_KINDS = [
    *[_config_option] * 3,
    *[_config_strength] * 4,
    *[_config_targets] * 4,
    *[_config_any] * 2,
    _sora_any,
    *[_sora_option] * 3,
    _json_text,
    *[_bytes] * 2,
    _place,
    _header_length,
    *[_header_entry] * 4,
    *[_tensor] * 6,
    *[_module] * 3,
]


def _pairs(content: bytes) -> Pairs | None:
    """Keys and values of a JSON object; None if it is none."""
    try:
        found = json.loads(content, object_pairs_hook=lambda pairs: pairs)
        values = json.loads(content)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    return [(key, values[key]) for key, _ in found]


def _dumps(pairs: Pairs) -> bytes:
    inner = ", ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in pairs)
    return f"{{{inner}}}".encode()


def _set(case: Damaged, file: str, key: str, value: Any) -> None:
    pairs = _pairs(case.files.get(file, b""))
    if pairs is None:
        return
    case.files[file] = _dumps([*((k, v) for k, v in pairs if k != key), (key, value)])
    case.steps.append(f"{file}: {key!r:.60} = {value!r:.90}")


def _header(content: bytes) -> tuple[Pairs, bytes] | None:
    """The header of a safetensors file without its metadata, and the rest."""
    end = 8 + int.from_bytes(content[:8], "little")
    pairs = _pairs(content[8:end]) if end <= len(content) else None
    pairs = [(k, v) for k, v in pairs or () if k != "__metadata__"]
    return (pairs, content[end:]) if pairs else None


def _with_header(text: bytes, body: bytes) -> bytes:
    padded = text + b" " * (-len(text) % 8)
    return struct.pack("<Q", len(padded)) + padded + body
