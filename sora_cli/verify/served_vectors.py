"""Tell by vectors of texts whether a server's model is an adapter on its base, or the bare base.

Vectors of unit length are computed here, with the adapter and without, and the texts whose vectors
it changes most are put to the server. If the server can be asked for its bare base, the change of
each vector there is compared with the change here, so that the rounding of the base, which both of
its vectors share, does not count; how far the two bases are apart is its noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.classes import BARE
from sora_cli.core.console import say
from sora_cli.tasks.vectors import VectorForm, lists_modules, vector_form
from sora_cli.verify.effect import measure_one
from sora_cli.verify.finding import TEXTS, Finding, Served, judge
from sora_cli.verify.outputs import check_finite
from sora_cli.verify.probes import SENTENCES, longest
from sora_cli.verify.server import Server
from sora_cli.verify.subjects import Subject, load_subject

_FLOOR = 1e-5
"""The smallest change that is measured: 32 bits move vectors by about 1e-6."""
_COARSE = 0.35
"""The largest noise of a server without a base to ask: weights of MiniLM rounded to 4 bits, in
blocks of 32, moved its vectors by 0.33, to 8 bits by 0.018, to bfloat16 by 0.010."""
_POOLINGS = ("mean", "cls", "last")


@dataclass(frozen=True)
class Computed:
    """The unit vectors of texts by the adapter and by its base, (texts, d) each."""

    texts: tuple[str, ...]
    adapter: Tensor
    base: Tensor

    @property
    def effect(self) -> Tensor:
        """The change of each vector by the adapter."""
        return self.adapter - self.base

    def most_apart(self) -> Computed:
        """Return the texts with the largest changes."""
        sizes = self.effect.norm(dim=1)
        chosen = sizes.topk(min(TEXTS, len(sizes))).indices.tolist()
        texts = tuple(self.texts[i] for i in chosen)
        return Computed(texts, self.adapter[chosen], self.base[chosen])


def find_vectors(
    server: Server, subject: Subject, config: Any, tokenizer: Any, dtype: torch.dtype
) -> Finding:
    """Ask a server, with its model chosen, for vectors, and compare them with the adapter's."""
    listed = lists_modules(subject.source, subject.revision)
    poolings = ("auto",) if listed else _POOLINGS  # the server's own choice is found below
    forms = [vector_form(subject.source, subject.revision, pooling) for pooling in poolings]
    made = [one.most_apart() for one in compute(subject, config, tokenizer, forms, dtype)]
    made = [one for one in made if _size(one.effect) > _FLOOR]
    if not made:
        return Finding(Served.UNKNOWN, "the adapter changes no vector by more than rounding does")
    return min((_asked(server, one) for one in made), key=_distance)


def _distance(found: Finding) -> float:
    sides = (found.to_adapter, found.to_base if found.noise is None else found.noise)
    return min((side for side in sides if side is not None), default=float("inf"))


@torch.no_grad()
def compute(
    subject: Subject, config: Any, tokenizer: Any, forms: Sequence[VectorForm], dtype: torch.dtype
) -> list[Computed]:
    """Compute the vectors of beginnings of sentences, by each form."""
    assert subject.adapter is not None
    words = [sentence.split(" ") for sentence in SENTENCES]
    texts = tuple(" ".join(own[: n + 1]) for own in words for n in range(len(own)))
    batches = [tokenizer(text, return_tensors="pt") for text in texts]
    fitting = [i for i, batch in enumerate(batches)
               if 0 < batch["input_ids"].shape[1] <= longest(config)]  # fmt: skip
    say(f"computing vectors with {subject.reference} and with its base alone")
    model = load_subject(subject, config, BARE, dtype)

    def vectors() -> list[Tensor]:
        hidden = [(model(**batches[i]).last_hidden_state, batches[i]["attention_mask"])
                  for i in fitting]  # fmt: skip
        return [normalize(torch.cat([form(*one) for one in hidden]), dim=-1) for form in forms]

    base = vectors()
    apply_adapter(model, subject.adapter, fold=True)
    adapter = vectors()
    check_finite(f"{subject.reference} or its base", *base, *adapter)
    chosen = tuple(texts[i] for i in fitting)
    return [Computed(chosen, *both) for both in zip(adapter, base, strict=True)]


def _asked(server: Server, computed: Computed) -> Finding:
    """Put the texts to the server, and judge its answers."""
    say(f"asking {server.shown(server.url)} for the vectors of {len(computed.texts)} texts")
    given = _unit(server.vectors(computed.texts))
    bare = _unit(server.vectors(computed.texts, base=True)) if server.base else None
    # the same numbers are the same model's: a server that heeds no name, or runs without adapters
    return judge_vectors(computed, given, None if bare is None or bare.equal(given) else bare)


def judge_vectors(computed: Computed, given: Tensor, bare: Tensor | None) -> Finding:
    """Judge by the change of each text's vector.

    Args:
        given: (texts, d) of the server's model; of unit length.
        bare: of its bare base; None: it has none to ask.
    """
    texts, width = len(computed.texts), computed.base.shape[1]
    if given.shape[1] != width or (bare is not None and bare.shape[1] != width):
        reason = f"its vectors have {given.shape[1]:,} numbers, and ours {width:,}"
        return Finding(Served.NEITHER, reason, texts=texts)
    effect, change = computed.effect, given - (computed.base if bare is None else bare)
    noise = None if bare is None else _size(bare - computed.base)
    to_adapter, to_base, size = map(_size, (change - effect, change, effect))
    most = _COARSE if noise is None else noise
    verdict, reason = judge(to_adapter, to_base, size, noise, most=most)
    measured = measure_one("vectors", torch.zeros_like(effect), effect, change)
    cosines = cosine_similarity(change, effect, dim=1)
    return Finding(verdict, reason, texts=texts, to_adapter=to_adapter, to_base=to_base,
                   effect=size, noise=noise, share=measured.share, residual=measured.residual,
                   cosine=float(cosines.mean()), least_cosine=float(cosines.min()))  # fmt: skip


def _unit(vectors: Sequence[Sequence[float]]) -> Tensor:
    return normalize(torch.tensor(vectors, dtype=torch.float32), dim=-1)


def _size(vectors: Tensor) -> float:
    """Return the root mean square of the lengths of vectors."""
    return float(vectors.double().square().sum(dim=1).mean().sqrt())
