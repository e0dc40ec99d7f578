"""Names to methods: lazily, from anybody, and never two of one name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from typing import Any

import pytest

from methods import registry
from methods.configs import LoraConfig, MethodConfig, SoraConfig
from methods.errors import MethodError
from methods.lora import Lora
from methods.registry import config_class, create, method_class, method_names, register
from tests.shared_files import ROOT


class RidgeConfig(MethodConfig):
    strength: float = 1.0


class Ridge(Lora):
    """A third party's method, found by entry point or registered."""

    name = "ridge"


class OtherRidge(Lora):
    name = "ridge"


class Usurper(Lora):
    name = "sora"


NOT_A_METHOD = "a string"


@pytest.fixture(autouse=True)
def _nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    registry._entry_points.cache_clear()
    yield
    registry._entry_points.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Pretend that packages with these `sora.methods` entry points are installed."""
    found = [
        EntryPoint(name.replace("_", "-"), f"{__name__}:{target}", "sora.methods")
        for name, target in points.items()
    ]
    monkeypatch.setattr(
        registry, "entry_points", lambda *, group: found if group == "sora.methods" else []
    )


def test_names_and_configurations_need_no_torch() -> None:
    program = (
        "import sys; from methods.registry import config_class, method_names\n"
        "for name in method_names(): config_class(name)()\n"
        "print(*method_names()); print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    names, torch_loaded = done.stdout.splitlines()
    assert {"lora", "adalora", "sora"} <= set(names.split())
    assert torch_loaded == "False"


def test_every_name_leads_to_a_class_of_that_name() -> None:
    for name in method_names():
        assert method_class(name).name == name
        assert method_class(name).config_class is config_class(name)
        assert isinstance(create(name), method_class(name))


def test_create_passes_options_on() -> None:
    assert create("sora", r_max=3, threshold=0.1).config == SoraConfig(r_max=3, threshold=0.1)
    with pytest.raises(ValueError, match="rank"):
        create("lora", rank=3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adalore", "no method 'adalore'; did you mean 'adalora'?"),
        ("soraa", "no method 'soraa'; did you mean 'sora'?"),
        ("qqq", "no method 'qqq'; there are: lora, adalora, sora"),
    ],
)
def test_unknown_name(name: str, message: str) -> None:
    for look_up in (method_class, config_class):
        with pytest.raises(MethodError) as caught:
            look_up(name)
        assert str(caught.value).startswith(message)


def test_register() -> None:
    assert register(Ridge) is Ridge
    assert "ridge" in method_names()
    assert method_class("ridge") is Ridge
    assert config_class("ridge") is LoraConfig
    register(Ridge)  # once more is no clash


def test_a_reloaded_class_replaces_itself() -> None:
    """As running the same `--code` file twice does."""
    again = type("Ridge", (Lora,), {"name": "ridge", "__module__": __name__})
    register(Ridge)
    register(again)
    assert method_class("ridge") is again


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (OtherRidge, "two methods are called 'ridge': .*:Ridge, .*:OtherRidge"),
        (Usurper, "'sora' is taken; give .*:Usurper another name"),
    ],
)
def test_register_clash(method: type[Lora], message: str) -> None:
    register(Ridge)
    with pytest.raises(MethodError, match=message):
        register(method)
    assert method_class("ridge") is Ridge
    assert method_class("sora") is not Usurper


def test_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, ridge="Ridge")
    assert method_names()[-1] == "ridge"
    assert method_class("ridge") is Ridge
    assert isinstance(create("ridge", r=2), Ridge)
    with pytest.raises(MethodError, match="'ridge' is taken"):
        register(OtherRidge)


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ({"sora": "Ridge"}, "two methods are called 'sora'"),
        ({"ridge": "NOT_A_METHOD"}, "entry point 'ridge' is no AdapterMethod: 'a string'"),
        ({"ridge": "RidgeConfig"}, "entry point 'ridge' is no AdapterMethod"),
        ({"crest": "Ridge"}, "entry point 'crest' is a method called 'ridge'"),
    ],
)
def test_bad_entry_point(
    monkeypatch: pytest.MonkeyPatch, points: dict[str, Any], message: str
) -> None:
    install(monkeypatch, **points)
    with pytest.raises(MethodError, match=message):
        method_class(next(iter(points)) if "sora" not in points else "ridge")


def test_two_packages_with_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points = [EntryPoint("ridge", f"{__name__}:{c}", "sora.methods") for c in ("Ridge", "Lora")]
    monkeypatch.setattr(registry, "entry_points", lambda *, group: points)  # noqa: ARG005
    with pytest.raises(MethodError, match="two methods are called 'ridge'"):
        method_names()


@pytest.mark.parametrize("trait", ["paper", "low_rank", "adapts_rank", "variable_options"])
def test_what_is_said_of_a_method_belongs_in_its_options(trait: str) -> None:
    """Earlier versions read it from the method's class."""
    with pytest.raises(MethodError, match=f"Ridge.{trait} belongs in .*: move it to RidgeConfig"):
        type("Ridge", (Lora,), {"config_class": RidgeConfig, trait: ()})
