"""All facts that `sora inspect` shows of one adapter, as plain data: the output of `--json`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from sora_cli.adapter.consumers import consumers_of
from sora_cli.adapter.modules import SmallerCut, cuts
from sora_cli.adapter.rounding import factor_bytes
from sora_cli.adapter.serving import servers
from sora_cli.adapter.spectra import Spectrum, Totals, read_spectra, totals
from sora_cli.core.errors import SoraError
from sora_cli.core.unpacked import unpacked_from

if TYPE_CHECKING:
    from sora_cli.adapter.reading import AdapterFile
    from sora_cli.adapter.stored import Form


def facts_of(file: AdapterFile) -> dict[str, Any]:
    """Read an adapter, module by module, and return its facts.

    Returns:
        JSON-able values. "ranks" has every known module, also dead ones that are not stored;
        "spectra" has the stored modules, with all their singular values; "cuts" says how much of
        the update smaller adapters would keep.
    """
    spectra = read_spectra(file)
    ranks = ranks_of(file, spectra)
    experts = {n: len(paths) for n, paths in file.groups.items() if paths != [n]}
    # else it cannot be cut; all experts in a parameter have one rank
    low_rank = not (file.magnitudes or experts)
    modules = {path: spectrum.module for path, spectrum in spectra.items() if low_rank}
    total = totals(spectra)
    packed = unpacked_from(file.directory)
    verdicts = () if packed else consumers_of(file)
    serve = servers(
        verdicts,
        task_type=file.config.task_type,
        directory=str(file.directory),
        base=file.config.base_model_name_or_path,
    )
    return {
        **_origin(file),
        "directory": str(packed or file.directory),
        "packed": packed is not None,
        "found_rate": file.meta.training.found_rate if file.meta.training else None,
        "components": {
            "live": sum(rank["live"] for rank in ranks.values()),
            "start": sum(rank["start"] for rank in ranks.values()),
        },
        "modules": {
            "all": len(ranks),
            "dead": sum(rank["live"] == 0 for rank in ranks.values()),
        },
        "largest_rank": max(file.ranks.values()),
        "r": file.config.r,
        "effective_rank": {
            "energy_90": total.rank_low,
            "energy_99": total.rank_high,
            "entropy": total.entropy,
        },
        "norm": total.norm,
        "parameters": {"adapter": file.parameters, "head": file.head_parameters},
        "bytes": file.file_bytes if packed is None else packed.stat().st_size,
        "bits": file.meta.bits,
        "packed_bytes": _packed_bytes(file),
        "rounding_errors": file.meta.rounding_errors,
        "dtype": file.dtype,
        "prune_saves": _savings(total, file.dtype),
        "cuts": [_cut(cut, len(ranks)) for cut in cuts(modules)],
        "head_modules": list(file.head_modules),
        "biases": list(file.biases),
        "base_weights": list(file.base_weights),
        "rescaled": len(file.magnitudes),
        "tokens": {path: len(rows) for path, (rows, _) in file.tokens.items()},
        "new_tokens": file.meta.new_tokens,
        "forms": {p: _form(form) for p, form in file.forms.items() if not form.experts},
        "experts": experts,
        "fan_in_fan_out": file.config.fan_in_fan_out,
        "consumers": [asdict(verdict) for verdict in verdicts],
        "servers": [asdict(server) for server in serve],
        "notes": [*file.notes, *_damaged_heads(file)],
        "lineage": list(file.meta.lineage),
        "sora_version": file.meta.sora_version,
        "ranks": ranks,
        "spectra": {path: _spectrum(spectrum) for path, spectrum in spectra.items()},
    }


def _packed_bytes(file: AdapterFile) -> int | None:
    """Return the bytes of the factors in a packed file; None if they are not rounded."""
    bits = file.meta.bits
    return None if bits is None else factor_bytes(file.ranks, file.shapes, bits)


def _form(form: Form) -> str:
    return "embedding" if form.embedding else f"convolution {'x'.join(map(str, form.kernel))}"


def ranks_of(file: AdapterFile, spectra: Mapping[str, Spectrum]) -> dict[str, dict[str, int]]:
    """Return {module path: components live, stored and at the start of training}.

    An unknown start counts as the stored number.
    """
    paths = dict.fromkeys([*file.meta.ranks, *spectra])
    ranks = {}
    for path in paths:
        stored = spectra[path].stored if path in spectra else 0
        live = spectra[path].live if path in spectra else 0
        start = file.meta.ranks_start.get(path, stored)
        ranks[path] = {"live": live, "stored": stored, "start": start}
    return ranks


def _origin(file: AdapterFile) -> dict[str, Any]:
    meta = file.meta
    return {
        "method": meta.method,
        "method_config": meta.method_config,
        "kind": file.kind,
        "task_type": file.config.task_type,
        "task": meta.task,
        "labels": list(meta.labels) if meta.labels else None,
        "num_labels": meta.num_labels,
        "problem_type": meta.problem_type,
        "max_length": meta.max_length,
        "base": asdict(file.base),
    }


def _damaged_heads(file: AdapterFile) -> Iterator[str]:
    """Yield a sentence for each parameter stored in full that holds NaN or infinity.

    In factors these are an error; an adapter with a damaged head can still be inspected.
    """
    for name in file.head_names:
        try:
            file.head_tensor(name)
        except SoraError as error:
            yield f"{error.what}: other commands refuse this adapter"


def _savings(total: Totals, dtype: str) -> dict[str, dict[str, int]]:
    """Return the numbers and bytes (in the file's dtype) that either kind of pruning saves."""
    width = torch.empty(0, dtype=getattr(torch, dtype)).element_size()
    cuts = {"lossless": total.lossless, "energy_99": total.pruned}
    return {name: {"parameters": n, "bytes": n * width} for name, n in cuts.items()}


def _cut(cut: SmallerCut, modules: int) -> dict[str, Any]:
    return {
        "share": cut.share,
        "max_params": cut.max_params,
        "parameters": cut.parameters,
        "components": cut.components,
        "mean_rank": cut.components / modules,
        "energy": cut.energy,
        "ranks": dict(cut.ranks),
    }


def _spectrum(spectrum: Spectrum) -> dict[str, Any]:
    return {
        "shape": list(spectrum.shape),
        "rank_90": spectrum.rank_low,
        "rank_99": spectrum.rank_high,
        "entropy_rank": spectrum.entropy,
        "norm": spectrum.norm,
        "largest": spectrum.largest,
        "singular_values": spectrum.values.tolist(),
    }
