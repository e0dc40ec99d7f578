"""What loggers are sent, and the errors where one is not there."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
from transformers import TrainerCallback

from sora_cli.core.errors import SoraError
from sora_cli.recipe import plugins
from sora_cli.train import loggers
from sora_cli.train.loggers import EXTRAS, check_loggers
from tests.helpers_models import tiny_bert
from tests.helpers_runs import train, write_recipe

ADDED = ("train/components", "train/learning_rate/")
"""Tags of what loggers are sent and the history has not."""
SORA = {"name": "sora", "r_max": 4, "threshold": 1e-4}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    training = {"max_steps": 4, "logging_steps": 2, "evaluate": 2}
    return write_recipe(tmp_path, tiny_bert(num_labels=2), method=SORA, training=training)


class Kept(TrainerCallback):
    """A logger of a user's own."""

    name = "kept"
    entries: ClassVar[list[dict[str, Any]]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.entries.append(dict(logs))


@pytest.mark.versions
@pytest.mark.usefixtures("drawn")
def test_tensorboard_and_a_logger_of_ones_own(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(plugins.LOGGERS, "kept", Kept)
    monkeypatch.setattr(Kept, "entries", [])
    report = train(recipe, "training.loggers=[tensorboard,kept]")
    assert all(path.is_relative_to(tmp_path / "out") for path in tmp_path.rglob("events.out.*"))
    folders = {path.parent for path in (tmp_path / "out").rglob("events.out.tfevents.*")}
    assert len(folders) == 1
    events = EventAccumulator(str(folders.pop()), size_guidance={"images": 0})
    events.Reload()
    steps = {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for tag in ("loss", "components", "learning_rate/factors", "learning_rate/gates",
                "learning_rate/head"):  # fmt: skip
        assert steps[f"train/{tag}"] == [2, 4]
    assert steps["eval/accuracy"] == [2, 4]
    assert steps["result/validation/accuracy"] == [4]
    assert 0 < events.Scalars("train/components")[-1].value <= 48
    (image,) = events.Images("ranks")
    assert image.encoded_image_string.startswith(b"\x89PNG")
    assert (image.step, image.width > 300, image.height > 200) == (4, True, True)
    own = [entry for entry in Kept.entries if "loss" in entry]
    assert [entry["components"] for entry in own] == report.live_components[1::2]
    assert all("learning_rate/gates" in entry for entry in own)
    rates = {e.step: e.value for e in events.Scalars("train/learning_rate")}
    assert {e.step: e.value for e in events.Scalars("train/learning_rate/factors")} == rates
    assert not any("components" in entry for entry in report.history)


def test_all_of_the_history_is_logged(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each number of history.json by its step, and no other one but those that are added."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    report = train(recipe, "training.loggers=[tensorboard]")
    file, *_ = (tmp_path / "out").rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file.parent))
    events.Reload()
    logged = {
        (tag, event.step): event.value
        for tag in events.Tags()["scalars"]
        for event in events.Scalars(tag)
    }
    history = json.loads((tmp_path / "out" / "history.json").read_text())["history"]
    wanted = {}
    for entry in history:
        for key, value in entry.items():
            tag = f"eval/{key.removeprefix('eval_')}" if key.startswith("eval_") else f"train/{key}"
            wanted[tag, entry["step"]] = value
    wanted = {place: value for place, value in wanted.items() if place[0] != "train/step"}
    for name, value in report.metrics["validation"].items():
        wanted[f"result/validation/{name}", report.steps] = value
    added = {place for place in logged if place[0].startswith(ADDED)}
    assert len(added) == 2 * 5  # the components and the rates of four groups, at two steps
    assert logged.keys() - added == wanted.keys()
    assert {place: logged[place] for place in wanted} == pytest.approx(wanted, rel=1e-6)


def test_trackio_is_sent_all_of_a_run(
    recipe: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if find_spec("trackio") is None:
        pytest.skip("trackio is not installed: sora-cli[trackio]")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    train(recipe, "training.loggers=[trackio]")
    assert capsys.readouterr().out.startswith("validation: accuracy")  # it prints, too
    from trackio.sqlite_storage import SQLiteStorage

    entries = SQLiteStorage.get_logs("sora", "out")
    steps = [entry for entry in entries if "train/loss" in entry]
    assert len(steps) == 2
    for entry in steps:
        assert entry["train/learning_rate/factors"] == entry["train/learning_rate"]
        assert 0 < entry["train/components"] <= 48
    assert sum("eval/accuracy" in entry for entry in entries) == 2
    (result,) = [entry for entry in entries if "ranks" in entry]
    assert 0 <= result["result/validation/accuracy"] <= 1
    picture = tmp_path / "trackio" / "media" / result["ranks"]["file_path"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", EXTRAS)
def test_one_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "get_available_reporting_integrations", list)
    with pytest.raises(SoraError) as caught:
        check_loggers([name])
    assert caught.value.what == f"logger '{name}' is not installed"
    assert caught.value.hint == f"pip install 'sora-cli[{name}]'"


def test_one_of_transformers_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "get_available_reporting_integrations", list)
    with pytest.raises(SoraError) as caught:
        check_loggers(["clearml"])
    assert caught.value.hint == "pip install the package of clearml"


def test_one_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins.LOGGERS, "kept", Kept)
    known = "there are: tensorboard, trackio, wandb, mlflow, kept, "
    for given, hint in (("tensorbord", "did you mean 'tensorboard'?"), ("xyz", known)):
        with pytest.raises(SoraError) as caught:
            check_loggers([given])
        assert caught.value.what == f"there is no logger '{given}'"
        assert (caught.value.hint or "").startswith(hint)
