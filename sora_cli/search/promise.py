"""The promise: the largest drop that the user accepts, as typed and as a number. No torch here.

`--max-drop smallest` asks for the smallest drop that the test rows can be expected to certify. It
depends only on the number of test rows; `max_drop` is NaN until that number is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from sora_cli.core.errors import SoraError
from sora_cli.core.shell import quote
from sora_cli.recipe.auto import AutoBlock, Basis
from sora_cli.recipe.families import main_metric
from sora_cli.recipe.metric_facts import facts_of
from sora_cli.recipe.tolerance import CONFIDENCE, check_drop, parse_drop, parse_share

if TYPE_CHECKING:
    from sora_cli.recipe.load import LoadedRecipe
    from sora_cli.recipe.recipe import Recipe
    from sora_cli.search.statistic import BoundMethod


SMALLEST = "smallest"
"""Value of `--max-drop` for the smallest drop that the test rows can be expected to certify."""
LABELS = 60
"""Rows that are labelled at most, if the user names no number."""
_STEP = 0.005
"""Half a point: the smallest drop is rounded up to a multiple of this."""


class Promise(BaseModel):
    """The largest drop that the user accepts, with its confidence and metric.

    Of a promise about answers (`differ`) the drop is that of agreement with full rank: the share of
    rows that are answered differently. Where rows are right or wrong, that share also bounds the
    drop of the metric (`basis`).
    """

    kind: Literal["drop", "differ"] = Field(
        "drop",
        description="drop: how much worse the metric may be; differ: on which share of rows the "
        "answers may differ from those at full rank",
    )
    basis: Basis = Field(
        "labels",
        description="labels: the metric on labelled rows is tested; answers: the share of rows "
        "without labels that are answered differently; asked: the metric on rows that get a label "
        "where answers differ",
    )
    next_tokens: bool = Field(
        False,
        description="true: of models that write, the next-token choices on given texts are "
        "compared; false: the texts that they write, and the answers of other models",
    )
    labels: int | None = Field(
        None, description="of asked labels: the largest number of rows that are labelled"
    )
    ask_all: bool = Field(
        False, description="of asked labels: the rows of all sizes are asked for at once"
    )
    tolerance: float | None = Field(
        None,
        description="of answers that are numbers: two of them differ if they are further apart "
        "than this",
    )
    max_drop: float = Field(
        description="the largest drop against full rank that is accepted, in the metric's unit; "
        "of answers: the largest share of rows that may be answered differently"
    )
    given: str = Field(description="the accepted drop as typed, such as 0.5pt")
    confidence: float = Field(
        description="confidence of the bound: a false certificate has a probability of at most "
        "1 - confidence"
    )
    metric: str = Field(description="the recipe's main metric")
    greater_is_better: bool = Field(description="whether a larger metric is better")
    serve: str | None = Field(
        description="server that the adapter is for, which decides the cost of a size; null: its "
        "parameters are its cost"
    )

    def settled(self, bound: BoundMethod, rows: int) -> Promise:
        """Return the promise with `smallest` replaced by a number.

        That is an error for a metric whose rows are not just right or wrong: its certifiable drop
        is known only after sizes have been scored.
        """
        if not math.isnan(self.max_drop):
            return self
        smallest = bound.smallest_drop
        if smallest is None:
            raise SoraError(
                f"the smallest drop of {self.metric} that {rows:,} rows can certify is known only "
                "after sizes have been scored",
                hint=f"give a number: --max-drop {_usual(self.metric)}",
            )
        return self.model_copy(update={"max_drop": rounded_up(smallest)})

    @property
    def by_answers(self) -> bool:
        """True if answers are tested, for either kind of promise."""
        return self.kind == "differ" or self.basis == "answers"

    @property
    def unlabelled(self) -> bool:
        """True if rows without labels are tested."""
        return self.by_answers or self.basis == "asked"

    @property
    def rule(self) -> dict[str, float]:
        """The option that gave the promise, with its number."""
        return {f"max_{self.kind}": self.max_drop}

    @property
    def compared(self) -> str:
        """The things that differ or not, one of each row, in words."""
        return "rows" if self.next_tokens else "answers"

    @property
    def differ(self) -> str:
        """The verb that goes with `compared`."""
        if self.next_tokens:
            return "differ in a next-token choice"
        return "differ" if self.tolerance is None else f"differ by more than {self.tolerance:g}"

    def drop(self, full: float, score: float) -> float:
        """Return the drop of the recipe's main metric against full rank's; negative: better."""
        return full - score if self.greater_is_better else score - full


@dataclass(frozen=True)
class PromiseOptions:
    """The options of a promise, as typed.

    Attributes:
        max_drop: largest accepted drop of the recipe's main metric, such as 0.5pt
            (`recipe.tolerance`); None: `max_differ` is given.
        max_differ: largest accepted share of rows that are answered differently, such as 1%.
        unlabelled: file of the rows to answer.
        basis: rows that test a drop; None: labelled ones, until this is planned.
        tolerance: largest distance of two numbers that count as the same answer.
        next_tokens: next-token choices on given texts are compared, not written texts.
        ask: the table in which labels are asked for; None: none are.
        labels: largest number of rows to label.
        ask_all: ask for the labels of all sizes at once.
        recipe: recipe that measures the drop; None: none was given.
        overrides: overrides of that recipe.
        confidence: confidence of the bound.
    """

    max_drop: float | str | None
    recipe: str | None = None
    overrides: Sequence[str] = ()
    confidence: float = CONFIDENCE
    max_differ: float | str | None = None
    unlabelled: str | None = None
    tolerance: float | None = None
    next_tokens: bool = False
    basis: Basis | None = None
    ask: str | None = None
    labels: int | None = None
    ask_all: bool = False

    @property
    def reads_files(self) -> bool:
        """True if the adapter's own files take the place of a recipe: no labels are needed."""
        return self.recipe is None and (self.max_differ is not None or self.ask is not None)

    def block(self) -> dict[str, Any]:
        """Return an `auto` block with this promise alone, as it is stored."""
        names = ("max_drop", "max_differ", "tolerance", "next_tokens", "confidence", "basis", "ask",
                 "labels", "ask_all")  # fmt: skip
        asked = {name: getattr(self, name) for name in names}
        unlabelled = None if self.unlabelled is None else str(self.unlabelled)
        return AutoBlock(**asked, unlabelled=unlabelled).model_dump(mode="json")

    def check(self) -> None:
        """Raise `SoraError` for options that are invalid with every recipe."""
        if self.max_drop is not None and self.max_differ is not None:
            raise SoraError(
                "--max-drop and --max-differ are two promises: give one of them",
                hint="--max-drop 1pt, or --max-differ 1% --unlabelled FILE",
                key="auto.max_differ",
            )
        self._check_asked()
        if self.max_differ is None:
            self._check_drop()
        else:
            self._check_share(self.max_differ)
        if not 0.5 <= self.confidence < 1:
            raise SoraError(
                f"--confidence must be at least 0.5 and below 1, not {self.confidence:g}",
                hint="--confidence 0.95",
            )

    def _check_asked(self) -> None:
        """Check that labels are asked for on rows without labels, to test a drop."""
        if self.ask is None:
            given = {"labels": self.labels is not None, "ask_all": self.ask_all,
                     "basis=asked": self.basis == "asked"}  # fmt: skip
            for name in (name for name, is_given in given.items() if is_given):
                raise SoraError(
                    f"auto.{name} goes with the table in which labels are asked for",
                    hint="--max-drop 1pt --unlabelled FILE --ask ask.csv",
                    key=f"auto.{name.split('=')[0]}",
                )
            return
        if self.max_drop is None or self.unlabelled is None:
            raise SoraError(
                "--ask goes with --max-drop and --unlabelled: labels are asked for on rows that "
                "have none",
                hint=f"--max-drop 1pt --unlabelled FILE --ask {quote(self.ask)}",
                key="auto.ask",
            )
        if not self.ask.lower().endswith(".csv"):
            raise SoraError(
                f"the table in which labels are asked for is a csv file, not {self.ask}",
                hint="--ask ask.csv",
                key="auto.ask",
            )
        if self.basis not in (None, "asked"):
            raise SoraError(
                f"auto.basis={self.basis} asks for no label, and --ask for some",
                hint="leave out --ask, or auto.basis",
                key="auto.basis",
            )

    def _check_drop(self) -> None:
        """Check a promise about a metric: it needs a number, and no tolerance."""
        if self.max_drop is None and self.unlabelled is not None:
            raise SoraError(
                "--unlabelled goes with --max-differ or --max-drop",
                hint=f"--max-differ 1% --unlabelled {quote(str(self.unlabelled))}",
                key="auto.unlabelled",
            )
        if self.tolerance is not None:
            raise SoraError(
                "--tolerance goes with --max-differ only",
                hint="leave out --tolerance",
                key="auto.tolerance",
            )
        if self.next_tokens:
            raise SoraError(
                "--next-tokens goes with --max-differ only: equal next tokens on given texts do "
                "not make equal written texts, so they bound no drop",
                hint="--max-differ 1% --unlabelled FILE",
                key="auto.next_tokens",
            )
        if self.max_drop is None:
            raise SoraError(
                "no promise is given", hint="--max-drop 1pt, or --max-differ 1% --unlabelled FILE"
            )
        if self.basis == "answers" and self.unlabelled is None:
            raise SoraError(
                "auto.basis=answers needs rows to answer; they need no labels",
                hint="--unlabelled FILE",
                key="auto.basis",
            )
        if self.max_drop != SMALLEST:
            check_drop(self.max_drop)

    def _check_share(self, share: float | str) -> None:
        """Check a promise about answers: it needs rows, and a share."""
        if self.basis == "labels":
            raise SoraError(
                "auto.basis=labels goes with max_drop: answers test max_differ",
                hint="auto.basis=null",
                key="auto.basis",
            )
        if self.unlabelled is None:
            raise SoraError(
                "--max-differ needs rows to answer; they need no labels",
                hint=f"--max-differ {share} --unlabelled FILE",
                key="auto.max_differ",
            )
        if self.tolerance is not None and not 0 <= self.tolerance < math.inf:
            raise SoraError(
                f"--tolerance must be 0 or more, not {self.tolerance:g}",
                hint="--tolerance 0.1",
                key="auto.tolerance",
            )
        parse_share(share)

    def of(self, recipe: Recipe, *, name: str = "--max-drop", serve: str | None = None) -> Promise:
        """Return the promise in the unit of a recipe's metric.

        Args:
            name: the option or key that gives the drop, for error messages.
        """
        options = recipe.task.options
        metric = main_metric(options.metrics, options.best_metric)
        given = self.max_drop if self.max_differ is None else self.max_differ
        if self.max_differ is not None:
            number = parse_share(self.max_differ, name=name.replace("drop", "differ"))
        elif given == SMALLEST:
            number = math.nan
        else:
            assert self.max_drop is not None  # see `check`
            number = parse_drop(self.max_drop, metric, name=name)
        return Promise(
            kind="drop" if self.max_differ is None else "differ",
            basis=self._tested_by,
            labels=None if self.ask is None else self.labels or LABELS,
            ask_all=self.ask_all,
            next_tokens=self.next_tokens,
            tolerance=self.tolerance,
            max_drop=number,
            given=str(given),
            confidence=self.confidence,
            metric=metric,
            greater_is_better=options.greater_is_better,
            serve=serve,
        )

    @property
    def _tested_by(self) -> Basis:
        if self.max_differ is not None:
            return "answers"
        return "asked" if self.ask is not None else self.basis or "labels"

    def on(self, loaded: LoadedRecipe) -> Promise:
        """Return the promise in the unit of a recipe's metric, on the basis of an override."""
        from sora_cli.recipe.reading import named_basis

        named = replace(self, basis=named_basis(loaded))
        named.check()
        return named.of(loaded.recipe)

    def load(self) -> tuple[LoadedRecipe, Promise]:
        """Load the recipe that measures the drop, and return it with the promise."""
        self.check()
        if self.recipe is None:
            raise SoraError(
                "--max-drop needs a recipe, to score the adapter with",
                hint="add --recipe R; or --max-differ 1% --unlabelled FILE, which needs none",
            )
        from sora_cli.recipe.load import load_recipe
        from sora_cli.recipe.reading import MAX_DROP, load_read
        from sora_cli.run.precision import settle_precision
        from sora_cli.run.preflight import check_recipe

        loaded = load_read(partial(load_recipe, self.recipe), self.overrides, MAX_DROP)
        promise = self.on(loaded)
        check_recipe(loaded.recipe, model=False)  # the adapter's own base model is loaded
        return settle_precision(loaded), promise


def options_of(block: AutoBlock) -> PromiseOptions:
    """Return the promise of an `auto` block, as typed."""
    return PromiseOptions(
        block.max_drop,
        confidence=block.confidence,
        max_differ=block.max_differ,
        unlabelled=block.unlabelled,
        tolerance=block.tolerance,
        next_tokens=block.next_tokens,
        basis=block.basis,
        ask=block.ask,
        labels=block.labels,
        ask_all=block.ask_all,
    )


def promise_of(recipe: Recipe) -> Promise:
    """Return the promise of a recipe's `auto` block.

    Points (0.5pt) of a metric that is no share, such as a loss, are an error.
    """
    block = recipe.auto
    assert block is not None
    options = options_of(block)
    with recipe.placing("auto.max_drop" if block.max_differ is None else "auto.max_differ"):
        options.check()
        return options.of(recipe, name="auto.max_drop", serve=block.serve)


def rows_are_right_or_wrong(recipe: Recipe) -> bool:
    """Return whether the main metric is the share of right rows, as far as a recipe tells."""
    options = recipe.task.options
    metric = main_metric(options.metrics, options.best_metric)
    return options.COUNTS_ROWS and facts_of(metric).right_or_wrong


def rounded_up(drop: float) -> float:
    """Round a drop up to a multiple of half a point."""
    # the inner round: 0.035 / 0.005 is 7.000000000000001 in floats, and must not become 8
    return round(math.ceil(round(drop / _STEP, 9)) * _STEP, 6)


def proposed_drop(metric: str) -> str:
    """Return the largest drop that a new recipe proposes, as text."""
    return SMALLEST if facts_of(metric).right_or_wrong else _usual(metric)


def _usual(metric: str) -> str:
    return "2pt" if facts_of(metric).ends_at_1 else "0.02"
