"""A decoder's head and loss, restricted to the places before learned tokens.

Prompts and padding need no logits, and logits are the largest tensors of a step: each token has as
many as there are words in the vocabulary. The body of the model runs unchanged; then the head gets
only the places that a batch names as `learned`. The loss is the model's own, the mean over these
places, or another `Reduction` of their losses.

With the loss in chunks (`training.loss`) the logits are computed for some places at a time, reduced
to a loss and dropped, so that a step needs memory for one chunk only. The gradient of a frozen head
is computed in the forward pass (`tasks.frozen_head`). For an adapted or trained head the backward
pass computes the logits again: a third product with the head's weight, where all logits at once
need two.

torch's `linear_cross_entropy` (2.13) is not used: in 16 bits it also sums the loss in 16 bits
(0.9 % off at 1024 tokens and 49,152 words), and it takes a weight, not an adapted or a quantised
head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from sora_cli.core.errors import SoraError
from sora_cli.tasks.frozen_head import frozen_head_losses, is_frozen_linear
from sora_cli.tasks.language import IGNORED

LEARNED = "learned"
"""The name in a batch; models get it like any other input."""

KEY = "training.loss"
CHUNK = 2**24
"""Logits of a chunk: 64 MiB in the 32 bits that the loss is computed in."""
_OWN_HOOKS = 1  # the number of our hooks on a head
_FEWEST = 64  # places of a chunk: with fewer, a product mostly waits for the head's weight


def learned_places(labels: Tensor) -> Tensor:
    """Return the places (n,) before learned tokens, numbered through all rows of a batch.

    Args:
        labels: (rows, tokens); IGNORED: the token is not predicted.
    """
    after = pad(labels[:, 1:], (0, 1), value=IGNORED)
    return (after != IGNORED).flatten().nonzero().squeeze(1)


def learned_labels(labels: Tensor, places: Tensor) -> Tensor:
    """Return the tokens (n,) to be predicted at these places."""
    return labels.flatten()[places + 1]  # a row's last place is never learned: no token follows


def learned_logits(logits: Tensor, labels: Tensor, places: Tensor) -> Tensor:
    """Return (n, words) from a model's logits, which may be of all places or of these only."""
    rows = logits.flatten(0, 1)
    return rows[places] if logits.shape[:2] == labels.shape else rows


def losses_in_chunks(head: nn.Module, hidden: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy (n,) of a head's logits, with one chunk of them in memory at a time.

    Args:
        head: (n, features) to (n, words), with the hook of `LearnedHead`.
        hidden: (n, features).
        labels: (n,), token ids.
    """
    if is_frozen_linear(head, own_hooks=_OWN_HOOKS):
        places = max(CHUNK // head.out_features, _FEWEST)
        return frozen_head_losses(head, hidden, labels, places)

    def losses(part: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(head(part).float(), wanted, reduction="none")

    words = head(hidden[:0]).shape[-1]
    places = max(CHUNK // words, _FEWEST)
    parts = zip(torch.split(hidden, places), torch.split(labels, places), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])


class LearnedHead:
    """A model's head that runs at the learned places of a batch alone; a family keeps it.

    A trial on a few tokens decides whether it may. A model with another loss (a mixture of experts
    may add a term), or one that needs the logits of all places, accepts `learned` and ignores it.

    Attributes:
        alone: True if the head runs at these places only.
        reduced: False: a batch's loss is left as the losses (n,) of its learned tokens, and further
            terms of the model's own loss are left out. The family makes the loss of them.
    """

    def __init__(self, model: Any) -> None:
        self.reduced = True
        self._whole, self._chunked = False, False
        self._made_for: ref[Any] = ref(model)  # it belongs to the model, not the other way round
        self._head: ref[nn.Module] | None = None
        self._handle: RemovableHandle | None = None
        # of the current pass
        self._places: Tensor | None = None
        self._labels: Tensor | None = None
        self._losses: Tensor | None = None
        model.register_forward_pre_hook(self._begin, with_kwargs=True)
        model.register_forward_hook(self._end)
        self._whole = not _gives_the_same(model)

    @classmethod
    def of(cls, model: Any) -> LearnedHead:
        """Return the head of a model, which has one only; from now on the model takes `learned`."""
        if model not in _HEADS:
            _HEADS[model] = cls(model)
        return _HEADS[model]

    @property
    def _model(self) -> Any:
        return self._made_for()

    @property
    def alone(self) -> bool:
        """True if the head runs at the learned places only."""
        return not self._whole

    def chunk(self) -> None:
        """Compute the loss in chunks from now on, for batches with `learned`.

        A model whose loss is more than the cross-entropy of its head's outputs is an error.
        """
        if why := self._needs_all_logits():
            kind = self._model.config.model_type
            raise SoraError(
                f"{KEY}=chunked is not possible with a {kind} model: {why}",
                hint=f"{KEY}=logits",
                key=KEY,
            )
        self._chunked = True

    def chunk_if_frozen(self) -> None:
        """Compute the loss in chunks if the head is frozen: it saves memory and takes no longer."""
        if is_frozen_linear(self._model.get_output_embeddings(), own_hooks=_OWN_HOOKS):
            self._chunked = self._needs_all_logits() is None

    def _needs_all_logits(self) -> str | None:
        """Return the reason why the loss needs all logits at once; None if it does not."""
        if self._whole:
            return "its loss has further terms, or needs the logits of all tokens"
        if _changes_logits(self._model):
            return "it scales or caps the logits of its head, and then needs all of them"
        return None

    def _begin(self, model: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Take `learned` (and the labels) out of a model's inputs."""
        places = kwargs.pop(LEARNED, None)
        self._places = None if self._whole and self.reduced else places
        # without labels the model computes no loss of its own, for which it would need all logits
        self._labels = None if self._places is None else kwargs.pop("labels", None)
        self._follow(model.get_output_embeddings())
        return args, kwargs

    def _follow(self, head: nn.Module) -> None:
        """Move the hook to the present head: an adapter may have wrapped it meanwhile."""
        if self._head is None or head is not self._head():
            if self._handle is not None:
                self._handle.remove()
            self._head, self._handle = ref(head), head.register_forward_pre_hook(self._choose)

    def _choose(self, head: nn.Module, args: tuple[Tensor, ...]) -> Any:
        """Reduce the head's input (rows, tokens, features) to (1, n, features), or to nothing."""
        if self._places is None or self._whole:
            return None
        hidden = args[0].flatten(0, 1)
        hidden = hidden.index_select(0, self._places.to(hidden.device))
        if self._chunked and self._labels is not None:
            wanted = learned_labels(self._labels, self._places).to(hidden.device)
            places, self._places = self._places, None  # chunks pass through this hook as they are
            self._losses = losses_in_chunks(head, hidden, wanted)  # here: inside autocast
            self._places, hidden = places, hidden[:0]
        return (hidden[None], *args[1:])

    def _end(self, _model: nn.Module, _args: Any, outputs: Any) -> None:
        """Add the loss to a model's outputs."""
        places, labels, losses = self._places, self._labels, self._losses
        self._places = self._labels = self._losses = None
        if places is None or labels is None:
            return
        if losses is None:
            logits = learned_logits(outputs["logits"], labels, places).float()
            wanted = learned_labels(labels, places).to(logits.device)
            losses = cross_entropy(logits, wanted, reduction="none")
        # the mean over all tokens, as the models of transformers have it
        outputs["loss"] = losses.sum() / len(losses) if self.reduced else losses


_HEADS: WeakKeyDictionary[nn.Module, LearnedHead] = WeakKeyDictionary()


_LARGE = 100.0  # a logit that a soft cap (tanh) clearly bends


@torch.no_grad()
def _changes_logits(model: Any) -> bool:
    """Return True if the model scales or bends the logits that its head returns."""
    made: list[Tensor] = []

    def enlarged(_head: nn.Module, _args: Any, out: Tensor) -> Tensor:
        made.append(torch.linspace(-_LARGE, _LARGE, out.numel()).to(out).view_as(out))
        return made[-1]

    handle = model.get_output_embeddings().register_forward_hook(enlarged)
    training = model.training
    model.eval()
    try:
        given = model(input_ids=_trial_ids(model), use_cache=False).logits
    finally:
        model.train(training)
        handle.remove()
    return not torch.equal(given, made[-1].to(given.dtype))


def _trial_ids(model: Any) -> Tensor:
    """Return (2, 6) different token ids."""
    words: int = model.get_input_embeddings().num_embeddings
    steps: Tensor = torch.arange(1, 13, device=model.device)
    return (steps * (words // 14)).view(2, 6)


@torch.no_grad()
def _gives_the_same(model: Any) -> bool:
    ids = _trial_ids(model)
    labels = ids.clone()
    labels[0, :3] = labels[1, 4:] = IGNORED
    batch: Mapping[str, Any] = {"input_ids": ids, "labels": labels, "use_cache": False}
    training = model.training
    model.eval()
    try:
        whole = model(**batch).loss
        alone = model(**batch, **{LEARNED: learned_places(labels)}).loss
    except Exception:  # an architecture may do anything with the logits
        return False
    finally:
        model.train(training)
    close = 1e-4 if torch.finfo(model.dtype).bits >= 32 else 0.01
    return bool((whole - alone).abs() <= close * whole.abs())
