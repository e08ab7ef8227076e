"""The import direction, the forbidden calls and the sizes, read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import selfalign

ROOT = Path(selfalign.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
NAMES = [f.relative_to(ROOT).as_posix() for f in FILES]


@cache
def trees() -> dict[str, ast.Module]:
    """Return the parsed files, which the other test processes do without."""
    return {name: ast.parse(f.read_text("utf-8")) for name, f in zip(NAMES, FILES, strict=True)}


ROOMS = (
    "system",
    "data",
    "quality",
    "constitution",
    "model",
    "training",
    "generation",
    "run",
    "evaluation",
    "planning",
    "report",
    "pipeline",
    "export",
    "web",
    "cli",
)
"""The rooms of the package, from the lowest to the highest: a room imports only rooms that stand before it."""

# Single modules at the top: what they may import is the rooms up to this one.
TOP_MODULES = {"errors": -1, "api": ROOMS.index("web"), "__main__": len(ROOMS), "__init__": len(ROOMS)}


def module_name(file: str) -> str:
    parts = ["selfalign", *Path(file).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(file): file for file in NAMES}


def imported(name: str) -> set[str]:
    """Return the full names of all modules, and of all names taken from modules, that a file imports anywhere."""
    found: set[str] = set()
    package = ["selfalign", *Path(name).parts[:-1]]
    for node in ast.walk(trees()[name]):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(p for p in (base, node.module) if p)
            found |= {f"{module}.{a.name}" for a in node.names if f"{module}.{a.name}" in MODULES}
            found |= {module} if any(f"{module}.{a.name}" not in MODULES for a in node.names) else set()
    return found


def imported_modules(name: str) -> set[str]:
    """Return the modules of the package that a file imports, lazily or for types only included."""
    return {module for module in imported(name) if module in MODULES} - {module_name(name)}


def level(module: str) -> int:
    """Return the height of a module's room; single modules at the top stand where `TOP_MODULES` says."""
    room = module.split(".")[1] if "." in module else "__init__"
    return TOP_MODULES[room] if room in TOP_MODULES else ROOMS.index(room)


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components with more than one module (Tarjan's algorithm)."""
    found: list[list[str]] = []
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in sorted(graph[module]):
            if other not in number:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == number[module]:
            component = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(component) > 1:
                found.append(sorted(component))

    for module in graph:
        if module not in number:
            visit(module)
    return found


def test_every_folder_is_a_known_room():
    folders = {Path(name).parts[0] for name in NAMES if len(Path(name).parts) > 1} - {"assets"}
    assert folders == set(ROOMS)
    assert {name for name in NAMES if "/" not in name} == {f"{name}.py" for name in TOP_MODULES}


def test_rooms_import_only_downwards():
    upward = [
        f"{module_name(name)} -> {module}"
        for name in NAMES
        if module_name(name) != "selfalign"
        for module in imported_modules(name)
        if level(module) > level(module_name(name))
    ]
    assert upward == []


def test_no_import_cycles():
    # The package itself loads the API when first asked for it; nothing imports the package.
    graph = {module_name(name): imported_modules(name) - {"selfalign"} for name in NAMES}
    assert cycles(graph) == []


def test_cycles_finds_a_cycle():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_stages_never_import_each_other():
    stages = {name for name in MODULES if name.startswith("selfalign.pipeline.step")}
    assert len(stages) >= 6
    for stage in stages:
        assert not (imported_modules(MODULES[stage]) & stages), stage


def test_every_room_documents_itself():
    for room in ROOMS:
        text = ast.get_docstring(trees()[f"{room}/__init__.py"]) or ""
        assert "Imports" in text and "Begin with" in text, room


def calls() -> list[tuple[str, ast.Call]]:
    return [(n, node) for n, tree in trees().items() for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_unpickles_or_runs_text_as_code():
    for name in NAMES:
        heads = {m.split(".")[0] for m in imported(name)}
        assert not heads & {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}, name
    for name, call in calls():
        spelled = ast.unparse(call.func)
        assert spelled not in {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}, f"{name}: {spelled}"
        assert spelled not in {"torch.load", "yaml.unsafe_load", "yaml.full_load", "numpy.load", "np.load"}, name
        assert not any(k.arg == "shell" for k in call.keywords), f"{name}: {spelled}(shell=...)"
        assert not any(k.arg == "trust_remote_code" for k in call.keywords), f"{name}: trust_remote_code"


def test_yaml_is_read_by_a_safe_loader_only():
    for name, call in calls():
        if ast.unparse(call.func) not in {"yaml.load", "yaml.load_all"}:
            continue
        given = [ast.unparse(a) for a in call.args[1:2]] + [
            ast.unparse(k.value) for k in call.keywords if k.arg == "Loader"
        ]
        classes = {c.name: [ast.unparse(b) for b in c.bases] for c in trees()[name].body if isinstance(c, ast.ClassDef)}
        assert len(given) == 1, f"{name}: yaml.load without a loader"
        assert classes.get(given[0]) == ["yaml.SafeLoader"], f"{name}: {given[0]} is no SafeLoader"


def test_no_function_is_over_60_lines():
    long = {
        f"{name}:{node.lineno} {node.name}": lines
        for name, tree in trees().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or 0) - node.lineno + 1) > 60
    }
    assert long == {}


def loaded_by(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return {m.split(".")[0] for m in done.stdout.split()}


HEAVY = {"torch", "transformers", "xllamacpp", "peft", "numpy", "ray", "jinja2", "pyarrow", "datasets", "pandas"}


def test_the_command_line_loads_nothing_heavy():
    assert not loaded_by("import selfalign.cli.main") & (HEAVY | {"pydantic", "yaml", "rapidfuzz"})


def test_the_pipeline_loads_nothing_heavy():
    assert not loaded_by("import selfalign.pipeline.order, selfalign.pipeline.preview") & HEAVY


def test_every_module_says_what_it_is():
    silent = [n for n, tree in trees().items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def test_only_one_file_knows_the_embedded_models_name():
    knows = {n for n, f in zip(NAMES, FILES, strict=True) if "gemma3_270m" in f.read_text("utf-8")}
    assert knows <= {"model/sources.py"}
