"""The verb `selfalign constitution suggest`: what was thought of answers, and changes drafted from it, one by one."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from selfalign.cli.drafts import Draft, Missing
    from selfalign.cli.suggest_changes import Look, Work
    from selfalign.constitution import Principle
    from selfalign.run.feedback import Feedback

_KEYS = "y take it, n leave it, e in other words, a number: into that principle, new: as a principle of its own, q end"


def register(app: typer.Typer) -> None:
    """Add the verb."""

    @app.command("suggest")
    def suggest(
        run: Annotated[Path, typer.Argument(help="A run directory.", metavar="RUN")],
        accept: Annotated[
            str, typer.Option(metavar="ID,...", help="Take these drafts, or all; ID:7 puts one into principle 7.")
        ] = "",
        out: Annotated[Path | None, typer.Option(help="Write the changed constitution to this new file.")] = None,
        write: Annotated[bool, typer.Option("--write", help="Change the run's constitution file in place.")] = False,
        source: Annotated[
            str, typer.Option("--constitution", help="The constitution to change, where not the run's.")
        ] = "",
        as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    ) -> None:
        """List what was thought of a run's answers and draft changes; nothing is changed that you do not accept."""
        from selfalign.errors import UserError

        if write and out is not None:
            raise UserError("--write changes the file, --out writes a new one: give one of them")
        start(run, accept, out, write, source, as_json)


def start(path: Path, accept: str, out: Path | None, write: bool, source: str, as_json: bool) -> None:
    """List, and where it is asked for change and write. Raises UserError: see `suggest.look`, `begin` and `Work`."""
    from selfalign.cli import suggest_changes
    from selfalign.errors import UserError
    from selfalign.run.directory import RunDir

    looked = suggest_changes.look(RunDir.look(path), source)
    wanted = write or out is not None
    if not accept and not wanted:
        _show(_json(looked) if as_json else _listing(looked))
        return
    work = suggest_changes.begin(looked, out, dry=not wanted)
    if not accept and (as_json or not (sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())):
        raise UserError(
            "say which drafts are taken, with --accept ID,... or --accept all; in a terminal they are asked one by one"
        )
    picked = suggest_changes.chosen(looked, accept) if accept else []
    if not looked.found.drafts:
        _show(_json(looked) if as_json else _listing(looked))
        return
    left: list[str] = []
    if accept:
        left = _take(work, picked, accept.strip() == "all")
    elif not _ask(looked, work):
        typer.echo("nothing was accepted, nothing was written")
        return
    written = work.publish() if wanted and work.taken else None
    _show(_json(looked, work, left, written) if as_json else _outcome(looked, work, left, written))


def _take(work: Work, picked: list[tuple[Draft, int | str | None]], every: bool) -> list[str]:
    """Put drafts into the document; of all of them, those that cannot be taken are left out and named."""
    from selfalign.errors import UserError

    left = []
    for draft, place in picked:
        try:
            work.take(draft, place)
        except UserError as error:
            if not every:
                raise
            left.append(str(error))
    return left


def _show(lines: Iterator[str]) -> None:
    from selfalign.system.console import plain

    for line in lines:
        typer.echo(plain(line))


def _json(
    looked: Look, work: Work | None = None, left: list[str] | None = None, written: Path | None = None
) -> Iterator[str]:
    from selfalign.cli import suggest_changes

    value: dict[str, Any] = looked.as_dict()
    if work is not None:
        value |= {
            "accepted": [{"id": d.id, "principle": number} for d, number in work.taken],
            "left_out": left or [],
            "lint": suggest_changes.findings(work.new_findings()),
            "diff": work.changes(),
            "written": str(written) if written else None,
        }
    yield json.dumps(value, indent=1)  # with escapes: exact, and nothing in it drives a terminal


# -- the list ---------------------------------------------------------------------------------------------------------


def _listing(looked: Look) -> Iterator[str]:
    path, marks = looked.run.path, list(looked.marks.values())
    if not marks:
        yield f"no answer of {path} is marked: /good and /bad do it in selfalign chat, the buttons in serve and view"
        return
    good = sum(m.verdict == "good" for m in marks)
    yield f"{path}: {len(marks)} answers marked, {good} good and {len(marks) - good} bad; constitution: {looked.source}"
    yield from _since(looked)
    drafts: dict[str, list[Draft]] = {}
    for d in looked.found.drafts:
        drafts.setdefault(d.mark.id, []).append(d)
    missing: dict[str, list[Missing]] = {}
    for m in looked.found.missing:
        if (m.kind, m.mark.verdict) != ("rule", "good"):
            missing.setdefault(m.mark.id, []).append(m)
    # Under the principle that the drafts are for, if the answer cites it.
    homes = {key: found[0].principle for key, found in drafts.items()}
    under: dict[str, Principle | None] = {}
    for group in looked.found.groups:
        number = group.principle.id if group.principle else None
        under |= {m.id: group.principle for m in group.marks if m.id not in under or homes.get(m.id) == number}
    for group in looked.found.groups:
        yield ""
        p = group.principle
        yield f"{p.id} ({p.name}). {p.rule}" if p else "no principle"
        for mark in group.marks:
            yield f"  {_mark(mark)}"
            if (home := under[mark.id]) != group.principle:
                yield f"    see {home.id} ({home.name})" if home else "    see no principle"
                continue
            for d in drafts.get(mark.id, []):
                yield f"    {d.id}  {_place(looked, d)}"
                yield from (f"      {line}" for line in _draft(d))
            yield from (f"    no {m.kind}: {m.why}" for m in missing.get(mark.id, []))
    if not drafts:
        return
    target, first = "--out FILE" if _shipped(looked) else "--write or --out FILE", looked.found.drafts[0].id
    yield ""
    yield f"Nothing is changed. {target} asks for each draft in a terminal; with --accept {first},... or --accept all,"
    yield f"these are taken. {first}:N puts a draft into principle N."


def _shipped(looked: Look) -> bool:
    from selfalign.constitution.loading import SHIPPED

    return looked.source in SHIPPED


def _since(looked: Look) -> Iterator[str]:
    if looked.since:
        yield f"{looked.source} is not as it was in the run:"
        yield from (f"  {line}" for line in looked.since[:8])
        if len(looked.since) > 8:
            command = f"selfalign constitution diff {looked.run.path}/constitution.yaml {looked.source}"
            yield f"  … {len(looked.since) - 8} lines more: {command}"


def _mark(mark: Feedback) -> str:
    from selfalign.run import feedback

    return feedback.line(mark)


def _place(looked: Look, draft: Draft) -> str:
    principle = next((p for p in looked.texts.principles if p.id == draft.principle), None)
    if principle is not None:
        place = f"principle {principle.id} ({principle.name})"
    else:
        place = "a new principle" if draft.kind == "rule" else f"with the mark's rule, or {draft.id}:N for principle N"
    return f"{place}: {draft.why}"


def _draft(draft: Draft) -> Iterator[str]:
    """The draft's own words."""
    from selfalign.cli.drafts import told
    from selfalign.constitution.editing import as_written, flow

    if draft.probe is None:
        yield f"+ {draft.sentence}"
    else:
        yield f"+ {flow(as_written(draft.probe))}"
        decides = "passes" if draft.mark.verdict == "good" else "fails"
        yield f"  {told(draft.probe)}; the one marked {draft.mark.verdict} {decides}"


# -- one by one -------------------------------------------------------------------------------------------------------


def _ask(looked: Look, work: Work) -> bool:
    """Ask for each draft. Returns whether any was taken."""
    _show(_since(looked))
    drafts = looked.found.drafts
    try:
        for number, draft in enumerate(drafts, 1):
            if not _one(looked, work, draft, f"{number} of {len(drafts)}"):
                break
    except (KeyboardInterrupt, EOFError):
        typer.echo("\nnothing was written")
        raise typer.Exit(130) from None
    return bool(work.taken)


def _one(looked: Look, work: Work, draft: Draft, head: str) -> bool:
    """One draft until it is taken or left. Returns whether to go on."""
    from selfalign.cli.suggest_changes import edited
    from selfalign.errors import UserError

    place: int | str | None = None
    while True:
        try:
            text, _ = work.with_draft(draft, place)
        except UserError as error:
            _show(iter(("", f"{head}  {draft.id}  {_mark(draft.mark)}", f"  {error}")))
            text = ""
        else:
            _show(iter(("", f"{head}  {draft.id}  {_mark(draft.mark)}", *_change(work, text))))
            _show(f"  {line}" for line in _draft(draft) if draft.probe is not None and not line.startswith("+"))
        said = _read(f"  {'take it? ' if text else ''}[y n e N new q ?] ").strip().lower()
        if said == "y" and text:
            work.take(draft, place)
            return True
        if said in ("n", "q"):
            return said == "n"
        if said == "new" or (said.isascii() and said.isdigit() and len(said) < 4):
            place = "new" if said == "new" else int(said)
        elif said == "e":
            draft = _edited(draft, edited)
        else:
            typer.echo(f"  {_KEYS}")


def _edited(draft: Draft, edited: Any) -> Draft:
    from selfalign.constitution.editing import as_written, flow
    from selfalign.errors import UserError
    from selfalign.evaluation.checks import passes
    from selfalign.system.console import plain

    before = flow(as_written(draft.probe)) if draft.probe else draft.sentence
    try:
        found: Draft = edited(draft, _read("  ", before))
    except UserError as error:
        typer.echo(plain(f"  {error}"))
        return draft
    if found.probe and passes(found.probe, found.mark.answer) != (found.mark.verdict == "good"):
        typer.echo(f"  this probe decides otherwise than you did: the answer that you marked {found.mark.verdict}")
    return found


def _change(work: Work, text: str) -> Iterator[str]:
    """What the draft changes, as `constitution diff` says it."""
    from selfalign.constitution import diff, loading

    changes = diff.diff(work.now(), loading.load(work.target, text), len)
    yield from (f"  {line}" for line in diff.lines(changes))


def _read(question: str, before: str = "") -> str:
    """What the user types, with the keys of a line editor; Ctrl-C ends it.

    Args:
        before: what stands there to be edited.
    """
    keys: Any = None
    with contextlib.suppress(ImportError):
        import readline as keys
    if before and keys is None:
        typer.echo(f"  {before}")
    handlers = [(s, signal.getsignal(s)) for s in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        if before and keys is not None:
            keys.set_startup_hook(lambda: keys.insert_text(before))
        return input(question)
    except UnicodeError:
        return ""
    finally:
        if keys is not None:
            keys.set_startup_hook()
        for number, handler in handlers:
            signal.signal(number, handler)


# -- what came of it --------------------------------------------------------------------------------------------------


def _outcome(looked: Look, work: Work, left: list[str], written: Path | None) -> Iterator[str]:
    from selfalign.constitution import diff

    yield from left
    if not work.taken:
        yield "no draft was taken, nothing was written"
        return
    changes = work.changes()
    yield from diff.lines(changes)
    tokens = changes["tokens"]
    yield f"prompt of stage 2: about {tokens['from']:,} -> {tokens['to']:,} tokens, at 4 characters a token"
    found = work.new_findings()
    yield from (str(f) for f in found)
    number = f"{len(found)} finding{'s' * (len(found) > 1)} more than before" if found else "nothing more than before"
    yield f"lint: {number}"
    if written is None:
        yield "nothing was written: --out FILE" + ("" if _shipped(looked) else ", or --write")
        return
    number = f"{len(work.taken)} of {len(looked.found.drafts)} drafts"
    yield f"{written}: written, with {number}. The run keeps its own constitution, and nothing was trained"
    if all(d.kind == "probe" for d, _ in work.taken):
        yield f"selfalign constitution test {looked.run.path} --probes {written} asks them"
    else:
        named = "" if written == Path(looked.source).resolve() else f" --set constitution={written}"
        yield f"a run under it: selfalign run RECIPE{named} --out runs/NEW"
