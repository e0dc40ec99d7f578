"""The sampling options of `sora chat` and `sora generate`, and their settings of transformers."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sora_cli.core.checks import STORED, check_choice, check_excludes
from sora_cli.core.errors import SoraError

if TYPE_CHECKING:
    from sora_cli.use.speaker import Sampling

_TEMPERATURE, _TOP_P, _TOP_K = 0.7, 0.95, 50
_LARGEST = 2**31


@dataclass(frozen=True)
class SamplingOptions:
    """The options of the command line; None means not given."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int = 256
    repetition_penalty: float | None = None
    seed: int | None = None
    greedy: bool = False


def check_sampling(given: SamplingOptions, dtype: str | None) -> None:
    """Check the values and combinations of options, before a model is loaded."""
    if dtype is not None:
        check_choice("--dtype", dtype, STORED)
    if given.greedy:
        named = {"--temperature": given.temperature, "--top-p": given.top_p, "--top-k": given.top_k,
                 "--seed": given.seed}  # fmt: skip
        check_excludes("--greedy", [name for name, value in named.items() if value is not None])
    if given.temperature is not None and not 0 < given.temperature < 100:
        raise SoraError(
            f"--temperature must be above 0, not {given.temperature:g}",
            hint="--greedy takes the likeliest token each time",
        )
    if given.top_p is not None and not 0 < given.top_p <= 1:
        raise SoraError(f"--top-p is a share above 0 and up to 1, not {given.top_p:g}")
    if given.repetition_penalty is not None and not 0 < given.repetition_penalty < 100:
        raise SoraError(f"--repetition-penalty must be above 0, not {given.repetition_penalty:g}")


def sampling_of(given: SamplingOptions) -> Sampling:
    """Return the options as settings of transformers; without a seed, draw one."""
    from sora_cli.use.speaker import Sampling

    settings: dict[str, Any] = {}
    if not given.greedy:
        settings = {
            "do_sample": True,
            "temperature": _TEMPERATURE if given.temperature is None else given.temperature,
            "top_p": _TOP_P if given.top_p is None else given.top_p,
            "top_k": _TOP_K if given.top_k is None else given.top_k,
        }
    if given.repetition_penalty is not None:
        settings["repetition_penalty"] = given.repetition_penalty
    seed = secrets.randbelow(_LARGEST) if given.seed is None else given.seed
    return Sampling(settings, given.max_new_tokens, seed)
