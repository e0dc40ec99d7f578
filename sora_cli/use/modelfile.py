"""Write a Modelfile beside a GGUF file, with which Ollama answers as `sora chat` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers

from sora_cli.adapter.metadata import AdapterMeta, read_sora_file
from sora_cli.core.atomic import write_text_atomic
from sora_cli.core.errors import SoraError, reason
from sora_cli.core.shell import quote
from sora_cli.core.words import shown_value
from sora_cli.gguf.header import MODELFILE_MARK, modelfile_of
from sora_cli.model.base import load_inputs
from sora_cli.model.files import SORA_FILE
from sora_cli.model.loading import split_gguf
from sora_cli.model.references import resolve_model_path
from sora_cli.recipe.recipe import ModelBlock
from sora_cli.run.stored import base_block
from sora_cli.tasks import create_task
from sora_cli.tasks.base import Task
from sora_cli.use.described import recipe_for_rows
from sora_cli.use.go_template import frame_of
from sora_cli.use.sampling import SamplingOptions, sampling_of
from sora_cli.use.speaker import form_of, system_of

_PLACEHOLDER = "BASE.gguf"
_QUOTES = '"""'
_SAMPLING = "temperature", "top_p", "top_k"  # the settings with the same name in Ollama


def write_modelfile(
    place: Path, gguf: Path, *, base: str | None, merged: bool
) -> tuple[Path | None, list[str]]:
    """Write the Modelfile of a GGUF file; return its path and notes for the user.

    Args:
        place: the adapter directory.
        base: the base model that the user named; None: the recorded one.
        merged: True if the GGUF file is a merged model, False if it is an adapter.

    Returns:
        The path is None if the model does not write texts, or for the reason in the note.
    """
    file = modelfile_of(gguf)
    try:
        loaded, meta = recipe_for_rows(place, on=base)
        task = create_task(loaded.recipe.task, loaded.recipe.data)
        if not task.options.CAN_SPEAK:
            return None, []
        reference = read_sora_file(place / SORA_FILE)[1]
        block = loaded.recipe.model  # of another tool's adapter: it has the base already
        if reference is not None:
            block = base_block(loaded.recipe, reference, base)
        config, tokenizer = load_inputs(block, task)
        if config.is_encoder_decoder:
            return None, []
        sources, notes = _sources(block, gguf, merged=merged)
        prompt, remarks = _prompt(task, tokenizer, meta)
        lines = [f"{MODELFILE_MARK}: ollama create NAME -f {quote(file.name)}", *sources,
                 *_parameters(block, config, tokenizer), *prompt]  # fmt: skip
        write_text_atomic(file, "\n".join([*lines, ""]))
    except SoraError as error:
        return None, [f"no {file.name} for Ollama: {error.what}"]
    except OSError as error:
        return None, [f"no {file.name} for Ollama: {reason(error, file)}"]
    return file, notes + remarks


def _sources(block: ModelBlock, gguf: Path, *, merged: bool) -> tuple[list[str], list[str]]:
    """Return the lines FROM and ADAPTER, and a note if the user has to change them."""
    own = f"./{_named(gguf.name)}"
    if merged:
        return [f"FROM {own}"], []
    resolved = resolve_model_path(block.path)
    if split_gguf(resolved)[1]:
        return [f"FROM {_named(str(Path(resolved).resolve()))}", f"ADAPTER {own}"], []
    note = (f"the base model {block.path} is no GGUF file: write the path of its GGUF file after "
            f"FROM, in place of {_PLACEHOLDER}")  # fmt: skip
    return [f"FROM ./{_PLACEHOLDER}", f"ADAPTER {own}"], [note]


def _parameters(block: ModelBlock, config: Any, tokenizer: Any) -> list[str]:
    """Return the settings of `sora chat`: of sampling, and the tokens that end an answer."""
    settings = sampling_of(SamplingOptions()).settings
    lines = [f"PARAMETER {name} {settings[name]:g}" for name in _SAMPLING]
    own = _generation_settings(block, config)
    penalty = own.repetition_penalty or 1.0
    if not isinstance(penalty, int | float):  # the file may be anybody's
        raise SoraError("the base model's repetition_penalty is no number")
    lines.append(f"PARAMETER repeat_penalty {penalty:g}")  # some versions of Ollama have 1.1
    if penalty != 1:
        lines.append("PARAMETER repeat_last_n -1")  # transformers looks at the whole text
    ends = own.eos_token_id
    ids = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    stops = [tokenizer.decode([token]) for token in sorted(ids)]
    return lines + [f"PARAMETER stop {_quoted(stop)}" for stop in stops if stop and _fits(stop)]


def _generation_settings(block: ModelBlock, config: Any) -> Any:
    source, gguf = split_gguf(resolve_model_path(block.path))
    try:
        if not gguf:
            return transformers.GenerationConfig.from_pretrained(source, revision=block.revision)
    except OSError:  # it has none of its own
        pass
    return transformers.GenerationConfig.from_model_config(config)


def _prompt(task: Task, tokenizer: Any, meta: AdapterMeta) -> tuple[list[str], list[str]]:
    """Return the lines SYSTEM and TEMPLATE, and a note on each that is left out."""
    lines, notes = [], []
    system, frame = system_of(task), frame_of(form_of(task, tokenizer, meta), tokenizer)
    template = None if frame is None else frame.in_go()
    if system and _fits(system):
        lines.append(f"SYSTEM {_quoted(system)}")
    elif system:
        notes.append("no SYSTEM in the Modelfile: it cannot hold the run's system message")
    if template is not None and _fits(template):
        lines.append(f"TEMPLATE {_quoted(template)}")
    else:
        notes.append(
            "no TEMPLATE in the Modelfile: none gives the tokenizer's prompts; "
            "Ollama uses the GGUF file's own chat template, or one of Ollama's that is like it"
        )
    if frame is not None and frame.system is None:
        notes.append("the tokenizer's chat template takes no system message: Ollama leaves it out")
    return lines, notes


def _named(name: str) -> str:
    """Return a file's name, which stands in a line without quotes: a break would begin another."""
    if not name.isprintable():
        raise SoraError(f"it cannot hold the name {shown_value(name)}")
    return name


def _quoted(text: str) -> str:
    quotes = _QUOTES if "\n" in text or '"' in text else '"'
    return f"{quotes}{text}{quotes}"


def _fits(text: str) -> bool:
    """Return True unless Ollama's parser would change the text: it drops unprintable characters."""
    return _QUOTES not in text and all(c in "\n\t" or c.isprintable() for c in text)
