"""Write the folder of `selfalign init`: a constitution, seed tasks and a recipe to edit."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from selfalign.errors import UserError
from selfalign.system import atomic


def make_folder(folder: Path) -> None:
    """Create the folder and its parents.

    Raises:
        UserError: one of them is a file, or cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # also "File exists", if a file has that name
        raise UserError(f"{folder} cannot be created ({error.strerror}); use another folder") from None


def write(folder: Path) -> list[str]:
    """Write the three files; return lines for the user.

    Raises:
        UserError: one of the files exists, or the folder cannot be created.
    """
    assets = resources.files("selfalign") / "assets"

    def head(name: str) -> str:
        return (assets / f"init/{name}.yaml").read_text("utf-8").format(folder=folder)

    recipe = (assets / "recipes/quick.yaml").read_text("utf-8")
    lines = [line for line in recipe.split("\n") if not line.startswith(("#", "constitution:"))]
    sources = ["constitution: constitution.yaml", "seeds: seed_tasks.jsonl"]
    at = next(i for i, line in enumerate(lines) if line.startswith("seed:"))
    texts = {
        "constitution.yaml": head("constitution")
        + (assets / "constitutions/default.yaml").read_text("utf-8").replace("name: default", "name: mine", 1),
        "seed_tasks.jsonl": (assets / "seed_tasks.jsonl").read_text("utf-8"),
        "recipe.yaml": head("recipe") + "\n".join(lines[:at] + sources + lines[at:]),
    }
    for name in texts:
        if (folder / name).exists():
            raise UserError(f"{folder / name} exists; use another folder. Nothing was written")
    make_folder(folder)
    for name, text in texts.items():
        atomic.write_text(folder / name, text)
    return [
        f"{folder}/constitution.yaml   principles, exemplars, question types, system prompts: edit this",
        f"{folder}/seed_tasks.jsonl    175 tasks that stage 1 starts from",
        f"{folder}/recipe.yaml         model, sizes, sampling, training",
        f"then: selfalign run {folder}/recipe.yaml --out runs/{folder.resolve().name}",
    ]
