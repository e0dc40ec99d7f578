"""The packaged recipes and sweeps: their folder, names and files."""

from __future__ import annotations

from pathlib import Path

from methods.words import closest, did_you_mean
from sora_cli.core.environment import PACKAGE
from sora_cli.core.errors import SoraError
from sora_cli.core.shell import quote
from sora_cli.core.words import near_files

SCHEMA_FILE = "schema.json"
_SWEEPS = "sweeps"
YAML_FILES = "*.y*ml"
_DATA_ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")
_NO_RUNS = ("base", _SWEEPS)  # folders without recipes to train: parts to extend, and sweeps


def recipes_dir() -> Path:
    """Return the folder of packaged recipes: in the package, or beside it in a checkout."""
    installed = PACKAGE / "recipes"
    return installed if installed.is_dir() else PACKAGE.parent / "recipes"


def recipe_names() -> list[str]:
    """Return the names of all recipes ("rte", "official/rte"), without base recipes and sweeps."""
    root = recipes_dir()
    files = (path.relative_to(root) for path in root.rglob("*.yaml"))
    names = (file.with_suffix("").as_posix() for file in files if file.parts[0] not in _NO_RUNS)
    return sorted(names, key=lambda name: (name.count("/"), name != "quickstart", name))


def sweep_files() -> list[Path]:
    """Return the files of the packaged sweeps."""
    return sorted((recipes_dir() / _SWEEPS).rglob("*.yaml"))


def sweep_code() -> list[Path]:
    """Return the Python files that belong to packaged sweeps (for `--code`)."""
    return sorted((recipes_dir() / _SWEEPS).rglob("*.py"))


def sweep_names() -> list[str]:
    """Return the names of all packaged sweeps ("glue", "cpu/glue")."""
    root = recipes_dir() / _SWEEPS
    names = (path.relative_to(root).with_suffix("").as_posix() for path in sweep_files())
    return sorted(names, key=lambda name: (name.count("/"), name))


def find_sweep(reference: str | Path) -> Path:
    """Return a sweep's file from a path or the name of a packaged sweep."""
    path = Path(reference).expanduser()
    name = path.as_posix()
    if path.is_file():
        return path
    packaged = packaged_recipe(f"{_SWEEPS}/{name}") or packaged_recipe(name)
    if packaged in sweep_files():
        return packaged
    beside = near_files(path, YAML_FILES) if path.suffix else None
    hint = beside or did_you_mean(name, sweep_names())
    raise SoraError(f"no sweep file '{reference}'", hint=hint)


def packaged_recipe(name: str) -> Path | None:
    """Return the file of a packaged recipe; its name may have 'recipes/' and '.yaml' around it."""
    stem = name.removeprefix("recipes/").removesuffix(".yaml").removesuffix(".yml")
    path = recipes_dir() / f"{stem}.yaml"
    inside = path.resolve().is_relative_to(recipes_dir().resolve())
    return path if inside and path.is_file() else None


def find_recipe(reference: str | Path) -> Path:
    """Return a recipe's file from a path or the name of a packaged recipe."""
    path = Path(reference).expanduser()
    if path.is_file():
        if path.suffix.lower() in _DATA_ENDINGS:
            raise SoraError(
                f"'{reference}' is a data file, not a recipe",
                hint=f"sora init {quote(str(reference))} writes a recipe for it",
            )
        return path
    packaged = packaged_recipe(Path(reference).as_posix())
    if packaged is not None:
        return packaged
    if path.is_dir():
        hint = _nearest(path)
        if any(entry.suffix.lower() in _DATA_ENDINGS for entry in path.iterdir()):
            hint = f"sora init {quote(str(reference))} writes a recipe for the data in it"
        raise SoraError(f"'{reference}' is a directory, not a recipe file", hint=hint)
    raise SoraError(f"no recipe '{reference}'", hint=_nearest(path))


def recipe_title(path: Path) -> str:
    """Return the first line of a recipe's header comment."""
    for line in path.read_text(encoding="utf-8").splitlines():
        text = line.lstrip("# ").strip()
        if line.startswith("#") and text and not text.startswith("yaml-language-server"):
            return text
    return ""


def _nearest(path: Path) -> str:
    """Return a hint for an unknown recipe: the nearest file or packaged recipe."""
    beside = near_files(path, YAML_FILES)
    if beside is not None and beside.startswith("did you mean"):
        return beside
    near = closest(path.as_posix().removeprefix("recipes/").removesuffix(".yaml"), recipe_names())
    if near is not None:
        return f"did you mean '{near}'? (all of them: sora recipes)"
    if path.suffix.lower() in (".yaml", ".yml"):
        return "to write a recipe for your data: sora init FILE.csv; packaged recipes: sora recipes"
    return "to list the packaged recipes: sora recipes"
