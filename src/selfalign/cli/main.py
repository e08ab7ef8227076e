"""The verbs. No heavy import until a verb needs it: `selfalign --help` imports neither torch nor pydantic."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfalign.cli import export, push, serve, suggest, view
from selfalign.cli.constitution import AsJson, constitution_app

if TYPE_CHECKING:
    from selfalign.run.context import Context
    from selfalign.system.console import Screen

app = typer.Typer(
    help="Principle-driven self-alignment of language models from scratch (SELF-ALIGN).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(constitution_app, name="constitution")
constitution_app.command("suggest")(suggest.suggest)

Run = Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")]
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that were edited by hand.")]
_OWN = "Your own prompts in place of stage 1: a file, a folder, or a hub data set (owner/name[/config][:split])."
_verbosity = 0


def _verbose(value: bool) -> None:
    global _verbosity
    _verbosity = 1 if value else _verbosity


def _quiet(value: bool) -> None:
    global _verbosity
    _verbosity = -1 if value else _verbosity


Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.", callback=_verbose)]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Say only results and errors.", callback=_quiet)]


@app.callback()
def _options(verbose: Verbose = False, quiet: Quiet = False) -> None:
    pass


def _screen() -> Screen:
    from selfalign.system.console import Screen

    return Screen(_verbosity)


def _open(path: Path, force: bool = False) -> Context:
    from selfalign.run.context import Context
    from selfalign.run.directory import RunDir

    return Context(RunDir.open(path), _screen(), force=force)


@app.command()
def run(
    recipe: Annotated[
        str, typer.Argument(help="quick, standard, paper, two-stage, single-gpu, or a YAML file.")
    ] = "quick",
    out: Annotated[Path | None, typer.Option(help="The run directory; runs/<recipe> unless given.")] = None,
    limit: Annotated[int | None, typer.Option(help="Cut every size of the recipe to at most this many rows.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the recipe; repeatable."),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help=_OWN)] = None,
    preview: Annotated[
        int | None, typer.Option(help="Show exact prompts and raw answers of N rows; keep nothing.")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="Set an existing run aside and begin again.")] = False,
    force: Force = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run all stages. The same command again resumes."""
    from selfalign import api
    from selfalign.report import terminal

    if preview is not None:
        from selfalign.pipeline import preview as previews
        from selfalign.planning import prepare

        wanted, texts, _ = prepare.prepare(recipe, settings, limit, prompts)
        previews.show(wanted, texts, preview, _screen())
        return
    made = api.create(
        recipe, out, settings=settings, limit=limit, prompts=prompts, new=new, force=force, screen=_screen()
    )
    with made:
        made.run_all()
        terminal.show(made.context.run, made.context.screen)


@app.command()
def plan(
    recipe: Annotated[
        str, typer.Argument(help="quick, standard, paper, two-stage, single-gpu, or a YAML file.")
    ] = "quick",
    limit: Annotated[int | None, typer.Option(help="Cut every size of the recipe to at most this many rows.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    prompts: Annotated[Path | None, typer.Option(help=_OWN)] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure this machine again (20 seconds).")] = False,
    cluster: Annotated[
        str | None, typer.Option(help="Plan for other machines: gpus=2x8xH100,model=70b (docs/capacity.md).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Requests, tokens, time, memory and disk of each stage, before anything is spent."""
    from selfalign.planning import prepare, terminal

    if cluster is not None:
        planned = prepare.plan_cluster(recipe, cluster, settings=settings, limit=limit, prompts=prompts)
        if as_json:
            typer.echo(json.dumps(planned.as_dict(), indent=1))
        else:
            terminal.show_capacity(planned)
        return
    found = prepare.plan(recipe, settings=settings, limit=limit, prompts=prompts, fresh=fresh, screen=_screen())
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=1))
    else:
        terminal.show(found)


@app.command()
def init(folder: Annotated[Path, typer.Argument(help="The folder to make.", metavar="DIR")]) -> None:
    """Write a constitution, seed tasks and a recipe to edit."""
    from selfalign.cli import starter

    for line in starter.write(folder):
        typer.echo(line)


def _stage(name: str) -> Any:
    def command(run: Run, force: Force = False, verbose: Verbose = False, quiet: Quiet = False) -> None:
        from selfalign import api

        with api.open_run(run, force=force, screen=_screen()) as opened:
            opened.run_stage(name)  # type: ignore[arg-type]

    return command


def _training_stage(name: str) -> Any:
    def command(
        run: Run,
        adapter: Annotated[
            Path | None,
            typer.Option(
                metavar="DIR", help="Take this adapter, trained elsewhere (`export RUN launch`), and train none."
            ),
        ] = None,
        force: Force = False,
        verbose: Verbose = False,
        quiet: Quiet = False,
    ) -> None:
        from selfalign import api

        with api.open_run(run, force=force, screen=_screen()) as opened:
            opened.run_stage("verbose_cloning" if name == "clone" else name, adapter)  # type: ignore[arg-type]

    return command


for _name, _make, _help in (
    ("prompts", _stage, "Stage 1: write prompts."),
    ("align", _stage, "Stage 2: answer them under the constitution."),
    ("engrave", _training_stage, "Stage 3: train the answers into an adapter."),
    ("clone", _training_stage, "Stage 4: verbose cloning."),
    ("report", _stage, "Write the report."),
):
    app.command(_name, help=_help)(_make(_name))


@app.command()
def evaluate(
    targets: Annotated[
        list[str],
        typer.Argument(help="A run directory; or models, each MODEL or MODEL+ADAPTER.", metavar="RUN|MODEL..."),
    ],
    tasks: Annotated[
        str,
        typer.Option(
            "--benchmarks",
            help="behaviour, hhh, truthfulqa, truthfulqa-generation, vicuna, questions, with commas between.",
        ),
    ] = "",
    models: Annotated[str, typer.Option(help="Of a run: base, prompted, engraved, final; all unless given.")] = "",
    others: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="NAME=SPEC", help="One model more: an adapter, a model, or URL#ID; repeatable."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="NAME=SOURCE",
            help="A benchmark's file, folder or hub id; questions=FILE, behaviour=FILE; repeatable.",
        ),
    ] = None,
    prompt: Annotated[
        str, typer.Option(help="The system prompt: standard, concise, verbose or two-shot.")
    ] = "standard",
    prompted: Annotated[
        bool, typer.Option("--prompted", help="Models also with the constitution in the prompt.")
    ] = False,
    judge: Annotated[
        str, typer.Option(help="Who judges generated answers: a model, or URL#ID, as NAME=... or without.")
    ] = "",
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many items of each benchmark.")] = None,
    constitution: Annotated[str, typer.Option(help="For models: whose system prompts stand before.")] = "default",
    out: Annotated[Path | None, typer.Option(help="For models: the folder of results; evaluations/<names>.")] = None,
    force: Force = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure a run's models, or any model, on held-out prompts and benchmarks. The same command again goes on."""
    from selfalign.cli import evaluate

    asked = evaluate.Asked(tasks, models, others or [], data or [], prompt, prompted, limit, constitution, out, judge)
    evaluate.run(targets, asked, force, as_json, _screen())


@app.command()
def status(run: Run, as_json: AsJson = False) -> None:
    """What is done, kept, dropped and why. Works while the run goes on."""
    from selfalign.report import terminal
    from selfalign.report.status import status as run_status

    context = _open(run)
    if as_json:
        typer.echo(json.dumps(run_status(context.run), indent=1, ensure_ascii=False))
    else:
        terminal.show_status(context.run)


@app.command()
def duplicates(
    runs: Annotated[list[Path], typer.Argument(help="One run directory or several.", metavar="RUN...")],
    kind: Annotated[str, typer.Option(help="prompts or answers.")] = "prompts",
    semantic: Annotated[bool, typer.Option("--semantic", help="By meaning: cosine of static word vectors.")] = False,
    threshold: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Jaccard similarity (0.7), or cosine (0.9).")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Prompts or answers that are nearly the same, within a run and across runs."""
    from selfalign.errors import UserError
    from selfalign.report import data_quality, terminal

    if kind not in ("prompts", "answers"):
        raise UserError(f"--kind {kind!r}: prompts or answers")
    options = {} if threshold is None else {"threshold": threshold}
    opened = [_open(run).run for run in dict.fromkeys(path.resolve() for path in runs)]
    found = data_quality.clusters_across(opened, kind, "semantic" if semantic else "near", **options)
    if as_json:
        typer.echo(json.dumps(data_quality.summary(found), indent=1, ensure_ascii=False))
    else:
        terminal.show_clusters(found)


@app.command()
def chat(
    run: Run,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", help="Print one answer and end; - reads standard input.")
    ] = None,
    model: Annotated[str, typer.Option(help="base, engraved or final; the last one trained unless given.")] = "",
    compare: Annotated[bool, typer.Option("--compare", help="Every model of the run answers.")] = False,
    lines: Annotated[
        bool, typer.Option("--lines", help="Each line of standard input is a message, or a command, of one dialogue.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0.0, max=5.0)] = 0.3,
    max_tokens: Annotated[int, typer.Option(min=1, max=8192)] = 512,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    style: Annotated[str, typer.Option(help="The system prompt: standard, concise, verbose or two-shot.")] = "standard",
) -> None:
    """Talk to the base, engraved or final model in the terminal; what is piped in is one message."""
    from selfalign.cli import chat as chats

    context = _open(run)
    try:
        chats.start(context, prompt, model, temperature, max_tokens, seed, style, compare, lines)
    finally:
        context.release_engine()


export.register(app, _screen)
push.register(app, _screen)
serve.register(app, _open)
view.register(app, _screen)


@app.command()
def env(as_json: AsJson = False) -> None:
    """What a bug report needs: versions, processor, memory. Nothing is sent anywhere."""
    from selfalign.system import environment

    facts = environment.facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
    else:
        for key, value in facts.items():
            typer.echo(f"{key:<14} {value}")


@app.command()
def recipe(
    name: Annotated[
        str, typer.Argument(help="quick, standard, paper, two-stage, single-gpu, or a YAML file.")
    ] = "quick",
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE")] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON Schema of recipes, for editors.")] = False,
) -> None:
    """Print a recipe with every setting resolved, or the schema of recipes."""
    from selfalign.run import recipe as recipes
    from selfalign.system import strict_yaml

    if schema:
        typer.echo(json.dumps(recipes.Recipe.model_json_schema(), indent=1))
    else:
        typer.echo(strict_yaml.dump(recipes.load(name, settings)).rstrip())


def main() -> None:
    """The entry point: errors of ours are one line and an exit code; anything else is a bug and shows its trace."""
    from selfalign.errors import SelfAlignError
    from selfalign.system.environment import share_processor
    from selfalign.system.signals import STOP

    share_processor()
    STOP.install()
    try:
        app()
    except SelfAlignError as error:
        from selfalign.system.console import plain

        typer.echo(f"selfalign: {plain(str(error))}", err=True)
        sys.exit(error.exit_code)
    except OSError as error:
        import errno

        denied = (errno.EACCES, errno.EPERM, errno.EROFS)
        amiss = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)  # as a file where a folder is named
        if error.errno in denied or (error.errno in amiss and error.filename):
            typer.echo(f"selfalign: {error.filename} cannot be written ({error.strerror})", err=True)
            sys.exit(1)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        typer.echo(f"selfalign: no space on the disk{where}: make room, then run the same command again", err=True)
        sys.exit(75)


if __name__ == "__main__":
    main()
