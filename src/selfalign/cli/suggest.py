"""Provide `selfalign constitution suggest`: list the marks on a run's responses, and turn one into a probe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from selfalign.cli.options import AsJson, RunFolder
from selfalign.errors import UserError

if TYPE_CHECKING:
    from selfalign.constitution import Constitution, Principle, Probe
    from selfalign.run.directory import RunDir
    from selfalign.run.feedback import Feedback, Marks


def suggest(
    run: RunFolder,
    probe: Annotated[str, typer.Option(metavar="MARK", help="Turn this mark into a probe.")] = "",
    expect: Annotated[
        str, typer.Option(metavar="CHECK", help="What the probe checks: steps, refuses, ... (docs/constitution.md).")
    ] = "",
    words: Annotated[
        list[str] | None,
        typer.Option("--word", metavar="WORD", help="A word for the checks mentions and in_order; repeatable."),
    ] = None,
    principle: Annotated[
        int | None, typer.Option(metavar="N", help="The principle; by default the one that the response cites.")
    ] = None,
    source: Annotated[
        str, typer.Option("--constitution", help="The constitution to change; by default the run's.")
    ] = "",
    out: Annotated[Path | None, typer.Option(help="Write the changed constitution to this new file.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Change the constitution file in place.")] = False,
    as_json: AsJson = False,
) -> None:
    """List marks and notes by principle, or turn one into a probe."""
    from selfalign.run import feedback
    from selfalign.run.directory import RunDir
    from selfalign.system.console import plain

    directory = RunDir.load(run)
    marks = feedback.read(directory)
    if not probe:
        if expect or words or principle or source or out or write:
            raise UserError(
                "name the mark to turn into a probe, with --probe MARK; without options, all marks are listed"
            )
        lines = _as_json(directory, marks) if as_json else _listing(directory, marks)
    elif write and out:
        raise UserError("use either --write, which changes the file, or --out, which writes a new one")
    else:
        mark = _select(marks, probe)
        lines = _add_probe(directory, mark, _probe(mark, expect, words or []), principle, source, out, write)
    for line in lines:
        typer.echo(plain(line))


def _listing(run: RunDir, marks: Marks) -> Iterator[str]:
    from selfalign.run import feedback

    if not marks:
        yield f"no response of {run.path} is marked; mark responses in chat (/good, /bad), serve or view"
        return
    good = sum(mark.verdict == "good" for mark in marks.values())
    yield f"{run.path}: {len(marks)} marked responses, {good} good and {len(marks) - good} bad"
    for principle, group in feedback.by_principle(marks, run.constitution):
        yield ""
        yield f"{principle.id} ({principle.name}). {principle.rule}" if principle else "no principle cited"
        yield from (feedback.line(mark, f"  {_short(marks, mark)}  ") for mark in group)
    yield ""
    yield f"Make a probe of a mark: selfalign constitution suggest {run.path} --probe MARK --expect CHECK --out FILE"


def _as_json(run: RunDir, marks: Marks) -> Iterator[str]:
    from selfalign.run import feedback

    keys = ("id", "time", "verdict", "note", "model", "prompt", "answer")
    groups = [
        {
            "principle": {"id": principle.id, "name": principle.name} if principle else None,
            "marks": [
                {**{k: v for k, v in mark.as_dict().items() if k in keys}, "message": mark.message} for mark in group
            ],
        }
        for principle, group in feedback.by_principle(marks, run.constitution)
    ]
    yield json.dumps({"run": str(run.path), "groups": groups}, indent=1)  # json escapes control characters


def _short(marks: Marks, mark: Feedback) -> str:
    """Return the mark's id, shortened to the fewest digits (at least four) that are unique for every mark."""
    length = next(n for n in range(4, 17) if n == 16 or len({key[:n] for key in marks}) == len(marks))
    return mark.id[:length]


def _select(marks: Marks, prefix: str) -> Feedback:
    matches = [mark for key, mark in marks.items() if key.startswith(prefix)]
    if len(matches) != 1:
        known = ", ".join(_short(marks, mark) for mark in marks.values()) or "none"
        raise UserError(f"--probe {prefix!r:.60} names {len(matches) or 'no'} marks; the marks are {known}")
    return matches[0]


def _probe(mark: Feedback, expect: str, words: Sequence[str]) -> Probe:
    """Return the probe that asks the mark's message, and that the marked response passes if the mark is good.

    Raises:
        UserError: the check is unknown, no probe can agree with the mark, or the message cannot be asked.
    """
    import re
    from typing import get_args

    from selfalign.constitution import Probe
    from selfalign.constitution.document import Check
    from selfalign.evaluation.tasks.checks import passes, shows
    from selfalign.system.strict_yaml import validate

    if expect not in get_args(Check):
        raise UserError(f"--expect {expect!r} is not a check; the checks are {', '.join(get_args(Check))}")
    if placeholder := re.search(r"\{[A-Za-z_]{1,30}\}", mark.message):
        raise UserError(f"the message contains {placeholder[0]}, which is a placeholder in a constitution")
    probe = validate(Probe, {"ask": mark.message, "expect": expect, "words": list(words)}, "probe")
    probe = probe.model_copy(update={"contrast": shows(probe, mark.answer) == (mark.verdict == "bad")})
    if passes(probe, mark.answer) != (mark.verdict == "good"):
        raise UserError("the response is marked good, but it is empty, and an empty response passes no probe")
    return probe


def _add_probe(
    run: RunDir, mark: Feedback, probe: Probe, number: int | None, source: str, out: Path | None, write: bool
) -> Iterator[str]:
    """Add the probe to the constitution, write it if `out` or `write` is set, and yield lines about it.

    Raises:
        UserError: the principle is ambiguous, the result is invalid, or the file cannot be written.
    """
    from selfalign.constitution import editing, loading
    from selfalign.system import strict_yaml

    source = source or run.recipe.constitution
    shipped = source in loading.SHIPPED
    if write and (shipped or Path(source).resolve().is_relative_to(run.path.resolve())):
        kind = "ships with selfalign" if shipped else "is the run's own copy"
        raise UserError(f"the constitution {source} {kind} and cannot be changed; write a new one with --out FILE")
    if out is not None and (str(out) in loading.SHIPPED or out.exists() or out.is_symlink()):
        raise UserError(f"{out} exists; name another file with --out" + ("" if shipped else ", or use --write"))
    before = None if shipped else _read_bytes(source)
    text = f"extends: {source}\n" if before is None else before.decode("utf-8-sig")
    texts = loading.load(source)
    principle = _principle(mark, number, run.constitution, texts)
    target = out or Path("FILE" if shipped else source)
    edited = editing.append_probe(str(target) if shipped else source, text, principle.id, probe)
    _check(run, source, str(target), text, edited)
    yield f"principle {principle.id} ({principle.name}): {strict_yaml.dump_inline(probe.model_dump(mode='json'))}"
    if not (write or out):
        yield "nothing was written; add --out FILE" + ("" if shipped else " or --write")
        return
    byte_order_mark = b"\xef\xbb\xbf" if before is not None and before.startswith(b"\xef\xbb\xbf") else b""
    editing.publish(target, byte_order_mark + edited.encode("utf-8"), before if write else None)
    yield f"written to {target}; ask the probes with: selfalign constitution test {run.path} --probes {target}"


def _read_bytes(source: str) -> bytes:
    try:
        data = Path(source).read_bytes()
        data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(
            f"the constitution {source} cannot be read ({error}); name the one to change with --constitution"
        ) from None
    return data


def _principle(mark: Feedback, number: int | None, cited: Constitution, texts: Constitution) -> Principle:
    """Return the requested principle of the constitution to change, or else the only one that the response cites."""
    names = {p.name.lower() for p in cited.principles if p.id in mark.principles}
    matches = [p for p in texts.principles if (p.id == number if number else p.name.lower() in names)]
    if len(matches) != 1:
        why = f"there is no principle {number}" if number else f"the response cites {len(matches) or 'no'} principles"
        known = ", ".join(str(p.id) for p in texts.principles)
        raise UserError(f"{why}; choose the probe's principle with --principle N, one of {known}")
    return matches[0]


def _check(run: RunDir, source: str, target: str, text: str, edited: str) -> None:
    """Check that the edited text loads from its new path, and that lint finds no new error in it."""
    from selfalign.constitution import loading
    from selfalign.constitution.lint import lint

    if loading.load(target, edited).digest() != loading.load(source).digest():
        raise UserError(f"{target} would extend a different constitution than {source}; write it to the same folder")
    seeds: Any = run.recipe.seeds
    tasks = loading.located_seeds(seeds) if seeds == "default" or Path(seeds).is_file() else []
    errors = [
        {(f.rule, f.message): f for f in lint(loading.read(target, version), tasks) if f.level == "error"}
        for version in (text, edited)
    ]
    for key, finding in errors[1].items():
        if key not in errors[0]:
            raise UserError(f"the probe is not added: {finding.message} [{finding.rule}]")
