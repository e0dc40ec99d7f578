"""Writes an adapter as a GGUF file for llama.cpp; see `gguf.lora_file` for its formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.base_check import OR_FORCE, check_weights
from sora_cli.adapter.metadata import read_json
from sora_cli.adapter.on_demand import OnDemand
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.writing import Plan
from sora_cli.core.atomic import new_file
from sora_cli.core.checks import GGUF_TYPES, check_choice
from sora_cli.core.errors import SoraError, reason
from sora_cli.core.words import first_few
from sora_cli.gguf.lora_file import LoraFile
from sora_cli.gguf.package import check_package
from sora_cli.gguf.places import Places, places_by_config, places_in_file, refusal
from sora_cli.model.files import ADAPTER_WEIGHTS, MODEL_CONFIG
from sora_cli.model.references import local_checkpoint, resolve_model_path

_DTYPES = dict(zip(GGUF_TYPES, ("float32", "float16"), strict=True))


@dataclass(frozen=True)
class GgufLora:
    """A GGUF file that was written.

    Attributes:
        kind: of the source: "LoRA", "rsLoRA" or "AdaLoRA".
        architecture: llama.cpp's name of the base model's architecture.
        alpha: the largest rank.
        ranks: module path -> rank.
        permuted: number of modules with rows in another order.
        sizes: bytes of the adapter's weights, and of the adapter.
        notes: odd but harmless facts about the source.
    """

    kind: str
    architecture: str
    type: str
    alpha: int
    ranks: Mapping[str, int]
    permuted: int
    sizes: tuple[int, int]
    notes: tuple[str, ...]


def export_gguf(
    directory: Path,
    output: Path,
    *,
    type: str = "f32",
    base: str | None = None,
    force: bool = False,
) -> GgufLora:
    """Write an adapter as a GGUF adapter, one module in memory at a time, and read it back.

    Args:
        directory: an adapter directory, ours or PEFT's LoRA, rsLoRA or AdaLoRA, or a run directory.
        output: the file; an existing file is replaced.
        type: of the factors, "f32" or "f16".
        base: the base model, a GGUF file or a checkpoint; None: the model that the adapter names.
        force: accept a base with other weights than the adapter was trained on.
    """
    check_choice("type", type, GGUF_TYPES)
    with open_adapter(directory, base=base) as adapter:
        adapter.check_all_in_factors()
        name = base or adapter.base.name()
        check_parts(adapter)
        architecture, places, note = _on_base(adapter, name, force=force)
        ranks = Plan(adapter.layers).stored
        alpha = max(ranks.values())
        layers = OnDemand(
            adapter.paths, lambda path: _scaled(adapter, path, ranks.get(path, 0) / alpha)
        )
        plan = Plan(layers, dtype=_DTYPES[type])
        stored = {path: places[path] for path in plan.stored}
        lora_file = LoraFile(architecture, name, float(alpha), stored, plan.factors)
        try:
            with new_file(output) as temporary:
                lora_file.write(temporary)
                lora_file.check(temporary)
        except OSError as error:
            raise SoraError(f"{output} cannot be written: {reason(error, output)}") from error
        return GgufLora(
            kind=adapter.source.kind,
            architecture=architecture,
            type=type,
            alpha=alpha,
            ranks=dict(plan.stored),
            permuted=sum(place.rows is not None for place in stored.values()),
            sizes=(
                (adapter.source.directory / ADAPTER_WEIGHTS).stat().st_size,
                output.stat().st_size,
            ),
            notes=(*adapter.source.notes, *([] if note is None else [note])),
        )


def check_parts(adapter: Adapter) -> None:
    """Refuse parts that llama.cpp cannot add, in an adapter whose parts are all in factors."""
    check_package()
    if adapter.full:
        names = first_few(adapter.head_modules or adapter.full)
        raise refusal(f"llama.cpp takes no weights stored in full with an adapter: {names}")
    others = dict.fromkeys(form.owner(path) for path, form in adapter.forms.items())
    if others:
        raise refusal("only adapters of linear layers are known to be exact in llama.cpp, not "
                      f"{first_few(others)}")  # fmt: skip


def _on_base(adapter: Adapter, name: str, *, force: bool) -> tuple[str, Places, str | None]:
    """Return llama.cpp's name of the base's architecture, the modules' places, and a note."""
    source = local_checkpoint(resolve_model_path(name), adapter.base.revision)
    if source is not None and source.is_file():
        architecture, places = places_in_file(source, adapter.shapes)
    elif source is not None and (source / MODEL_CONFIG).is_file():
        config = read_json(source / MODEL_CONFIG)
        if not isinstance(config, dict):
            raise SoraError(f"{source / MODEL_CONFIG} is not a configuration")
        architecture, places = places_by_config(config, source / MODEL_CONFIG, adapter.shapes)
    else:
        raise SoraError(
            f"the base model {name} is not here: its config.json is needed for llama.cpp's names",
            hint="name a GGUF file or a directory: --base MODEL",
        )
    # a checkpoint and a GGUF file of it cannot be compared
    files = source if _is_gguf(adapter.base.path) == _is_gguf(name) else None
    note = check_weights(adapter.base, files, name, "the adapter", force=force, hint=OR_FORCE)
    return architecture, places, note


def _is_gguf(reference: str) -> bool:
    return reference.lower().endswith(".gguf")


def _scaled(adapter: Adapter, path: str, factor: float) -> LowRankFactors:
    factors = adapter.layers[path]
    return LowRankFactors(factors.A, factors.B * factor)
