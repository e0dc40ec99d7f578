"""Groups of options that several commands take: a dataclass each, spliced into their signatures."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

from sora_cli.commands import options
from sora_cli.core.checks import check_keep, check_requires, option
from sora_cli.recipe.tolerance import CONFIDENCE
from sora_cli.use.sampling import SamplingOptions

if TYPE_CHECKING:
    from methods.keep import Keep
    from sora_cli.search.promise import PromiseOptions

Result = TypeVar("Result")


@dataclass(frozen=True)
class Asked:
    """The options of a promise, as typed."""

    max_drop: options.MaxDrop = None
    max_differ: options.MaxDiffer = None
    unlabelled: options.Unlabelled = None
    ask: options.Ask = None
    labels: options.Labels = None
    ask_all: options.AskAll = False
    tolerance: options.Tolerance = None
    next_tokens: options.NextTokens = False
    confidence: options.Confidence = None

    def words(self) -> list[str]:
        """Return the promise as overrides of a recipe's `auto` block."""
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        given |= {key: "true" if given[key] else None for key in ("next_tokens", "ask_all")}
        return [f"auto.{key}={value}" for key, value in given.items() if value is not None]

    def options(self, recipe: str | None, overrides: Sequence[str]) -> PromiseOptions | None:
        """Return the promise that is asked for; None: none is."""
        drop, differ = self.max_drop, self.max_differ
        if drop is None and differ is None:
            given = {
                "--confidence": self.confidence is not None,
                "--unlabelled": self.unlabelled is not None,
                "--ask": self.ask is not None,
                "--labels": self.labels is not None,
                "--ask-all": self.ask_all,
            }
            check_requires("--max-differ or --max-drop", given)
        if differ is None:
            given = {
                "--tolerance": self.tolerance is not None,
                "--next-tokens": self.next_tokens,
            }
            check_requires("--max-differ", given)
        if drop is None and differ is None:
            return None
        from sora_cli.search.promise import PromiseOptions

        return PromiseOptions(
            drop,
            recipe,
            overrides,
            CONFIDENCE if self.confidence is None else self.confidence,
            max_differ=differ,
            unlabelled=self.unlabelled,
            tolerance=self.tolerance,
            next_tokens=self.next_tokens,
            ask=self.ask,
            labels=self.labels,
            ask_all=self.ask_all,
        )


@dataclass(frozen=True)
class Gate:
    """The options of a promise about two models, as typed."""

    max_drop: options.NoWorse = None
    max_differ: options.NoOther = None
    unlabelled: options.Unlabelled = None
    ask: options.Ask = None
    labels: options.Labels = None
    next_tokens: options.NextTokens = False
    confidence: options.Confidence = None
    recipe: options.RecipeOfRows = None
    output: options.CertificateFile = None
    force: options.Force = False

    @property
    def is_asked(self) -> bool:
        """True if a promise is asked for."""
        return self.max_drop is not None or self.max_differ is not None

    def check_alone(self) -> None:
        """Check that no option of a promise is given without one."""
        given = {option(field.name): bool(getattr(self, field.name)) for field in fields(self)}
        check_requires("--max-drop or --max-differ", given)

    def options(self, overrides: Sequence[str], tolerance: float | None) -> PromiseOptions:
        """Return the promise."""
        promised = {"max_drop", "max_differ", "unlabelled", "ask", "labels", "next_tokens",
                    "confidence"}  # fmt: skip
        asked = Asked(**{name: getattr(self, name) for name in promised}, tolerance=tolerance)
        found = asked.options(self.recipe, overrides)
        assert found is not None  # see `is_asked`
        return found


@dataclass(frozen=True)
class Budget:
    """The options that say how much of an adapter is kept; at most one of them may be given."""

    energy: options.Energy = None
    rank: options.Rank = None
    max_params: options.MaxParams = None
    mean_rank: options.MeanRank = None

    def keep(self, asked: Asked | None = None) -> Keep:
        """Return the rule of the cut.

        Args:
            asked: a promise, which excludes every rule.
        """
        drop, differ = (None, None) if asked is None else (asked.max_drop, asked.max_differ)
        return check_keep(max_drop=drop, max_differ=differ, **vars(self))


@dataclass(frozen=True)
class Sampling(SamplingOptions):
    """The options of drawn answers, as typed."""

    temperature: options.Temperature = None
    top_p: options.TopP = None
    top_k: options.TopK = None
    max_new_tokens: options.NewTokens = 256
    repetition_penalty: options.Penalty = None
    seed: options.Seed = None
    greedy: options.Greedy = False


def spliced(command: Callable[..., Result]) -> Callable[..., Result]:
    """Give a command the options of its parameters that are dataclasses, in their places."""
    signature = inspect.signature(command, eval_str=True)
    groups: dict[str, Any] = {}
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        if not is_dataclass(parameter.annotation):
            parameters.append(parameter)
            continue
        groups[name] = kind = parameter.annotation
        hints = get_type_hints(kind, include_extras=True)
        parameters += [
            parameter.replace(name=one.name, default=one.default, annotation=hints[one.name])
            for one in fields(kind)
        ]

    @wraps(command)
    def call(*args: Any, **given: Any) -> Result:
        for name, kind in groups.items():
            names = [one.name for one in fields(kind) if one.name in given]
            given[name] = kind(**{one: given.pop(one) for one in names})
        return command(*args, **given)

    call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    return call
