"""Our methods follow runs of the authors' code and of the paper's equation, step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from methods.schedules import BudgetSchedule
from tests.parity import trajectories
from tests.parity.trajectories import Recording, Step

TOLERANCE = 1e-9

SORA = [
    "sora_official_full",
    "sora_official_threshold",
    "sora_official_threshold_times_lr",
    "sora_paper_full",
    "sora_paper_threshold",
]
ADALORA = ["adalora_small", "adalora_decay"]


@pytest.mark.parametrize("name", SORA)
def test_sora_follows_the_reference(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    recording = trajectories.load(name, adapters={"fc1": "lo1", "fc2": "lo2"}, gate="gate")
    steps = trajectories.sora_run(recording)

    losses = [step.task_loss + step.penalty for step in steps]
    assert losses == pytest.approx(recording.options["losses"], rel=0, abs=TOLERANCE)
    assert [step.nonzero for step in steps] == recording.options["nonzero_gates"]
    deviation = assert_same_snapshots(recording, steps)
    record_property("parity", (name, len(steps), deviation))


@pytest.mark.parametrize("name", ADALORA)
def test_adalora_follows_the_reference(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    recording = trajectories.load(name, adapters={n: n for n in "024"}, gate="lora_E")
    steps = trajectories.adalora_run(recording)

    log = recording.options["log"]  # its "orth" is the penalty with its weight
    for ours, of_log in (
        ([step.task_loss for step in steps], "loss"),
        ([step.penalty for step in steps], "orth"),
    ):
        assert ours == pytest.approx([entry[of_log] for entry in log], rel=0, abs=TOLERANCE)
    assert [step.nonzero for step in steps] == [entry["nonzero"] for entry in log]
    deviation = assert_same_snapshots(recording, steps)
    record_property("parity", (name, len(steps), deviation))


@pytest.mark.parametrize("name", ADALORA)
def test_budget_schedule_is_the_references(name: str) -> None:
    h = trajectories.load(name, adapters={}, gate="lora_E").options
    schedule = BudgetSchedule(
        start=3 * h["initial_rank"],
        target=3 * h["target_rank"],
        t_init=h["initial_warmup"],
        t_final=h["final_warmup"],
        total_steps=h["total_steps"],
        delta_t=h["mask_interval"],
    )
    ours = [(schedule.budget(t), schedule.applies(t)) for t in range(h["total_steps"])]
    assert ours == [(entry["budget"], entry["masked"]) for entry in h["log"]]


def assert_same_snapshots(recording: Recording, steps: list[Step]) -> float:
    """Every recorded factor to 1e-9, and exactly the same gates at zero; the largest deviation."""
    largest = 0.0
    for count in recording.snapshots:
        for path in recording.adapters:
            theirs = recording.factors(f"step{count}", path)
            ours = steps[count - 1].factors[path]
            for name, expected in theirs.items():
                deviation = (ours[name] - expected).abs().max().item()
                assert deviation <= TOLERANCE, (count, path, name)
                largest = max(largest, deviation)
            assert ours["d"].ne(0).tolist() == theirs["d"].ne(0).tolist(), (count, path)
    return largest
