"""`--code FILE.py`: adapter methods, task families and loggers from a user's own file."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from methods.errors import MethodError
from methods.registry import register
from sora_cli.core.errors import SoraError
from sora_cli.core.interruption import Interrupted
from sora_cli.core.words import near_files
from sora_cli.recipe.families import add_family

_PREFIX = "sora_code_"  # of the modules' names
LOGGERS: dict[str, type[Any]] = {}
"""Loggers (Trainer callbacks) of users' files, by their name in `training.loggers`."""


def loaded_code() -> list[Path]:
    """Return the files that were loaded."""
    loaded = (module for name, module in list(sys.modules.items()) if name.startswith(_PREFIX))
    return [Path(str(module.__file__)) for module in loaded]


def load_code(path: Path) -> ModuleType:
    """Import a file and register what it defines; a second call does nothing."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise SoraError(f"no file '{path}' (--code)", hint=near_files(path, "*.py"))
    if path.suffix != ".py":
        raise SoraError(f"'{path}' is no Python file (--code)", hint="its name must end in .py")
    full = path.resolve()
    # the hash keeps two files of the same name apart in sys.modules
    name = f"{_PREFIX}{full.stem}_{hashlib.sha256(str(full).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    module = _imported(name, full, path)
    try:
        _register_all(module, path)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(name: str, full: Path, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, full)
    assert spec is not None
    assert spec.loader is not None  # there is always a loader for a .py file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before it runs: pydantic and pickle look up classes there
    try:
        spec.loader.exec_module(module)
    except (KeyboardInterrupt, Interrupted):
        del sys.modules[name]
        raise
    except BaseException as error:  # not Exception: exit() in the file raises SystemExit
        del sys.modules[name]
        what = f"'{path}' fails on import: {type(error).__name__}: {error}"
        raise SoraError(what, where=_line(error, full, path)) from error
    return module


def _line(error: BaseException, full: Path, path: Path) -> str:
    """Return file and line of the innermost frame of the error in the user's file."""
    if isinstance(error, SyntaxError) and error.filename == str(full):
        return f"{path}:{error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(full)]
    return f"{path}:{lines[-1]}" if lines else str(path)


def _register_all(module: ModuleType, path: Path) -> None:
    from methods.base import AdapterMethod

    methods = [m for m in _defined(module, AdapterMethod) if not inspect.isabstract(m)]
    transformers = sys.modules.get("transformers")  # a file that defines a callback imported it
    callbacks = [] if transformers is None else _defined(module, transformers.TrainerCallback)
    loggers = [callback for callback in callbacks if _name(callback) is not None]
    tasks = sys.modules.get("sora_cli.tasks.base")  # a file that defines a family imported it
    families = [] if tasks is None else _defined(module, tasks.Task)
    families = [family for family in families if not inspect.isabstract(family)]
    if not methods and not loggers and not families:
        raise SoraError(
            f"'{path}' defines no adapter method, no task family and no logger",
            hint="extend methods.base.AdapterMethod (with wrap()), sora_cli.tasks.base.Task, or "
            'transformers.TrainerCallback (with name = "...")',
        )
    for family in families:
        _add(family, path)
    for method in methods:
        if _name(method) is None:
            raise SoraError(f"{method.__name__} has no name", where=str(path), hint='name = "..."')
        try:
            register(method)
        except MethodError as error:
            raise SoraError(str(error), where=str(path)) from error
    LOGGERS.update({logger.name: logger for logger in loggers})


def _add(family: Any, path: Path) -> None:
    options = getattr(family, "OPTIONS", None)
    if options is None or not isinstance(getattr(options, "NAME", None), str):
        raise SoraError(f"{family.__name__} has no OPTIONS with a NAME", where=str(path),
                        hint='OPTIONS = NameOptions, and in that class NAME = "..."')  # fmt: skip
    try:
        add_family(family, options)
    except SoraError as error:
        raise SoraError(error.what, where=str(path)) from error


def _defined(module: ModuleType, kind: type[Any]) -> list[type[Any]]:
    """Return the subclasses of `kind` that a module defines itself, without imported classes."""
    classes = [item for item in vars(module).values() if inspect.isclass(item)]
    return [c for c in classes if issubclass(c, kind) and c.__module__ == module.__name__]


def _name(item: type[Any]) -> str | None:
    name = getattr(item, "name", None)
    return name if isinstance(name, str) else None
