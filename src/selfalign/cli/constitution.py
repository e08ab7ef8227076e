"""The verbs of `selfalign constitution`. No heavy import until a verb needs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from selfalign.constitution.lint import Budget, Finding
    from selfalign.constitution.loading import Located

constitution_app = typer.Typer(
    help="The constitution, the texts that a human writes: check, show, compare, test, import, suggest.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Source = Annotated[str, typer.Argument(help="default, two-stage, or a YAML file.", metavar="[CONSTITUTION]")]
Seeds = Annotated[str, typer.Option(help="The seed tasks: default, or a JSONL file.")]
Model = Annotated[str, typer.Option(help="Count tokens with this model's tokenizer (as `model` in a recipe).")]


@constitution_app.command("lint")
def lint(
    source: Source = "default",
    seeds: Seeds = "default",
    model: Model = "",
    context: Annotated[int, typer.Option(help="Tokens of context that the prompt must fit, with --model.")] = 4096,
    answer: Annotated[int, typer.Option(help="Tokens kept free for thoughts and answer, with --model.")] = 304,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a constitution and its seed tasks; every finding with file and line. Ends with 1 if there are errors."""
    from dataclasses import asdict

    from selfalign.constitution import lint as lints
    from selfalign.constitution import loading

    budget = lints.Budget(model, _counter(model), context, answer) if model else None
    document = loading.read(source)
    tasks = loading.located_seeds(seeds)
    found = lints.lint(document, tasks, budget)
    errors = [f for f in found if f.level == "error" or strict]
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in found], indent=1, ensure_ascii=False))
    else:
        from selfalign.system.console import plain

        for finding in found:
            typer.echo(plain(str(finding)))
        typer.echo(_summary(document, found, len(tasks), budget))
    if errors:
        raise typer.Exit(1)


def _counter(model: str) -> Callable[[str], int]:
    """Counts tokens as this model's tokenizer does."""
    from selfalign.model import sources

    tokenizer = sources.resolve(model).tokenizer()
    return lambda text: len(tokenizer.ids(text))


def _summary(document: Located, found: list[Finding], seeds: int, budget: Budget | None) -> str:
    from selfalign.constitution.document import Constitution
    from selfalign.constitution.rendering import query, render

    errors = sum(f.level == "error" for f in found)
    if errors:
        return f"{document.source}: {errors} errors, {len(found) - errors} warnings"
    texts = Constitution.model_validate(document.value)
    said = f"{len(texts.principles)} principles, {texts.human_items(seeds)['total']} human-written items"
    if budget is not None:
        used = budget.count(render(texts) + query(texts, ""))
        said += f"; the prompt has {used:,} tokens under {budget.model}, {budget.context - used:,} are left"
    return f"{document.source}: {'consistent' if not found else f'{len(found)} warnings'}, {said}"


@constitution_app.command("show")
def show(
    source: Source = "default",
    seeds: Seeds = "default",
    count: Annotated[bool, typer.Option("--count", help="Count the human-written items instead.")] = False,
    as_yaml: Annotated[bool, typer.Option("--yaml", help="Print the document, extensions resolved.")] = False,
    as_json: AsJson = False,
) -> None:
    """Print a constitution as the model sees it, or count its human-written items."""
    from selfalign import constitution
    from selfalign.constitution.rendering import render
    from selfalign.system.console import plain

    texts = constitution.load(source)
    if as_yaml:
        from selfalign.system import strict_yaml

        typer.echo(strict_yaml.dump(texts).rstrip())
        return
    if not count:
        typer.echo(json.dumps(texts.model_dump(), indent=1) if as_json else plain(render(texts)).rstrip())
        return
    counts = texts.human_items(len(constitution.load_seeds(seeds)))
    probes = len(texts.probes())
    if as_json:
        typer.echo(json.dumps({**counts, "not counted": {"probes": probes}}))
        return
    for kind, number in counts.items():
        typer.echo(f"{number:>5}  {kind}")
    typer.echo(f"\n{probes:>5}  probes (they only measure, and are not counted)")


@constitution_app.command("diff")
def diff(
    old: Annotated[str, typer.Argument(help="default, two-stage, or a YAML file.")],
    new: Annotated[str, typer.Argument(help="default, two-stage, or a YAML file.")],
    model: Model = "",
    as_json: AsJson = False,
) -> None:
    """What changed from one constitution to another. Ends with 0, also where they differ."""
    from selfalign import constitution
    from selfalign.constitution import diff as diffs
    from selfalign.system.console import plain

    count = _counter(model) if model else lambda text: round(len(text) / 4)
    changes = diffs.diff(constitution.load(old), constitution.load(new), count)
    if as_json:
        typer.echo(json.dumps(changes, indent=1, ensure_ascii=False))
        return
    for line in diffs.lines(changes) or ["no difference for the model"]:
        typer.echo(plain(line))
    tokens = changes["tokens"]
    how = f"under {model}" if model else "about, at 4 characters a token"
    typer.echo(f"prompt of stage 2: {tokens['from']:,} -> {tokens['to']:,} tokens ({tokens['change']:+,}; {how})")


@constitution_app.command("test")
def test(
    run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
    probes: Annotated[str, typer.Option(help="Ask this constitution's probes instead of the run's own.")] = "",
    drop: Annotated[
        int | None, typer.Option(metavar="N", help="The prompted base with and without principle N instead.")
    ] = None,
    half: Annotated[
        str, typer.Option(help="choices or report: one half of the probes serves choices, the other one measures.")
    ] = "",
    force: Annotated[bool, typer.Option("--force", help="Overwrite probes.jsonl where it was edited by hand.")] = False,
    as_json: AsJson = False,
) -> None:
    """Behaviour probes on base, prompted base, engraved and final model."""
    from dataclasses import asdict

    from selfalign import api, constitution
    from selfalign.errors import UserError
    from selfalign.evaluation.tasks import probes as probing
    from selfalign.pipeline import order
    from selfalign.report import terminal
    from selfalign.system.console import Screen

    if half not in ("", "choices", "report"):
        raise UserError(f"--half {half!r}: choices or report")
    with api.open_run(run, force=force, screen=Screen(0)) as opened:
        fake = opened.context.model.is_fake
        texts = constitution.load(probes) if probes else opened.context.run.constitution
        answers = probing.run(opened.context, texts, drop, half or None)  # type: ignore[arg-type]
        order.write_manifest_if_done(opened.context)
    totals = probing.totals(answers)
    if as_json:
        value = {"totals": [asdict(t) for t in totals], "probes": [asdict(a) for a in answers]}
        typer.echo(json.dumps(value, indent=1, ensure_ascii=False))
    else:
        terminal.show_probes(answers, totals, fake)


@constitution_app.command("import")
def import_(
    paths: Annotated[list[Path], typer.Argument(help="Files of the original project, or a folder of them.")],
    out: Annotated[Path, typer.Option(help="The folder to write constitution.yaml and seed_tasks.jsonl into.")],
) -> None:
    """Read the original project's prompt, seed and identity files into one constitution."""
    from selfalign import constitution
    from selfalign.cli.starter import make_folder
    from selfalign.constitution import import_original
    from selfalign.errors import UserError
    from selfalign.system import atomic, strict_yaml
    from selfalign.system.console import plain

    target, seeds = out / "constitution.yaml", out / "seed_tasks.jsonl"
    for file in (target, seeds):
        if file.exists():
            raise UserError(f"{file} exists: name another --out")
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
    same = (
        "renders to the same text"
        if not import_original.first_difference(result.rules_text, texts)
        else "renders otherwise"
    )
    typer.echo(f"{target}: the rules prompt {same}")
