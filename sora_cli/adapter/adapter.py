"""An adapter: its base model, its facts, and its parts; in memory, or open on a file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor

from methods.factors import LowRankFactors
from methods.updates import Replaced
from sora_cli.adapter.metadata import AdapterMeta, BaseReference
from sora_cli.adapter.on_demand import OnDemand
from sora_cli.adapter.parts.factored import Factored, factored, forms_of
from sora_cli.adapter.parts.form import LINEAR, Form, grouped
from sora_cli.adapter.parts.full import BASE, BIAS, HEAD, Full, full, modules_of
from sora_cli.adapter.parts.low_rank import Held
from sora_cli.adapter.parts.part import Part, objection_of
from sora_cli.adapter.parts.rows import Rows, all_rows, rows_of
from sora_cli.adapter.peft.config import PeftConfig
from sora_cli.core.errors import SoraError

_MERGE = "sora merge, without --format, adds all of it to the base model"


@dataclass(frozen=True)
class AdapterFile:
    """The files of an adapter that is open.

    Attributes:
        directory: the adapter directory.
        weights: its file with the tensors.
        dtype: of the stored factors, such as "bfloat16"; "float32" if they are mixed.
        notes: odd but harmless facts.
    """

    directory: Path
    weights: Path
    config: PeftConfig
    dtype: str
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """PEFT's name of the kind: "LoRA", "rsLoRA", "DoRA", "AdaLoRA", "LoHa" or "LoKr"."""
        return self.config.kind

    @property
    def bytes(self) -> int:
        """Size of the file with the tensors."""
        return self.weights.stat().st_size


@dataclass(frozen=True)
class Adapter:
    """An adapter, in memory or open on a file; then each access reads a tensor.

    Attributes:
        parts: first those with factors, in the model's order as far as it is known. Of a file, dead
            ones are left out; if all are dead, the first is there, as a zero pair.
        task_type: PEFT's, such as "SEQ_CLS" or "CAUSAL_LM". For "SEQ_CLS" PEFT expects a
            `classifier` or `score` to be stored, also if it was not trained.
        fan_in_fan_out: some target is a Conv1D.
    """

    parts: tuple[Part, ...]
    base: BaseReference
    task_type: str | None = None
    fan_in_fan_out: bool = False
    meta: AdapterMeta = dataclasses.field(default_factory=AdapterMeta)
    opened: AdapterFile | None = None

    @classmethod
    def of(
        cls,
        layers: Mapping[str, LowRankFactors],
        head: Mapping[str, Tensor],
        head_modules: Sequence[str],
        task_type: str | None,
        base: BaseReference,
        *,
        biases: Mapping[str, Tensor] | None = None,
        rows: Mapping[str, Replaced] | None = None,
        forms: Mapping[str, Form] | None = None,
        fan_in_fan_out: bool = False,
        meta: AdapterMeta | None = None,
    ) -> Adapter:
        """Return an adapter in memory; the mappings may make their values on demand.

        Args:
            layers: module path in the base model -> float32 factors, all scaling folded into B.
            head: parameter name -> tensor of a module that is stored in full.
            head_modules: paths of these modules; each needs all its tensors in `head`.
            biases: parameter name -> trained bias of another module.
            rows: path of an embedding -> its rows that are trained in full.
            forms: module path -> the kind of layer, for layers that are not linear.
        """
        meta = meta or AdapterMeta()
        new = bool(meta.new_tokens)
        modules = {name: _module(name, head_modules) for name in head}
        for module in set(head_modules).difference(modules.values()):
            raise SoraError(f"'{module}' is to be stored in full but has no tensors")
        tensors = [(head, name, HEAD, module) for name, module in modules.items()]
        tensors += [(biases or {}, name, BIAS, "") for name in biases or {}]
        forms = forms or {}
        return cls(
            (
                *(_pair(layers, path, forms.get(path, LINEAR)) for path in layers),
                *(_full(values, name, role, module) for values, name, role, module in tensors),
                *(rows_of(path, own, new=new) for path, own in (rows or {}).items()),
            ),
            base,
            task_type,
            fan_in_fan_out,
            meta,
        )

    # --------------------------------------------------------------------------- parts by category

    @cached_property
    def factored(self) -> dict[str, Factored]:
        """The parts with factors, by module path."""
        return factored(self.parts)

    @cached_property
    def full(self) -> dict[str, Full]:
        """The parts that are stored in full, by parameter name."""
        return full(self.parts)

    @cached_property
    def rows(self) -> dict[str, Rows]:
        """The rows of embeddings that are trained in full, by the embedding's path."""
        return all_rows(self.parts)

    @cached_property
    def layers(self) -> Mapping[str, LowRankFactors]:
        """Module path -> factors: float32, all scaling in B; each access returns them anew."""
        return OnDemand(list(self.factored), lambda path: self.factored[path].factors())

    @cached_property
    def head(self) -> Mapping[str, Tensor]:
        """Parameter name -> tensor stored in full; each access returns it anew."""
        return OnDemand(list(self.full), lambda name: self.full[name].make())

    @property
    def head_modules(self) -> tuple[str, ...]:
        """Paths of the modules that are stored in full."""
        return modules_of(self.full.values())

    @property
    def biases(self) -> tuple[str, ...]:
        """Names in `head` of trained biases, whose modules are not stored in full."""
        return tuple(name for name, part in self.full.items() if part.role == BIAS)

    @property
    def base_weights(self) -> tuple[str, ...]:
        """Names in `head` that replace the base model's own weights."""
        return tuple(name for name, part in self.full.items() if part.role == BASE)

    # --------------------------------------------------------------------------- of all its factors

    @property
    def paths(self) -> list[str]:
        """The modules with factors."""
        return list(self.factored)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Module path -> (out, in); a convolution's `in` includes its kernel."""
        return {path: part.shape for path, part in self.factored.items()}

    @cached_property
    def stored_ranks(self) -> dict[str, int]:
        """Module path -> stored components, with the zero ones.

        Of LoHa and LoKr the number of rank-one terms that their products are sums of.
        """
        return {path: part.stored for path, part in self.factored.items()}

    @cached_property
    def forms(self) -> dict[str, Form]:
        """Module path -> the kind of layer, for layers that are not linear."""
        return forms_of(self.parts)

    @cached_property
    def groups(self) -> dict[str, list[str]]:
        """The modules, with all experts in a parameter as one: name -> its paths."""
        return grouped(self.paths, self.forms)

    def components(self) -> dict[str, int]:
        """Return the stored components of each of `groups`."""
        ranks = self.stored_ranks
        return {name: sum(ranks[p] for p in paths) for name, paths in self.groups.items()}

    @property
    def parameters(self) -> int:
        """Numbers in the adapted layers, without parts that are stored in full."""
        return sum(part.parameters for part in self.parts if part.peft_types)

    @property
    def head_parameters(self) -> int:
        """Numbers stored in full."""
        return sum(part.parameters for part in self.full.values())

    def ranks(self) -> dict[str, int]:
        """Return {module path: live components}: 0 for dead modules, stored or not."""
        live = {path: int(f.live_components().sum()) for path, f in self.layers.items()}
        return {path: live.get(path, 0) for path in dict.fromkeys([*self.meta.ranks, *live])}

    def ranks_start(self) -> dict[str, int]:
        """Return {module path: components at the start of training, or stored ones if unknown}."""
        stored = {path: part.rank for path, part in self.factored.items()}
        return {path: self.meta.ranks_start.get(path, stored.get(path, 0)) for path in self.ranks()}

    # --------------------------------------------------------------------------------- other copies

    @property
    def source(self) -> AdapterFile:
        """The files that it is read from; only of an adapter that is open."""
        assert self.opened is not None, "this adapter is in memory"
        return self.opened

    def held(self) -> Adapter:
        """Return the adapter in memory."""
        return dataclasses.replace(self, parts=tuple(p.held() for p in self.parts), opened=None)

    def with_layers(self, layers: Mapping[str, LowRankFactors]) -> Adapter:
        """Return the adapter with other factors; they may be made on demand."""
        forms = self.forms
        own = (_pair(layers, path, forms.get(path, LINEAR)) for path in layers)
        rest = (part for part in self.parts if not isinstance(part, Factored))
        return dataclasses.replace(self, parts=(*own, *rest), opened=None)

    def with_full(self, tensors: Mapping[str, Tensor]) -> Adapter:
        """Return the adapter with other numbers in the parts that are stored in full."""
        return self.with_parts(
            part.with_tensor(tensors[part.path]) if isinstance(part, Full) else part
            for part in self.parts
        )

    def with_parts(self, parts: Iterable[Part]) -> Adapter:
        """Return the adapter with other parts."""
        return dataclasses.replace(self, parts=tuple(parts))

    def with_meta(self, meta: AdapterMeta) -> Adapter:
        """Return the adapter with other facts."""
        return dataclasses.replace(self, meta=meta)

    # ----------------------------------------------------------------------------- what it can do

    def objection(self, ask: Callable[[Part], str | None]) -> str | None:
        """Return the first objection of its parts; None: there is none."""
        return objection_of(self.parts, ask)

    def check_all_in_factors(self) -> None:
        """Refuse an adapter whose factors alone would be another one, with other outputs."""
        self._check(lambda part: part.beside_factors)

    def check_writable(self) -> None:
        """Refuse an adapter with a part that can only be merged."""
        self._check(lambda part: part.fixed)

    def _check(self, ask: Callable[[Part], str | None]) -> None:
        why = self.objection(ask)
        if why is not None:
            raise SoraError(
                f"{why}, which is not an update of low rank",
                where="without that part it would give other outputs",
                hint=_MERGE,
            )


def _pair(layers: Mapping[str, LowRankFactors], path: str, form: Form) -> Held:
    return Held(path, partial(layers.__getitem__, path), form)


def _full(values: Mapping[str, Tensor], name: str, role: str, module: str) -> Full:
    tensor = values[name]
    return Full(
        name, partial(values.__getitem__, name), tuple(tensor.shape), tensor.dtype, role, module
    )


def _module(name: str, modules: Sequence[str]) -> str:
    """Return the module that a parameter stored in full belongs to."""
    found = next((module for module in modules if name.startswith(f"{module}.")), None)
    if found is None:
        raise SoraError(f"'{name}' is stored in full but belongs to none of {tuple(modules)}")
    return found
