"""Which runs make a group, and what groups are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sora_cli.experiments.compare.grouping import Grouped, group_runs, telling_keys
from sora_cli.experiments.compare.notes import warnings_of
from sora_cli.experiments.compare.runs import Run
from sora_cli.report import RateChoice, Start
from tests.helpers_reports import report_of


def runs(*about: dict[str, Any]) -> list[Run]:
    return [Run.of(Path(f"runs/{i}"), report_of(**words)) for i, words in enumerate(about)]


def grouped(*about: dict[str, Any]) -> Grouped:
    return group_runs(runs(*about))


def labels(*about: dict[str, Any]) -> list[str]:
    return [group.label for group in grouped(*about).groups]


def test_everything_but_the_seed_makes_a_group() -> None:
    same = {"method": "lora", "settings": {"method.r": 8}}
    found = grouped({**same, "seed": 2}, {**same, "seed": 0}, {"settings": {"method.r": 4}})
    assert [[run.seed for run in group.runs] for group in found.groups] == [[0, 2], [0]]
    assert "training.seed" not in found.groups[0].settings
    assert found.notes == ()


def test_the_output_and_the_paper_do_not_count() -> None:
    paper = {"source": "x", "model": "y", "metric": "accuracy", "values": {"lora": 0.9}}
    found = grouped(
        {"seed": 0, "settings": {"output.dir": "a"}},
        {"seed": 1, "settings": {"output.dir": "b"}},
        {"seed": 2, "settings": {f"paper.{key}": value for key, value in paper.items()}},
    )
    assert len(found.groups) == 1


def test_checkpoints_that_stay_do_not_count() -> None:
    kept = {"training.keep_checkpoints": [0.8]}
    assert len(grouped({"seed": 0, "settings": kept}, {"seed": 1}).groups) == 1


def test_reports_of_an_earlier_version_count_with_todays_defaults() -> None:
    report = report_of(seed=1)
    blocks = {**report.recipe, "training": dict(report.recipe["training"])}
    del blocks["training"]["micro_batch"]
    old = Run.of(Path("runs/1"), report.model_copy(update={"recipe": blocks}))
    assert len(group_runs([*runs({"seed": 0}), old]).groups) == 1


def test_of_a_method_that_is_not_registered_here() -> None:
    report = report_of()
    recipe = {**report.recipe, "method": {"name": "gone", "r": 4}}
    assert Run.of(Path("runs/0"), report.model_copy(update={"recipe": recipe})).method == "gone"


def test_derived_values_do_not_count() -> None:
    about = [
        {"method": "adalora", "seed": seed,
         "settings": {"method.target_r": 3 + seed / 10, "output.derived": ["method.target_r"]}}
        for seed in range(3)
    ]  # fmt: skip
    found = grouped(*about)
    assert [len(group.runs) for group in found.groups] == [3]
    assert "method.target_r" not in found.groups[0].settings
    kept_apart = [{**words, "label": "half"} for words in about] + [
        {**words, "label": "tenth"} for words in about
    ]
    assert labels(*kept_apart) == ["half", "tenth"]


def test_without_being_derived_the_same_values_do_count() -> None:
    about = [{"method": "adalora", "seed": s, "settings": {"method.target_r": 3 + s}}
             for s in range(2)]  # fmt: skip
    assert labels(*about) == ["adalora target_r=3", "adalora target_r=4"]


def test_a_seed_that_is_there_twice() -> None:
    newer = {"finished": "2027-01-01T00:00:00+00:00"}
    found = grouped({"metric": 0.5, "more": newer}, {"metric": 0.6}, {"metric": 0.7, "seed": 1})
    (group,) = found.groups
    assert group.metrics == [0.5, 0.7]
    assert found.notes == ("runs/1 is left out: runs/0 is a newer run of seed 0",)


def test_labels_have_the_fewest_options_that_tell_groups_apart() -> None:
    two = {"method.threshold": 1e-3, "training.learning_rate": 1e-3}
    assert labels(
        {"method": "lora"},
        {"method": "sora", "settings": two},
        {"method": "sora", "settings": {**two, "method.threshold": 2e-3}},
        {"method": "sora", "settings": {**two, "method.threshold": 3e-3, "method.l1": 0.1}},
    ) == ["lora", "sora threshold=0.001", "sora threshold=0.002", "sora threshold=0.003"]
    grid = [{"method": "sora", "settings": {"method.threshold": t, "method.l1": w}}
            for t in (0, 1e-3) for w in (0, 0.5)]  # fmt: skip
    assert labels(*grid) == [
        "sora threshold=0 l1=0", "sora threshold=0 l1=0.5",
        "sora threshold=0.001 l1=0", "sora threshold=0.001 l1=0.5",
    ]  # fmt: skip


def test_a_rate_that_is_found_is_a_group_whatever_the_number() -> None:
    found = [
        {"seed": seed, "settings": {"training.learning_rate": "auto"},
         "more": {"learning_rate": RateChoice(chosen=rate, how="rule", reason="")}}
        for seed, rate in enumerate((1e-3, 3e-3))
    ]  # fmt: skip
    given = [{"settings": {"training.learning_rate": rate}} for rate in (1e-3, 3e-3)]
    assert labels(*found, *given) == [
        "lora learning_rate=auto", "lora learning_rate=0.001", "lora learning_rate=0.003",
    ]  # fmt: skip


def test_a_key_that_turns_out_needless_is_left_out() -> None:
    # greedily: epochs tells three kinds apart, but the two ranks and two rates do it alone
    values = [(4, 1e-3, 1), (4, 2e-3, 2), (8, 1e-3, 3), (8, 2e-3, 3)]
    found = grouped(*(
        {"settings": {"method.r": r, "training.learning_rate": rate, "training.epochs": epochs}}
        for r, rate, epochs in values
    ))  # fmt: skip
    assert len(telling_keys(found.groups)) == 2


def test_a_group_has_one_label_in_all_tasks() -> None:
    found = labels(
        {"task": "rte", "method": "sora", "settings": {"method.threshold": 1e-3}},
        {"task": "rte", "method": "sora", "settings": {"method.threshold": 2e-3}},
        {"task": "cola", "method": "sora",
         "settings": {"method.threshold": 1e-3, "training.learning_rate": 1e-4}},
    )  # fmt: skip
    assert found == ["sora threshold=0.001", "sora threshold=0.002", "sora threshold=0.001"]


def test_given_labels() -> None:
    assert labels({"label": "mine"}, {"settings": {"method.r": 4}}) == ["mine", "lora"]
    same = [{"label": "x", "settings": {"method.r": r}} for r in (4, 8)]
    assert labels(*same) == ["x r=4", "x r=8"]
    found = grouped({"label": "a", "seed": 0}, {"label": "b", "seed": 1}, {"seed": 2})
    assert [group.label for group in found.groups] == ["a"]
    assert "labels a, b" in found.notes[0]


def test_no_two_groups_of_a_task_have_one_label() -> None:
    clash = [{"label": "x r=4", "settings": {"method.alpha": 1}},
             *({"label": "x", "settings": {"method.r": r}} for r in (4, 8))]  # fmt: skip
    assert labels(*clash) == ["x r=4", "x r=4 (2)", "x r=8"]


def test_order_is_by_task_then_by_first_appearance() -> None:
    about = [("rte", "sora"), ("cola", "lora"), ("rte", "lora"), ("cola", "sora")]
    found = grouped(*({"task": task, "method": method} for task, method in about))
    assert [(g.task, g.method) for g in found.groups] == [
        ("rte", "sora"), ("rte", "lora"), ("cola", "lora"), ("cola", "sora"),
    ]  # fmt: skip


def test_what_can_not_be_compared_is_said() -> None:
    assert not list(warnings_of(grouped({"seed": 0}, {"seed": 1}, {"method": "sora"}).groups))
    rows = {"data": {"fingerprints": {"train": "1", "validation": "2"}}}
    other = {"method": "sora", "more": {**rows, "base": {"fingerprint": "3"}}}
    said = list(warnings_of(grouped({}, other, {"task": "cola"}).groups))
    assert said == [
        f"rte: not comparable, {what} differs: lora / sora"
        for what in ("the content of the reported rows", "the content of the training rows",
                     "the base model")
    ]  # fmt: skip
    metric = {"settings": {"task.metrics": ["f1", "accuracy"]}, "method": "sora"}
    assert list(warnings_of(grouped({}, metric).groups)) == [
        "rte: not comparable, the metric differs: lora / sora"
    ]
    split = {"method": "sora", "more": {"metrics": {"test": {"accuracy": 0.5}}}}
    assert "the reported split" in next(iter(warnings_of(grouped({}, split).groups)))


def test_what_a_run_starts_from_differs_with_the_seed_alone() -> None:
    def begun(seed: int, label: str, other: str) -> Run:
        settings = {"start.adapter": f"runs/{other}-s{seed}", "start.mean_rank": 1.2}
        report = report_of(seed=seed, label=label, settings=settings)
        report.start = Start(directory=f"runs/{other}-s{seed}", digest="")
        return Run.of(Path(f"{label}-s{seed}"), report)

    runs = [begun(seed, f"prune-{other}", other) for other in ("r8", "r16") for seed in (0, 1)]
    found = group_runs(runs)
    assert [(group.label, len(group.runs)) for group in found.groups] == [
        ("prune-r8", 2), ("prune-r16", 2),
    ]  # fmt: skip
    assert "start.adapter" not in found.groups[0].settings
    assert found.groups[0].settings["start.mean_rank"] == 1.2
