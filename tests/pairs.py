"""Every pair of a task family, a method and a verb, in the fewest cases that a greedy choice finds.

    python -m tests.pairs

prints each pair with the case that holds it. `tests/e2e/test_families.py` carries the cases out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import combinations, product

from tests.helpers_families import FAMILIES
from tests.helpers_methods import EXAMPLES

VERBS = {
    "files": "eval, merge, eval of the merged model, predict",
    "resume": "train, stopped in a later epoch, and train --resume",
    "dry run": "train --dry-run, then train",
    "small": "prune --rank --bits, inspect, export padded and packed, eval of the packed file",
}
"""By verb, the commands of a case; each begins with a training that is verified."""

Pair = frozenset[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """A task family, a method, and what is done with its run."""

    family: str
    method: str
    verb: str

    def __str__(self) -> str:
        return f"{self.family}-{self.method}-{self.verb}".replace(", ", "_").replace(" ", "_")

    def pairs(self) -> set[Pair]:
        """The three pairs of values, each with the name of its kind."""
        values = zip(("family", "method", "verb"), astuple(self), strict=True)
        return {frozenset(pair) for pair in combinations(values, 2)}


def all_cases(
    families: Sequence[str] = tuple(FAMILIES),
    methods: Sequence[str] = tuple(EXAMPLES),
    verbs: Sequence[str] = tuple(VERBS),
) -> list[Case]:
    return [Case(*values) for values in product(families, methods, verbs)]


def cover(cases: Sequence[Case]) -> list[Case]:
    """Choose cases until every pair of `cases` is in one, each time with the most new pairs.

    Of several such cases the one whose values were taken least often comes first, so the first
    cases hold each value.
    """
    left = set().union(*(case.pairs() for case in cases))
    taken: Counter[str] = Counter()
    chosen: list[Case] = []
    while left:
        case = min(cases, key=lambda c: (-len(c.pairs() & left), *(taken[v] for v in astuple(c))))
        left -= case.pairs()
        taken.update(astuple(case))
        chosen.append(case)
    return chosen


def main() -> None:
    """Print a line for each pair."""
    chosen = cover(all_cases())
    wanted = set().union(*(case.pairs() for case in all_cases()))
    for pair in sorted(sorted(value for _, value in sorted(pair)) for pair in wanted):
        held = [str(c) for c in chosen if set(pair) <= set(astuple(c))]
        print(f"{' + '.join(pair)}: {', '.join(held)}")  # noqa: T201
    print(f"{len(wanted)} pairs, {len(chosen)} cases of {len(all_cases())}")  # noqa: T201


if __name__ == "__main__":
    main()
