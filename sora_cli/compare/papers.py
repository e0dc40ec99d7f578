"""What papers print for a task, from the recipes' `paper` blocks."""

from __future__ import annotations

from sora_cli.compare.cells import Raw
from sora_cli.compare.runs import Group


class Papers:
    """Papers' values, each source a footnote with a number."""

    def __init__(self) -> None:
        self.sources: dict[str, int] = {}

    def add(self, group: Group, values: dict[str, Raw]) -> str:
        """Put the value of the group's method into its row; the mark of its footnote, or ""."""
        for run in group.runs:
            block = run.paper
            told = block and (block.get("metric"), block.get("model"))
            if block is None or told != (run.metric_name, run.model):
                continue
            value = (block.get("values") or {}).get(group.method)
            if value is not None:
                values["paper"] = float(value)
                number = self.sources.setdefault(str(block.get("source")), len(self.sources) + 1)
                return f"[{number}]"
        return ""

    def footnotes(self, *, asked: bool) -> list[str]:
        """The sources, or that there is none."""
        if asked and not self.sources:
            what = "its model, method and metric"
            return [f"paper: no recipe of these runs holds a paper's value for {what}"]
        return [f"[{number}] {source}" for source, number in self.sources.items()]
