"""Cut the checkpoint to each size and score it before healing, for screening.

Every candidate starts from this checkpoint, so its ranks after the cut are the ranks found here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from methods.base import Layers
from methods.budgets import costs_of
from methods.factors import LowRankFactors
from methods.sharding import like
from sora_cli.adapter.pruning import at_ranks, survey
from sora_cli.recipe.auto import Serve
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.run.runner import Runner
from sora_cli.search.screening import Cuts, planned_sizes
from sora_cli.search.size import size_of
from sora_cli.tasks.row_scores import RowScores
from sora_cli.train.checkpoint.files import load_parameters, read_checkpoint
from sora_cli.train.checkpoint.fork import locate_fork


def score_cuts(
    runner: Runner,
    candidate: LoadedRecipe,
    score: Callable[[], RowScores],
    serve: Serve | None,
) -> Cuts:
    """Cut the checkpoint that candidates start from to each size, and score it unhealed.

    Args:
        candidate: recipe of any run that starts from the checkpoint.
        score: scores the model as it is then on the screening rows.
        serve: server of the adapter; None: parameters count.
    """
    layers, method = runner.ready.layers, runner.ready.method
    start = candidate.recipe.start
    assert start is not None
    load_parameters(runner.ready.base.model, read_checkpoint(locate_fork(start)).tensors)
    factors = {path: method.factors(layer) for path, layer in layers.items()}
    values = {path: f.singular_values().cpu() for path, f in factors.items()}
    cost = costs_of(factors)
    full = size_of({path: layer.rank for path, layer in layers.items()}, cost, serve)
    known = survey(factors)  # singular values and vectors, computed once for all sizes
    cuts = Cuts(full, score(), planned_sizes(values, cost, full.parameters), [], [])
    for planned in cuts.planned:
        with replaced_factors(layers, at_ranks(factors, planned.ranks, known)):
            cuts.scores.append(score())
        cuts.sizes.append(size_of(planned.ranks, cost, serve))
    return cuts


@contextmanager
def replaced_factors(layers: Layers, factors: Mapping[str, LowRankFactors]) -> Iterator[None]:
    """Give the layers other factors within the `with` block, padded with zeros to their rank.

    Afterwards the layers have their own tensors again, unchanged to the bit. The factors must have
    at most the layers' rank. Not for training, and not for layers with gates.
    """
    kept = {path: (layer.A.data, layer.B.data) for path, layer in layers.items()}
    try:
        for path, layer in layers.items():
            small = factors[path]
            # factors hold the whole update B A; the layer multiplies by its scaling itself
            layer.A.data = like(_padded(small.A, layer.A.shape), layer.A)
            layer.B.data = like(_padded(small.B / layer.scaling, layer.B.shape), layer.B)
        yield
    finally:
        for path, layer in layers.items():
            layer.A.data, layer.B.data = kept[path]


def _padded(tensor: Tensor, shape: torch.Size) -> Tensor:
    whole = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    whole[: tensor.shape[0], : tensor.shape[1]] = tensor
    return whole
