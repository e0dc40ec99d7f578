"""Is B no worse than A? A promise about two finished models, tested on the same rows.

B is the only size that is tested, so no correction is needed. Beside the upper bound of the drop
there is a lower one, each with the promise's confidence: B is certified if the upper bound is
within the promise, and shown to be worse if the lower one is above it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from sora_cli.adapter.digest import result_digest, same_answers
from sora_cli.adapter.places import adapter_folder, baseline_folder
from sora_cli.core.console import say, say_notes
from sora_cli.core.errors import SoraError
from sora_cli.model.base import Base
from sora_cli.recipe.recipe import Recipe
from sora_cli.run.scoring import load_target
from sora_cli.search.asking import Labels
from sora_cli.search.cut import method_told, reference_of, scored_on, stored_size
from sora_cli.search.evidence import Candidate
from sora_cli.search.finished import Model, Planned, asked_outcome
from sora_cli.search.promise import Promise
from sora_cli.search.row_set import TEST
from sora_cli.search.search import Outcome
from sora_cli.search.size import Size
from sora_cli.search.statistic import Bound
from sora_cli.search.statistics import drop_bound, statistic_of
from sora_cli.search.test_rows import EncodedRows, TestRows
from sora_cli.tasks.base import Task
from sora_cli.tasks.language import Writing, room_after, row_text_scores
from sora_cli.tasks.row_scores import RowScores, answer_scores, row_scores
from sora_cli.tasks.stand_ins import NOT_FINITE, OUTPUTS, OVERFLOW, finite_rows
from sora_cli.train.trainer import AdapterTrainer, build_scorer
from sora_cli.verify.own_reading import own_recipe, read_alike, task_of
from sora_cli.verify.server import Server

NAME = "A"
"""Name of the reference in sentences."""
_OF_MODEL = Size(parameters=0, components=0, largest_rank=0, served=0)
_EXACT = "exact_match"
_TEXT = "The quick brown fox counts 1,234 na\u00efve dogs."
_ASKED_TWICE = 20  # rows at most, of a server: whether it answers as it did


@dataclass(frozen=True)
class Side:
    """One of the two models.

    Attributes:
        reference: the user's name for it.
        place: its adapter, delta or model; of a model of the Hub the name.
        base: the base model of an adapter, as the user named it.
        recipe: scores it, and reads rows by its own length and template; None: not known yet.
        read: what its tokenizer knows, and makes of a text, once the model was loaded.
    """

    reference: str
    place: Path
    base: str | None = None
    recipe: Recipe | None = None
    read: list[Any] = field(default_factory=list, compare=False)

    @classmethod
    def of(cls, reference: str, base: str | None = None) -> Side:
        """Find a model by the user's name for it."""
        place = Path(reference).expanduser()
        return cls(reference, adapter_folder(place) or baseline_folder(place) or place, base)

    @property
    def digest(self) -> str:
        """The digest of its files; "": they are not on this disk."""
        return result_digest(self.place) or ""

    @property
    def size(self) -> Size:
        """The size of an adapter; a model has no factors."""
        if adapter_folder(self.place) is None:
            return _OF_MODEL
        return stored_size(self.place)

    def reading(self, recipe: Recipe, overrides: Sequence[str]) -> Side:
        """Return this side with the recipe by which its model reads the rows of another one."""
        return replace(self, recipe=own_recipe(self.place, recipe, overrides))

    def model(self, recipe: Recipe, task: Task, last: list[str] | None = None) -> Model:
        """Return the model, which is loaded when it is scored.

        Args:
            last: gets the user's name for the model that was loaded last.
        """
        on = self.base if adapter_folder(self.place) is not None else None

        def loaded() -> AdapterTrainer:
            if last is not None:
                last[:] = [self.reference]
            base = load_target(str(self.place), recipe, task, on=on)
            if isinstance(base.processor, PreTrainedTokenizerBase):
                known = frozenset(base.processor.get_vocab().items())
                self.read[:] = [hash(known), *base.processor(_TEXT).input_ids]
            return build_scorer(recipe, task, base)

        return loaded

    def is_same(self, other: Side) -> bool:
        """Return True if every file that decides an answer is known to be the same."""
        if not self.digest or self.digest != other.digest:
            return False
        return same_answers((self.place, self.base), (other.place, other.base))


class Served:
    """A server as the second model: the texts that it writes after the prompts of the rows.

    Args:
        server: with its model chosen.
    """

    def __init__(self, server: Server) -> None:
        self.server, self.reference = server, server.shown(f"{server.url}, model {server.model}")

    def scores(self, rows: EncodedRows, base: Base, best: str) -> RowScores:
        """Return what the server writes as scores: whole texts, or whether they are exact.

        Args:
            base: the model A, whose tokenizer has made the prompts.
            best: metric of a promise about a drop; "": answers are compared.
        """
        new: int = rows.part.task.options.model_dump()["max_new_tokens"]
        numbers = np.arange(len(rows.part)) if rows.counted is None else rows.counted
        examples = rows.rows.examples.select(numbers.tolist())
        prompts: list[list[int]] = examples["prompt"][:]
        texts = [str(base.processor.decode(prompt)) for prompt in prompts]
        self.server.find_writing(texts[0], prompts[0])
        if not self.server.way.ids:
            read = base.processor(texts, add_special_tokens=False).input_ids
            other = sum(one != prompt for one, prompt in zip(read, prompts, strict=True))
            say_notes([
                "the server takes prompts as texts only, and may add a first token; "
                f"{other} of {len(prompts)} are other tokens when they are read again"
            ])  # fmt: skip

        def answer(row: int) -> str:
            room = room_after(base.model, len(prompts[row]), new)
            return self.server.write(texts[row], prompts[row], room)

        say(f"asking {self.server.shown(self.server.url)} for the answers to {len(prompts)} rows")
        answers = [answer(row) for row in tqdm(range(len(prompts)), desc="asking", leave=False)]
        again = range(0, len(prompts), -(-len(prompts) // _ASKED_TWICE))
        apart = sum(answer(row) != answers[row] for row in again)
        say_notes([f"asked twice, the server answers {apart} of {len(again)} rows otherwise"])
        if not best:
            return answer_scores(answers)
        right = row_text_scores(answers, examples["reference"][:], [best])[best]
        return row_scores(best, "right", right)


def gate_server(
    a: Side,
    server: Served,
    recipe: Recipe,
    rows: TestRows,
    promise: Promise,
    tell: Callable[[str], None],
) -> Outcome:
    """Test whether a server answers as an adapter or a model does; see `gate`."""
    task, best = rows.task, "" if promise.by_answers else promise.metric
    if not isinstance(task, Writing):
        raise SoraError(
            f"--server with a promise is for models that write, and task {task.name} writes none",
            hint="without --max-drop or --max-differ a server's next tokens are compared",
        )
    if best not in ("", _EXACT):
        raise SoraError(
            f"a server's texts show no {best}",
            hint=f"task.metrics=[{_EXACT}], or --max-differ 1% --unlabelled FILE",
        )
    with _naming() as last:
        trainer = a.model(recipe, task, last)()
        if trainer.base.model.config.is_encoder_decoder:
            raise SoraError(f"{a.reference} has an encoder, and such servers have none")
        encoded, full = _first(rows, recipe, trainer)
    small = server.scores(encoded, trainer.base, best)
    candidate = Candidate(
        **_OF_MODEL.model_dump(), directory=server.reference, digest="", test=None
    )
    return _tested(a, candidate, encoded, full, small, promise, tell)


def gate(
    a: Side,
    b: Side,
    recipe: Recipe,
    rows: TestRows,
    promise: Promise,
    labels: Labels | None,
    tell: Callable[[str], None],
) -> Outcome:
    """Test whether B is no worse than A by more than a promise allows.

    Args:
        recipe: scores A, and B if that has no recipe of its own.
        rows: rows that neither was trained on, as far as that is known.
        labels: of a promise that asks for labels.
        tell: prints what the rows can certify.

    Raises:
        WaitingError: labels are wanted.
    """
    try:
        with _naming() as last:
            own, task = b.recipe or recipe, rows.task
            if not read_alike(recipe, own):
                task = task_of(own, rows)
                rows = replace(rows, also_read=task)
            models = a.model(recipe, rows.task, last), b.model(own, task, last)
            if labels is None:
                return _by_scores(a, b, models, recipe, rows, promise, tell)
            return _by_labels(a, b, models, recipe, rows, promise, tell, labels)
    finally:
        if a.read and b.read and a.read != b.read:
            say_notes(["A and B have other tokenizers: each reads the texts as its own tokens"])


@contextmanager
def _naming() -> Iterator[list[str]]:
    """Yield a list for the name of the model that was loaded last, and name it in an error."""
    last: list[str] = []
    try:
        yield last
    except SoraError as error:
        for name in last:
            error.renamed(OUTPUTS, f"the outputs of {name}")
        raise


def _by_labels(
    a: Side,
    b: Side,
    models: tuple[Model, Model],
    recipe: Recipe,
    rows: TestRows,
    promise: Promise,
    tell: Callable[[str], None],
    labels: Labels,
) -> Outcome:
    size, (first, model) = b.size, models
    made = _candidate(b, size), model
    found = asked_outcome(
        reference_of(a.size, NAME, 1.0, a.digest),
        first,
        [Planned(size, 1.0, model, lambda: made)],
        rows,
        promise,
        labels,
        tell,
        recipe=recipe,
        about={"a": a.digest or a.reference, "b": b.digest or b.reference},
        of_two=True,
    )
    (tested,) = found.candidates
    if tested.test is None:
        return found

    def exchanged() -> Bound:
        raise AssertionError("the counts tell the lower bound")

    return _with_lower(found, tested.test, exchanged)


def _by_scores(
    a: Side,
    b: Side,
    models: tuple[Model, Model],
    recipe: Recipe,
    rows: TestRows,
    promise: Promise,
    tell: Callable[[str], None],
) -> Outcome:
    first, second = models
    encoded, full = _first(rows, recipe, first())
    other = second()
    small = _scores(encoded.on(other.base, other.task), other)
    return _tested(a, _candidate(b, b.size), encoded, full, small, promise, tell)


def _first(
    rows: TestRows, recipe: Recipe, trainer: AdapterTrainer
) -> tuple[EncodedRows, RowScores]:
    """Return the rows that test, and the scores of A on them."""
    encoded = scored_on(rows, recipe, trainer)[0]
    say_notes(encoded.notes())
    return encoded, _scores(encoded, trainer)


def _scores(rows: EncodedRows, trainer: AdapterTrainer) -> RowScores:
    """Return the scores of a model; outputs that are not finite are an error, as of answers."""
    scores = rows.scores(trainer)
    if not np.isfinite(scores.parts).all():
        finite = finite_rows(trainer.outputs_of(rows.rows, trainer.task.outputs_to_keep))
        where = f"{(~finite).sum():,} of {len(finite):,} predictions on {rows.part.name}"
        raise SoraError(NOT_FINITE, where=where, hint=OVERFLOW)
    return scores


def _tested(
    a: Side,
    b: Candidate,
    rows: EncodedRows,
    full: RowScores,
    small: RowScores,
    promise: Promise,
    tell: Callable[[str], None],
) -> Outcome:
    """Return the test of B by both models' scores."""
    bound, promise = method_told(full, promise, tell)
    test = drop_bound(full, small, promise.confidence).judged(promise.max_drop)
    statistic = statistic_of(full)
    if bound.smallest_drop is None and test.is_of_many:
        smallest = statistic.beside(full, small, len(full), promise.confidence)
        bound = bound.model_copy(update={"smallest_drop": smallest})
    about = reference_of(a.size, NAME, statistic.score(full, full), a.digest)
    found = Outcome(
        promise, bound, about, [b.model_copy(update={"test": test})], {TEST: rows.row_set()}, full
    )
    return _with_lower(found, test, lambda: drop_bound(small, full, promise.confidence))


def _candidate(b: Side, size: Size) -> Candidate:
    return Candidate(**size.model_dump(), directory=b.reference, digest=b.digest, test=None)


def _with_lower(found: Outcome, test: Bound, exchanged: Callable[[], Bound]) -> Outcome:
    """Return an outcome with the lower bound of the drop.

    Args:
        exchanged: returns the bound of the drop from B to A.
    """
    statistic, promise = statistic_of(found.scores), found.promise
    lower = None
    if promise.kind == "differ" or promise.basis != "answers":  # else a row that differs may be won
        lower = statistic.lower(test, len(found.scores), promise.confidence, exchanged)
    test = test.model_copy(update={"lower": lower})
    return replace(found, candidates=[found.candidates[0].model_copy(update={"test": test})])
