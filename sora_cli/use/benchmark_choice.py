"""The benchmarks that `sora eval --benchmark` names, checked before the harness is imported."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from sora_cli.core.errors import SoraError
from sora_cli.core.words import near_files


@dataclass(frozen=True)
class Benchmarks:
    """The benchmarks that are asked for.

    Attributes:
        text: their names, separated by commas.
        folder: with definitions of the user's own.
        limit: rows of each at most.
        few_shot: examples in each prompt; None: as each benchmark has it.
        batch: rows that the model gets at a time.
    """

    text: str
    folder: Path | None
    limit: int | None
    few_shot: int | None
    batch: int

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [name.strip() for name in self.text.split(",") if name.strip()]

    def check(self) -> None:
        """Raise `SoraError` if none is named, or the harness or the folder is not there."""
        if not self.names:
            raise SoraError("--benchmark names none", hint="--benchmark hellaswag,arc_easy")
        if find_spec("lm_eval") is None:
            raise SoraError(
                "lm-evaluation-harness is not installed", hint="pip install 'sora-cli[lm-eval]'"
            )
        if self.folder is not None and not self.folder.is_dir():
            raise SoraError(
                f"no directory '{self.folder}' (--benchmark-tasks)", hint=near_files(self.folder)
            )
