"""The places where a recipe's keys were set, for errors that arise only while it is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pydantic import BaseModel, PrivateAttr

from methods.errors import MethodError
from sora_cli.core.errors import SoraError


class Placed(BaseModel):
    """A recipe that knows where each of its keys was set; the places are no part of its values."""

    _places: Mapping[str, str] = PrivateAttr(default_factory=dict)

    def set_places(self, places: Mapping[str, str]) -> None:
        """Store where keys were set: "training.epochs" -> "rte.yaml:12"."""
        self._places = places

    def place(self, key: str) -> str | None:
        """Return where a key was set, else where the block around it starts; None: in no file."""
        parts = key.split(".")
        keys = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((self._places[key] for key in keys if key in self._places), None)

    @contextmanager
    def placing(self, default: str | None = None) -> Iterator[None]:
        """Make errors about a key of this recipe say where it was set.

        Args:
            default: the key that errors are about which name none.
        """
        try:
            yield
        except SoraError as error:
            error.key = error.key or default
            error.placed(None if error.key is None else self.place(error.key))
            raise
        except MethodError as error:
            raise SoraError(str(error), where=self.place(default or "method")) from error
