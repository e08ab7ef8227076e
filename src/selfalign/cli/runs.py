"""Provide the verbs that plan, start, resume and inspect a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfalign.cli.options import (
    AsJson,
    Force,
    Limit,
    Quiet,
    Recipe,
    RunFolder,
    Settings,
    UserPrompts,
    Verbose,
    joined_names,
    open_context,
    screen,
)
from selfalign.errors import UserError
from selfalign.system.streams import print_document

if TYPE_CHECKING:
    from selfalign.run.recipe import Stage

Adapter = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Use this adapter, trained elsewhere (`export RUN launch`), instead of training."),
]


def run(
    recipe: Recipe = "quick",
    out: Annotated[Path | None, typer.Option(help="The run directory; by default runs/<recipe>.")] = None,
    limit: Limit = None,
    settings: Settings = None,
    prompts: UserPrompts = None,
    preview: Annotated[
        int | None, typer.Option(metavar="N", help="Show the exact prompts and raw responses of N rows; write nothing.")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Rename an existing run and start a new one.")] = False,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run all stages of a recipe. The same command again resumes the run."""
    from selfalign import api
    from selfalign.report import terminal

    if preview is not None:
        from selfalign.pipeline import preview as previews
        from selfalign.planning import prepare

        resolved, texts, _ = prepare.prepare(recipe, settings, limit, prompts)
        previews.show(resolved, texts, preview, screen())
        return
    with api.create(
        recipe, out, settings=settings, limit=limit, prompts=prompts, new=new, force=force, screen=screen()
    ) as opened:
        opened.run_all()
        if as_json:
            print_document(json.dumps(opened.status(), indent=1, ensure_ascii=False))
        else:
            terminal.show(opened.context.run, opened.context.screen)


def plan(
    recipe: Recipe = "quick",
    limit: Limit = None,
    settings: Settings = None,
    prompts: UserPrompts = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure this machine again (20 seconds).")] = False,
    cluster: Annotated[
        str | None, typer.Option(help="Plan for other machines: gpus=2x8xH100,model=70b (docs/capacity.md).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Estimate what a run needs: requests, tokens, time, memory. Nothing is generated."""
    from selfalign.planning import prepare, terminal

    if cluster is not None:
        capacity = prepare.plan_cluster(recipe, cluster, settings=settings, limit=limit, prompts=prompts)
        if as_json:
            typer.echo(json.dumps(capacity.as_dict(), indent=1))
        else:
            terminal.show_capacity(capacity)
        return
    estimate = prepare.plan(recipe, settings=settings, limit=limit, prompts=prompts, fresh=fresh, screen=screen())
    if as_json:
        typer.echo(json.dumps(estimate.as_dict(), indent=1))
    else:
        terminal.show(estimate)


def init(folder: Annotated[Path, typer.Argument(help="The folder to create.", metavar="DIR")]) -> None:
    """Write a constitution, seed tasks and a recipe to edit."""
    from selfalign.cli import starter

    for line in starter.write(folder):
        typer.echo(line)


def _run_stage(path: Path, stage: Stage, force: bool, adapter: Path | None = None) -> None:
    from selfalign import api

    with api.open_run(path, force=force, screen=screen()) as opened:
        opened.run_stage(stage, adapter)


def prompts(run: RunFolder, force: Force = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Run stage 1: generate prompts."""
    _run_stage(run, "prompts", force)


def align(run: RunFolder, force: Force = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
    """Run stage 2: generate responses under the constitution."""
    _run_stage(run, "align", force)


def engrave(
    run: RunFolder, adapter: Adapter = None, force: Force = False, verbose: Verbose = False, quiet: Quiet = False
) -> None:
    """Run stage 3: train an adapter on the responses."""
    _run_stage(run, "engrave", force, adapter)


def prefer(
    run: RunFolder,
    pairs: Annotated[Path, typer.Option(help="A file with prompt, chosen and rejected in each row.", metavar="FILE")],
    force: Force = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run stage 3 on your own preference pairs (DPO)."""
    from selfalign import api

    with api.open_run(run, force=force, screen=screen()) as opened:
        opened.prefer(pairs)


def clone(
    run: RunFolder, adapter: Adapter = None, force: Force = False, verbose: Verbose = False, quiet: Quiet = False
) -> None:
    """Run stage 4: verbose cloning, on longer responses."""
    _run_stage(run, "verbose_cloning", force, adapter)


def report(
    runs: Annotated[
        list[Path], typer.Argument(help="A run directory, or runs of one recipe with different seeds.", metavar="RUN")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The file for a comparison of several runs (default: comparisons/<names>.json)."
        ),
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write the report, or compare several runs."""
    if len(runs) == 1:
        if out:
            raise UserError(
                "--out is only for a comparison of several runs: omit it, the report of one run is written into the run"
            )
        if as_json:
            raise UserError("--json is for a comparison of several runs; use `selfalign status RUN --json` for one run")
        _run_stage(runs[0], "report", force)
    else:
        _compare_seeds(runs, out, as_json)


def _compare_seeds(paths: Sequence[Path], out: Path | None, as_json: bool) -> None:
    from selfalign.evaluation import seeds
    from selfalign.report import seeds as tables
    from selfalign.system import atomic

    runs = [seeds.read(open_context(path).run) for path in paths]
    scores = seeds.compare(runs)
    file = out or Path("comparisons") / f"{joined_names(map(str, paths))}.json"
    text = json.dumps(seeds.as_dict(scores, runs), indent=1, ensure_ascii=False)
    atomic.write_text(file, text + "\n")
    if as_json:
        print_document(text)
        return
    tables.show(scores, runs)
    if names := ", ".join(seeds.skipped(scores, runs)):
        screen().say(f"  skipped, because not every run has it: {names}", "yellow")
    screen().say(f"  results: {file}", "dim")


def status(run: RunFolder, as_json: AsJson = False) -> None:
    """Show rows kept, dropped and failed per stage, and scores. Works while the run is running."""
    from selfalign.report import terminal
    from selfalign.report.status import status as run_status

    context = open_context(run)
    if as_json:
        print_document(json.dumps(run_status(context.run), indent=1, ensure_ascii=False))
    else:
        terminal.show_status(context.run)


def duplicates(
    runs: Annotated[list[Path], typer.Argument(help="One or more run directories.", metavar="RUN")],
    kind: Annotated[str, typer.Option(help="prompts, or answers for the responses of stages 2 and 4.")] = "prompts",
    semantic: Annotated[
        bool, typer.Option("--semantic", help="Compare by meaning: cosine similarity of static word vectors.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Minimum similarity; by default Jaccard 0.7, cosine 0.9."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List near-duplicate prompts or responses of runs."""
    from selfalign.report import data_quality, terminal

    if kind not in ("prompts", "answers"):
        raise UserError(f"--kind {kind!r} is not known; use prompts or answers")
    options = {} if threshold is None else {"threshold": threshold}
    opened = [open_context(path).run for path in dict.fromkeys(path.resolve() for path in runs)]
    clusters = data_quality.clusters_across(opened, kind, "semantic" if semantic else "near", **options)
    if as_json:
        print_document(json.dumps(data_quality.summary(clusters), indent=1, ensure_ascii=False))
    else:
        terminal.show_clusters(clusters)


def recipe(
    name: Recipe = "quick",
    settings: Settings = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")] = False,
) -> None:
    """Print a recipe with every setting, or the schema of recipes."""
    from selfalign.run import recipe as recipes
    from selfalign.system import strict_yaml

    if schema:
        typer.echo(json.dumps(recipes.Recipe.model_json_schema(), indent=1))
    else:
        print_document(strict_yaml.dump(recipes.load(name, settings)).rstrip())


def env(as_json: AsJson = False) -> None:
    """Print versions, processor and memory for a bug report. Nothing is sent anywhere."""
    from selfalign.system import environment

    facts = environment.facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        width = max(map(len, facts))
        for key, value in facts.items():
            typer.echo(f"{key:<{width}}  {value}")
