"""Build and check the recipes that `sora auto` trains: one at full rank, one per size.

The full run is plain low-rank training at full rank for all of the recipe's steps. The runs of the
sizes start from its checkpoint at the cut, so all runs are the same until then. No run chooses a
checkpoint, and all hold the same screening and test rows out of the training split.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from methods.configs import MethodConfig
from methods.registry import plain_method, size_keys, sized_method
from methods.schedules import steps_of
from sora_cli.core.errors import SoraError
from sora_cli.experiments.auto.budget import RowPlan, plan_rows
from sora_cli.recipe.auto import AutoBlock, Basis
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import MethodBlock, Recipe
from sora_cli.recipe.start import StartBlock
from sora_cli.search.any_metric import AnyMetric
from sora_cli.search.evidence import FULL, SIZES
from sora_cli.search.promise import Promise, promise_of, rows_are_right_or_wrong

_HEALING = 2 / 3
"""Share of `auto.cost` that healing gets; scoring gets the rest. The steps after the cut matter: on
the quickstart (seed 0; at full rank 1.000) 8 % of the components score 0.993 after 20 % of the
steps, 0.923 after 10 % and 0.868 after 6.7 %; 15 % of them score 1.000 after each."""
_MOST_HEALING = 0.5  # of the steps: the run must have learned something before the cut
_LAST_STEP = {"evaluate": "no", "keep_best": False, "early_stopping": None}
"""No run chooses a checkpoint; the last steps of the runs are compared."""


@dataclass(frozen=True)
class AutoPlan:
    """The plan of all runs, as far as it is known before the data are loaded.

    Attributes:
        loaded: the user's recipe.
        output: directory of all files.
        rank: rank of every layer in the full run.
        alpha: the scaling is alpha / rank.
    """

    loaded: LoadedRecipe
    output: Path
    rank: int
    alpha: float
    promise: Promise

    @property
    def block(self) -> AutoBlock:
        """The recipe's `auto` block."""
        assert self.loaded.recipe.auto is not None
        return self.loaded.recipe.auto

    @property
    def heal(self) -> float:
        """Share of the steps for which each size is trained after its cut."""
        return min(self.block.cost * _HEALING / self.block.sizes, _MOST_HEALING)

    @property
    def cut_at(self) -> float:
        """Share of the steps before the cut."""
        return round(1 - self.heal, 6)

    def on_basis(self, basis: Basis) -> AutoPlan:
        """Return the plan with the rows that test the promise; all runs' recipes name them."""
        block = self.block.model_copy(update={"basis": basis})
        recipe = self.loaded.recipe.model_copy(update={"auto": block})
        loaded = dataclasses.replace(self.loaded, recipe=recipe)
        promise = self.promise.model_copy(update={"basis": basis})
        return dataclasses.replace(self, loaded=loaded, promise=promise)

    def wanted(self, total: int) -> int:
        """Return the rows to train on, of `total` rows, where none is held out."""
        return min(self.loaded.recipe.data.max_train_rows or total, total)

    def row_plan(self, total: int, unlabelled: int | None = None) -> RowPlan:
        """Return the numbers of screening and test rows.

        Args:
            total: rows of the training split.
            unlabelled: rows without labels, if these decide.
        """
        recipe, healing = self.loaded.recipe, self.heal * self.block.sizes
        with recipe.placing("auto.rows"):
            rows = plan_rows(
                self.block,
                recipe.training,
                wanted=self.wanted(total),
                total=total,
                healing=healing,
                fewest=self._fewest,
                unlabelled=unlabelled,
            )
        self._check_steps(recipe.training.total_steps(rows.trained))
        return rows

    @property
    def _fewest(self) -> int:
        """Test rows without which there is no bound, as far as the recipe tells."""
        recipe = self.loaded.recipe
        # of a search only the rows tell whether each query has one document, and is found or not
        may_be_exact = rows_are_right_or_wrong(recipe) or recipe.task.options.searches
        return 1 if may_be_exact else AnyMetric.fewest

    def _check_steps(self, steps: int) -> None:
        """Raise `SoraError` if a size would have no step left after its cut."""
        if 0 < steps_of(self.cut_at, steps) < steps:
            return
        least = next(n for n in count(2) if 0 < steps_of(self.cut_at, n) < n)
        raise SoraError(
            f"the run has {steps} {'steps' if steps > 1 else 'step'}: none is left to heal a size "
            f"that is cut after {self.cut_at:.0%} of them",
            where=self.loaded.recipe.place("training.max_steps"),
            hint=f"train for {least} steps at least: training.max_steps={least}",
            key="training.max_steps",
        )

    def full(self, rows: RowPlan) -> LoadedRecipe:
        """Return the recipe of the run at full rank; it keeps its checkpoint at the cut."""
        method = {**plain_method(self.rank), **self._shared()}
        kept = {"keep_checkpoints": [self.cut_at]}
        return self._stage(FULL, method, self.loaded.recipe.start, rows, kept)

    def candidate(self, number: int, max_params: int, rows: RowPlan) -> LoadedRecipe:
        """Return the recipe that trains one size.

        It depends on nothing but the arguments and the plan, so that a continued run gets the same.
        """
        method = {**sized_method(self.rank, max_params, self.cut_at), **self._shared()}
        start = StartBlock(checkpoint=str(self.output / SIZES / FULL), step=self.cut_at)
        return self._stage(str(number), method, start, rows, {"keep_checkpoints": []})

    def _shared(self) -> dict[str, Any]:
        config = self.loaded.method_config
        assert isinstance(config, MethodConfig)
        return {"targets": config.targets, "alpha": self.alpha, "dropout": config.dropout}

    def _stage(
        self,
        name: str,
        method: dict[str, Any],
        start: StartBlock | None,
        rows: RowPlan,
        training: dict[str, Any],
    ) -> LoadedRecipe:
        """Return the recipe of one run.

        Args:
            name: of its directory among the sizes.
        """
        recipe = self.loaded.recipe
        # the full run, too, must not train on screening and test rows: sizes start from it
        data = recipe.data.holding_out(rows.held_out, self.block.seed)
        if rows.unlabelled:  # nothing is chosen on the validation rows
            data = recipe.data.whole()
        update = {
            "method": MethodBlock(**method),
            "start": start,
            "path": None,
            "data": data,
            "training": recipe.training.model_copy(update={**_LAST_STEP, **training}),
            "output": recipe.output.model_copy(update={"dir": str(self.output / SIZES / name)}),
        }
        return dataclasses.replace(self.loaded, recipe=recipe.model_copy(update=update))


def plan_auto(loaded: LoadedRecipe) -> AutoPlan:
    """Check a recipe's `auto` block, and return its plan."""
    recipe = loaded.recipe
    block = recipe.auto
    if block is None:
        raise SoraError(
            f"{loaded.path} does not say how large a drop is accepted",
            hint="add --max-drop smallest, or a promise of your own: --max-drop 1pt",
        )
    _check_alone(loaded)
    promise = promise_of(recipe)
    rank, alpha = _start(recipe, block)
    default = f"runs/{loaded.name}-auto-s{recipe.training.seed}"
    output = Path(recipe.output.dir or default).expanduser()
    return AutoPlan(loaded, output, rank, alpha, promise)


def _check_alone(loaded: LoadedRecipe) -> None:
    recipe = loaded.recipe
    if recipe.start is not None and recipe.start.checkpoint is not None:
        raise SoraError(
            "start.checkpoint does not go with auto: it trains at full rank from the first step",
            where=recipe.place("start.checkpoint"),
            hint="start with a finished adapter: start.adapter=RUN",
        )
    if recipe.training.compact_every is not None:
        raise SoraError(
            "training.compact_every does not go with auto: only the cut removes components",
            where=loaded.origin("training", "compact_every").place,
            hint="training.compact_every=null",
        )


def _start(recipe: Recipe, block: AutoBlock) -> tuple[int, float]:
    config = recipe.method.config
    if not isinstance(config, MethodConfig):
        raise SoraError(
            f"method {recipe.method.name} trains no adapter, so there is no rank to reduce",
            where=recipe.place("method.name"),
            hint="method.name=lora",
        )
    known = config.start()
    if known is None and block.r_max is None:
        raise SoraError(
            f"method {recipe.method.name} has no initial rank that auto could take as full rank",
            where=recipe.place("method.name"),
            hint="auto.r_max=8",
        )
    rank, alpha = known or (block.r_max or 1, config.alpha)
    return block.r_max or rank, alpha


def unused(plan: AutoPlan) -> list[str]:
    """Return notes on recipe values that were set but have no effect in these runs.

    A value that these runs use anyway gets no note: `sora init` writes `keep_best: false`.
    """
    loaded = plan.loaded
    keys = [f"training.{key}" for key in (*_LAST_STEP, "keep_checkpoints")]
    keys += [f"data.{key}" for key in ("selection", "selection_rows", "selection_seed")]
    reasons = dict.fromkeys(
        keys, "sora auto chooses no checkpoint; each run ends with its last step"
    )
    for key, value in _LAST_STEP.items():
        if getattr(loaded.recipe.training, key) == value:
            del reasons[f"training.{key}"]
    return [
        f"{key} ({loaded.origin(*key.split('.')).place}) is not used: {reason}"
        for key, reason in reasons.items()
        if loaded.origin(*key.split(".")).place != "default"
    ]


def placed(loaded: LoadedRecipe, plan: AutoPlan) -> LoadedRecipe:
    """Return a recipe with the search's own directory as its output, and its size as found."""
    update = {
        "dir": str(plan.output),
        "derived": [*loaded.recipe.output.derived, *(f"method.{key}" for key in size_keys())],
    }
    block = loaded.recipe.output.model_copy(update=update)
    recipe = loaded.recipe.model_copy(update={"output": block})
    return dataclasses.replace(loaded, recipe=recipe)
