"""The check that a run may write into its directory."""

from __future__ import annotations

from sora_cli.core.errors import SoraError
from sora_cli.core.lock import check_directory, holds_only
from sora_cli.recipe.load import LoadedRecipe
from sora_cli.train.checkpoint.places import FOLDER, checkpoint_paths
from sora_cli.train.checkpoint.resume import check_same


def check_output(loaded: LoadedRecipe, *, force: bool, resume: bool) -> bool:
    """Check that a run may write into its directory: nothing is overwritten unasked.

    Returns:
        Whether nothing is left to do: the run that is to be resumed has finished.

    Raises:
        SoraError: a run is there, finished or with checkpoints, or something that is no run at all.
    """
    from sora_cli.report import FILE_NAME, HISTORY_FILE, read_report

    output = loaded.output_dir
    check_directory(output)
    report = read_report(output)
    if report is None:
        if not (force or holds_only(output, FILE_NAME, HISTORY_FILE, FOLDER)):
            raise SoraError(
                f"'{output}' is not empty and holds no run of this tool", hint="output.dir=DIR"
            )
        return False
    finished = report.status == "completed"
    if resume:
        check_same(report.recipe, loaded.resolved(), output, force=force)
        return finished
    if finished and not force:
        raise SoraError(
            f"'{output}' holds a finished run",
            hint="train again with --force, or train elsewhere: output.dir=DIR",
        )
    if checkpoint_paths(output / FOLDER) and not force:
        raise SoraError(
            f"'{output}' holds a run that is not finished, with checkpoints",
            hint="resume it: --resume; start over: --force; or train elsewhere: output.dir=DIR",
        )
    return False
