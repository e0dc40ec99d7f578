"""The kind of layer around an update."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sora_cli.adapter.peft.parameters import parameter_of


@dataclass(frozen=True)
class Form:
    """The kind of layer around an update, for layers that are not linear.

    Attributes:
        embedding: an embedding, whose `in` counts the tokens.
        kernel: a convolution's kernel, such as (3, 3); `in` has the channels and the kernel in one
            dimension.
        experts: number of experts in the parameter that holds this one; 0: it is a layer.
    """

    embedding: bool = False
    kernel: tuple[int, ...] = ()
    experts: int = 0

    @property
    def words(self) -> str:
        """The kind of layer in words."""
        return "embedding" if self.embedding else f"convolution {'x'.join(map(str, self.kernel))}"

    def owner(self, path: str) -> str:
        """Return the path itself; of an expert, the name of the parameter that holds it."""
        return parameter_of(path) if self.experts else path


LINEAR = Form()


def grouped(paths: Iterable[str], forms: Mapping[str, Form]) -> dict[str, list[str]]:
    """Return {path of a module: [it]}, with {name of a parameter: its experts} for experts."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(forms.get(path, LINEAR).owner(path), []).append(path)
    return groups
