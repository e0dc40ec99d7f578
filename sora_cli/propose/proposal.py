"""Propose a recipe for data, by looking at the data and by rules.

proposal = propose("reviews.csv", Path("reviews.yaml"), overrides=["training.epochs=2"])
proposal.text     # the text of the file that `sora init` writes
proposal.loaded   # the recipe, as if read from that file
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset
from pydantic import ValidationError

from methods.registry import config_class, proposed_method
from sora_cli import __version__
from sora_cli.core.environment import free_memory
from sora_cli.core.errors import SoraError, first_mistake
from sora_cli.core.hub import quiet_hub
from sora_cli.core.shell import quote
from sora_cli.core.words import listed
from sora_cli.data.columns import Column, read_columns, some_rows
from sora_cli.data.loading import Part, load_splits
from sora_cli.data.places import Origin, locating
from sora_cli.data.rows import Rows
from sora_cli.model.base import load_inputs
from sora_cli.propose import rules
from sora_cli.propose.learned import learned_answers
from sora_cli.propose.matching import Match, match
from sora_cli.propose.place import place_of, train_split, validation_splits
from sora_cli.propose.rules import Proposed
from sora_cli.propose.text import recipe_text
from sora_cli.recipe.families import options_class
from sora_cli.recipe.layers import combine, override_layers
from sora_cli.recipe.load import LoadedRecipe, load_text
from sora_cli.recipe.recipe import DataBlock
from sora_cli.run.preflight import check_recipe
from sora_cli.run.prepare import check_rows, load_task
from sora_cli.run.rates.rule import rule_of_thumb
from sora_cli.tasks.base import Task
from sora_cli.tasks.encoded import Lengths

_ONE_CLASS = ("sequence-classification", "image-classification")
"""Families whose rows have one class each, in a column of the rows."""
_PLACE = ("path", "name", "revision", "files")
STEPS = 4
"""Number of passes over the rows, for a progress bar."""
_UNCUT = 2**24  # tokens: a limit that no row reaches, while lengths are counted
_COUNTED = 5000  # rows whose tokens are counted, evenly spaced over the split
_TAGS = 100  # rows whose tags are looked at to see if they mark entities


@dataclass(frozen=True)
class Proposal:
    """A proposed recipe, with the loaded data, task and processor.

    Attributes:
        text: content of the recipe file; it is not written.
        loaded: the recipe as read from that file; error messages name the file's lines.
        reasons: dotted key -> reason for its value.
        columns: columns of the training rows.
        task, rows, processor: loaded for the recipe, and checked.
    """

    text: str
    loaded: LoadedRecipe
    reasons: Mapping[str, str]
    match: Match
    columns: Mapping[str, Column]
    task: Task
    rows: Rows
    processor: Any


def propose(
    source: str,
    output: Path,
    *,
    model: str | None = None,
    task: str | None = None,
    overrides: Sequence[str] = (),
    command: str | None = None,
    step: Callable[[], object] = lambda: None,
) -> Proposal:
    """Look at data, and propose a recipe for them; the base model's weights are not loaded.

    Args:
        source: a file, a directory, builtin://NAME, or a data set's Hub id.
        output: the recipe's file, for its header and error messages; nothing is written.
        model: the base model, as model.path; None: a small model is proposed.
        task: the task family, as task.name; None: the columns determine it.
        overrides: block.key=value; they replace proposed values.
        command: command to name in the file's header; None: `sora init SOURCE`.
        step: called after each of `STEPS` passes over the rows.
    """
    given = combine(override_layers(overrides))[0].values
    for block, key, value in (("model", "path", model), ("task", "name", task)):
        if value is not None:
            given.setdefault(block, {})[key] = value
    draft = _Draft(given)
    matched, columns = _look(source, draft)
    step()
    header = _header(source, output, matched, columns, command)
    # max_length needs the rows' lengths, and these need a bound task: so first a draft recipe with
    # a limit that no row reaches
    loaded = load_text(
        recipe_text(header, draft.with_values(_draft_values(draft))), output, draft=True
    )
    check_recipe(loaded.recipe)
    bound, rows = load_task(loaded.recipe)
    step()
    parts = (rows.train, rows.select, *rows.report.values())
    check_rows(bound, rows, parts, places=some_rows)  # of a large split some: a run checks all
    step()
    with loaded.recipe.placing(), _hinting(rules.local_model(matched.task)):
        config, processor = load_inputs(loaded.recipe.model, bound)
        _lengths(draft, bound, rows, config, processor)
    step()
    _training(draft, len(rows.train), config)
    draft.add_given()
    text = recipe_text(header, draft.blocks)
    loaded = load_text(text, output)
    bound, rows = load_task(loaded.recipe, rows)
    return Proposal(text, loaded, draft.reasons(), matched, columns, bound, rows, processor)


class _Draft:
    """The values of a recipe while they are collected; given values replace proposed values."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        self.given = given
        self.blocks: dict[str, dict[str, Proposed]] = {}

    def put(self, block: str, key: str, proposed: Proposed) -> Any:
        """Add a proposed value, unless the user gave one; return the value in force."""
        own = self.block(block)
        chosen = Proposed(own[key], "given") if key in own else proposed
        self.blocks.setdefault(block, {})[key] = chosen
        return chosen.value

    def block(self, name: str) -> Mapping[str, Any]:
        """Return the values of a block that the user gave."""
        value = self.given.get(name) or {}
        return value if isinstance(value, Mapping) else {}

    def add_given(self) -> None:
        """Add all given values that are not in the draft yet."""
        for block, values in self.given.items():
            if not isinstance(values, Mapping):
                raise SoraError(f"{block} is no key of a recipe", hint="write block.key=value")
            for key, value in values.items():
                self.blocks.setdefault(block, {}).setdefault(key, Proposed(value, "given"))

    def with_values(self, more: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Proposed]]:
        """Return a copy of the blocks with more values, which have no reasons."""
        draft = _Draft(self.given)
        draft.blocks = {block: dict(values) for block, values in self.blocks.items()}
        for block, values in more.items():
            for key, value in values.items():
                draft.put(block, key, Proposed(value, ""))
        draft.add_given()
        return draft.blocks

    def reasons(self) -> dict[str, str]:
        """Return the reason for each value, by dotted key."""
        return {
            f"{block}.{key}": proposed.why
            for block, values in self.blocks.items()
            for key, proposed in values.items()
        }


def _look(source: str, draft: _Draft) -> tuple[Match, dict[str, Column]]:
    """Load the rows, match their columns with a task, and put data, model and task in the draft."""
    datasets.disable_progress_bars()
    quiet_hub()
    given = draft.block("data")
    place = place_of(source)
    if "files" in place and isinstance(given.get("files"), Mapping):
        files = {**place["files"].value, **given["files"]}
        place = {"files": Proposed(files, "")}
    named = {key: given[key] for key in _PLACE if key in given and key not in place}
    try:
        block = DataBlock(**{key: p.value for key, p in place.items()}, **named)
    except ValidationError as error:
        raise SoraError(f"data: {first_mistake(error)}") from error
    with _hinting("data on this disk: sora init FILE_OR_DIRECTORY"):
        splits = load_splits(block)
    train = train_split(splits, given)
    if train not in splits or len(splits[train].rows) == 0:
        raise SoraError(f"there are no rows in split '{train}'", where=f"splits: {listed(splits)}")
    rows = splits[train].rows
    columns = read_columns(rows)
    wanted = draft.block("task").get("name")
    matched = match(columns, given, wanted, tags=_tags(rows, columns))
    model = rules.base_model(matched.task)
    draft.put("model", "path", model)
    draft.put("task", "name", Proposed(matched.task, matched.why))
    for key, value in matched.options.items():
        why = "the tags mark no entities" if key == "metrics" else matched.why
        draft.put("task", key, Proposed(value, why))
    chats = next((column for column, part in matched.taken.items() if part == "messages"), None)
    learned = None if chats is None else learned_answers(rows, chats)
    if learned is not None:
        draft.put("task", "learn", learned)
    for key, proposed in place.items():
        draft.blocks.setdefault("data", {})[key] = proposed
    _splits(draft, splits, train, matched.data.get("label_column"))
    if matched.task in _ONE_CLASS:
        why = "rows of a class that has no other row there are not held out of training"
        draft.put("data", "rare_classes", Proposed("train", why))
    for key, value in matched.data.items():
        draft.put("data", key, Proposed(value, ""))
    return matched, columns


@contextmanager
def _hinting(hint: str) -> Iterator[None]:
    """Give an error by an unreachable Hub another hint: its own is about a recipe's keys."""
    try:
        yield
    except SoraError as error:
        if isinstance(error.__cause__, OSError):
            error.hint = hint
        raise


def _splits(draft: _Draft, splits: Mapping[str, Part], train: str, label: str | None) -> None:
    given = draft.block("data")
    if train != "train":
        draft.put("data", "train", Proposed(train, "the rows to train on"))
    if "validation" in given:
        return
    scored = validation_splits(splits, train, label)
    if not scored:
        draft.put("data", "held_out_rows", rules.held_out_rows(len(splits[train].rows)))
        seed = Proposed(
            DataBlock.model_fields["held_out_seed"].default, "seed that chooses these rows"
        )
        draft.put("data", "held_out_seed", seed)
    elif list(scored) != ["validation"]:
        draft.put("data", "validation", Proposed(list(scored), "the rows to score on"))


def _tags(rows: Dataset, columns: Mapping[str, Column]) -> list[str]:
    """Return some values of the column of tags; empty if there is none of texts."""
    lists = [name for name, column in columns.items() if column.kind == "words"]
    usual = [name for name in lists if name in ("tags", "ner_tags", "labels")] or lists[1:]
    if not usual:
        return []
    return [str(tag) for row in rows[:_TAGS][usual[0]] for tag in row or ()]


def _draft_values(draft: _Draft) -> dict[str, dict[str, Any]]:
    """Return the values that a draft recipe needs before the lengths of rows are known."""
    name = draft.blocks["task"]["name"].value
    more: dict[str, dict[str, Any]] = {"method": _method(draft, name)}
    more["data"] = {"max_length": _UNCUT}
    if "max_target_length" in options_class(name).model_fields:
        more["task"] = {"max_target_length": _UNCUT}
    return more


def _method(draft: _Draft, task: str) -> dict[str, Any]:
    given, proposed = draft.block("method"), proposed_method(rules.rank(task).value)
    other = given.get("name", proposed["name"]) != proposed["name"]
    return {"name": given["name"]} if other else proposed


def _lengths(draft: _Draft, task: Task, rows: Rows, config: Any, processor: Any) -> None:
    """Put the limits of tokens in the draft, by the lengths of the training rows."""
    lengths = token_lengths(task, rows.train, rows.origin(rows.train), processor)
    if lengths is None:
        return
    tokenizer = getattr(processor, "tokenizer", processor)
    limit = min(rules.limit_of(config, tokenizer), lengths.window or _UNCUT)
    draft.put("data", "max_length", rules.max_length(lengths.tokens, limit))
    if lengths.targets is not None:
        cut = rules.max_length(lengths.targets, _UNCUT)
        draft.put("task", "max_target_length", cut)
        draft.put("task", "max_new_tokens", Proposed(cut.value, "as max_target_length"))


def token_lengths(task: Task, rows: Dataset, origin: Origin, processor: Any) -> Lengths | None:
    """Count the tokens of at most 5,000 rows; None: rows of this task have no tokens.

    Args:
        task: task bound to the rows, with limits that no row reaches.
    """
    step = -(-len(rows) // _COUNTED)
    numbers = range(0, len(rows), step)
    with locating(origin.of(numbers)):
        return task.token_lengths(rows.select(numbers), processor)


def _training(draft: _Draft, rows: int, config: Any) -> None:
    """Put the values of the blocks `method` and `training` in the draft."""
    name, data = draft.blocks["task"]["name"].value, draft.blocks["data"]
    why = rules.rank(name).why
    for key, value in _method(draft, name).items():
        reason = "finds the rank; sora methods lists others" if key == "name" else why
        draft.put("method", key, Proposed(value, reason))
    batch = draft.put("training", "batch_size", rules.batch_size(rows, name))
    if isinstance(batch, int) and batch > 0:
        tokens = data["max_length"].value if "max_length" in data else 1
        parts = rules.accumulation(config, batch, tokens=tokens, task=name, free=free_memory())
        if parts.value > 1 and batch % parts.value == 0:
            draft.put("training", "gradient_accumulation", parts)
        draft.put("training", "epochs", rules.epochs(-(-rows // batch), name))
    method = config_class(draft.blocks["method"]["name"].value)
    rate, why = rule_of_thumb(config, method)
    draft.put("training", "learning_rate", Proposed("auto", f"rule of thumb: {rate:g}, {why}"))
    draft.put("training", "weight_decay", Proposed(0.01, "as in the recipes that come with sora"))
    keep = Proposed(False, "the rows that are scored must not choose a checkpoint")
    draft.put("training", "keep_best", keep)


def _header(
    source: str,
    output: Path,
    matched: Match,
    columns: Mapping[str, Column],
    command: str | None,
) -> list[str]:
    written = command or f"sora init {quote(source)}"
    train = f"sora train {quote(str(output))}"
    taken = ", ".join(f"'{column}' ({part})" for column, part in matched.taken.items())
    left = ", ".join(f"'{column}' ({why})" for column, why in matched.not_taken(columns).items())
    return [
        f"{matched.task} of {source}: {matched.why}.",
        f"Look at the plan: {train} --dry-run. Train: {train}.",
        f"Written by sora {__version__}: {written}. Every value may be changed.",
        f"Columns: {taken}." + (f" Not taken: {left}." if left else ""),
    ]
