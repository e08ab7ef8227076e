"""Provide the verbs of `selfalign constitution`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from selfalign.cli.options import AsJson, Force, RunFolder, screen
from selfalign.errors import UserError
from selfalign.system.streams import print_document

if TYPE_CHECKING:
    from selfalign.constitution import Constitution
    from selfalign.constitution.document import Check
    from selfalign.constitution.lint import Budget, Finding
    from selfalign.constitution.loading import Located

app = typer.Typer(
    help="Check, print, compare, test and import constitutions.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

Source = Annotated[str, typer.Argument(help="default, two-stage, or a YAML file.", metavar="CONSTITUTION")]
Seeds = Annotated[str, typer.Option(help="Seed tasks: default, or a JSONL file.")]
Model = Annotated[str, typer.Option(help="Count tokens with this model's tokenizer (a model as in a recipe).")]


@app.command("lint")
def lint(
    source: Source = "default",
    seeds: Seeds = "default",
    model: Model = "",
    context: Annotated[int, typer.Option(help="With --model: size of the context for prompt and response.")] = 4096,
    answer: Annotated[int, typer.Option(help="With --model: tokens reserved for thoughts and response.")] = 304,
    strict: Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a constitution and its seed tasks. Each finding has its file and line; exit code 1 on errors."""
    from selfalign.constitution import lint as lints
    from selfalign.constitution import loading

    budget = lints.Budget(model, _counter(model), context, answer) if model else None
    document = loading.read(source)
    tasks = loading.located_seeds(seeds)
    findings = lints.lint(document, tasks, budget, _shows)
    errors = [f for f in findings if f.level == "error" or strict]
    if as_json:
        print_document(json.dumps([asdict(f) for f in findings], indent=1, ensure_ascii=False))
    else:
        from selfalign.system.console import plain

        for finding in findings:
            typer.echo(plain(str(finding)))
        typer.echo(_summary(document, findings, len(tasks), budget))
    if errors:
        raise typer.Exit(1)


def _counter(model: str) -> Callable[[str], int]:
    """Return a function that counts tokens with this model's tokenizer."""
    from selfalign.model import sources

    tokenizer = sources.resolve(model).tokenizer()
    return lambda text: len(tokenizer.ids(text))


def _summary(document: Located, findings: list[Finding], seeds: int, budget: Budget | None) -> str:
    from selfalign.constitution.document import Constitution
    from selfalign.constitution.rendering import longest

    errors = sum(f.level == "error" for f in findings)
    if errors:
        return f"{document.source}: {errors} errors, {len(findings) - errors} warnings"
    texts = Constitution.model_validate(document.value)
    parts = f"{len(texts.principles)} principles, {texts.human_items(seeds)['total']} human-written items"
    if budget is not None:
        used = longest(texts, budget.count)
        parts += f"; the prompt takes {used:,} tokens of {budget.model}, and {budget.context - used:,} remain"
    return f"{document.source}: {f'{len(findings)} warnings' if findings else 'consistent'}, {parts}"


@app.command("show")
def show(
    source: Source = "default",
    seeds: Seeds = "default",
    count: Annotated[bool, typer.Option("--count", help="Count the human-written items.")] = False,
    question_type: Annotated[
        str, typer.Option("--type", help="Print the prompt for questions of this type, or of every type (all).")
    ] = "",
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print the document with all that it extends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a constitution as the model reads it, or count its items."""
    from selfalign import constitution
    from selfalign.system.console import plain

    texts = constitution.load(source)
    if as_yaml:
        from selfalign.system import strict_yaml

        print_document(strict_yaml.dump(texts).rstrip())
        return
    if not count:
        output = json.dumps(texts.model_dump(), indent=1) if as_json else plain(_prompt(texts, question_type)).rstrip()
        print_document(output)
        return
    counts = texts.human_items(len(constitution.load_seeds(seeds)))
    probes = len(texts.probes())
    if as_json:
        typer.echo(json.dumps({**counts, "not counted": {"probes": probes}}))
        return
    for kind, number in counts.items():
        typer.echo(f"{number:>5}  {kind}")
    typer.echo(f"\n{probes:>5}  probes (not counted: they only measure)")


def _prompt(texts: Constitution, question_type: str) -> str:
    """Return the prompt for a type, or the principles followed by the exemplars of all types.

    Raises:
        UserError: there is no such type.
    """
    from selfalign.constitution.rendering import prompt_types, render, render_exemplars, render_principles

    if question_type == "all":
        headings = {name: f"──── {name or 'questions without a type'} ────" for name in prompt_types(texts)}
        parts = [f"{heading}\n\n{render_exemplars(texts, name)}" for name, heading in headings.items()]
        return render_principles(texts) + "".join(parts)
    if question_type and texts.question_type(question_type) is None:
        names = ", ".join(t.name for t in texts.question_types)
        raise UserError(f"there is no question type {question_type!r}; the types are {names}")
    return render(texts, question_type)


def _shows(check: Check, message: str, response: str) -> bool:
    """Return whether a response shows the behaviour that a question type's check names."""
    from selfalign.constitution.document import Probe
    from selfalign.evaluation.tasks import checks

    return checks.shows(Probe(ask=message, expect=check), response)


@app.command("diff")
def diff(
    old: Annotated[str, typer.Argument(help="default, two-stage, or a YAML file.", metavar="OLD")],
    new: Annotated[str, typer.Argument(help="default, two-stage, or a YAML file.", metavar="NEW")],
    model: Model = "",
    as_json: AsJson = False,
) -> None:
    """Print what changed from one constitution to another. Exit code 0 even if they differ."""
    from selfalign import constitution
    from selfalign.constitution import diff as diffs
    from selfalign.system.console import plain

    count = _counter(model) if model else lambda text: round(len(text) / 4)
    changes = diffs.diff(constitution.load(old), constitution.load(new), count)
    if as_json:
        print_document(json.dumps(changes, indent=1, ensure_ascii=False))
        return
    for line in diffs.lines(changes) or ["no difference in what the model reads"]:
        typer.echo(plain(line))
    tokens = changes["tokens"]
    how = f"tokens of {model}" if model else "estimated at 4 characters per token"
    typer.echo(f"prompt of stage 2: {tokens['from']:,} -> {tokens['to']:,} tokens ({tokens['change']:+,}; {how})")


@app.command("test")
def test(
    run: RunFolder,
    probes: Annotated[str, typer.Option(help="Use the probes of this constitution instead of the run's.")] = "",
    drop: Annotated[
        int | None, typer.Option(metavar="N", help="Only measure the prompted base, with and without principle N.")
    ] = None,
    half: Annotated[
        str, typer.Option(help="Use one half of the probes: choices (for decisions) or report (for measurements).")
    ] = "",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Ask each model of a run the behaviour probes."""
    from selfalign import api, constitution
    from selfalign.evaluation.tasks import probes as probing
    from selfalign.pipeline import order
    from selfalign.report import terminal

    if half not in ("", "choices", "report"):
        raise UserError(f"--half {half!r} is not known; use choices or report")
    with api.open_run(run, force=force, screen=screen()) as opened:
        fake = opened.context.model.is_fake
        texts = constitution.load(probes) if probes else opened.context.run.constitution
        answers = probing.run(opened.context, texts, drop, half or None)  # type: ignore[arg-type]
        order.write_manifest_if_done(opened.context)
    totals = probing.totals(answers)
    if as_json:
        value = {"totals": [asdict(t) for t in totals], "probes": [asdict(a) for a in answers]}
        print_document(json.dumps(value, indent=1, ensure_ascii=False))
    else:
        terminal.show_probes(answers, totals, fake)


@app.command("import")
def import_(
    paths: Annotated[
        list[Path], typer.Argument(help="Files of the original project, or a folder with them.", metavar="PATH")
    ],
    out: Annotated[Path, typer.Option(help="The folder for constitution.yaml and seed_tasks.jsonl.")],
) -> None:
    """Convert the files of the original project to a constitution."""
    from selfalign import constitution
    from selfalign.cli.starter import make_folder
    from selfalign.constitution import import_original
    from selfalign.system import atomic, strict_yaml
    from selfalign.system.console import plain

    target, seeds = out / "constitution.yaml", out / "seed_tasks.jsonl"
    for file in (target, seeds):
        if file.exists():
            raise UserError(f"{file} exists; use another --out")
    result = import_original.read_files(paths)
    value, texts = import_original.document(result, "imported", constitution.load("default"))
    make_folder(out)
    atomic.write_text(target, strict_yaml.dump(value))
    if result.seeds:
        atomic.write_text(seeds, result.seeds)
    for line in result.placed:
        typer.echo(plain(line))
    for line in result.not_placed:
        typer.echo(plain(f"not placed: {line}"))
    differs = import_original.first_difference(result.rules_text, texts)
    typer.echo(f"{target}: the rules prompt renders to {'a different' if differs else 'the same'} text")
