"""The options of `sora eval --benchmark`, checked before the harness is imported (it is slow)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sora_cli.core.errors import SoraError
from sora_cli.core.words import near_files


@dataclass(frozen=True)
class Benchmarks:
    """The requested benchmarks and their options.

    Attributes:
        text: names of the benchmarks, separated by commas.
        folder: directory with the user's own definitions.
        limit: largest number of rows per benchmark; None means all rows.
        few_shot: examples in each prompt; None means the benchmark's own number.
        batch: rows per batch.
    """

    text: str
    folder: Path | None
    limit: int | None
    few_shot: int | None
    batch: int

    @property
    def names(self) -> list[str]:
        """The names of the benchmarks, as a list."""
        return [name.strip() for name in self.text.split(",") if name.strip()]

    def check(self) -> None:
        """Raise an error if no benchmark is named, or the harness or the folder is missing."""
        if not self.names:
            raise SoraError("--benchmark needs a name", hint="--benchmark hellaswag,arc_easy")
        if find_spec("lm_eval") is None:
            raise SoraError(
                "lm-evaluation-harness is not installed", hint="pip install 'sora-cli[lm-eval]'"
            )
        if self.folder is not None and not self.folder.is_dir():
            raise SoraError(
                f"no directory '{self.folder}' (--benchmark-tasks)", hint=near_files(self.folder)
            )
