"""What a run says at its end."""

from pathlib import Path

from sora_cli.run.summary import next_commands
from tests.helpers_reports import report_of


def test_a_model_that_writes_is_talked_with_first() -> None:
    writes = report_of(more={"recipe": {"task": {"name": "causal-lm"}}})
    assert next_commands(writes, Path("out"), ["r.yaml"])[0] == "sora chat out"
    classes = report_of(more={"recipe": {"task": {"name": "sequence-classification"}}})
    assert next_commands(classes, Path("out"), ["r.yaml"])[0] == "sora inspect out"


def test_a_report_without_a_known_task_is_shown_all_the_same() -> None:
    for recipe in ({}, {"task": {"name": "of a later version"}}):
        commands = next_commands(report_of(more={"recipe": recipe}), Path("out"), ["r.yaml"])
        assert commands[0] == "sora inspect out"
