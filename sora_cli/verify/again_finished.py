"""What `sora prune`, `sora prune --heal` and `sora extract` wrote, computed again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from methods.keep import Keep
from sora_cli.adapter.digest import result_digest
from sora_cli.adapter.metadata import read_sora_file
from sora_cli.adapter.places import adapter_folder, baseline_folder, locate_adapter
from sora_cli.adapter.reading import open_adapter
from sora_cli.adapter.rounding import Rounding
from sora_cli.core.errors import SoraError
from sora_cli.merge.extract import prepare_extract
from sora_cli.model.files import SORA_FILE
from sora_cli.recipe.auto import AutoBlock
from sora_cli.report import read_report
from sora_cli.search.asking import KeptLabels, Labels
from sora_cli.search.choosing import choosing_rows, recipe_of
from sora_cli.search.cut import score_adapter, smallest_cut, stored_model, stored_size
from sora_cli.search.evidence import FILE_NAME, SIZES, Evidence, recipe_digest
from sora_cli.search.heal import healing_budgets, tested_runs
from sora_cli.search.kept_answers import Kept
from sora_cli.search.promise import Promise, options_of, promise_of
from sora_cli.search.search import Outcome
from sora_cli.search.sizes import NEARLY_ALL
from sora_cli.search.statistics import statistic_of
from sora_cli.search.test_rows import TestRows
from sora_cli.verify.again import Again, NotAgainError, if_moved, loaded_again
from sora_cli.verify.tolerances import tolerated


class FinishedAgain:
    """An adapter that `sora prune` or `sora extract` wrote, and what it was made from."""

    def __init__(
        self, run: Path, certificate: Evidence, overrides: Sequence[str], reference: Path | None
    ) -> None:
        self.run, self.command = run, certificate.command
        place = reference or Path(certificate.full.directory)
        self.reference = adapter_folder(place) or baseline_folder(place) or place
        changed = None
        if not self.reference.exists():
            changed = f"{certificate.full.name} is not in {self.reference} any more"
        elif result_digest(self.reference) != certificate.full.digest:
            changed = f"{self.reference} is not {certificate.full.name} of the certificate"
        if changed is not None:
            hint = "say where it is now: sora verify A B --certificate"
            raise NotAgainError(changed, hint=hint)
        # a healed size is a run, and knows its recipe; a cut one knows the digest of its recipe
        own = self._recipe_of_sizes() if self.command == "heal" else certificate.recipe
        if own is None or own.get("auto") is None:
            raise SoraError(f"{run / FILE_NAME} has no recipe: it does not say which rows test")
        self.recorded = own
        self.loaded = loaded_again(own, run / FILE_NAME, run.name, overrides)

    def _recipe_of_sizes(self) -> Mapping[str, Any]:
        """Return the recipe that trained the largest size, with its promise."""
        place = self.run / SIZES / str(healing_budgets(self.reference)[0])
        report = read_report(place)
        if report is None or report.recipe.get("auto") is None:
            raise NotAgainError(f"{place} holds no run with a promise in its recipe")
        return report.recipe

    def again(self, certificate: Evidence) -> Again:
        """Search again, and score the written adapter beside what was found."""
        place = locate_adapter(self.run)
        digest = result_digest(place)
        if digest != certificate.adapter:
            return Again(differs=[f"{place} is not the adapter of the certificate"])
        if self.command != "heal" and not self._knows_recipe(place):
            return Again(
                differs=[f"the recipe in {self.run / FILE_NAME} is not the one that was used"]
            )
        recipe = self.loaded.recipe
        assert recipe.auto is not None
        promise, asked = promise_of(recipe), options_of(recipe.auto)
        with if_moved("data.files.train=FILE, data.path=DIR, or auto.unlabelled=FILE"):
            rows, promise = choosing_rows(asked, self.loaded, promise, self.reference)
        outcome = self._searched(rows, promise, place)
        # as it was typed: `asked` has the present places
        typed = options_of(AutoBlock.model_validate(self.recorded["auto"]))
        recorded = recipe_of(typed, self.recorded, promise)
        evidence = outcome.evidence(self.command, self.reference, recorded)
        evidence.full.directory = certificate.full.directory
        found = Again(scores=outcome.scores)
        if self.command == "heal":
            found.named = healing_budgets(self.reference)
        written = evidence.written
        if written is not None and written.digest is None:
            written.digest = digest
        evidence.adapter = digest or ""
        found.evidence = Evidence.model_validate(evidence.model_dump())
        if found.evidence.chosen == certificate.chosen:  # else a verdict is another one
            found.differs += self._unlike_written(place, rows, evidence, outcome)
        return found

    def _knows_recipe(self, place: Path) -> bool:
        """Return True if the lineage of an adapter has the digest of the recipe."""
        lineage = read_sora_file(place / SORA_FILE)[0].lineage
        return bool(lineage) and lineage[-1].get("recipe_digest") == recipe_digest(self.recorded)

    def _searched(self, rows: TestRows, promise: Promise, place: Path) -> Outcome:
        recipe = self.loaded.recipe
        if self.command == "heal":
            return self._healed(rows, promise)
        if self.command == "extract":
            return self._extracted(rows, promise, place)
        lineage = read_sora_file(place / SORA_FILE)[0].lineage
        entry = lineage[-1] if lineage else {}
        with open_adapter(self.reference) as file:
            rounding = None
            if entry.get("bits"):
                head = entry.get("head_bits") is not None
                rounding = Rounding.of(file, int(entry["bits"]), head=head)
            return smallest_cut(
                file, recipe, rows, promise, _quiet,
                rounding=rounding, labels=self._labels(promise),
            )  # fmt: skip

    def _extracted(self, rows: TestRows, promise: Promise, place: Path) -> Outcome:
        base = read_sora_file(place / SORA_FILE)[1]
        if base is None:
            raise SoraError(f"{place / SORA_FILE} does not name the base model")
        recipe, source = self.loaded.recipe, str(self.reference)
        with open_adapter(place) as file:
            biases = bool(file.biases)
        with tempfile.TemporaryDirectory() as scratch:
            output = Path(scratch) / "adapter"
            found = prepare_extract(source, base.here or base.resolved, output, biases=biases)
            with found.cut(output, Keep(energy=NEARLY_ALL), lambda _: None) as layers:
                adapter = found.adapter(layers)
                return smallest_cut(
                    adapter, recipe, rows, promise, _quiet,
                    against=source, labels=self._labels(promise),
                )  # fmt: skip

    def _healed(self, rows: TestRows, promise: Promise) -> Outcome:
        sizes, recipe = healing_budgets(self.reference), self.loaded.recipe

        def stored(number: int) -> Path | None:
            place = self.run / SIZES / str(sizes[number])
            return None if read_report(place) is None else place

        labels = self._labels(promise)
        return tested_runs(
            self.reference, sizes, stored, rows, promise, _quiet,
            recipe=recipe, labels=labels, refuse_few=False,
        )  # fmt: skip

    def _labels(self, promise: Promise) -> Labels | None:
        """Return the labels that the result has kept; None: none were asked for."""
        return KeptLabels(Kept.of(self.run)) if promise.basis == "asked" else None

    def _unlike_written(
        self, place: Path, rows: TestRows, evidence: Evidence, outcome: Outcome
    ) -> Iterator[str]:
        """Yield how the written adapter is not the size that was tested."""
        recipe = self.loaded.recipe
        tested = evidence.written or evidence.full
        if outcome.tested is None:
            size, _, scores = score_adapter(place, recipe, rows)
        else:
            size = stored_size(place)
            trainer = stored_model(place, recipe, rows.task)()
            scores = outcome.tested.on(trainer.base).scores(trainer)
        if size.components != tested.components:
            yield (
                f"{place} has {size.components:,} components, and the size that was chosen "
                f"{tested.components:,}"
            )
        statistic = statistic_of(outcome.scores)
        if evidence.written is None or evidence.written.test is None:
            return
        if outcome.tested is not None:  # labels do not belong to an adapter
            differing = int(outcome.scores.differs(scores).sum())
            if abs(differing - (evidence.written.test.differing or 0)) > tolerated(len(scores)):
                yield (
                    f"{place} answers {differing:,} rows differently, and the size that was tested "
                    f"{evidence.written.test.differing:,}"
                )
            return
        drop = statistic.drop(outcome.scores, scores)
        rows_apart = abs(drop - evidence.written.test.drop) * len(scores)
        if rows_apart > tolerated(len(scores)) * max(1.0, abs(outcome.scores.value)):
            yield (
                f"{place} drops by {drop:.6g}, and the size that was tested by "
                f"{evidence.written.test.drop:.6g}"
            )


def _quiet(_: str) -> None:
    """What rows can certify was told when the promise was made."""
