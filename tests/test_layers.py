"""The import direction, the forbidden calls and the sizes, read from the source itself."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import selfalign

ROOT = Path(selfalign.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
TREES = {f.relative_to(ROOT).as_posix(): ast.parse(f.read_text("utf-8")) for f in FILES}


def imported(name: str) -> set[str]:
    """Full names of all modules, and of all names taken from modules, that a file imports anywhere."""
    found: set[str] = set()
    package = ["selfalign", *Path(name).parts[:-1]]
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(p for p in (base, node.module) if p)
            found |= {module} | {f"{module}.{a.name}" for a in node.names}
    return found


def imports_stages(name: str) -> bool:
    return any(m == "selfalign.stages" or m.startswith("selfalign.stages.") for m in imported(name))


STAGES = [n for n in TREES if n.startswith("stages/")]


def test_there_are_stages_to_look_at():
    assert len(STAGES) >= 6
    assert len(TREES) >= 40


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_imports_no_other_stage(name: str):
    assert not imports_stages(name)


def test_only_the_pipeline_and_what_stands_above_it_import_stages():
    users = {n for n in TREES if imports_stages(n)}
    assert users <= {"cli.py", "pipeline.py", "preview.py", "web/rows.py"}


def test_decisions_touch_no_engine_run_or_journal():
    for name in [n for n in TREES if n.startswith("quality/")]:
        for module in imported(name):
            assert not module.startswith(
                ("selfalign.engines", "selfalign.run", "selfalign.journal", "selfalign.context", "selfalign.generate")
            ), f"{name} imports {module}"


def calls() -> list[tuple[str, ast.Call]]:
    return [(n, node) for n, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_unpickles_or_runs_text_as_code():
    for name in TREES:
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
        classes = {c.name: [ast.unparse(b) for b in c.bases] for c in TREES[name].body if isinstance(c, ast.ClassDef)}
        assert len(given) == 1, f"{name}: yaml.load without a loader"
        assert classes.get(given[0]) == ["yaml.SafeLoader"], f"{name}: {given[0]} is no SafeLoader"


def test_no_file_is_over_400_lines():
    long = {n: lines for n, f in zip(TREES, FILES, strict=True) if (lines := f.read_text("utf-8").count("\n")) > 400}
    assert long == {}


def test_no_function_is_over_60_lines():
    long = {
        f"{name}:{node.lineno} {node.name}": lines
        for name, tree in TREES.items()
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
    assert not loaded_by("import selfalign.cli") & (HEAVY | {"pydantic", "yaml", "rapidfuzz"})


def test_the_pipeline_loads_nothing_heavy():
    assert not loaded_by("import selfalign.pipeline, selfalign.preview") & HEAVY


def test_every_module_says_what_it_is():
    silent = [n for n, tree in TREES.items() if tree.body and not ast.get_docstring(tree)]
    assert silent == []


def test_only_one_file_knows_the_embedded_models_name():
    knows = {n for n, f in zip(TREES, FILES, strict=True) if "gemma3_270m" in f.read_text("utf-8")}
    assert knows <= {"models.py"}
