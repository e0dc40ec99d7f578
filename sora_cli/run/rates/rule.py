"""The rule of thumb for the learning rate: by the width of the model, and by the method.

    rate = 1e-3 (384 / width)^0.78

The exponent is that of Schulman et al. (2025, LoRA Without Regret) for Llama. The rate at width 384
is the best of a grid for MiniLM-L6, and the rule was held against the grids of models of width 64,
384 and 576 (docs/results/rates.md). It gives 1.6e-4 at width 4,096 and 9.2e-5 at 8,192, where QLoRA
took 2e-4 and 1e-4 (Dettmers et al. 2023, arXiv 2305.14314). The best rate hardly depends on the
rank (Schulman et al.).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from methods.configs import MethodOptions
from sora_cli.recipe.recipe import Recipe
from sora_cli.report import RateChoice

if TYPE_CHECKING:
    from sora_cli.run.prepare import Prepared

_RATE, _WIDTH, _POWER = 1e-3, 384, 0.78
_NARROWEST = 64
"""The smallest width of the measured models; narrower ones get its rate."""
_USUAL = 5e-4
"""Rate of a model that does not tell its width; that of the rule at width 930."""


def by_rule(recipe: Recipe, ready: Prepared) -> RateChoice:
    """Choose the learning rate of a run by the rule of thumb."""
    config = ready.base.model.config
    chosen, reason = rule_of_thumb(config, recipe.method.config)
    return RateChoice(chosen=chosen, how="rule", reason=reason)


def rule_of_thumb(config: Any, method: MethodOptions | type[MethodOptions]) -> tuple[float, str]:
    """Return the peak learning rate by the rule of thumb, and its reason.

    Args:
        config: the base model's configuration.
    """
    width = width_of(config)
    rate = _RATE * (_WIDTH / max(width, _NARROWEST)) ** _POWER if width else _USUAL
    reason = f"for a model of width {width}" if width else "the model's width is not known"
    if method.rate_factor != 1:
        reason += f", times {method.rate_factor:g} for this method"
    return float(f"{rate * method.rate_factor:.2g}"), reason


def width_of(config: Any) -> int:
    """Return the width of a model's hidden states; 0 if its configuration does not tell it."""
    return number_of(config.get_text_config(), "hidden_size")


def parameters_of(config: Any) -> float:
    """Estimate a model's parameters from its configuration: 12 h^2 per block, and embeddings."""
    # 4 h^2 in the attention (q, k, v, o), 8 h^2 in a feed-forward part of width 4 h
    text = config.get_text_config()
    hidden, layers = width_of(config), number_of(text, "num_hidden_layers")
    return 12 * layers * hidden**2 + number_of(text, "vocab_size") * hidden


def number_of(config: Any, name: str) -> int:
    """Return a whole number of a configuration; 0 if it has none by this name."""
    value = getattr(config, name, 0)
    return value if isinstance(value, int) else 0
