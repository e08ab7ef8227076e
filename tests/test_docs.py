"""Check the documentation: links and anchors, the pages of the site, and every command, on the fake engine."""

from __future__ import annotations

import ast
import importlib
import io
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

import seed_runs
import selfalign
from selfalign.cli.main import app
from selfalign.run import recipe as recipes
from selfalign.system import strict_yaml

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
ALL = [*DOCS, *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY"))]
PAGES = {page.name: page.read_text("utf-8") for page in ALL}
STAGES = ["prompts", "align", "engrave", "verbose_cloning", "evaluate"]
"""Without the report, which takes seconds to import."""
TOP: Any = typer.main.get_command(app)
SMALL = {
    "engine.kind": "fake",
    "prompts.self_instruct.count": 6,
    "prompts.red_team.count": 8,
    "evaluate.limit": 4,
    "evaluate.heldout_prompts": 4,
}


@pytest.fixture(scope="module")
def site() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The modules that fill pages and write llms.txt."""
    sys.path.insert(0, str(ROOT / "docs/_ext"))
    try:
        yield importlib.import_module("pages"), importlib.import_module("llms_txt")
    finally:
        sys.path.remove(str(ROOT / "docs/_ext"))


def blocks(text: str, *languages: str) -> list[str]:
    return [code for name, code in re.findall(r"^ *```(\w+)\n(.*?)^ *```", text, re.M | re.S) if name in languages]


def without_code(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "`code`", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings, as GitHub and MyST form them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S), re.M):
        plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        slug = base = re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")
        number = 0
        while slug in found:
            number += 1
            slug = f"{base}-{number}"
        found.add(slug)
    return found


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path):
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(PAGES[page.name])):
        path, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file.read_text("utf-8"))):
            wrong.append(target)
    assert wrong == []


def test_every_page_is_in_the_navigation_once(site: tuple[ModuleType, ModuleType]):
    listed = [page for _, pages in site[1].sections(PAGES["index.md"]) for page in pages]
    assert sorted([*listed, "index"]) == [page.stem for page in DOCS]


def test_index_for_language_models_lists_every_page(site: tuple[ModuleType, ModuleType]):
    short, full = site[1].documents(ROOT / "docs")
    entries = re.findall(r"^- \[.+\]\(_sources/(\S+)\.md\): \S", short, re.M)
    assert sorted([*entries, "index"]) == [page.stem for page in DOCS]
    assert "## The recipe" in full and "{toctree}" not in full and "add a module to `evaluation/tasks/`" in full.lower()


def test_settings_page_has_every_setting(site: tuple[ModuleType, ModuleType]):
    def names(prefix: str, value: object) -> Iterator[str]:
        if isinstance(value, dict) and prefix != "engine.served":
            for key, inner in value.items():
                yield from names(f"{prefix}.{key}".lstrip("."), inner)
        else:
            yield prefix

    shown = set(re.findall(r"^\| `([\w.]+)` \|", site[0].settings(), re.M))
    given = recipes.load("quick").model_dump(mode="json")
    assert set(names("", given)) <= shown


def test_blocks_are_valid():
    for name, text in PAGES.items():
        for code in blocks(text, "python"):
            ast.parse(code, name)
        for code in blocks(text, "yaml"):
            strict_yaml.parse_yaml(code, name)


def test_install_commands_name_the_checkout():
    """The name on the package index is not ours yet."""
    assert [name for name, text in PAGES.items() if re.search(r"pip install (?:-\w+ )*[\"']?selfalign", text)] == []


def commands(text: str) -> Iterator[tuple[list[str], str]]:
    """Yield the arguments and the standard input's file of each `selfalign` command in the shell blocks."""
    for code in blocks(text, "sh"):
        for line in code.replace("\\\n", " ").splitlines():
            line = line.replace(".venv/bin/", "").replace("vllm/bin/", "").rpartition("| ")[2]
            words = shlex.split(re.sub(r"(^|\s)#.*", "", line))  # shlex would cut URL#ID, too
            if words and words[0] == "selfalign":
                at = words.index("<") if "<" in words else len(words)
                yield words[1:at], " ".join(words[at + 1 :])


ELSEWHERE = re.compile(
    r"://|\b(?:ORG|OWNER|me)/|path/to|ray\b|vllm|hhh|vicuna|truthfulqa|launch|gguf|merged|adapter|elsewhere|3f2a|"
    r"^report runs/quick|--probes|standard|method=(?:dpo|on_policy)|format preference|--pairs|^view|^serve|mine\.yaml"
)
"""Commands that need a server, a network, weights, a benchmark, a file that the page does not make, or much time."""


def runs_here(words: list[str]) -> bool:
    return not ELSEWHERE.search(" ".join(words))


def parse(words: list[str]) -> None:
    """Parse a command without running it; raise for unknown verbs, options and settings."""
    command, whole = TOP, words
    while hasattr(command, "commands") and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    context = command.make_context("selfalign", list(words), resilient_parsing=True)
    if (settings := context.params.get("settings")) and not runs_here(whole):
        shipped = words[0] if words[0] in recipes.SHIPPED else "quick"
        recipes.load(shipped, settings)


def test_commands_have_existing_options_and_settings():
    found = [words for text in PAGES.values() for words, _ in commands(text)]
    assert len(found) > 80
    for words in found:
        parse(words)


def test_inline_commands_have_existing_options():
    for name, text in PAGES.items():
        if name == "CHANGELOG.md":
            continue
        for words in (code.split() for code in re.findall(r"`selfalign ([a-z][^`]*)`", text)):
            verb = TOP.commands[words[0].split("|")[0].rstrip("\\")]
            if len(words) > 1 and words[1] in getattr(verb, "commands", {}):
                verb = verb.commands[words[1]]
            options = {option for parameter in verb.params for option in parameter.opts}
            assert {word for word in words if re.fullmatch(r"--[a-z-]+", word)} <= options | {"--help"}, (name, words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the runs and files that the commands name."""
    folder = tmp_path_factory.mktemp("docs")
    with selfalign.create("quick", folder / "runs/quick", settings={**SMALL, "stages": STAGES}) as run:
        run.run_all()
    for name in ("runs/mine", "runs/a", "runs/b", "RUN"):
        shutil.copytree(folder / "runs/quick", folder / name)
    for number in (1, 2, 3):
        seed_runs.write(folder / f"runs/seed{number}", number).journal.close()
    (folder / "mine.jsonl").write_text('{"instruction": "Name a fruit."}\n{"instruction": "How is tea made?"}\n')
    (folder / "alpaca.json").write_text('[{"instruction": "Name a fruit.", "input": "", "output": "An apple is one."}]')
    (folder / "mine.txt").write_text("What is tea?\n")
    (folder / "letter.txt").write_text("Read this.\n")
    (folder / "script.txt").write_text("Hello\n/quit\n")
    return folder


def run(words: list[str], stdin: str, monkeypatch: pytest.MonkeyPatch, stages: list[str]) -> None:
    if words[0] in ("run", "plan"):
        words = [*words, *(part for key, value in SMALL.items() for part in ("--set", f"{key}={value}"))]
    if words[0] == "run" and "--preview" not in words:
        words += ["--set", f"stages={stages}"]
    if words[0] == "evaluate" and "--benchmarks" in words:
        words = [*words, "--limit", "4"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(Path(stdin).read_text("utf-8") if stdin else "Hello\n"))
    assert app(words, standalone_mode=False) in (None, 0), words


def commands_to_run() -> dict[str, list[tuple[list[str], str]]]:
    """Return the commands of each page that can run here and that no earlier page has."""
    found: dict[str, list[tuple[list[str], str]]] = {}
    seen: set[str] = set()
    for page in ("tutorial.md", *(name for name in PAGES if name != "tutorial.md")):
        for words, stdin in commands(PAGES[page]):
            if runs_here(words) and (" ".join(words) not in seen or words[0] == "init"):
                found.setdefault(page, []).append((words, stdin))
                seen.add(" ".join(words))
        if all(words[0] == "init" for words, _ in found.get(page, [])):
            found.pop(page, None)
    return found


TO_RUN = commands_to_run()


@pytest.mark.integration
@pytest.mark.parametrize("page", [page for page in TO_RUN if page != "tutorial.md"])
def test_commands_run(page: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    shutil.copytree(finished, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    for words, stdin in TO_RUN[page]:
        if words[0] == "run" and "--preview" not in words:  # other settings than those of the run that exists
            words = [*words, "--out", "runs/new", "--new"]
        if "mine.jsonl" in words and words[0] == "export":
            Path("mine.jsonl").unlink()
        run(words, stdin, monkeypatch, STAGES[:2])


@pytest.mark.integration
def test_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for words, stdin in TO_RUN["tutorial.md"]:
        run(words, stdin, monkeypatch, STAGES)
        if words[0] == "init":
            (text,) = blocks(PAGES["tutorial.md"], "yaml")
            assert text.startswith("# mine/constitution.yaml\n")
            Path("mine/constitution.yaml").write_text(text, "utf-8")
