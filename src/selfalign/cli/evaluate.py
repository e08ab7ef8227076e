"""Provide the verb that measures the models of a run, or any models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from selfalign.cli.options import AsJson, Force, Quiet, SystemPrompt, Verbose, joined_names, screen
from selfalign.errors import UserError
from selfalign.system.streams import print_document

if TYPE_CHECKING:
    from selfalign.data.scenarios import Half
    from selfalign.evaluation.evaluate import EvaluationRequest
    from selfalign.evaluation.records import Score


def evaluate(
    targets: Annotated[
        list[str], typer.Argument(help="A run directory, or models as MODEL or MODEL+ADAPTER.", metavar="RUN|MODEL")
    ],
    benchmarks: Annotated[
        str,
        typer.Option(
            help="Comma-separated: behaviour, pressure, hhh, truthfulqa, truthfulqa-generation, vicuna, questions."
        ),
    ] = "",
    models: Annotated[
        str, typer.Option(help="Models of a run, comma-separated: base, prompted, engraved, final; by default all.")
    ] = "",
    others: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME=SPEC", help="Another model: an adapter, a model, or URL#ID; repeatable."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=SOURCE",
            help="A benchmark's file, folder or hub id; questions=FILE, behaviour=FILE; repeatable.",
        ),
    ] = None,
    scenarios: Annotated[
        str,
        typer.Option(help="The half of the scenarios: development or test (for published runs)."),
    ] = "",
    system_prompt: SystemPrompt = "standard",
    prompted: Annotated[
        bool, typer.Option("--prompted", help="For models: measure each also with the constitution in its prompt.")
    ] = False,
    judge: Annotated[str, typer.Option(help="The judge of generated responses: MODEL, URL#ID or NAME=SPEC.")] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="At most this many items of each benchmark.")] = None,
    constitution: Annotated[str, typer.Option(help="For models: the constitution of the system prompts.")] = "default",
    out: Annotated[
        Path | None, typer.Option(help="For models: the folder of results; by default evaluations/<names>.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure models on held-out prompts and benchmarks. The same command again resumes."""
    from selfalign.evaluation.evaluate import EvaluationRequest, check_tasks
    from selfalign.evaluation.prompting import check_system_prompt

    kind = check_system_prompt(system_prompt)
    tasks = _split(benchmarks)
    check_tasks(tasks)
    sources = _sources(data or [])
    half = _half(scenarios, sources)
    request = EvaluationRequest(tasks, _split(models), others or [], sources, kind, limit, half, judge)
    runs = [t for t in targets if (Path(t) / "journal.sqlite").exists() and (Path(t) / "recipe.yaml").is_file()]
    if runs and len(targets) > 1:
        raise UserError(f"{runs[0]} is a run; evaluate one run alone, or only models")
    if runs:
        _evaluate_run(Path(runs[0]), request, force, as_json)
    else:
        _evaluate_models(targets, request, constitution, prompted, out, as_json)


def _sources(data: Sequence[str]) -> dict[str, str]:
    """Return benchmark -> source of NAME=SOURCE."""
    from selfalign.evaluation.tasks import ORIGINS, behaviour

    sources = {}
    names = (*ORIGINS, behaviour.NAME)
    for text in data:
        name, _, source = text.partition("=")
        if name not in names or not source:
            raise UserError(f"--data {text!r}: write NAME=SOURCE, where NAME is one of {', '.join(names)}")
        sources[name] = source
    return sources


def _half(scenarios: str, sources: Mapping[str, str]) -> Half | None:
    """Return the half of the scenarios that the option names; None for the recipe's."""
    from selfalign.data.scenarios import Half
    from selfalign.evaluation.tasks import behaviour

    if scenarios and scenarios not in get_args(Half):
        raise UserError(f"--scenarios {scenarios!r} is not known; use one of {', '.join(get_args(Half))}")
    if scenarios and behaviour.NAME in sources:
        raise UserError("--scenarios is for the shipped scenarios; a file of your own is asked as a whole")
    return cast("Half | None", scenarios or None)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _evaluate_run(path: Path, request: EvaluationRequest, force: bool, as_json: bool) -> None:
    """Run the stage `evaluate`, or the requested benchmarks on the run's models."""
    from selfalign import api
    from selfalign.evaluation.evaluate import is_task_score
    from selfalign.pipeline import order

    with api.open_run(path, force=force, screen=screen()) as opened:
        if request.tasks:
            order.run_benchmarks(opened.context, request)
            scores = [score for score in opened.scores() if is_task_score(score)]
            _show(scores, as_json, opened.context.run.evaluation)
            return
        if any((request.models, request.others, request.data, request.limit, request.judge, request.scenarios)) or (
            request.prompt != "standard"
        ):
            raise UserError("these options need --benchmarks; without it, the command runs the stage evaluate")
        opened.run_stage("evaluate")
        if as_json:
            _show(opened.scores(), as_json, opened.context.run.evaluation)


def _evaluate_models(
    targets: list[str], request: EvaluationRequest, source: str, prompted: bool, out: Path | None, as_json: bool
) -> None:
    """Measure models that belong to no run."""
    from selfalign import constitution
    from selfalign.evaluation.evaluate import run_alone
    from selfalign.evaluation.tasks import TASKS

    if not request.tasks:
        known = ", ".join(TASKS)
        raise UserError(f"{targets[0]!r} is not a run; name what to measure with --benchmarks ({known})")
    if request.models or request.others:
        raise UserError("--models and --with are for a run; list the models as arguments instead")
    folder = out or Path("evaluations") / joined_names(targets)
    texts = constitution.load(source)
    _show(run_alone(folder, targets, request, texts, prompted, screen()), as_json, folder)
    screen().say(f"  results: {folder}", "dim")


def _show(scores: Sequence[Score], as_json: bool, folder: Path) -> None:
    from selfalign.evaluation.results import readings
    from selfalign.evaluation.tasks.behaviour import TEST
    from selfalign.report import terminal

    if as_json:
        print_document(json.dumps([asdict(score) for score in scores], indent=1, ensure_ascii=False))
    else:
        terminal.show_benchmarks(scores, readings(folder, TEST))
