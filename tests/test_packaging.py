"""The metadata of a release: one version, types, and a long description that reads well on a package index."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import selfalign

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
HOOK = PROJECT["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]


def test_versions_are_the_same():
    assert PROJECT["project"]["version"] == selfalign.__version__


def test_package_is_marked_as_typed():
    assert (Path(selfalign.__file__).parent / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


def test_long_description_has_no_links_to_files():
    text = (ROOT / "README.md").read_text("utf-8") + "\n![A picture](docs/page.png)\n"
    for rule in HOOK["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    targets = re.findall(r"\]\(([^)]*)\)", text)
    assert targets and all(target.startswith("https://") for target in targets)
    assert "A picture" not in text and "docs/results.md" in text


def test_long_description_has_the_newest_changes():
    path, pattern = next((f["path"], f["pattern"]) for f in HOOK["fragments"] if "pattern" in f)
    found = re.search(pattern, (ROOT / path).read_text("utf-8"))
    assert found and found[1].startswith("## ") and found[1].count("\n## ") == 0


def test_tools_of_extras_have_pinned_versions():
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in _lines("constraints.txt")}
    extras = PROJECT["project"]["optional-dependencies"]
    named = {
        re.split(r"[\[<>=]", name)[0].lower().replace("_", "-") for kind in ("docs", "dev") for name in extras[kind]
    }
    assert named <= pinned and "twine" in pinned


def _lines(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text("utf-8").splitlines() if not line.startswith("#")]
