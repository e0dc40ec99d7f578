"""Thumbs: the model learns which answers are good and which are bad, each by itself (KTO).

Source: Ethayarajh et al. 2024, arXiv 2402.01306, section 4.1; names and units are those of TRL 1.16
(`KTOTrainer`), whose loss, estimate and tokens are the same for a batch that is the whole data.

The loss compares a row's reward with an estimate of how far the model is from the reference, the
mean of log(p / p_reference) over prompts with answers of other rows. TRL gives each prompt the
answer before it in its batch. Here the answer is that of the row before it in an order of all rows
of the split, which is drawn once, by a fixed seed:

- A row's mixed text is the same in every epoch, micro-batch and process and after a resume, so that
  its log-probability by the reference is computed once, with that of the row. Of texts mixed within
  a step there would be others in each epoch.
- Files often have a prompt's answers in a row, and neighbours would not be mixed up.
- A last step of one row has a mixed text, too.

As in TRL, nothing keeps two rows with equal prompts or answers apart. The estimate is the mean over
all rows of a step, whatever its micro-batches and processes (`before_step`), and over all rows of a
split that is scored; a model's answer to a row does not depend on it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from datasets import ClassLabel, Dataset
from torch import Tensor, nn

from sora_cli.core.device import process_state
from sora_cli.core.errors import SoraError
from sora_cli.core.words import shown_value
from sora_cli.data.places import RowError
from sora_cli.recipe.thumbs_options import COMPLETION, LABEL, ThumbsOptions
from sora_cli.tasks.answer_rows import INPUTS, ROUNDING, AnswerRows, as_text
from sora_cli.tasks.causal_lm import for_row
from sora_cli.tasks.dialogues import Padding, Row, cut, learned_tokens, prompt_hashes, rows_of
from sora_cli.tasks.encoded import NO_EXAMPLES, Encoded, Lengths, Predictions
from sora_cli.tasks.family.head import without
from sora_cli.tasks.language import IGNORED, token_sums
from sora_cli.tasks.learned import LEARNED, learned_labels, learned_logits
from sora_cli.tasks.messages import chat_rows
from sora_cli.tasks.questions import Questions
from sora_cli.tasks.referenced import REFERENCE, Referenced
from sora_cli.tasks.stand_ins import check_finite, with_column
from sora_cli.tasks.texts import require_column, row_error

GOOD, MIXED = "good", "mixed"
"""Columns of encoded rows: True for thumbs up; `mixed_...`, the prompt with another answer."""
_BOTH, KL = "both", "kl"  # in a batch: texts and mixed texts together; the estimate
UP, DOWN, _NEITHER = "up", "down", "neither"
_WORDS = {
    **dict.fromkeys(("true", "1", "yes", "y", UP, "good", "like", "chosen", "desirable"), True),
    **dict.fromkeys(("thumbs up", "thumbs_up", "positive", "right", "\N{THUMBS UP SIGN}"), True),
    **dict.fromkeys(("false", "0", "no", "n", DOWN, "bad", "dislike", "rejected"), False),
    **dict.fromkeys(("undesirable", "thumbs down", "thumbs_down", "negative", "wrong"), False),
    "\N{THUMBS DOWN SIGN}": False,
}
_SEED = 0  # of the order in which answers move on to the next prompt
_BALANCED = (1.0, 4 / 3)
"""The weight of all thumbs up by that of all thumbs down that the paper advises (equation 8)."""


def losses(options: ThumbsOptions, ratios: Tensor, good: Tensor, kl: Tensor | float) -> Tensor:
    """Return the loss of each row, (rows,): equations 7 and 8.

    Args:
        ratios: (rows,) log(p / p_reference) of each answer, in nats.
        good: (rows,) True for thumbs up.
        kl: the estimate, in nats; no gradient passes through it.
    """
    lost = 1 - torch.sigmoid(options.beta * torch.where(good, ratios - kl, kl - ratios))
    return torch.where(good, options.desirable_weight * lost, options.undesirable_weight * lost)


def mixed_with(rows: int) -> np.ndarray:
    """Return the row whose answer each row's prompt is mixed with, (rows,)."""
    order = np.random.default_rng(_SEED).permutation(rows)
    others = np.empty_like(order)
    others[order] = np.roll(order, 1)
    return others


class Mixing(Padding):
    """The collator: pads texts, and mixed texts apart from them."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch = super().__call__(rows)
        if GOOD not in rows[0]:
            return batch
        mixed = [{name: row[f"{MIXED}_{name}"] for name in INPUTS} for row in rows]
        return {
            **batch,
            MIXED: super().__call__(mixed),
            _BOTH: super().__call__([*rows, *mixed]),
            GOOD: torch.tensor([row[GOOD] for row in rows]),
            REFERENCE: torch.tensor([row[REFERENCE] for row in rows], dtype=torch.float32),
        }


class Thumbs(Referenced, AnswerRows):
    """A decoder's answers, each good or bad; the outputs on a row are those of its two texts."""

    options: ThumbsOptions
    sides = (COMPLETION,)
    _judged = True
    """False: rows have no thumbs, so that nothing but their rewards is asked of them."""

    def bind(self, train: Dataset) -> None:
        super().bind(train)
        self.label_column = self.require_columns(train.column_names, [LABEL])[LABEL]

    def stand_in(self, rows: Dataset) -> Dataset:
        self._judged = False
        return with_column(rows, self.part_column(rows.column_names, LABEL), [True] * len(rows))

    def check(self, rows: Dataset) -> None:
        super().check(rows)
        self._thumbs(rows)

    def _thumbs(self, rows: Dataset) -> list[bool]:
        """Return True for each row with thumbs up."""
        column = str(self.label_column)
        require_column(column, rows.column_names)
        feature, thumbs = rows.features[column], list[bool]()
        for row, value in enumerate(rows[column][:]):
            thumb = _WORDS.get(_word(value, feature))
            if thumb is None:
                raise row_error(
                    f"column '{column}' holds {shown_value(value)}, which is no thumb", row,
                    key=f"data.columns.{LABEL}",
                    hint="write true or false (or up and down, good and bad, yes and no, 1 and 0)",
                )  # fmt: skip
            thumbs.append(thumb)
        return thumbs

    def encode(self, rows: Dataset, processor: Any, *, training: bool = False) -> Encoded:
        if training and len(rows) == 1:
            raise RowError(
                "there is one row: KTO mixes its prompt with the answer of another one",
                hint="give more rows, each with a prompt, an answer and a label",
            )
        read = chat_rows(rows, self._columns.values())
        dialogues = [for_row(i, self._dialogues, row, processor)[0] for i, row in enumerate(read)]
        whole, limit = rows_of(dialogues, processor), self.data.max_length
        made = [cut(row, limit) for row in whole]
        for i, row in enumerate(made):
            if not learned_tokens(row):
                raise RowError("an answer has no token", i)
        columns: dict[str, Any] = {name: [row[name] for row in made] for name in INPUTS}
        lengths = _lengths(made)
        thumbs = self._thumbs(rows)
        if self._judged:
            others = mixed_with(len(whole)).tolist()
            mixed = [
                cut(_mixed(row, whole[i]), limit) for row, i in zip(whole, others, strict=True)
            ]
            columns |= {f"{MIXED}_{name}": [row[name] for row in mixed] for name in INPUTS}
            columns |= {GOOD: thumbs, REFERENCE: [[math.nan] * 2] * len(made)}
            lengths = np.maximum(lengths, _lengths(mixed))
        before, after = (map(learned_tokens, each) for each in (whole, made))
        return Encoded(
            Dataset.from_dict(columns),
            lengths,
            truncated=int((_lengths(whole) > limit).sum()),
            longest=int(_lengths(whole).max()),
            examples=NO_EXAMPLES if training else _examples(dialogues, thumbs),
            notes={
                f"lose the end of their answers at data.max_length={limit}": sum(
                    a > b for a, b in zip(before, after, strict=True)
                ),
                **Counter(remark for dialogue in dialogues for remark in dialogue.remarks),
            },
        )

    def input_keys(self, rows: Encoded, *, answers: bool = False) -> list[np.ndarray]:
        """Return a key of the prompt's tokens."""
        table = rows.dataset.select_columns(list(INPUTS)).with_format("arrow")[:]
        return [prompt_hashes(*(table[name].combine_chunks() for name in INPUTS))]

    def remarks(self, parts: Mapping[str, Encoded]) -> list[str]:
        """Say that one kind of rows has far more weight than the other."""
        good = np.asarray(parts["train"].dataset[GOOD][:])
        up, down = int(good.sum()), int((~good).sum())
        if not up or not down:
            return [f"all training rows are thumbs {UP if up else DOWN}: KTO learns from both"]
        options, middle = self.options, sum(_BALANCED) / 2
        share = up * options.desirable_weight / (down * options.undesirable_weight)
        if _BALANCED[0] / _BALANCED[1] <= share <= _BALANCED[1] ** 2:  # a third off, at most
            return []
        fewer = "desirable_weight" if up < down else "undesirable_weight"
        weight = options.undesirable_weight * down / up * middle
        if up >= down:
            weight = options.desirable_weight * up / down / middle
        return [
            f"{up:,} training rows are thumbs up and {down:,} down; KTO's authors advise weights "
            f"by which both count about alike: task.{fewer}={weight:.2g}"
        ]

    def questions(self, rows: Dataset, order: np.random.Generator) -> Questions | None:
        columns = [self._columns[part] for part in self._texts]
        shown = {column: [as_text(value) for value in rows[column][:]] for column in columns}
        return Questions(shown, [{UP: UP, DOWN: DOWN}] * len(rows))

    def collator(self, processor: Any) -> Any:
        return Mixing(processor.pad_token_id)

    def inputs_of(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return without(batch, MIXED, _BOTH, GOOD, REFERENCE, KL)

    def scored_inputs(self, batch: Mapping[str, Any]) -> Mapping[str, Any]:
        return without(batch.get(_BOTH, batch), "labels")

    def before_step(
        self, model: nn.Module, micro_batches: Sequence[Mapping[str, Any]]
    ) -> Sequence[Mapping[str, Any]]:
        total = torch.zeros(2, device=process_state().device)  # of ratios, and rows
        for batch in micro_batches:
            logps = _log_probabilities(model(**batch[MIXED])["loss"], batch[MIXED])
            ratios = logps - batch[REFERENCE][:, 1]
            total = total + torch.stack([ratios.sum(), ratios.new_full((), len(ratios))])
        ratios, rows = reduce(total)  # over the processes
        kl = (ratios / rows).clamp(min=0)
        return [{**batch, KL: kl} for batch in micro_batches]

    def loss_of(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return the mean over the rows, from the losses (n,) of the learned tokens."""
        ratios = _log_probabilities(outputs["loss"], batch) - batch[REFERENCE][:, 0]
        # without an estimate a micro-batch only fills up its step
        return losses(self.options, ratios, batch[GOOD], batch.get(KL, 0.0)).mean()

    def outputs_to_keep(self, outputs: Any, batch: Mapping[str, Any]) -> Tensor:
        """Return (rows, texts, 3): `token_sums` of the text, and of the mixed one if there is."""
        read = batch.get(_BOTH, batch)
        labels, places = read["labels"], read[LEARNED]
        logits = learned_logits(outputs["logits"], labels, places)
        sums = token_sums(logits, learned_labels(labels, places), places, labels.shape)
        return sums.view(-1, len(batch["labels"]), 3).transpose(0, 1)

    def constant_loss(self, rows: Encoded) -> float | None:
        """Return the loss of the reference model itself: rewards and estimate are 0."""
        good = torch.tensor(rows.dataset[GOOD][:])
        return float(losses(self.options, torch.zeros(len(good)), good, 0.0).mean())

    def loss(self, predictions: Predictions) -> float:
        return self._all(predictions)["loss"]

    def metrics(self, predictions: Predictions) -> dict[str, float]:
        found = self._all(predictions)
        broken = not math.isfinite(found["loss"])
        return {n: math.nan if broken else found[n] for n in self.metric_names if n in found}

    def _all(self, predictions: Predictions) -> dict[str, float]:
        """Return every metric of a split; without rows of a thumb, none of their means."""
        good, rewards = self._good(predictions), self._rewards(predictions)
        ratios, logps = _ratios(predictions), _logps(predictions)
        kl = torch.from_numpy(ratios[:, 1]).mean().clamp(min=0)
        each = losses(self.options, torch.from_numpy(ratios[:, 0]), torch.from_numpy(good), kl)
        found = {"rewards/accuracies": float(self._right(predictions).mean()), "kl": float(kl)}
        for side, rows in (("chosen", good), ("rejected", ~good)):
            if rows.any():
                found[f"rewards/{side}"] = float(rewards[rows].mean())
                found[f"logps/{side}"] = float(logps[rows, 0].mean())
        if good.any() and not good.all():
            found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
        return {**found, "loss": float(each.mean())}

    def row_parts(self, predictions: Predictions) -> tuple[Any, ...]:
        broken = 0.0 if np.isfinite(predictions.outputs).all() else math.nan
        if self.best == "rewards/accuracies":
            return "right", self._right(predictions) + broken
        kind, _, side = self.best.rpartition("/")
        if side not in ("chosen", "rejected"):
            raise SoraError(
                f"{self.best} is of all rows together: a single row has none",
                hint="task.best_metric=rewards/accuracies",
                key="task.best_metric",
            )
        values = self._rewards(predictions) if kind == "rewards" else _logps(predictions)[:, 0]
        counted = self._good(predictions) == (side == "chosen")
        return "ratio", np.where(counted, values, 0.0) + broken, counted + broken

    def answer_columns(self, predictions: Predictions) -> list[Sequence[Any]]:
        check_finite(predictions.outputs)
        return [self._verdicts(predictions), self._rewards(predictions).tolist()]

    def readable(self, predictions: Predictions) -> list[dict[str, Any]]:
        rows, verdicts = predictions.encoded.examples, self._verdicts(predictions)
        return [
            {
                "input": {"prompt": row["source"], COMPLETION: row[COMPLETION]},
                "prediction": verdict,
                "label": UP if row[GOOD] else DOWN,
                "reward": float(reward),
            }
            for row, verdict, reward in zip(rows, verdicts, self._rewards(predictions), strict=True)
        ]

    def _good(self, predictions: Predictions) -> np.ndarray:
        return np.asarray(predictions.encoded.dataset[GOOD][:], dtype=bool)

    def _rewards(self, predictions: Predictions) -> np.ndarray:
        """Return the reward of each answer, (rows,): beta log(p / p_reference)."""
        return np.asarray(self.options.beta * _ratios(predictions)[:, 0])

    def _signs(self, predictions: Predictions) -> np.ndarray:
        """Return the sign of each reward, (rows,); 0 within rounding."""
        # a reward is a difference: its error is that of the two log-probabilities
        sizes = np.abs(_logps(predictions)) + np.abs(_reference(predictions))
        ratios = _ratios(predictions)[:, 0]
        return np.asarray(np.sign(ratios) * (np.abs(ratios) > ROUNDING * sizes[:, 0]))

    def _verdicts(self, predictions: Predictions) -> list[str]:
        words = {1.0: UP, -1.0: DOWN}
        return [words.get(sign, _NEITHER) for sign in self._signs(predictions).tolist()]

    def _right(self, predictions: Predictions) -> np.ndarray:
        """Return whether each row's reward has the sign of its thumb, (rows,)."""
        wanted = np.where(self._good(predictions), 1.0, -1.0)
        return np.asarray(self._signs(predictions) == wanted)

    def token_lengths(self, rows: Dataset, processor: Any) -> Lengths | None:
        """Count the tokens of rows, however few: a single one has no mixed text."""
        return Lengths(self.encode(rows, processor).lengths)


def _word(value: Any, feature: Any) -> str:
    if isinstance(feature, ClassLabel) and value in range(feature.num_classes):
        value = feature.names[value]
    return f"{value:g}" if isinstance(value, float) else str(value).strip().casefold()


def _mixed(row: Row, other: Row) -> Row:
    """Return the prompt of one row with the answer of another: their tokens, as in TRL."""
    start, end = (
        next(i for i, label in enumerate(each["labels"]) if label != IGNORED)
        for each in (row, other)
    )
    ids = row["input_ids"][:start] + other["input_ids"][end:]
    return {"input_ids": ids, "labels": [IGNORED] * start + other["labels"][end:]}


def _lengths(rows: Sequence[Row]) -> np.ndarray:
    return np.array([len(row["input_ids"]) for row in rows])


def _examples(dialogues: Sequence[Any], thumbs: Sequence[bool]) -> Dataset:
    return Dataset.from_dict(
        {
            "source": ["".join(dialogue.prompt) for dialogue in dialogues],
            COMPLETION: [dialogue.reference for dialogue in dialogues],
            GOOD: thumbs,
        }
    )


def _log_probabilities(token_losses: Tensor, batch: Mapping[str, Any]) -> Tensor:
    """Return the log-probability of each text, (rows,), from the losses (n,) of its tokens."""
    rows = (batch[LEARNED] // batch["labels"].shape[-1]).to(token_losses.device)
    return token_losses.new_zeros(len(batch["labels"])).index_add(0, rows, -token_losses)


def _logps(predictions: Predictions) -> np.ndarray:
    return np.asarray(-predictions.outputs[..., 0], dtype=np.float64)


def _reference(predictions: Predictions) -> np.ndarray:
    assert predictions.reference is not None
    return predictions.reference


def _ratios(predictions: Predictions) -> np.ndarray:
    """Return log(p / p_reference) of each text, (rows, texts)."""
    return np.asarray(_logps(predictions) - _reference(predictions))
