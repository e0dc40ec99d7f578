"""The rule of thumb for the learning rate: by model size or task family, and by method.

Sources: the best of three rates for MiniLM-L6, 1.5e-3, is a little above 1e-3
(docs/results/tune.md); the recipes for decoders below a thousand million parameters take 5e-4;
QLoRA takes 2e-4 at 7 and 13 thousand million (Dettmers et al. 2023, arXiv 2305.14314). The best
rate hardly depends on the rank (Schulman et al. 2025, LoRA Without Regret).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from methods.configs import MethodOptions
from sora_cli.core.console import count
from sora_cli.recipe.families import TaskOptions
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import RateChoice

if TYPE_CHECKING:
    from sora_cli.run.prepare import Prepared

_BY_SIZE = ((60e6, 1e-3), (1e9, 5e-4))
"""Parameters of the model, and the rate of models below them."""
_LARGEST = 2e-4


def by_rule(recipe: Recipe, ready: Prepared) -> RateChoice:
    """Choose the learning rate of a run by the rule of thumb."""
    config = ready.base.model.config
    chosen, reason = rule_of_thumb(config, recipe.task.options, recipe.method.config)
    return RateChoice(chosen=chosen, how="rule", reason=reason)


def rule_of_thumb(
    config: Any, task: TaskOptions | type[TaskOptions], method: MethodOptions | type[MethodOptions]
) -> tuple[float, str]:
    """Return the peak learning rate by the rule of thumb, and its reason.

    Args:
        config: the base model's configuration.
    """
    rate, reason = _of_lora(parameters_of(config), task.LEARNING_RATE)
    if method.rate_factor == 1:
        return rate, reason
    return float(f"{rate * method.rate_factor:.3g}"), (
        f"{reason}, times {method.rate_factor:g} for this method"
    )


def _of_lora(parameters: float, usual: float | None) -> tuple[float, str]:
    if usual is not None:
        return usual, "as in the recipes of this task family"
    for below, rate in _BY_SIZE:
        if parameters < below:
            return rate, f"for models below {count(below / 1e6)} million parameters"
    return _LARGEST, "for models of 1,000 million parameters and more (QLoRA)"


def parameters_of(config: Any) -> float:
    """Estimate a model's parameters from its configuration: 12 h^2 per block, and embeddings."""
    # 4 h^2 in the attention (q, k, v, o), 8 h^2 in a feed-forward part of width 4 h
    text = config.get_text_config()
    hidden, layers = number_of(text, "hidden_size"), number_of(text, "num_hidden_layers")
    return 12 * layers * hidden**2 + number_of(text, "vocab_size") * hidden


def number_of(config: Any, name: str) -> int:
    """Return a whole number of a configuration; 0 if it has none by this name."""
    value = getattr(config, name, 0)
    return value if isinstance(value, int) else 0
