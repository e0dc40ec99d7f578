"""A decoder's head and loss at those places alone whose next token is learned.

Prompts and padding need no logits, and logits are the largest tensors of a step: as many numbers a
token as there are words. The body runs as ever; of its outputs, the head is given the places that a
batch names as `learned`. The loss is the model's own: the mean over these places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from sora_cli.tasks.language import IGNORED

LEARNED = "learned"
"""The name in a batch; a model is given it as any other input."""


def learned_places(labels: Tensor) -> Tensor:
    """Return (n,) the places whose next token is learned, counted through all rows of a batch.

    Args:
        labels: (rows, tokens); IGNORED where nothing is to be predicted.
    """
    after = pad(labels[:, 1:], (0, 1), value=IGNORED)
    return (after != IGNORED).flatten().nonzero().squeeze(1)


def learned_labels(labels: Tensor, places: Tensor) -> Tensor:
    """Return (n,) the tokens to be predicted at the places."""
    return labels.flatten()[places + 1]  # no row ends with such a place


def learned_logits(logits: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """Return (n, words), from the outputs of a model that may have logits of all places."""
    rows = logits.flatten(0, 1)
    return rows[places] if logits.shape[:2] == labels.shape else rows


@dataclass
class _LearnedOnly:
    """The hooks of one model, and the places and labels of its forward pass.

    Attributes:
        whole: the head is given all places nevertheless.
    """

    whole: bool = False
    places: Tensor | None = None
    labels: Tensor | None = None

    def begin(self, _model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Take from a model's inputs what is ours."""
        places = kwargs.pop(LEARNED, None)
        self.places = None if self.whole else places
        self.labels = None if self.places is None else kwargs.pop("labels", None)
        return args, kwargs

    def choose(self, _head: nn.Module, args: tuple[Tensor, ...]) -> Any:
        """Give the head (1, n, features) of (rows, tokens, features)."""
        if self.places is None:
            return None
        hidden = args[0].flatten(0, 1)
        return (hidden.index_select(0, self.places.to(hidden.device))[None], *args[1:])

    def end(self, _model: nn.Module, _args: Any, outputs: Any) -> None:
        """Add the loss to a model's outputs."""
        places, labels, self.places, self.labels = self.places, self.labels, None, None
        if places is not None and labels is not None:
            logits = learned_logits(outputs["logits"], labels, places).float()
            wanted = learned_labels(labels, places).to(logits.device)
            outputs["loss"] = cross_entropy(logits, wanted)


_MODELS: WeakKeyDictionary[nn.Module, _LearnedOnly] = WeakKeyDictionary()


def score_learned_only(model: Any) -> bool:
    """Let a model take `learned`, in place, and return whether its head runs at these places alone.

    It is tried on a few tokens. A model whose loss is another (a mixture of experts may add one),
    or that needs the logits of all places, takes the input and leaves it.
    """
    if model in _MODELS:
        return not _MODELS[model].whole
    hooks = _MODELS[model] = _LearnedOnly()
    model.register_forward_pre_hook(hooks.begin, with_kwargs=True)
    model.register_forward_hook(hooks.end)
    model.get_output_embeddings().register_forward_pre_hook(hooks.choose)
    hooks.whole = not _gives_the_same(model)
    return not hooks.whole


@torch.no_grad()
def _gives_the_same(model: Any) -> bool:
    words = model.get_input_embeddings().num_embeddings
    ids = (torch.arange(1, 13, device=model.device) * (words // 14)).view(2, 6)
    labels = ids.clone()
    labels[0, :3] = labels[1, 4:] = IGNORED
    batch: Mapping[str, Any] = {"input_ids": ids, "labels": labels, "use_cache": False}
    training = model.training
    model.eval()
    try:
        whole = model(**batch).loss
        alone = model(**batch, **{LEARNED: learned_places(labels)}).loss
    except Exception:  # whatever an architecture does with the logits
        return False
    finally:
        model.train(training)
    close = 1e-4 if torch.finfo(model.dtype).bits >= 32 else 0.01
    return bool((whole - alone).abs() <= close * whole.abs())
