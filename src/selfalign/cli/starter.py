"""`selfalign init`: a folder with a constitution, seed tasks and a recipe to edit."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from selfalign.errors import UserError
from selfalign.system import atomic

_CONSTITUTION = """\
# Your constitution: the only texts that a human writes. Everything that generation and training see is in here and in
# seed_tasks.jsonl; fewer than 300 lines of it are enough.
#
#   check it     selfalign constitution lint {folder}/constitution.yaml --seeds {folder}/seed_tasks.jsonl
#   see it       selfalign constitution show {folder}/constitution.yaml      as the model sees it
#   compare it   selfalign constitution diff default {folder}/constitution.yaml
#   try it       selfalign run {folder}/recipe.yaml --preview 2              exact prompts and raw answers
#   run it       selfalign run {folder}/recipe.yaml --out runs/mine
#
# Edit first: `assistant`, then `principles` and `question_types` (what your users ask). An exemplar shows the model
# how to think: it ends its thoughts in the principles it follows, each as `number (name)`. {{name}} and {{cutoff}} are
# filled in. Probes only measure; nothing is trained on them. To add to the shipped text instead of editing it, write
# `extends: default` and only what is new.

"""
_RECIPE = """\
# Your recipe. `selfalign recipe {folder}/recipe.yaml` prints every setting; docs/recipe.md says what they mean.
"""


def make_folder(folder: Path) -> None:
    """Make the folder and those above it.

    Raises:
        UserError: a file stands in its place, or above it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"{folder} cannot be made: a file stands in its place; name another folder") from None
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error.strerror}): name another folder") from None


def write(folder: Path) -> list[str]:
    """Write the three files; returns a line about each.

    Raises:
        UserError: the folder holds one of them, or is a file.
    """
    assets = resources.files("selfalign") / "assets"
    recipe = (assets / "recipes/quick.yaml").read_text("utf-8")
    kept = [line for line in recipe.split("\n") if not line.startswith(("#", "constitution:"))]
    own = ["constitution: constitution.yaml", "seeds: seed_tasks.jsonl"]
    at = next(i for i, line in enumerate(kept) if line.startswith("seed:"))
    texts = {
        "constitution.yaml": _CONSTITUTION.format(folder=folder)
        + (assets / "constitutions/default.yaml").read_text("utf-8").replace("name: default", "name: mine", 1),
        "seed_tasks.jsonl": (assets / "seed_tasks.jsonl").read_text("utf-8"),
        "recipe.yaml": _RECIPE.format(folder=folder) + "\n".join(kept[:at] + own + kept[at:]),
    }
    for name in texts:
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists: name another folder; nothing was written")
    make_folder(folder)
    for name, text in texts.items():
        atomic.write_text(folder / name, text)
    return [
        f"{folder}/constitution.yaml   principles, exemplars, question types, prompts: edit this",
        f"{folder}/seed_tasks.jsonl    175 tasks that stage 1 begins from",
        f"{folder}/recipe.yaml         model, sizes, sampling, training",
        f"then: selfalign run {folder}/recipe.yaml --out runs/{folder.resolve().name}",
    ]
