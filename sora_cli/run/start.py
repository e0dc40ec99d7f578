"""Start a run from a finished adapter: load its update, cut if the recipe says so, and its head."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from methods.base import AdapterMethod, Layers
from methods.factors import LowRankFactors
from methods.keep import Keep
from methods.sharding import agreed
from sora_cli.adapter.adapter import Adapter
from sora_cli.adapter.digest import result_digest
from sora_cli.adapter.in_model import load_head
from sora_cli.adapter.pruning import check_left, prune_layers
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.rounding import round_layers
from sora_cli.adapter.todays_names import todays_names, todays_paths
from sora_cli.core.console import say_notes
from sora_cli.core.device import process_state
from sora_cli.core.errors import SoraError
from sora_cli.core.processes import world_size
from sora_cli.core.shell import quote
from sora_cli.core.words import first_few, listed
from sora_cli.model.base import Base
from sora_cli.model.new_tokens import KEY, trained_rows
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import Ranks, Start
from sora_cli.run.stored import check_base, check_classes
from sora_cli.tasks.base import Task


def start_from_adapter(
    recipe: Recipe, base: Base, task: Task, method: AdapterMethod, layers: Layers
) -> Start | None:
    """Load `start.adapter` into the layers and the head; None if the recipe names no adapter.

    Every process must call it; all end with the same factors. Refuses an adapter of another
    base model or for other classes, an adapter on layers that the recipe does not train, and a cut
    that leaves nothing.
    """
    block = recipe.start
    if block is None or block.adapter is None:
        return None
    with recipe.placing("start.adapter"):
        if not layers:
            raise SoraError(f"method '{method.name}' has no adapter to load start.adapter into")
        with open_adapter(Path(block.adapter).expanduser(), base=base.resolved) as adapter:
            place = adapter.source.directory
            say_notes(check_base(base, adapter.base, place))
            check_classes("adapter", adapter.meta.labels, task)
            adapter.check_writable()
            slices = adapter.objection(lambda part: part.of_one_rank)
            if slices is not None:
                raise SoraError(
                    f"{place} changes {slices}, which no method trains",
                    hint="sora merge it first, and train on the merged model",
                )
            first = {**adapter.stored_ranks, **adapter.meta.ranks_start}
            today = todays_paths(base.model, [*adapter.paths, *first])
            _check_layers(adapter, layers, today)
            head = _head(adapter, base)
            _take_rows(adapter, base, recipe.model.new_tokens)
            updates = _updates(adapter, layers, block.keep(), today)
            if block.bits is not None:
                updates = _rounded(updates, layers, block.bits)
            replaced = sum(layer.rank for layer in layers.values())
            method.start_from(layers, updates)
            with torch.no_grad():
                load_head(base.model, head)
            first = {today[path]: rank for path, rank in first.items()}
            return Start(
                directory=block.adapter,
                digest=result_digest(place) or "",
                rule=block.keep().given(),
                bits=block.bits,
                head=sum(tensor.numel() for tensor in head.values()),
                ranks={
                    path: Ranks(start=first.get(path, 0), end=update.rank)
                    for path, update in updates.items()
                },
                replaced=replaced,
            )


def _check_layers(adapter: Adapter, layers: Layers, today: Mapping[str, str]) -> None:
    """Check that the recipe adapts every layer of the adapter, with the same shapes."""
    place = adapter.source.directory
    missing = [path for path in adapter.paths if today[path] not in layers]
    if missing:
        raise SoraError(
            f"{place} changes {first_few(missing)}, which this run does not adapt",
            hint="name these layers in method.targets, and use the same kind of model",
        )
    for path in adapter.paths:
        layer = layers[today[path]]
        shape = (layer.B.shape[0], layer.A.shape[1])
        if shape != adapter.shapes[path]:
            raise SoraError(
                f"'{path}' has {shape[1]} inputs and {shape[0]} outputs, but in {place} "
                f"{adapter.shapes[path][1]} and {adapter.shapes[path][0]}"
            )


def _head(adapter: Adapter, base: Base) -> dict[str, Tensor]:
    """Return the modules that the adapter stores in full; this run must store the same modules."""
    place = adapter.source.directory
    today = todays_names(base.model, adapter.full)
    other = [n for n in adapter.full if not any(today[n].startswith(f"{m}.") for m in base.head)]
    if other:
        raise SoraError(
            f"{place} stores {first_few(other)} in full, but this run would not keep it",
            where=f"this run stores in full: {first_few(base.head)}" if base.head else None,
        )
    return dict(adapter.head)


@torch.no_grad()
def _take_rows(adapter: Adapter, base: Base, new: Sequence[str]) -> None:
    """Load the adapter's rows of new tokens by the tokens' texts; this run must train them all.

    Rows of tokens that the adapter lacks stay the mean of their pieces.

    Args:
        new: the run's new tokens, in the order of their rows.
    """
    place = adapter.source.directory
    own, today = trained_rows(base.model), todays_paths(base.model, adapter.rows)
    names = adapter.meta.new_tokens  # in its rows' order: the run chooses their numbers
    for path, stored in adapter.rows.items():
        if len(names) != len(stored.indices):
            raise SoraError(
                f"{place} has trained rows of tokens {first_few([*stored.indices])}"
                ", but does not record the tokens' texts",
                hint="sora merge it first, and train on the merged model",
            )
        rows, lost = own.get(today[path]), [name for name in names if name not in new]
        if rows is None or lost:
            wanted = json.dumps([*new, *lost], ensure_ascii=False)
            raise SoraError(
                f"{place} has trained rows of {listed(lost or names)}, which this run "
                "would not keep",
                hint=quote(f"{KEY}={wanted}"),
                key=KEY,
            )
        rows.rows[[new.index(name) for name in names]] = stored.make().to(rows.rows)
    fresh = [name for name in new if name not in names]
    if fresh:
        say_notes([f"{place} has no rows of {listed(fresh)}: they begin as the mean of "
                   "their pieces"])  # fmt: skip


def _updates(
    adapter: Adapter, layers: Layers, keep: Keep, today: Mapping[str, str]
) -> dict[str, LowRankFactors]:
    """Return each layer's starting update, the same on all processes; rank 0 if none is stored."""
    known = {today[path]: adapter.layers[path] for path in adapter.paths}
    if not keep.given():
        return {path: _learning(known.get(path), layers, path) for path in layers}
    modules = len({*adapter.meta.ranks, *adapter.paths})
    losses = prune_layers(known, keep, modules=modules)[1]
    kept_ranks = ((loss.after, loss.squared) for loss in losses.values())
    check_left(keep, kept_ranks, map(sum, adapter.shapes.values()), block="start")
    chosen = _agreed(torch.tensor([losses[path].after for path in known])).tolist()
    ranks = dict(zip(known, chosen, strict=True))
    updates = {}
    for path, layer in layers.items():
        stored = _learning(known.get(path), layers, path)
        # truncate() splits each singular value evenly between A and B. They are trained without
        # the scale, so it is taken out of B first and put back after the cut
        scaled = LowRankFactors(stored.A, stored.B / layer.scaling)  # balanced as they are trained
        small = scaled.truncate(min(ranks.get(path, 0), scaled.rank))
        updates[path] = LowRankFactors(_agreed(small.A), _agreed(small.B) * layer.scaling)
    return updates


def _rounded(
    updates: Mapping[str, LowRankFactors], layers: Layers, bits: int
) -> dict[str, LowRankFactors]:
    """Round the updates; the layers' scaling must not change a digit of them."""
    inexact = next((path for path in updates if math.frexp(layers[path].scaling)[0] != 0.5), None)
    if inexact is not None:
        raise SoraError(
            f"start.bits needs a scaling that is a power of two, and '{inexact}' has "
            f"{layers[inexact].scaling:g}",
            hint="method.alpha equal to the method's rank gives 1",
            key="start.bits",
        )
    return dict(round_layers(updates, bits))


def _learning(stored: LowRankFactors | None, layers: Layers, path: str) -> LowRankFactors:
    """Remove components with both factors zero: their gradient is zero at every step."""
    if stored is None:
        layer = layers[path]
        return LowRankFactors(torch.zeros(0, layer.A.shape[1]), torch.zeros(layer.B.shape[0], 0))
    return stored.select(stored.A.ne(0).any(dim=1) | stored.B.ne(0).any(dim=0))


def _agreed(tensor: Tensor) -> Tensor:
    """Return the first process's tensor on every process, before the trainer has been made."""
    if world_size() == 1:
        return tensor
    device = process_state().device
    return agreed(tensor.to(device)).to(tensor.device)
