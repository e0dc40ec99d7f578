"""The way from a recipe with an `auto` block to the recipes of its runs, checked before training.

The full run is plain low-rank training at full rank, for all of the recipe's steps. The others
begin with its checkpoint at the cut, so until then all are one run; none of them chooses a
checkpoint, and rows that choose the size are held out of the training split of all.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from methods.configs import MethodConfig
from methods.registry import plain_method, size_keys, sized_method
from sora_cli.core.errors import SoraError
from sora_cli.experiments.auto.budget import RowPlan, plan_rows
from sora_cli.recipe.auto import AutoBlock
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.recipe.recipe import MethodBlock, Recipe
from sora_cli.recipe.start import StartBlock
from sora_cli.search.certificate import FULL, SIZES
from sora_cli.search.promise import Promise, promise_of

_HEALING = 2 / 3
"""Share of what may be spent that goes to the steps after the cuts; the rest is for scoring. They
matter: on the quickstart (seed 0; at full rank 1.000) 8 % of the components score 0.993 after 20 %
of the steps, 0.923 after 10 % and 0.868 after 6.7 %; 15 % of them score 1.000 after each."""
_MOST_HEALING = 0.5  # of the steps: before the cut there must be something to cut
_LAST_STEP = {"evaluate": "no", "keep_best": False, "early_stopping": None}
"""No run chooses a checkpoint: what is compared is the last step of each."""


@dataclass(frozen=True)
class AutoPlan:
    """The task of a whole run, as far as it is known before the data are loaded.

    Attributes:
        loaded: the recipe as it was given.
        output: the directory of everything.
        rank: of every layer in the full run.
        alpha: its scaling is alpha / rank.
        promise: the loss that is tolerated.
        learning_rate: of all runs, where it is not the recipe's.
    """

    loaded: LoadedRecipe
    output: Path
    rank: int
    alpha: float
    promise: Promise
    learning_rate: float | None = None

    @property
    def block(self) -> AutoBlock:
        """The recipe's block."""
        assert self.loaded.recipe.auto is not None
        return self.loaded.recipe.auto

    @property
    def heal(self) -> float:
        """The share of the steps that each size is trained for after its cut."""
        return min(self.block.cost * _HEALING / self.block.sizes, _MOST_HEALING)

    @property
    def cut_at(self) -> float:
        """The share of the steps before the cut."""
        return round(1 - self.heal, 6)

    def row_plan(self, total: int) -> RowPlan:
        """Return how many rows are held out of a training split of so many; see `plan_rows`."""
        recipe, healing = self.loaded.recipe, self.heal * self.block.sizes
        wanted = min(recipe.data.max_train_rows or total, total)
        with recipe.placing("auto.rows"):
            return plan_rows(
                self.block, recipe.training, wanted=wanted, total=total, healing=healing
            )

    def full(self, rows: RowPlan) -> LoadedRecipe:
        """Return the recipe of the run at full rank; it keeps its checkpoint at the cut."""
        method = {**plain_method(self.rank), **self._shared()}
        return self._stage(FULL, method, None, rows, {"keep_checkpoints": [self.cut_at]})

    def candidate(self, number: int, max_params: int, rows: RowPlan) -> LoadedRecipe:
        """Return the recipe of a run of a size, which follows from these alone."""
        method = {**sized_method(self.rank, max_params, self.cut_at), **self._shared()}
        start = StartBlock(checkpoint=str(self.output / SIZES / FULL), step=self.cut_at)
        return self._stage(str(number), method, start, rows, {"keep_checkpoints": []})

    def _rate(self) -> dict[str, float]:
        return {} if self.learning_rate is None else {"learning_rate": self.learning_rate}

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
        recipe = self.loaded.recipe
        held = {
            "selection": "train-rows",
            "selection_rows": rows.held_out,
            "selection_seed": self.block.seed,
        }
        update = {
            "method": MethodBlock(**method),
            "start": start,
            "path": None,
            "data": recipe.data.model_copy(update=held),
            "training": recipe.training.model_copy(
                update={**_LAST_STEP, **self._rate(), **training}
            ),
            "output": recipe.output.model_copy(update={"dir": str(self.output / SIZES / name)}),
        }
        return dataclasses.replace(self.loaded, recipe=recipe.model_copy(update=update))


def plan_auto(loaded: LoadedRecipe) -> AutoPlan:
    """Return the plan of a recipe's `auto` block.

    Raises:
        SoraError: no such block, a loss that cannot be tolerated, a method without ranks, or what
            does not go with it.
    """
    recipe = loaded.recipe
    block = recipe.auto
    if block is None:
        raise SoraError(
            f"{loaded.path} does not say how much worse the result may be", hint="--max-drop 0.5pt"
        )
    _check_alone(loaded)
    promise = promise_of(recipe)
    rank, alpha = _start(recipe, block)
    default = f"runs/{loaded.name}-auto-s{recipe.training.seed}"
    output = Path(recipe.output.dir or default).expanduser()
    return AutoPlan(loaded, output, rank, alpha, promise)


def _check_alone(loaded: LoadedRecipe) -> None:
    recipe = loaded.recipe
    if recipe.start is not None:
        raise SoraError(
            "start does not go with auto: the full run begins at the method's own start",
            where=recipe.place("start"),
        )
    if recipe.training.compact_every is not None:
        raise SoraError(
            "training.compact_every does not go with auto: the cut decides what is removed",
            where=loaded.origin("training", "compact_every").place,
            hint="training.compact_every=null",
        )


def _start(recipe: Recipe, block: AutoBlock) -> tuple[int, float]:
    config = recipe.method.config
    if not isinstance(config, MethodConfig):
        raise SoraError(
            f"method {recipe.method.name} has no ranks to choose from",
            where=recipe.place("method.name"),
            hint="method.name=lora",
        )
    known = config.start()
    if known is None and block.r_max is None:
        raise SoraError(
            f"it is not known which rank method {recipe.method.name} begins with",
            where=recipe.place("method.name"),
            hint="auto.r_max=8",
        )
    rank, alpha = known or (block.r_max or 1, config.alpha)
    return block.r_max or rank, alpha


def unused(plan: AutoPlan) -> list[str]:
    """Return notes on values that were set but that these runs do not use."""
    loaded = plan.loaded
    keys = [f"training.{key}" for key in (*_LAST_STEP, "keep_checkpoints")]
    keys += ["data.selection", "data.selection_rows", "data.selection_seed"]
    reasons = dict.fromkeys(keys, "no checkpoint is chosen: the last step counts")
    return [
        f"{key} ({loaded.origin(*key.split('.')).place}) is not used: {reason}"
        for key, reason in reasons.items()
        if loaded.origin(*key.split(".")).place != "default"
    ]


def found_keys(plan: AutoPlan) -> list[str]:
    """Return the recipe's keys whose values a run has found: its size, and a probed rate."""
    rate = [] if plan.learning_rate is None else ["training.learning_rate"]
    return [*(f"method.{key}" for key in size_keys()), *rate]
