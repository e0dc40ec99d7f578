"""An adapter directory, open for reading: its header at once, its tensors one part at a time.

It reads our adapters and any tool's PEFT LoRA, rsLoRA, DoRA, AdaLoRA, LoHa or LoKr. Each kind of
part (`parts/kinds`) claims its keys in the file and checks them; what is over all parts, PEFT's
configuration, is checked here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sora_cli.adapter.adapter import Adapter, AdapterFile
from sora_cli.adapter.base_weights import with_kernels, without_copies
from sora_cli.adapter.metadata import AdapterMeta, BaseReference, read_json, read_sora_file
from sora_cli.adapter.moved import located
from sora_cli.adapter.parts.factored import common_dtype, factored
from sora_cli.adapter.parts.full import full, modules_of
from sora_cli.adapter.parts.kinds import kinds_in, peft_types
from sora_cli.adapter.parts.part import Found, Header, Part
from sora_cli.adapter.peft.config import PeftConfig, parse_config
from sora_cli.adapter.peft.layout import PREFIX, check_name, unknown_key
from sora_cli.adapter.peft.parameters import parameters_of
from sora_cli.adapter.peft.targets import check_targets, targeted
from sora_cli.adapter.places import locate_adapter
from sora_cli.core.errors import SoraError
from sora_cli.model.files import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, SORA_FILE
from sora_cli.model.references import hub_name
from sora_cli.model.tensors import TensorFile, open_tensors


def read_adapter(directory: Path, *, base: str | None = None) -> Adapter:
    """Read our adapter or one of PEFT's into memory; see `open_adapter`."""
    with open_adapter(directory, base=base) as adapter:
        return adapter.held()


@contextmanager
def open_adapter(
    directory: Path, *, base: str | None = None, as_stored: bool = False
) -> Iterator[Adapter]:
    """Open our adapter or one of PEFT's, and check everything except the numbers.

    Args:
        directory: the adapter directory, or a run directory that holds one.
        base: reference of the base model, if it is not the model that the adapter names.
        as_stored: keep stored base weights even if they equal the base model's own.
    """
    directory = locate_adapter(directory)
    place = str(directory / ADAPTER_CONFIG)
    config = parse_config(read_json(directory / ADAPTER_CONFIG), place, peft_types())
    meta, named = read_sora_file(directory / SORA_FILE)
    for path in (*meta.ranks, *meta.ranks_start):
        check_name(path, str(directory / SORA_FILE))
    with open_tensors(_weights(directory)) as tensors:
        reference = located(named or _base(config))
        parts, notes = _parts(config, tensors, meta, place)
        if not as_stored:
            parts, copies = without_copies(parts, reference, base)
            notes = (*notes, *copies)
        if config.is_adalora and not meta.ranks:
            ranks = {path: part.rank for path, part in factored(parts).items()}
            start = dict.fromkeys(ranks, config.r)
            meta = meta.model_copy(update={"ranks": ranks, "ranks_start": start})
        parts = [*with_kernels(_alive(parts), reference)]
        dtype, heads = common_dtype(factored(parts)), modules_of(full(parts).values())
        notes = (*notes, *config.head_notes(heads))
        opened = AdapterFile(directory, tensors.file, config, dtype, notes)
        yield Adapter(
            tuple(parts), reference, config.task_type, config.fan_in_fan_out, meta, opened
        )


def _base(config: PeftConfig) -> BaseReference:
    name = config.base_model_name_or_path or ""
    hub_id = (hub_name(name) or (None,))[0]
    return BaseReference(path=name, resolved=name, revision=config.revision, hub_id=hub_id)


def _weights(directory: Path) -> Path:
    file = directory / ADAPTER_WEIGHTS
    if file.is_file():
        return file
    if (directory / ADAPTER_PICKLE).is_file():
        raise SoraError(
            f"{directory / ADAPTER_PICKLE} is a pickle, which can run any code when it is read",
            hint="if you trust it, load it with PEFT and save_pretrained() it again",
        )
    raise SoraError(f"{directory} holds no {ADAPTER_WEIGHTS}")


def _parts(
    config: PeftConfig, tensors: TensorFile, meta: AdapterMeta, place: str
) -> tuple[list[Part], tuple[str, ...]]:
    """Return the parts in a file, and notes on its configuration, without reading a number.

    Args:
        place: of the configuration, for messages.
    """
    where = str(tensors.file)
    claims = _claimed(tensors.keys, config, where)
    kind, keyed = next(iter(claims.items()))
    parameters = _parameters(keyed, config, where)
    claims[kind] = layers = {parameters.get(path, path): roles for path, roles in keyed.items()}
    kind.check_claims(layers, config, where)
    targets = list(dict.fromkeys([*(p for p in meta.ranks if p in layers), *layers]))
    named = set(parameters.values())
    check_targets(config, [path for path in targets if path not in named], place)
    notes = config.prepare(targets, place)
    header = Header(config, tensors, keyed.keys(), named, bool(meta.new_tokens))
    parts = [part for kind, found in claims.items() for part in kind.read(found, header)]
    order = {path: i for i, path in enumerate(meta.ranks)}
    parts.sort(key=lambda part: (not part.peft_types, order.get(part.path, len(order))))
    return parts, notes


def _alive(parts: list[Part]) -> list[Part]:
    """Leave out dead parts; if all parts with factors are dead, the first one stays."""
    layers = factored(parts)
    dead = {path for path, part in layers.items() if not part.rank}
    if len(dead) == len(layers):
        dead -= set(list(layers)[:1])
    return [part for part in parts if not (part.peft_types and part.path in dead)]


def _claimed(keys: Sequence[str], config: PeftConfig, where: str) -> dict[type[Part], Found]:
    """Let each kind of part claim its keys; a key that none claims is an error."""
    claims: dict[type[Part], Found] = {kind: {} for kind in kinds_in(config.peft_type)}
    for key in keys:
        name = key.removeprefix(PREFIX)
        if name == key:
            raise SoraError(f"{key[:200]!r} does not start with {PREFIX}", where=where)
        check_name(name, where)
        for kind, found in claims.items():
            claim = kind.claim(name, config)
            if claim is not None:
                found.setdefault(claim[0], {})[claim[1]] = key
                break
        else:
            raise unknown_key(name, where)
    if not next(iter(claims.values())):
        raise SoraError("the file holds no LoRA pair", where=where)
    return claims


def _parameters(found: Found, config: PeftConfig, where: str) -> dict[str, str]:
    """Return {path in the keys: name of the parameter} for adapted parameters."""
    if not config.target_parameters:
        return {}
    for name in config.target_parameters:
        check_name(name, where)
    modules = targeted(config, list(found), where)
    others = [path for path in found if path not in modules]
    return parameters_of(others or found, config.target_parameters, where)
