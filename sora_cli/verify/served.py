"""Tell whether a server's model is an adapter on its base, the bare base, or neither.

The texts are beginnings of the probes' sentences. For each of them the next token's
log-probabilities are computed here, with and without the adapter, and the texts on which these
differ most are put to the server. With the server's log-probabilities s, and a and b of the adapter
and the base for the same tokens, the share of the effect is <s - b, a - b> / |a - b|^2: 1 for this
adapter, 0 for the bare base, and in both cases the residual is the rounding of the server's number
format. Without log-probabilities, the likeliest tokens are compared.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.classes import auto_class_for
from sora_cli.core.console import say
from sora_cli.core.errors import SoraError
from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.model.gguf import parsed_once
from sora_cli.tasks.prompts import rendered
from sora_cli.verify.effect import measure_one
from sora_cli.verify.outputs import check_finite
from sora_cli.verify.probes import SENTENCES, longest
from sora_cli.verify.server import TOP, NextToken, Server
from sora_cli.verify.subjects import (
    Subject,
    check_bases,
    find_subjects,
    load_config,
    load_subject,
    load_tokenizer,
)

_TEXTS, _FEWEST = 24, 6
"""Texts that are put to a server, at most and at least."""
_FLOOR = 0.05
"""The smallest effect on log-probabilities that is measured: 16 bits move them by about 0.02."""
_STRENGTH = 0.05
"""Error of the share that is allowed beside the residual."""
_ROUNDED, _RELATIVE = 0.15, 0.1
"""Root mean square by which rounding may move log-probabilities, and the same as part of the
effect; twice as much is doubtful. llama.cpp with 4-bit weights moved those of SmolLM2 by 0.08 to
0.12; an adapter of the same recipe with another seed is 0.23 to 0.33 away from this one."""
_DROWNED = 1 / 3
"""The largest residual of a verdict: a small effect drowns in rounding."""
_CLEAR = 0.1
"""The next token's lead over the second in log-probability: nearer ties are left out."""
_MATCHING, _UNCLEAR = 0.9, 0.75
"""Share of equal next tokens for a verdict, and for doubt."""
_CAUSAL = "AutoModelForCausalLM"


class Served(Enum):
    """The outcome of a comparison; its value is shown to the user."""

    ADAPTER = "this adapter"
    BASE = "the bare base"
    NEITHER = "neither"
    UNKNOWN = "cannot tell"


@dataclass(frozen=True)
class Finding:
    """A verdict on a server, with its measurements.

    Attributes:
        texts: number of texts that were put to the server.
        tokens: number of compared log-probabilities; None: the server gives none.
        to_adapter, to_base: distance from the server to each: the root mean square difference of
            log-probabilities, or with `tokens` None the number of texts with another next token.
        effect: the same distance from the adapter to its base.
        share, residual: of the adapter's effect (`effect.Effect`); None without log-probabilities.
        reason: in words; empty if the numbers say it.
    """

    verdict: Served
    reason: str = ""
    texts: int = 0
    tokens: int | None = None
    to_adapter: float | None = None
    to_base: float | None = None
    effect: float | None = None
    share: float | None = None
    residual: float | None = None

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ends with this verdict."""
        return {Served.ADAPTER: OK, Served.UNKNOWN: NO_VERDICT}.get(self.verdict, FAILED)


@dataclass(frozen=True)
class Prompt:
    """A text that a model continues, or a user's message, and the ids that the model reads."""

    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Computed:
    """The log-probabilities of the next token of each prompt, (prompts, vocabulary)."""

    prompts: tuple[Prompt, ...]
    adapter: Tensor
    base: Tensor

    def at(self, chosen: Sequence[int]) -> Computed:
        """Return some of the prompts."""
        indices = list(chosen)
        prompts = tuple(self.prompts[i] for i in indices)
        return Computed(prompts, self.adapter[indices], self.base[indices])


def check_server(
    run: str, server: Server, *, base: str | None, dtype: str
) -> tuple[Finding, tuple[str, ...]]:
    """Ask a server for next tokens, and compare them with an adapter's and its base's.

    Args:
        run: the user's name for the adapter.
        server: with its model chosen.

    Returns:
        The finding, and remarks for the user.
    """
    (subject,) = find_subjects((run,), base=base)
    if subject.adapter is None or not subject.adapter.layers:
        raise SoraError(f"{run} has no adapter that changes its base",
                        hint="name the run or the adapter that the server should use")  # fmt: skip
    with parsed_once(subject.source):
        config, tokenizer = load_config(subject), load_tokenizer(subject)
        if auto_class_for(subject.adapter, config) != _CAUSAL or tokenizer is None:
            lacks = "its base has no tokenizer" if tokenizer is None else "it writes no text"
            raise SoraError(f"{run} cannot be compared with a server: {lacks}")
        text = SENTENCES[1]
        chats = tokenizer.chat_template is not None
        server.find_way(text, tokenizer(text).input_ids, chats=chats)
        rows = list(_rows(tokenizer, longest(config), chat=server.way.chat))
        computed = compute(subject, config, rows, getattr(torch, dtype))
    return find(server, computed, tokenizer), check_bases([subject], force=False)


def _rows(tokenizer: Any, limit: int, *, chat: bool) -> Iterator[list[Prompt]]:
    """Yield prompts by the row of tokens that they share: each is a beginning of the last one."""
    for sentence in SENTENCES:
        words = sentence.split(" ")
        texts = [" ".join(words[: n + 1]) for n in range(len(words))]
        if chat:
            for text in texts[:: -max(1, len(texts) // 3)]:
                whole = rendered([{"role": "user", "content": text}], tokenizer, prompt=True)
                yield [Prompt(text, tuple(tokenizer(whole, add_special_tokens=False).input_ids))]
            continue
        row: list[Prompt] = []
        for text in reversed(texts):
            ids = tuple(tokenizer(text).input_ids)
            # a beginning whose tokens are no beginning of the row's would need a row of its own
            if 0 < len(ids) <= limit and (not row or row[0].ids[: len(ids)] == ids):
                row.append(Prompt(text, ids))
        if row:
            yield row


def compute(
    subject: Subject, config: Any, rows: Sequence[Sequence[Prompt]], dtype: torch.dtype
) -> Computed:
    """Compute the next token's log-probabilities with and without the adapter."""
    assert subject.adapter is not None
    say(f"computing the next tokens with {subject.reference} and with its base alone")
    model = load_subject(subject, config, _CAUSAL, dtype)
    base = _next_tokens(model, rows)
    apply_adapter(model, subject.adapter, fold=True)
    adapter = _next_tokens(model, rows)
    check_finite(f"{subject.reference} or its base", base, adapter)
    return Computed(tuple(prompt for row in rows for prompt in row), adapter, base)


@torch.no_grad()
def _next_tokens(model: Any, rows: Sequence[Sequence[Prompt]]) -> Tensor:
    parts = []
    for row in rows:
        logits = model(input_ids=torch.tensor([row[0].ids])).logits[0]
        parts.append(logits[[len(prompt.ids) - 1 for prompt in row]].float().log_softmax(-1))
    return torch.cat(parts)


def find(server: Server, computed: Computed, tokenizer: Any) -> Finding:
    """Put the texts that tell most to the server, and judge its answers."""
    if server.way.logprobs:
        chosen, before = _most_apart(computed)
        if before < _FLOOR:
            reason = (f"the adapter changes the next tokens' log-probabilities by {before:.1g} "
                      "only, as rounding does")  # fmt: skip
            return Finding(Served.UNKNOWN, reason)
        return judge_logprobs(chosen, _answers(server, chosen.prompts), tokenizer)
    texts = [tokenizer.batch_decode(side.argmax(-1)[:, None], skip_special_tokens=True)
             for side in (computed.adapter, computed.base)]  # fmt: skip
    # some servers leave out the space that a SentencePiece token begins with
    adapter, base = ([text.removeprefix(" ") for text in side] for side in texts)
    clear = _clear_choices(computed, adapter, base)
    if len(clear) < _FEWEST:
        reason = (f"without log-probabilities only the next tokens of {len(clear)} of "
                  f"{len(adapter)} texts tell the adapter from its base")  # fmt: skip
        return Finding(Served.UNKNOWN, reason)
    answers = _answers(server, [computed.prompts[i] for i in clear])
    given = [answer.text.removeprefix(" ") for answer in answers]
    return judge_texts(given, [adapter[i] for i in clear], [base[i] for i in clear])


def _answers(server: Server, prompts: Sequence[Prompt]) -> list[NextToken]:
    say(f"asking {server.url} for the next token of {len(prompts)} texts")
    return [server.ask(prompt.text, prompt.ids) for prompt in prompts]


def _most_apart(computed: Computed) -> tuple[Computed, float]:
    """Return the texts with the largest effect on either side's likeliest tokens, and its size."""
    apart = (computed.adapter - computed.base).square()
    sides = (computed.adapter, computed.base)
    on_sides = [apart.gather(1, side.topk(TOP).indices).mean(1) for side in sides]
    # the smaller one: the server may turn out to be either
    largest = torch.minimum(*on_sides).topk(min(_TEXTS, len(apart)))
    return computed.at(largest.indices.tolist()), float(largest.values.mean().sqrt())


def _clear_choices(computed: Computed, adapter: Sequence[str], base: Sequence[str]) -> list[int]:
    """Return the texts whose likeliest next token differs and wins clearly on both sides."""
    best = torch.stack([side.topk(2).values for side in (computed.adapter, computed.base)])
    gaps = (best[..., 0] - best[..., 1]).amin(0).tolist()
    usable = [i for i, (a, b) in enumerate(zip(adapter, base, strict=True))
              if a != b and "\ufffd" not in a + b and gaps[i] > _CLEAR]  # fmt: skip
    return sorted(usable, key=lambda i: -gaps[i])[:_TEXTS]


def judge_logprobs(computed: Computed, answers: Sequence[NextToken], tokenizer: Any) -> Finding:
    """Judge by the log-probabilities of the server's likeliest tokens."""
    width, triples, unknown = computed.adapter.shape[1], list[tuple[float, float, float]](), 0
    named = all(token[0] is not None for answer in answers for token in answer.likely)
    known = {} if named else _ids_by_text(tokenizer, width)
    for answer, *sides in zip(answers, computed.adapter, computed.base, strict=True):
        for number, text, value in answer.likely:
            ids = [i for i in (known.get(text, ()) if number is None else (number,)) if i < width]
            if not ids:
                unknown += 1
                continue
            # several ids may have one text; the likeliest is meant
            i = max(ids, key=lambda i: max(float(side[i]) for side in sides))
            with_it, without = (float(side[i]) for side in sides)
            triples.append((value, with_it, without))
    counts = {"texts": len(answers), "tokens": len(triples)}
    if unknown >= len(triples):
        reason = f"{unknown} of {unknown + len(triples)} tokens are not in the base's vocabulary"
        return Finding(Served.NEITHER, reason, **counts)
    given, adapter, base = torch.tensor(triples, dtype=torch.float64).T
    effect, size = measure_one("log-probabilities", base, adapter, given), _rms(adapter - base)
    verdict, reason = judge_share(effect.share, effect.residual, size)
    return Finding(verdict, reason, **counts, to_adapter=_rms(given - adapter),
                   to_base=_rms(given - base), effect=size, share=effect.share,
                   residual=effect.residual)  # fmt: skip


def judge_share(share: float, residual: float, size: float) -> tuple[Served, str]:
    """Judge by the share of an effect of this size, with the reason of an unclear verdict."""
    if size < _FLOOR:
        return Served.UNKNOWN, f"on its tokens the adapter's effect is {size:.1g} only"
    whole = share > 0.5
    if abs(share - whole) > _STRENGTH + residual:
        return Served.NEITHER, f"as if the adapter were applied at {share:.0%} of its strength"
    moved, allowed = residual * size, max(_ROUNDED, _RELATIVE * size)
    if moved <= allowed and residual <= _DROWNED:
        return (Served.ADAPTER if whole else Served.BASE), ""
    if moved <= 2 * allowed:
        return Served.UNKNOWN, (f"a difference of {moved:.2g} is neither's: coarse rounding of the "
                                "base, another strength, or another adapter")  # fmt: skip
    return Served.NEITHER, "another adapter, or another base model"


def judge_texts(given: Sequence[str], adapter: Sequence[str], base: Sequence[str]) -> Finding:
    """Judge by the likeliest next tokens, on texts where adapter and base differ."""
    same = [sum(a == b for a, b in zip(given, side, strict=True)) for side in (adapter, base)]
    total = len(given)
    if max(same) >= _MATCHING * total:
        verdict, reason = (Served.ADAPTER if same[0] > same[1] else Served.BASE), ""
    elif max(same) >= _UNCLEAR * total:
        verdict, reason = Served.UNKNOWN, "rounding, or another adapter, may explain the others"
    else:
        verdict, reason = Served.NEITHER, "another adapter or strength, or another base model"
    return Finding(verdict, reason, texts=total, to_adapter=total - same[0],
                   to_base=total - same[1], effect=total)  # fmt: skip


def _ids_by_text(tokenizer: Any, width: int) -> dict[str, list[int]]:
    """Return the ids of each token's text, in the three forms that servers give."""
    numbers = range(min(width, len(tokenizer)))
    pieces = tokenizer.convert_ids_to_tokens(list(numbers))
    decoded = tokenizer.batch_decode([[number] for number in numbers])
    known = defaultdict[str, list[int]](list)
    for number, piece, text in zip(numbers, pieces, decoded, strict=True):
        for form in {piece, piece.replace("\u2581", " "), text}:
            known[form].append(number)
    return known


def _rms(values: Tensor) -> float:
    return math.sqrt(float(values.square().mean()))
