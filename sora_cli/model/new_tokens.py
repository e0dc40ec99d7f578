"""New tokens of a run: added to the tokenizer, and trained as rows of the embeddings.

A new token is an ordinary added token: it is never split, and it stays in texts that are decoded.
Its rows begin as the mean of the rows of the pieces into which the tokenizer split it before: of
the ways without a training of their own the best known one (Gee et al. 2022, "Fast vocabulary
transfer", arXiv 2402.09977; a strong baseline in Dobler et al. 2025, arXiv 2505.20133), and it
draws nothing. As an output row it cannot win at once: its logit is the mean of its pieces' logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from methods.base import LowRankLinear
from methods.inject import output_embedding
from sora_cli.core.errors import SoraError

KEY = "model.new_tokens"
Pieces = Mapping[int, Sequence[int]]
"""Id of each new token -> the ids of its pieces, under the tokenizer as it was."""


class TokenRows(nn.Module):
    """Rows of an embedding that are trained while the rest of its weight is frozen.

    As in PEFT (`TrainableTokensLayer`), each pass copies the weight with these rows in it: whatever
    reads the weight gets them. Only the rows have gradients that stay, and moments.
    """

    ids: Tensor

    def __init__(self, weight: Tensor, ids: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(ids, device=weight.device), persistent=False)
        # float32 like the factors, whatever the frozen weight is: small steps would round away
        self.rows = nn.Parameter(weight.detach()[self.ids].float())  # (tokens, width)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight (vocabulary, width) with the trained rows."""
        return weight.index_copy(0, self.ids, self.rows.to(weight.dtype))


def add_to_tokenizer(tokenizer: Any, names: Sequence[str]) -> Pieces:
    """Add tokens to a tokenizer, in place; a token that it has already is refused."""
    from transformers import AddedToken

    if not names:
        return {}
    known = tokenizer.get_vocab()
    for name in names:
        if name in known:
            raise SoraError(
                f"the tokenizer has the token {name!r} already, with the id {known[name]}",
                hint=f"leave it out of {KEY}",
                key=KEY,
            )
    unknown = tokenizer.unk_token_id
    pieces = [
        [i for i in tokenizer.encode(name, add_special_tokens=False) if i != unknown]
        for name in names
    ]
    # not normalised: a tokenizer that lowercases its texts would never meet "<Tool>"
    tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in names])
    ids = tokenizer.convert_tokens_to_ids(list(names))
    for name, new in zip(names, ids, strict=True):
        if tokenizer.encode(f"a{name}b", add_special_tokens=False).count(new) != 1:
            raise SoraError(f"the tokenizer splits the new token {name!r}", key=KEY)
    return dict(zip(ids, pieces, strict=True))


@torch.no_grad()
def add_rows(model: Any, new: Pieces) -> None:
    """Give each new token its rows in the embeddings, in place.

    Free rows of a padded vocabulary are used first; if they do not suffice, the vocabulary grows.
    """
    paths, first = _embeddings(model), min(new)
    rows = len(model.get_submodule(paths[0]).weight)
    if rows < first:
        raise SoraError(
            f"the tokenizer has more tokens ({first}) than the model has rows for ({rows})",
            key=KEY,
        )
    grow(model, max(new) + 1)
    for path in paths:
        weight = model.get_submodule(path).weight
        for i, pieces in new.items():
            known = weight[list(pieces)] if pieces else weight[:first]
            weight[i] = known.mean(0, dtype=torch.float32).to(weight)


@torch.no_grad()
def grow(model: Any, size: int) -> None:
    """Enlarge a model's vocabulary to `size` tokens, whose rows are zero; never make it smaller."""
    before = len(model.get_input_embeddings().weight)
    if before >= size:
        return
    with torch.random.fork_rng(devices=[]):  # transformers draws rows, which are replaced
        model.resize_token_embeddings(size, mean_resizing=False)
    for module in (model.get_input_embeddings(), output_embedding(model)):
        if module is not None:
            module.get_parameter("weight")[before:] = 0


def size_with(rows: Mapping[str, Iterable[int]], before: int) -> int:
    """Return the size of a vocabulary of `before` tokens with an adapter's rows of new ones.

    It grows only by rows right behind the last one: a gap would be left to chance.
    """
    indices = [set(each) for each in rows.values()]
    size = max((max(each) + 1 for each in indices), default=before)
    return size if all(each >= set(range(before, size)) for each in indices) else before


def grow_for(model: Any, rows: Mapping[str, Iterable[int]]) -> None:
    """Enlarge a model's vocabulary for an adapter's rows of new tokens, if there are any.

    Args:
        rows: path of an embedding -> numbers of the adapter's rows.
    """
    if rows:
        grow(model, size_with(rows, len(model.get_input_embeddings().weight)))


def train_rows(model: Any, ids: Iterable[int]) -> None:
    """Train these rows of the embeddings from now on; tied weights share them."""
    ids, shared = list(ids), dict[int, TokenRows]()
    for module in dict.fromkeys((model.get_input_embeddings(), output_embedding(model))):
        if module is not None:
            weight = None if isinstance(module, LowRankLinear) else module.weight
            if weight is None or weight.requires_grad:
                raise SoraError(
                    "the output layer is adapted or trained in full, and cannot also have trained "
                    "rows",
                    hint=f"leave it out of method.targets, or leave out {KEY}",
                    key=KEY,
                )
            rows = shared.setdefault(id(weight), TokenRows(weight, ids))
            parametrize.register_parametrization(module, "weight", rows, unsafe=True)


def trained_rows(model: nn.Module) -> dict[str, TokenRows]:
    """Return the trained rows by the path of their embedding; of tied ones, the first."""
    places: dict[TokenRows, str] = {}
    for path, module in model.named_modules():
        if parametrize.is_parametrized(module, "weight"):
            rows = module.parametrizations["weight"][0]
            if isinstance(rows, TokenRows):
                places.setdefault(rows, path)
    return {path: rows for rows, path in places.items()}


def _embeddings(model: Any) -> list[str]:
    """Return the paths of the embedding and, if it is not tied, of the output layer.

    A model whose new rows could not be stored in PEFT's layout is refused.
    """
    inputs, output = model.get_input_embeddings(), output_embedding(model)
    wanted = [module for module in (inputs, output) if module is not None]
    paths = {module: path for path, module in model.named_modules() if module in wanted}
    kind = model.config.model_type
    if not isinstance(inputs, nn.Embedding) or type(output) not in (nn.Linear, type(None)):
        raise SoraError(f"the embeddings of a {kind} model cannot get new tokens", key=KEY)
    if output is not None and output.bias is not None:
        raise SoraError(
            f"the output layer '{paths[output]}' has a bias for each token, for which PEFT's "
            "layout of trained rows has no place",
            key=KEY,
        )
    owners = {id(module.weight): module for module in reversed(wanted)}
    others = [
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in owners and name.removesuffix(".weight") not in paths.values()
    ]
    if others:
        raise SoraError(
            f"the embedding of a {kind} model is also '{others[0]}': such a model cannot get new "
            "tokens",
            key=KEY,
        )
    return [paths[module] for module in owners.values()][::-1]
