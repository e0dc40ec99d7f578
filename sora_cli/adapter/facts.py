"""All facts that `sora inspect` shows of one adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from sora_cli.adapter.consumers import Consumer, consumers_of
from sora_cli.adapter.metadata import BaseReference
from sora_cli.adapter.modules import SmallerCut, cuts
from sora_cli.adapter.parts.kinds import sections
from sora_cli.adapter.parts.part import Section
from sora_cli.adapter.rounding import factor_bytes
from sora_cli.adapter.serving import Server, servers
from sora_cli.adapter.spectra import Spectrum, Totals, read_spectra, totals
from sora_cli.core.errors import SoraError
from sora_cli.core.unpacked import unpacked_from

if TYPE_CHECKING:
    from sora_cli.adapter.adapter import Adapter


@dataclass(frozen=True)
class Components:
    """Numbers of components: left, and at the start of training."""

    live: int
    start: int


@dataclass(frozen=True)
class Modules:
    """Numbers of modules: all known ones, and modules without a component."""

    all: int
    dead: int


@dataclass(frozen=True)
class EffectiveRank:
    """Components that hold 90 % and 99 % of each module's ||dW||_F^2, and the rank by entropy."""

    energy_90: int
    energy_99: int
    entropy: float


@dataclass(frozen=True)
class Numbers:
    """Numbers in the adapted layers, and numbers stored in full."""

    adapter: int
    head: int


@dataclass(frozen=True)
class Saving:
    """What a prune saves."""

    parameters: int
    bytes: int


@dataclass(frozen=True)
class RankFacts:
    """Components of one module: live, stored, and at the start of training."""

    live: int
    stored: int
    start: int


@dataclass(frozen=True)
class Facts:
    """All facts that `sora inspect` shows of one adapter.

    Attributes:
        directory: its directory, or its packed file.
        packed: it is a packed file.
        prunable: its layers can be cut one by one.
        parts: what its parts say of themselves.
        ranks: every known module, also dead ones that are not stored.
        spectra: the stored modules.
        certificate: what its certificate says; None: it has none.
    """

    method: str | None
    method_config: Mapping[str, Any] | None
    kind: str
    task_type: str | None
    task: str | None
    labels: list[str] | None
    num_labels: int | None
    problem_type: str | None
    max_length: int | None
    base: BaseReference
    directory: str
    packed: bool
    found_rate: float | None
    components: Components
    modules: Modules
    largest_rank: int
    r: int
    effective_rank: EffectiveRank
    norm: float
    parameters: Numbers
    bytes: int
    bits: int | None
    packed_bytes: int | None
    rounding_errors: Mapping[str, float]
    dtype: str
    prune_saves: Mapping[str, Saving]
    cuts: list[SmallerCut]
    prunable: bool
    parts: Section
    new_tokens: Sequence[str]
    adapts: str | None
    fan_in_fan_out: bool
    consumers: list[Consumer]
    servers: list[Server]
    notes: list[str]
    lineage: list[Mapping[str, Any]]
    sora_version: str | None
    ranks: Mapping[str, RankFacts]
    spectra: Mapping[str, Spectrum]
    certificate: str | None = None

    def as_json(self) -> dict[str, Any]:
        """Return plain data: the output of `--json`."""
        data = asdict(replace(self, cuts=[], spectra={}))
        del data["prunable"]
        data["cuts"] = [cut.as_json(len(self.ranks)) for cut in self.cuts]
        data["spectra"] = {path: spectrum.as_json() for path, spectrum in self.spectra.items()}
        plain: dict[str, Any] = {}
        for key, value in data.items():
            plain |= value["facts"] if key == "parts" else {key: value}
        return plain


def facts_of(adapter: Adapter, *, certificate: str | None = None) -> Facts:
    """Read an open adapter, module by module, and return its facts."""
    spectra, source, meta = read_spectra(adapter), adapter.source, adapter.meta
    ranks = ranks_of(adapter, spectra)
    packed = unpacked_from(source.directory)
    verdicts = () if packed else consumers_of(adapter)
    total = totals(spectra)
    prunable = adapter.objection(lambda part: part.fixed or part.of_one_rank) is None
    return Facts(
        method=meta.method,
        method_config=meta.method_config,
        kind=source.kind,
        task_type=adapter.task_type,
        task=meta.task,
        labels=list(meta.labels) if meta.labels else None,
        num_labels=meta.num_labels,
        problem_type=meta.problem_type,
        max_length=meta.max_length,
        base=adapter.base,
        directory=str(packed or source.directory),
        packed=packed is not None,
        found_rate=meta.training.found_rate if meta.training else None,
        components=Components(
            sum(rank.live for rank in ranks.values()), sum(rank.start for rank in ranks.values())
        ),
        modules=Modules(len(ranks), sum(rank.live == 0 for rank in ranks.values())),
        largest_rank=max(adapter.stored_ranks.values(), default=0),
        r=source.config.r,
        effective_rank=EffectiveRank(total.rank_low, total.rank_high, total.entropy),
        norm=total.norm,
        parameters=Numbers(adapter.parameters, adapter.head_parameters),
        bytes=source.bytes if packed is None else packed.stat().st_size,
        bits=meta.bits,
        packed_bytes=_packed_bytes(adapter),
        rounding_errors=meta.rounding_errors,
        dtype=source.dtype,
        prune_saves=_savings(total, source.dtype),
        cuts=cuts({path: s.module for path, s in spectra.items()}) if prunable else [],
        prunable=prunable,
        parts=sections(adapter.parts),
        new_tokens=meta.new_tokens,
        adapts=meta.adapts,
        fan_in_fan_out=adapter.fan_in_fan_out,
        consumers=[*verdicts],
        servers=[
            *servers(
                verdicts,
                task_type=adapter.task_type,
                directory=str(source.directory),
                base=source.config.base_model_name_or_path,
            )
        ],
        notes=[*source.notes, *_damaged_heads(adapter)],
        lineage=list(meta.lineage),
        sora_version=meta.sora_version,
        ranks=ranks,
        spectra=spectra,
        certificate=certificate,
    )


def _packed_bytes(adapter: Adapter) -> int | None:
    """Return the bytes of the factors in a packed file; None if they are not rounded."""
    bits = adapter.meta.bits
    return None if bits is None else factor_bytes(adapter.stored_ranks, adapter.shapes, bits)


def ranks_of(adapter: Adapter, spectra: Mapping[str, Spectrum]) -> dict[str, RankFacts]:
    """Return the ranks of each module; an unknown start counts as the stored number."""
    ranks = {}
    for path in dict.fromkeys([*adapter.meta.ranks, *spectra]):
        spectrum = spectra.get(path)
        stored, live = (spectrum.stored, spectrum.live) if spectrum else (0, 0)
        ranks[path] = RankFacts(live, stored, adapter.meta.ranks_start.get(path, stored))
    return ranks


def _damaged_heads(adapter: Adapter) -> Iterator[str]:
    """Yield a sentence for each parameter stored in full that holds NaN or infinity.

    In factors these are an error; an adapter with a damaged head can still be inspected.
    """
    for part in adapter.full.values():
        try:
            part.make()
        except SoraError as error:
            yield f"{error.what}: other commands refuse this adapter"


def _savings(total: Totals, dtype: str) -> dict[str, Saving]:
    """Return the numbers and bytes (in the file's dtype) that either kind of pruning saves."""
    width = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    saved = {"lossless": total.lossless, "energy_99": total.pruned}
    return {name: Saving(n, n * width) for name, n in saved.items()}
