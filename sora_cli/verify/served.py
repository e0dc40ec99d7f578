"""Tell whether a server's model is an adapter on its base, the bare base, or neither.

The texts are beginnings of the probes' sentences. For each of them the next token's
log-probabilities are computed here, with and without the adapter, and the texts on which these
differ most are put to the server. What the server's number formats round is measured, not assumed:
a server that can be asked for its bare base, too, is, and the distance of that base from ours (root
mean square) is its noise. The server's model is the one of ours from which it is no farther than
its noise explains. Without log-probabilities, the likeliest tokens are compared in the same way,
and distances are numbers of texts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import ne
from typing import Any

import torch
from torch import Tensor

from sora_cli.adapter.apply import apply_adapter
from sora_cli.adapter.classes import BARE, auto_class_for
from sora_cli.core.console import say
from sora_cli.core.errors import SoraError
from sora_cli.gguf.package import parsed_once
from sora_cli.tasks.prompts import rendered
from sora_cli.verify.effect import measure_one
from sora_cli.verify.finding import TEXTS, Finding, Served, judge, rms
from sora_cli.verify.outputs import check_finite
from sora_cli.verify.probes import SENTENCES, longest
from sora_cli.verify.served_vectors import find_vectors
from sora_cli.verify.server import TOP, NextToken, Server
from sora_cli.verify.subjects import (
    Subject,
    check_bases,
    find_subjects,
    load_config,
    load_subject,
    load_tokenizer,
)

_FEWEST = 6
"""Texts that are put to a server, at least."""
_FLOOR = 0.05
"""The smallest effect on log-probabilities that is measured: 16 bits move them by about 0.02."""
_COARSE, _COARSE_TEXTS = 0.15, 0.1
"""The largest noise of a server without a base to ask, in log-probabilities (4-bit weights: 0.08 to
0.12) and as share of the texts: it may exclude the adapter, but not confirm it."""
_CLEAR = 0.1
"""The next token's lead over the second in log-probability: nearer ties are left out."""
_CAUSAL = "AutoModelForCausalLM"


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
        auto, known = auto_class_for(subject.adapter, config), subject.adapter.base
        names = {subject.source, known.path, known.hub_id or known.path}
        if auto not in (_CAUSAL, BARE) or tokenizer is None or config.is_encoder_decoder:
            lacks = "it makes no text and no vector"
            lacks = "its base has no tokenizer" if tokenizer is None else lacks
            raise SoraError(f"{run} cannot be compared with a server: {lacks}")
        if auto == BARE:
            server.find_base(names)
            found = find_vectors(server, subject, config, tokenizer, getattr(torch, dtype))
            return found, check_bases([subject], force=False)
        text = SENTENCES[1]
        chats = tokenizer.chat_template is not None
        server.find_way(text, tokenizer(text).input_ids, chats=chats)
        server.find_base(names)
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
        return judge_logprobs(chosen, *_answers(server, chosen.prompts), tokenizer)
    texts = [tokenizer.batch_decode(side.argmax(-1)[:, None], skip_special_tokens=True)
             for side in (computed.adapter, computed.base)]  # fmt: skip
    # some servers leave out the space that a SentencePiece token begins with
    adapter, base = ([text.removeprefix(" ") for text in side] for side in texts)
    clear = _clear_choices(computed, adapter, base)
    if len(clear) < _FEWEST:
        reason = (f"without log-probabilities only the next tokens of {len(clear)} of "
                  f"{len(adapter)} texts tell the adapter from its base")  # fmt: skip
        return Finding(Served.UNKNOWN, reason)
    both = _answers(server, [computed.prompts[i] for i in clear])
    given, bare = ([answer.text.removeprefix(" ") for answer in answers] for answers in both)
    return judge_texts(given, bare, [adapter[i] for i in clear], [base[i] for i in clear])


def _answers(server: Server, prompts: Sequence[Prompt]) -> tuple[list[NextToken], list[NextToken]]:
    """Return the answers of the server's model, and of its bare base (empty: it has none)."""
    say(f"asking {server.shown(server.url)} for the next token of {len(prompts)} texts")
    answers = [server.ask(prompt.text, prompt.ids) for prompt in prompts]
    if not server.base:
        return answers, []
    say("asking its bare base")
    bare = [server.ask(prompt.text, prompt.ids, base=True) for prompt in prompts]
    # the same numbers are the same model's: a server that heeds no name, or runs without adapters
    return answers, bare if bare != answers else []


def _most_apart(computed: Computed) -> tuple[Computed, float]:
    """Return the texts with the largest effect on either side's likeliest tokens, and its size."""
    apart = (computed.adapter - computed.base).square()
    sides = (computed.adapter, computed.base)
    on_sides = [apart.gather(1, side.topk(TOP).indices).mean(1) for side in sides]
    # the smaller one: the server may turn out to be either
    largest = torch.minimum(*on_sides).topk(min(TEXTS, len(apart)))
    chosen = largest.indices.tolist()
    prompts = tuple(computed.prompts[i] for i in chosen)
    most = Computed(prompts, computed.adapter[chosen], computed.base[chosen])
    return most, float(largest.values.mean().sqrt())


def _clear_choices(computed: Computed, adapter: Sequence[str], base: Sequence[str]) -> list[int]:
    """Return the texts whose likeliest next token differs and wins clearly on both sides."""
    best = torch.stack([side.topk(2).values for side in (computed.adapter, computed.base)])
    gaps = (best[..., 0] - best[..., 1]).amin(0).tolist()
    usable = [i for i, (a, b) in enumerate(zip(adapter, base, strict=True))
              if a != b and "\ufffd" not in a + b and gaps[i] > _CLEAR]  # fmt: skip
    return sorted(usable, key=lambda i: -gaps[i])[:TEXTS]


def judge_logprobs(
    computed: Computed, answers: Sequence[NextToken], bare: Sequence[NextToken], tokenizer: Any
) -> Finding:
    """Judge by the log-probabilities of the server's likeliest tokens.

    Args:
        bare: answers of the server's bare base; empty: it has none.
    """
    silent = sum(not answer.likely for answer in (*answers, *bare))
    if silent:
        reason = f"{silent} of {len(answers) + len(bare)} answers came without log-probabilities"
        return Finding(Served.UNKNOWN, reason, texts=len(answers))
    known = _ids_by_text(tokenizer, computed.adapter.shape[1])
    given, adapter, base = _aligned(computed, answers, known)
    counts = {"texts": len(answers), "tokens": len(given)}
    asked = sum(len(answer.likely) for answer in answers)
    if 2 * len(given) <= asked:
        reason = f"{asked - len(given)} of {asked} tokens are not in the base's vocabulary"
        return Finding(Served.NEITHER, reason, **counts)
    theirs, _, ours = _aligned(computed, bare, known)
    noise = rms(theirs - ours) if len(theirs) else None
    effect = measure_one("log-probabilities", base, adapter, given)
    to_adapter, to_base, size = map(rms, (given - adapter, given - base, adapter - base))
    most = _COARSE if noise is None else noise
    verdict, reason = judge(to_adapter, to_base, size, noise, most=most)
    return Finding(verdict, reason, **counts, to_adapter=to_adapter, to_base=to_base, effect=size,
                   noise=noise, share=effect.share, residual=effect.residual)  # fmt: skip


def _aligned(
    computed: Computed, answers: Sequence[NextToken], known: Mapping[str, Sequence[int]]
) -> Tensor:
    """Return log-probabilities of the server, the adapter and the base, (3, tokens).

    Args:
        known: the ids of a token's text, for answers without ids.
    """
    width, triples = computed.adapter.shape[1], list[tuple[float, float, float]]()
    for answer, *sides in zip(answers, computed.adapter, computed.base, strict=False):
        for number, text, value in answer.likely:
            ids = [i for i in (known.get(text, ()) if number is None else (number,)) if i < width]
            if ids:
                # several ids may have one text; the likeliest is meant
                i = max(ids, key=lambda i: max(float(side[i]) for side in sides))
                triples.append((value, float(sides[0][i]), float(sides[1][i])))
    return torch.tensor(triples, dtype=torch.float64).view(-1, 3).T


def judge_texts(
    given: Sequence[str], bare: Sequence[str], adapter: Sequence[str], base: Sequence[str]
) -> Finding:
    """Judge by the likeliest next tokens, on texts where adapter and base differ."""
    total, noise = len(given), sum(map(ne, bare, base)) if bare else None
    to_adapter, to_base = sum(map(ne, given, adapter)), sum(map(ne, given, base))
    # a count of 0 or 1 says less of the next count than a mean of squares: 0, 2 and 3 were seen
    most = _COARSE_TEXTS * total if noise is None else noise + 2
    verdict, reason = judge(to_adapter, to_base, total, noise, most=most)
    return Finding(verdict, reason, texts=total, to_adapter=to_adapter, to_base=to_base,
                   effect=total, noise=noise)  # fmt: skip


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
