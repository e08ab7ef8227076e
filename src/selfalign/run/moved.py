"""Find the files that a run's recipe names after they were moved together with the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from selfalign.run.recipe import Recipe
from selfalign.system.atomic import file_hash


def relocate(recipe: Recipe, run: Path) -> Recipe:
    """Return the recipe with new paths for files that no longer exist where it names them.

    A project folder that was moved keeps its inner order: a missing path is searched below each folder that contains
    the run, by as many of its last parts as exist there. The prompts file must have the SHA-256 of the recipe. For the
    other files, the folder that they were moved out of must be gone.
    """
    prompts, sha256 = recipe.prompts, recipe.prompts.file_sha256
    if prompts.file and sha256:
        moved = _search(prompts.file, run, lambda found, _: file_hash(found) == sha256)
        prompts = prompts.model_copy(update={"file": moved})

    def find(path: str) -> str:
        return _search(path, run, lambda _, left: not left.exists())

    evaluate = recipe.evaluate.model_copy(update={"benchmarks": [find(b) for b in recipe.evaluate.benchmarks]})
    found = {"model": find(recipe.model), "seeds": find(recipe.seeds), "prompts": prompts, "evaluate": evaluate}
    return recipe.model_copy(update=found)


def _search(path: str, run: Path, accepts: Callable[[Path, Path], bool]) -> str:
    """Return the first accepted new path, or the old one.

    Args:
        accepts: (an existing path, the folder that it was moved out of) -> whether it is the file.
    """
    if not Path(path).is_absolute() or Path(path).exists():
        return path
    return next((str(new) for new, left in _candidates(Path(path), run.resolve()) if accepts(new, left)), path)


def _candidates(path: Path, run: Path) -> Iterator[tuple[Path, Path]]:
    for folder in run.parents[:-1]:  # nothing is searched below the root
        for left in [*path.parents][::-1]:
            if (new := folder / path.relative_to(left)).exists():
                yield new, left
