"""The verdict on a comparison: same, DIFFERENT, or cannot tell.

The constants were chosen on updates of rank 4 in all linear layers of tiny models, of MiniLM (22 M)
and of SmolLM2 (135 M), |dW| / |W| from 1e-4 to 5e-2, merged right (float32, float16, bfloat16) and
wrong (the base, another adapter, scaled by 1.05, one module left out, weights of 8 bits).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from sora_cli.core.exit_codes import FAILED, NO_VERDICT, OK
from sora_cli.verify.effect import Effect, percent

COMPUTED = 1e-5
"""Relative rounding error of outputs computed in float32: W x + B (A x) and (W + B A) x differed by
1e-6. A smaller effect cannot be distinguished from rounding."""
_ROUNDINGS = 4
"""Roundings of all weights to a format with unit roundoff u moved outputs by 0.5 u to 2.2 u, as a
norm. Weights of 8 bits, which are wrong, moved those of MiniLM by 5 u of bfloat16, and those of
SmolLM2 by 11 u."""
_EXACT = 0.01
"""Part of the effect that may be missing or added. Right merges in float32 had shares within
0.001 of 1; a scaling that is wrong by 5% gives 1.05."""
_ROUNDED = 0.05
"""Part of the effect that may be missing if merged weights were rounded to 16 bits: `sora merge`
loses this much without a warning. Rounding to nearest never adds to the effect, so that 1.05 is
wrong here, too."""

_LEAST = 0.9
"""A smaller share is never called the same, even if noise could explain it."""


class Verdict(Enum):
    """The outcome of a comparison; its value is shown to the user."""

    SAME = "same"
    DIFFERENT = "DIFFERENT"
    UNKNOWN = "cannot tell"


class Tolerance(NamedTuple):
    """The largest relative difference of outputs that is allowed.

    Attributes:
        source: its origin, in words.
        given: the user set it, and then it alone decides.
    """

    value: float
    source: str
    given: bool = False


@dataclass(frozen=True)
class Judgement:
    """A verdict with its reason.

    Attributes:
        reason: of any verdict but SAME, in words.
        decisive: the measurement of the adapter's effect that decides; None: the outputs alone
            decide.
    """

    verdict: Verdict
    reason: str = ""
    decisive: Effect | None = None

    @property
    def same(self) -> bool:
        """True if the verdict is SAME."""
        return self.verdict is Verdict.SAME

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ends with this verdict."""
        return {Verdict.SAME: OK, Verdict.DIFFERENT: FAILED, Verdict.UNKNOWN: NO_VERDICT}[
            self.verdict
        ]


@dataclass(frozen=True)
class Rounding:
    """The rounding that a right result may have gone through, as unit roundoffs.

    Attributes:
        computed: of the format that both sides are computed in.
        weights: of the coarsest format that merged weights are stored in; 0: none are.
        factors: of the coarsest format that an adapter is stored in; 0: none is.
    """

    computed: float
    weights: float
    factors: float

    @property
    def floor(self) -> float:
        """Relative rounding error of the comparison itself: smaller effects cannot be seen."""
        return max(COMPUTED, _ROUNDINGS * self.computed)

    def residual(self, size: float) -> float:
        """Return the residual that these roundings explain, for an effect of this size."""
        return max(self.floor, _ROUNDINGS * self.weights) / size + _ROUNDINGS * self.factors

    def shares(self, effect: Effect) -> tuple[float, float]:
        """Return the least and the largest share of a right result."""
        rounded = max(self.computed, self.weights) > COMPUTED
        lost = _ROUNDED if rounded else _EXACT
        return 1 - lost - effect.uncertainty, 1 + _EXACT + effect.uncertainty

    def explains(self, effect: Effect) -> bool:
        """Return true if the whole effect may be there, and rounding explains the residual."""
        least, most = self.shares(effect)
        return least <= effect.share <= most and effect.residual <= self.residual(effect.size)

    def expected(self, effect: Effect) -> str:
        """Return the share and residual of a right result, in words, without limits above 100 %."""
        least, most = self.shares(effect)
        share, limit = f"{least:.1%} to {most:.1%} of the effect", self.residual(effect.size)
        residual = f"a residual of {percent(limit)} at most"
        if effect.blind and effect.residual > limit:
            return residual
        return f"{share}, with {residual}" if limit < 1 else share


def judge(
    relative: float,
    change: float | None,
    effects: Sequence[Effect],
    rounding: Rounding,
    tolerance: Tolerance,
) -> Judgement:
    """Judge by the adapter's effect, if there is one, and by the outputs.

    Args:
        relative: the largest difference of the outputs, relative to the largest output.
        change: relative change of the outputs by the adapter's layers; None if there are none.
        effects: the measured share of this change; that of the outputs first.
    """
    sized = [effect for effect in effects if effect.size]
    decisive = sized[0] if sized else None
    if sized and not tolerance.given:
        judged = _by_effect(sized, rounding)
        if judged.verdict is Verdict.DIFFERENT or relative <= tolerance.value:
            return judged
    if relative > tolerance.value:
        reason = f"{tolerance.value:.1e} is allowed ({tolerance.source})"
        return Judgement(Verdict.DIFFERENT, reason, decisive)
    if change and change > tolerance.value:
        return Judgement(Verdict.SAME, decisive=decisive)
    if change is None or (change == 0 and relative <= COMPUTED):
        return Judgement(Verdict.SAME)
    reason = (
        f"the adapter changes the outputs by {change:.1e}, and differences up to "
        f"{tolerance.value:.1e} are allowed ({tolerance.source})"
    )
    return Judgement(Verdict.UNKNOWN, reason, decisive)


def _by_effect(effects: Sequence[Effect], rounding: Rounding) -> Judgement:
    # every output has to fit, but one clear measurement is enough to call them the same
    seen = [effect for effect in effects if effect.size > rounding.floor]
    if not seen:
        largest = max(effects, key=lambda effect: effect.size)
        reason = (
            f"the adapter changes the {largest.words} by {largest.size:.1e} (relative), which is "
            f"within the rounding error of the comparison, {rounding.floor:.1e}"
        )
        return Judgement(Verdict.UNKNOWN, reason, largest)
    for effect in seen:
        if not rounding.explains(effect):
            return Judgement(Verdict.DIFFERENT, f"expected: {rounding.expected(effect)}", effect)
    clear = [effect for effect in seen if not effect.blind and effect.share >= _LEAST]
    if clear:
        return Judgement(Verdict.SAME, decisive=clear[0])
    best = min(seen, key=lambda effect: effect.uncertainty)
    reason = f"rounding moves the {best.words} {best.residual:.2g} times as far as the adapter does"
    return Judgement(Verdict.UNKNOWN, reason, best)
