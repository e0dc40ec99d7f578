"""The kinds of parts, in the order in which they claim the keys of a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from sora_cli.adapter.parts.factored import forms_of
from sora_cli.adapter.parts.form import Form
from sora_cli.adapter.parts.full import Full
from sora_cli.adapter.parts.low_rank import LowRank
from sora_cli.adapter.parts.part import Part, Section
from sora_cli.adapter.parts.products import LoHa, LoKr
from sora_cli.adapter.parts.rows import Rows
from sora_cli.core.console import count
from sora_cli.core.words import first_few

# full parameters last: they claim every key below a module that is stored in full
KINDS: tuple[type[Part], ...] = (LowRank, LoHa, LoKr, Rows, Full)


def peft_types() -> tuple[str, ...]:
    """Return PEFT's types of adapters that can be read."""
    return tuple(name for kind in KINDS for name in kind.peft_types)


def kinds_in(peft_type: str) -> list[type[Part]]:
    """Return the kinds that an adapter of one of PEFT's types may hold; its layers' first."""
    return [kind for kind in KINDS if not kind.peft_types or peft_type in kind.peft_types]


def by_kind(parts: Iterable[Part]) -> Iterator[tuple[type[Part], Sequence[Any]]]:
    """Yield each kind with its parts, also if there are none."""
    parts = list(parts)
    for kind in KINDS:
        yield kind, [part for part in parts if isinstance(part, kind)]


def sections(parts: Sequence[Part]) -> Section:
    """Return the section of `sora inspect` about an adapter's parts; parameters in full first."""
    each = [kind.section(own) for kind, own in reversed([*by_kind(parts)])]
    each.append(_places(forms_of(parts)))
    facts = {name: value for section in each for name, value in section.facts.items()}
    return Section(facts, [line for section in each for line in section.lines])


def words(parts: Iterable[Part]) -> str:
    """Return the content beside factors in words, such as " and the head (score)"."""
    each = [word for kind, own in reversed([*by_kind(parts)]) for word in kind.words(own)]
    return "".join(f" and {word}" for word in each)


def _places(forms: Mapping[str, Form]) -> Section:
    """Return the section of `sora inspect` about layers that are not linear.

    Args:
        forms: path -> the kind of layer.
    """
    kinds = {path: form.words for path, form in forms.items() if not form.experts}
    experts = {form.owner(path): form.experts for path, form in forms.items() if form.experts}
    lines = []
    for number in dict.fromkeys(experts.values()):
        names = first_few([name for name, other in experts.items() if other == number])
        text = f"{count(number)} in each of {names}; their components are added up"
        lines.append(("experts", text))
    for kind in dict.fromkeys(kinds.values()):
        name, space, size = kind.partition(" ")
        paths = first_few([path for path, other in kinds.items() if other == kind])
        lines.append((name, f"{paths}{space}{size}"))
    return Section({"forms": kinds, "experts": experts}, lines)
