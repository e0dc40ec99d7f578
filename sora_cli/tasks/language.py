"""Token losses, text scores and generation, shared by the families that generate texts.

A split's loss is the mean over all its tokens, not over rows or batches. ROUGE is Google's package,
the same that `evaluate` calls; used directly it needs no Hub and gives plain means.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from sora_cli.core.errors import SoraError
from sora_cli.recipe.task_options import ROUGE
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Predictions
from sora_cli.tasks.stand_ins import check_finite

IGNORED = -100
"""Label of tokens without a loss."""
_BROKEN = -1  # in place of a chosen token, where the logits are not finite
_NO_TEXT = "\0"  # in place of a written text, where the logits are not finite
_TOGETHER = 256  # tokens scored at a time
_LARGEST = 700.0  # nats per token; e to a larger power overflows a float


class Writing(Task):
    """A family that learns texts; its examples have source and reference."""

    answer_part: ClassVar[str]
    """The part of the columns that holds the given answers; see `find_columns`."""

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        texts = predictions.texts
        assert texts is not None
        check_finite(np.array([math.nan if text == _NO_TEXT else 0.0 for text in texts]))
        return [texts]

    @abstractmethod
    def predicted(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, torch.Size]:
        """Return the logits of the predicted tokens, and the further arguments of `token_sums`."""

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        return token_sums(*self.predicted(outputs, batch))

    def next_tokens(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return (rows, tokens): the likeliest token for each one that the loss counts."""
        return likeliest_tokens(*self.predicted(outputs, batch))

    def loss(self, predictions: Predictions) -> float:
        return mean_loss(predictions.outputs)

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        scores = token_scores(predictions.outputs)
        broken = not math.isfinite(scores["loss"])
        if predictions.texts is not None:
            wanted = predictions.encoded.examples["reference"][:]
            of_texts = text_scores(predictions.texts, wanted, self.metric_names)
            scores |= {name: math.nan if broken else value for name, value in of_texts.items()}
        return {name: scores[name] for name in self.metric_names if name in scores}

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        losses, tokens, right = predictions.outputs.T
        if self.best in ("loss", "perplexity"):
            return ("ratio" if self.best == "loss" else "perplexity"), losses, tokens
        if not math.isfinite(self.loss(predictions)):
            return "mean", np.full(len(losses), math.nan)
        if self.best == "token_accuracy":
            return "ratio", right, tokens
        assert predictions.texts is not None
        wanted = predictions.encoded.examples["reference"][:]
        kind = "right" if self.best == "exact_match" else "mean"
        return kind, row_text_scores(predictions.texts, wanted, [self.best])[self.best]

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        records = []
        rows = zip(predictions.encoded.examples, predictions.outputs, strict=True)
        for i, (row, sums) in enumerate(rows):
            texts = predictions.texts
            written = {} if texts is None else {"prediction": texts[i].strip(_NO_TEXT)}
            loss = float(sums[0] / sums[1]) if sums[1] else None
            about = {"label": row["reference"], "loss": loss, "tokens": int(sums[1])}
            records.append({"source": row["source"], **written, **about})
        return records


def token_sums(logits: Tensor, labels: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Return (rows, 3): each row's summed token loss, number of tokens, and number of right tokens.

    Args:
        logits: (n, words) of the predicted tokens.
        labels: (n,); IGNORED: the token has no loss.
        places: (n,) of the tokens, numbered through all rows.
        shape: (rows, tokens) of the batch.
    """
    # some tokens at a time, so that few logits are copied to float32
    pairs = zip(torch.split(logits, _TOGETHER), torch.split(labels, _TOGETHER), strict=True)
    each = torch.cat([_sums(scores.float(), right) for scores, right in pairs])
    sums = torch.zeros(shape[0], 3, dtype=torch.float64, device=logits.device)
    return sums.index_add_(0, (places // shape[1]).to(sums.device), each)


def _sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (n, 3), with one row per token."""
    loss = cross_entropy(logits, labels, reduction="none")  # 0 for ignored tokens
    parts = (loss, labels != IGNORED, logits.argmax(dim=-1) == labels)
    return torch.stack([part.double() for part in parts], dim=1)


def likeliest_tokens(logits: Tensor, labels: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Return (rows, tokens) int32: the token with the largest logit at each place with a loss.

    All other places are IGNORED. See `token_sums` for the arguments.
    """
    largest, tokens = logits.max(dim=-1)
    tokens = tokens.masked_fill(~largest.isfinite(), _BROKEN)
    tokens = tokens.masked_fill(labels.to(tokens.device) == IGNORED, IGNORED)
    chosen = tokens.new_full((shape.numel(),), IGNORED)
    chosen[places.to(chosen.device)] = tokens
    return chosen.view(shape).int()


def token_choices(tokens: np.ndarray) -> list[list[int]]:
    """Return each row's tokens from `likeliest_tokens`; logits that are not finite are an error."""
    check_finite(np.where((tokens == _BROKEN).any(axis=1), np.nan, 0.0))
    return [row[row != IGNORED].tolist() for row in tokens]


def mean_loss(sums: np.ndarray) -> float:
    """Return the mean loss per token, in nats, from `token_sums`."""
    return float(sums[:, 0].sum() / sums[:, 1].sum())


def token_scores(sums: np.ndarray) -> dict[str, float]:
    """Return loss, perplexity and the share of right tokens; NaN if a loss is not finite."""
    loss = mean_loss(sums)
    right = float(sums[:, 2].sum() / sums[:, 1].sum())
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, _LARGEST)) if math.isfinite(loss) else math.nan,
        "token_accuracy": right if math.isfinite(loss) else math.nan,
    }


def text_scores(
    written: Sequence[str], wanted: Sequence[str], names: Sequence[str]
) -> dict[str, float]:
    """Return means over rows of exact match (ignoring outer white space) and of ROUGE's F measures.

    Args:
        names: of the metrics; metrics of other kinds are skipped.

    Source: Lin 2004, ROUGE; google-research/rouge, without stemming.
    """
    scores = row_text_scores(written, wanted, names)
    return {name: float(np.mean(values)) for name, values in scores.items()}


def row_text_scores(
    written: Sequence[str], wanted: Sequence[str], names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return the scores of `text_scores` for each row, (rows,)."""
    from rouge_score.rouge_scorer import RougeScorer

    scores = {}
    if "exact_match" in names:
        same = [a.strip() == b.strip() for a, b in zip(written, wanted, strict=True)]
        scores["exact_match"] = np.array(same)
    kinds = [name for name in ROUGE if name in names]
    if kinds:
        scorer = RougeScorer(kinds)
        by_row = [scorer.score(b, a) for a, b in zip(written, wanted, strict=True)]
        scores |= {kind: np.array([row[kind].fmeasure for row in by_row]) for kind in kinds}
    return scores


def generate_texts(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, batch: int, new: int
) -> list[str]:
    """Generate a text for each prompt by greedy decoding.

    A decoder continues the prompt; a model with an encoder reads it as its source. A prompt that
    leaves no room for an answer is an error.

    Args:
        prompts: token ids.
        batch: number of prompts in a batch.
        new: most tokens to generate; fewer if the model's positions end before.
    """
    decoder = not model.config.is_encoder_decoder
    # longest first: little padding, and a batch that is too large for memory fails at once
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    starts = range(0, len(order), batch)
    for start in tqdm(starts, desc="writing", leave=False, dynamic_ncols=True):
        rows = order[start : start + batch]
        ids = _padded([prompts[i] for i in rows], tokenizer.pad_token_id, left=decoder)
        mask = _padded([[1] * len(prompts[i]) for i in rows], 0, left=decoder)
        room = room_after(model, ids.shape[1], new) if decoder else new
        watch = _Watch()
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=decoding(model, tokenizer, room),
            logits_processor=[watch],
        )
        answers = out[:, ids.shape[1] :] if decoder else out
        decoded = tokenizer.batch_decode(answers, skip_special_tokens=True)
        for i, text, broken in zip(rows, decoded, watch.broken.tolist(), strict=True):
            texts[i] = _NO_TEXT if broken else text.strip()
    return texts


class _Watch:
    """A logits processor that notes the rows whose logits are not finite.

    The largest logit of such a row is still some token, often the end of the text.
    """

    broken: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        broken = ~scores.amax(dim=-1).isfinite()  # a token that is ruled out has minus infinity
        self.broken = broken | self.broken if "broken" in vars(self) else broken
        return scores


def _padded(rows: Sequence[Sequence[int]], value: int, *, left: bool) -> Tensor:
    return pad_sequence(
        [torch.tensor(row) for row in rows],
        batch_first=True,
        padding_value=value,
        # a decoder continues after the last place, which must not be padding
        padding_side="left" if left else "right",
    )


def room_after(model: Any, prompt: int, new: int) -> int:
    """Return the number of tokens, at most `new`, that fit after a prompt of this length.

    No room at all is an error.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = new if positions is None else min(new, positions - prompt)
    if room < 1:
        raise SoraError(
            f"a prompt of {prompt} tokens leaves no room for an answer: the model has {positions} "
            "positions",
            hint="cut prompts earlier: data.max_length",
            key="data.max_length",
        )
    return room


def decoding(model: Any, tokenizer: Any, new: int, **sampling: Any) -> Any:
    """Return the model's generation settings, changed to greedy decoding.

    Its first and last tokens are kept.

    Args:
        new: most tokens to generate.
        sampling: settings of transformers that replace the greedy ones.
    """
    # a model's own generation settings may sample, and scores must not depend on chance
    config = copy.deepcopy(model.generation_config)
    ends = {tokenizer.eos_token_id, *np.atleast_1d(config.eos_token_id or []).astype(int).tolist()}
    greedy: dict[str, Any] = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50}
    config.update(
        **{**greedy, **sampling},
        num_beams=1,
        max_new_tokens=new,
        max_length=None,  # max_new_tokens counts only the new tokens
        min_length=0,  # models for summaries ask for a minimum, such as 56 tokens (BART on CNN)
        use_cache=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=sorted(ends - {None}) or None,
    )
    return config
