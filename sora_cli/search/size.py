"""The size of an adapter: its numbers, its cost in a server, and its saving. No torch here."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, Field

from sora_cli.adapter.programs import program


class Size(BaseModel):
    """The size of an adapter, without its head."""

    parameters: int = Field(description="numbers in the factors")
    components: int = Field(description="number of components in all layers")
    largest_rank: int = Field(description="the largest rank of a layer")
    served: int = Field(
        description="numbers that the server holds for the adapter, padding included; without "
        "serve, its parameters"
    )


def size_of(ranks: Mapping[str, int], cost: Mapping[str, int], serve: str | None) -> Size:
    """Return an adapter's size from the ranks of its layers.

    Args:
        cost: numbers that one component of each layer stores.
        serve: server of the adapter; None: its size is its parameters.
    """
    parameters = sum(rank * cost[path] for path, rank in ranks.items())
    largest = max(ranks.values(), default=0)
    if serve is None:
        served = parameters
    else:
        # servers batch adapters in buffers of one rank for all layers, so every layer with a
        # component costs the largest rank
        slots = program(serve).rank_option(largest)
        served = slots * sum(cost[path] for path, rank in ranks.items() if rank)
    return Size(
        parameters=parameters,
        components=sum(ranks.values()),
        largest_rank=largest,
        served=served,
    )


def saving(size: Size, full: Size, serve: str | None) -> str:
    """Return a sentence on the components, parameters and serving cost saved against full rank."""
    kept = f"{size.components:,} of {full.components:,} components"
    if not full.parameters:  # a whole model, which has no factors
        return f"{kept}, {size.parameters:,} parameters"
    share = size.parameters / full.parameters
    text = f"{kept}, {size.parameters:,} of {full.parameters:,} parameters ({share:.1%})"
    if serve is None:
        return text
    if size.served >= full.served:
        return f"{text}; nothing is saved where {serve} serves it: it pays for the largest rank"
    server = program(serve)
    ranks = (
        f"{server.step_name} {server.rank_option(size.largest_rank)}, "
        f"not {server.rank_option(full.largest_rank)}"
    )
    return f"{text}; served by {serve}: {ranks}, {size.served / full.served:.0%} of the numbers"
