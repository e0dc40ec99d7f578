"""Layers of a recipe: files joined by `extends:`, then overrides from the command line.

Later layers win key by key. If a layer chooses another method, options that only the old method
knows are dropped with a note; thanks to that, `method.name=lora` works on any recipe. The same
holds for the source of the data: `data.files` replaces `data.path`, and the other way round.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from methods.errors import MethodError
from sora_cli.core.errors import SoraError
from sora_cli.core.words import listed, near_files, shown_path
from sora_cli.recipe.library import YAML_FILES
from sora_cli.recipe.open_blocks import OPEN_BLOCKS
from sora_cli.recipe.recipe import Recipe
from sora_cli.recipe.yaml_lines import DEEPEST, Origin, Path_, Tree, parse_file, parse_value

EXTENDS = "extends"
COMMAND_LINE = "command line"
_PLACES = {"files": ("path", "name", "revision"), "path": ("files",)}
"""Key that names the source of the data -> keys of the other source, its own name first."""
_MAY_LACK = [block for block, field in Recipe.model_fields.items() if field.default is None]
"""Optional blocks of a recipe: null removes them."""


def file_layers(path: Path) -> list[tuple[Path, Tree]]:
    """Return the files that a recipe extends, directly or indirectly, then the recipe itself."""
    return list(_file_layers(path, None, ()))


def override_layers(overrides: Sequence[str]) -> list[Tree]:
    """Make layers of `block.key=value` words; the last word for a key wins.

    A word that removes a block (`auto=null`) ends a layer: later words fill the block anew.
    """
    layers = [Tree()]
    for text in overrides:
        _check_text(text)
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        if not equals or not all(path) or len(path) > DEEPEST:
            raise SoraError(
                f"'{text}' is not an override", hint="write block.key=value: training.epochs=3"
            )
        if path[0] == EXTENDS:
            raise SoraError(
                "extends belongs in a recipe file, not on the command line",
                where=f"{COMMAND_LINE}: {text}",
            )
        try:
            parsed = parse_value(value)
        except SoraError as error:
            where = f"{COMMAND_LINE}: {text}"
            raise SoraError(error.what, where=where, hint="quote it if it is text") from error
        merge(layers[-1], _single(path, parsed, Origin(COMMAND_LINE, text=text)))
        # a new layer: in the same one, a later `auto.max_drop=1pt` would overwrite the null, and
        # the other keys of the files' block would stay
        if len(path) == 1 and parsed is None:
            _check_may_lack(path[0], text)
            layers.append(Tree())
    return layers


def _check_may_lack(block: str, text: str) -> None:
    """Raise `SoraError` for the removal of a required block; unknown blocks are reported later."""
    if block in Recipe.model_fields and block not in _MAY_LACK:
        raise SoraError(
            f"only {listed(_MAY_LACK)} can be removed: every run needs {block}",
            where=f"{COMMAND_LINE}: {text}",
            hint=f"to change a key in it: {block}.KEY=VALUE",
        )


def _check_text(text: str) -> None:
    """Raise `SoraError` for text that is not UTF-8 (Python hands such bytes on as surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise SoraError("an override is not UTF-8 text", where=f"{COMMAND_LINE}: {text}") from error


def combine(layers: Sequence[Tree]) -> tuple[Tree, tuple[str, ...]]:
    """Merge all layers; return also notes on keys dropped with a method, task or data source."""
    result = Tree()
    notes: list[str] = []
    for layer in layers:
        notes += [*_drop_options(result, layer), *_drop_data(result, layer)]
        merge(result, layer)
    return result, tuple(notes)


def merge(base: Tree, over: Tree) -> None:
    """Merge `over` into `base`, in place: mappings are merged, other values replaced.

    An empty mapping inside a block replaces, too: `data.columns={}` removes the columns of lower
    layers. So does null for an optional block. Any other empty block changes nothing.
    """
    _merge_values(base, over, base.values, over.values, ())
    base.origins.update(over.origins)


def _merge_values(
    base: Tree, over: Tree, below: dict[str, Any], above: dict[str, Any], path: Path_
) -> None:
    for key, value in above.items():
        here = (*path, key)
        old = below.get(key)
        adds = isinstance(value, dict) and (value or not path)
        if isinstance(old, dict) and adds:
            _merge_values(base, over, old, value, here)
        elif isinstance(old, dict) and value is None and not path and key not in _MAY_LACK:
            continue  # `training:` without keys below it parses as null, and changes nothing
        else:
            _forget(base, here)
            below[key] = copy.deepcopy(value)  # later layers change mappings in place


def _forget(tree: Tree, path: Path_) -> None:
    for known in [p for p in tree.origins if p[: len(path)] == path]:
        del tree.origins[known]


def _file_layers(
    path: Path, named_by: Origin | None, chain: tuple[Path, ...]
) -> Iterator[tuple[Path, Tree]]:
    path = Path(os.path.normpath(path))  # not resolved: errors show the path as people write it
    if path.resolve() in chain:
        names = " -> ".join(shown_path(p) for p in (*chain, path.resolve()))
        raise SoraError("recipes extend each other in a circle", where=names)
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise SoraError(
            f"no file '{shown_path(path)}' to extend",
            where=str(named_by),
            hint=near_files(path, YAML_FILES),
        ) from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        where = None if named_by is None else str(named_by)
        raise SoraError(f"'{shown_path(path)}' cannot be read: {reason}", where=where) from error
    tree = parse_file(content, shown_path(path))
    origin = tree.origins.get((EXTENDS,))
    _forget(tree, (EXTENDS,))
    for base in _extended(tree.values.pop(EXTENDS, None), origin):
        yield from _file_layers(path.parent / base, origin, (*chain, path.resolve()))
    yield path, tree


def _extended(value: Any, origin: Origin | None) -> list[str]:
    names = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(name, str) and name for name in names):
        raise SoraError(
            "extends must name a file, or a list of files",
            where=str(origin),
            hint="such as extends: base.yaml",
        )
    # not Path.expanduser, which raises for an unknown ~user
    return [os.path.expanduser(name) for name in names]  # noqa: PTH111


def _single(path: Path_, value: Any, origin: Origin) -> Tree:
    tree = Tree(origins={path[:i]: origin for i in range(1, len(path) + 1)})
    _note_origins(tree, path, value, origin)
    for key in reversed(path):
        value = {key: value}
    tree.values = value
    return tree


def _note_origins(tree: Tree, path: Path_, value: Any, origin: Origin) -> None:
    tree.origins[path] = origin
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _note_origins(tree, (*path, str(key)), item, origin)


def _drop_options(below: Tree, above: Tree) -> list[str]:
    """Remove options of a replaced method or task family from the lower layers; return notes."""
    return [note for block in OPEN_BLOCKS for note in _drop_from(block, below, above)]


def _drop_from(block: str, below: Tree, above: Tree) -> list[str]:
    old, new = below.values.get(block), above.values.get(block)
    if not isinstance(old, dict) or not isinstance(new, dict):
        return []
    name, old_name = new.get("name"), old.get("name")
    if name is None or old_name is None or name == old_name:
        return []
    known, old_known = _options(block, name), _options(block, old_name)
    if known is None:
        return []  # reported as an unknown name later
    dropped = [
        key
        for key in old
        if key != "name" and key not in known and (old_known is None or key in old_known)
    ]
    for key in dropped:
        del old[key]
        _forget(below, (block, key))
    where = above.origins.get((block, "name"))
    note = f"{block}.name={name} ({where}): dropped {old_name}'s {', '.join(dropped)}"
    return [note] if dropped else []


def _drop_data(below: Tree, above: Tree) -> list[str]:
    """Remove the lower layers' source of data if `above` names another source; return notes."""
    old, new = below.values.get("data"), above.values.get("data")
    if not isinstance(old, dict) or not isinstance(new, dict):
        return []
    notes = []
    for given, others in _PLACES.items():
        if not new.get(given) or new.get(others[0]):
            continue
        removed = [key for key in others if old.get(key)]
        for key in removed:
            del old[key]
            _forget(below, ("data", key))
        if removed:
            where = above.origins.get(("data", given))
            dropped = ", ".join(f"data.{key}" for key in removed)
            notes.append(f"data.{given} ({where}): dropped {dropped}")
    return notes


def _options(block: str, name: Any) -> set[str] | None:
    """Return the option names of a method or task family; None for an unknown one."""
    try:
        return set(OPEN_BLOCKS[block].options(str(name)).model_fields)
    except (MethodError, SoraError, ImportError, AttributeError):
        return None
