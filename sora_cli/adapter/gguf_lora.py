"""An adapter as a GGUF file for llama.cpp: one pair of factors beside each weight of the base.

llama.cpp adds `alpha / r * lora_b @ lora_a` to a weight, r the rank of that pair (llama-adapter.h,
`get_scale`), so modules of different ranks fit into one file. Here alpha is the largest rank R, and
the factors of a module of rank r, whose scaling is in B, are stored with B r / R.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from methods.factors import LowRankFactors
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.base_check import OR_FORCE, check_weights
from sora_cli.adapter.gguf_places import Place, places_of
from sora_cli.adapter.on_demand import OnDemand
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.writing import Plan
from sora_cli.core.atomic import check_read_back, new_file
from sora_cli.core.checks import GGUF_TYPES, check_choice
from sora_cli.core.errors import SoraError, reason
from sora_cli.model.files import ADAPTER_WEIGHTS
from sora_cli.model.references import local_checkpoint, resolve_model_path

_DTYPES = dict(zip(GGUF_TYPES, ("float32", "float16"), strict=True))
_ADAPTER_TYPE = "LORA".lower()  # the kind of file, not the method


@dataclass(frozen=True)
class GgufLora:
    """A GGUF file that was written.

    Attributes:
        kind: of the source: "LoRA", "rsLoRA" or "AdaLoRA".
        architecture: llama.cpp's name of the base model's architecture.
        alpha: the largest rank.
        ranks: module path -> rank.
        permuted: number of modules with rows in another order.
        sizes: bytes of the adapter's weights, and of the file.
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
    """Write an adapter as a GGUF file, one module in memory at a time, and read it back.

    Args:
        directory: an adapter directory, ours or PEFT's LoRA, rsLoRA or AdaLoRA, or a run directory.
        output: the file; an existing file is replaced.
        type: of the factors, "f32" or "f16".
        base: the base model, a GGUF file or a checkpoint; None: the model that the adapter names.
        force: accept a base with other weights than the adapter was trained on.
    """
    check_choice("type", type, GGUF_TYPES)
    with open_adapter(directory, base=base) as file:
        file.check_all_in_factors()
        name = base or file.base.name()
        architecture, places = places_of(file, name)
        note = _check_base(file, name, force=force)
        ranks = Plan(file.layers).stored
        alpha = max(ranks.values())  # a file has one alpha: see the formula at the top
        layers = OnDemand(file.paths, lambda path: _scaled(file, path, ranks.get(path, 0) / alpha))
        plan = Plan(layers, dtype=_DTYPES[type])
        lora_file = _LoraFile(plan, places, architecture, float(alpha), name)
        try:
            with new_file(output) as temporary:
                lora_file.write(temporary)
                lora_file.check(temporary)
        except OSError as error:
            raise SoraError(f"{output} cannot be written: {reason(error, output)}") from error
        return GgufLora(
            kind=file.source.kind,
            architecture=architecture,
            type=type,
            alpha=alpha,
            ranks=dict(plan.stored),
            permuted=sum(places[path].rows is not None for path in plan.stored),
            sizes=((file.source.directory / ADAPTER_WEIGHTS).stat().st_size, output.stat().st_size),
            notes=(*file.source.notes, *([] if note is None else [note])),
        )


def _check_base(file: Adapter, name: str, *, force: bool) -> str | None:
    """Refuse a base with other weights; a checkpoint and a GGUF file of it cannot be compared."""
    source = local_checkpoint(resolve_model_path(name), file.base.revision)
    one_form = _is_gguf(file.base.path) == _is_gguf(name)
    return check_weights(
        file.base, source if one_form else None, name, "the adapter", force=force, hint=OR_FORCE
    )


def _is_gguf(reference: str) -> bool:
    return reference.lower().endswith(".gguf")


def _scaled(file: Adapter, path: str, factor: float) -> LowRankFactors:
    factors = file.layers[path]
    return LowRankFactors(factors.A, factors.B * factor)


class _LoraFile:
    """The content of a file: metadata and tensors."""

    def __init__(
        self, plan: Plan, places: Mapping[str, Place], architecture: str, alpha: float, base: str
    ) -> None:
        self._plan, self._places = plan, places
        self._architecture, self._alpha, self._base = architecture, alpha, base
        self._factors = lru_cache(maxsize=1)(self._in_order)

    def write(self, file: Path) -> None:
        """Write the file."""
        import gguf

        writer = gguf.GGUFWriter(file, self._architecture)
        try:
            writer.add_type(gguf.GGUFType.ADAPTER)
            writer.add_string(gguf.Keys.Adapter.TYPE, _ADAPTER_TYPE)
            writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, self._alpha)
            writer.add_base_model_count(1)
            writer.add_base_model_name(0, Path(self._base).name)
            # GGUF has all names and shapes before the first number: each module is made twice
            for path in self._plan.stored:
                for half in ("a", "b"):
                    data = self._numbers(path, half)
                    writer.add_tensor_info(
                        self._key(path, half), data.shape, data.dtype, data.nbytes
                    )
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        # not with the writer: numpy's tofile() loses the error of a disk that fills up
        # until: numpy > 2.4
        with file.open("ab") as out:
            for path in self._plan.stored:
                for half in ("a", "b"):
                    out.write(bytes(-out.tell() % writer.data_alignment))
                    out.write(self._numbers(path, half))
            out.write(bytes(-out.tell() % writer.data_alignment))

    def check(self, file: Path) -> None:
        """Read the file back and compare it with the plan, tensor by tensor."""
        import gguf

        reader = gguf.GGUFReader(file)
        written = {tensor.name: tensor.data for tensor in reader.tensors}
        keys = {self._key(path, half): (path, half) for path in self._plan.stored for half in "ab"}
        alpha = reader.fields[gguf.Keys.Adapter.LORA_ALPHA].contents()
        same = written.keys() == keys.keys() and alpha == self._alpha
        for key, (path, half) in keys.items() if same else ():
            expected = self._numbers(path, half)
            same = (
                same
                and written[key].shape == expected.shape
                and written[key].dtype == expected.dtype
            )
            same = same and bool((written[key] == expected).all())
        check_read_back(same)

    def _key(self, path: str, half: str) -> str:
        return f"{self._places[path].name}.weight.lora_{half}"

    def _numbers(self, path: str, half: str) -> Any:
        factors = self._factors(path)
        return (factors.A if half == "a" else factors.B).contiguous().numpy()

    def _in_order(self, path: str) -> LowRankFactors:
        factors, rows = self._plan.factors(path), self._places[path].rows
        return factors if rows is None else LowRankFactors(factors.A, factors.B[rows])
