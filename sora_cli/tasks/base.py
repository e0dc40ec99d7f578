"""A task family: columns, encoding, loss, metrics and answers."""

from __future__ import annotations

from sora_cli.tasks.family.answers import FamilyAnswers
from sora_cli.tasks.family.head import FamilyHead
from sora_cli.tasks.family.rows import FamilyRows
from sora_cli.tasks.family.scores import FamilyScores


class Task(FamilyRows, FamilyHead, FamilyScores, FamilyAnswers):
    """A family of tasks for the recipe's data, from raw rows to scores and answers."""
