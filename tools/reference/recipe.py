"""docs/reference/recipe.md, from the recipe's schema, the methods and the task families."""

from __future__ import annotations

import inspect

from pydantic import BaseModel

from methods.configs import MethodConfig, MethodOptions
from methods.registry import builtin_names, config_class
from sora_cli.recipe.families import options_class, task_names
from sora_cli.recipe.recipe import MethodBlock, Recipe, TaskBlock
from sora_cli.recipe.task_options import TaskOptions
from tools.reference.fields import key_table, nested
from tools.reference.markdown import code
from tools.reference.markdown import page as make_page

INTRODUCTION = """\
Every key of a recipe. A recipe is a YAML file with these blocks; an unknown key is an error. On \
the command line a key is written with dots: `sora train rte training.epochs=3`. A key whose \
default is unset may be left out or be `null`. `auto=null` removes a whole block; start, path and \
paper can be removed in the same way. `sora train RECIPE --dry-run` shows every value of a recipe \
and where it was set; `sora schema` prints this page as a JSON schema, for editors."""
EXTENDS = """\
## extends

The recipe on which this recipe is built, or a list of recipes; paths are relative to this file. \
Keys of this file replace keys of the others, block by block and key by key; `path: null` removes \
their block."""


def page() -> str:
    """Return the page."""
    return make_page("Recipe", INTRODUCTION, EXTENDS, *map(_block, Recipe.model_fields))


def _block(name: str) -> str:
    inner = nested(Recipe.model_fields[name])
    assert inner is not None
    model = inner[1]
    parts = [f"## {name}", _about(model), key_table(model)]
    if model is TaskBlock:
        parts += [_shared("task family", TaskOptions), *map(_family, task_names())]
    if model is MethodBlock:
        parts += [_shared("adapter method", MethodConfig), *map(_method, builtin_names())]
    return "\n\n".join(part for part in parts if part)


def _about(model: type[BaseModel]) -> str:
    return inspect.getdoc(model) or ""


def _shared(kind: str, model: type[BaseModel]) -> str:
    return f"Options of every {kind}:\n\n{key_table(model, without={'metrics'})}"


def _family(name: str) -> str:
    options = options_class(name)
    parts = {part: " or ".join(code(n) for n in names) for part, names in options.COLUMNS.items()}
    columns = "; ".join(f"{code(part)}: {names}" for part, names in parts.items())
    shared = TaskOptions.model_fields.keys() - {"metrics"}
    return "\n\n".join([
        f"### task.name: {name}",
        _about(options),
        key_table(options, without=shared),
        f"Parts of a row, for `data.columns`, and the usual names of their columns: {columns}."
        if columns
        else "The columns of a row are those of `data.text_columns` and `data.label_column`.",
    ])  # fmt: skip


def _method(name: str) -> str:
    options = config_class(name)
    shared = MethodConfig.model_fields if issubclass(options, MethodConfig) else {}
    own = key_table(options, without=shared)
    return "\n\n".join([
        f"### method.name: {name}",
        " ".join(_traits(options)),
        own or "It has no options of its own.",
    ])  # fmt: skip


def _traits(options: type[MethodOptions]) -> list[str]:
    sentences = [f"{options.paper}."] if options.paper else []
    if not options.low_rank:
        sentences.append("A baseline: it trains the model's own parameters and has no ranks.")
    if options.adapts_rank:
        sentences.append("Training removes components.")
    if options.variable_options:
        varied = " and ".join(code(option) for option in options.variable_options)
        sentences.append(f"Along a path (`sora path`), {varied} can vary.")
    return sentences
