"""`constitution suggest RUN`: from a run's marks to a changed constitution, each change accepted by a person.

RUN/feedback.jsonl -> a constitution's YAML

Nothing is changed without being asked for, and the run's own copy of its constitution never is.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from selfalign import constitution
from selfalign.cli.drafts import Draft, Suggested, joined, name_for, says, suggest
from selfalign.cli.starter import make_folder
from selfalign.constitution import Constitution, Probe, editing, lint, loading
from selfalign.constitution import diff as diffs
from selfalign.constitution.lint import Finding
from selfalign.data.records import Prompt, read_jsonl
from selfalign.errors import UserError
from selfalign.quality.rouge import folded
from selfalign.run import feedback
from selfalign.run.directory import RunDir
from selfalign.system import atomic
from selfalign.system.console import plain
from selfalign.system.strict_yaml import parse_yaml, validate


@dataclass
class Work:
    """A constitution being changed by drafts; nothing is written before `publish`.

    Attributes:
        source: default, two-stage, or a file.
        begun: the file as it was read; None for a shipped one.
        text: the document with the changes so far.
        taken: the drafts that are in it, with the principle that each went to.
    """

    source: str
    target: str
    begun: bytes | None
    text: str
    before: Constitution
    seeds: list[tuple[str, constitution.SeedTask]]
    taken: list[tuple[Draft, int]] = field(default_factory=list)

    def now(self) -> Constitution:
        return loading.load(self.target, self.text)

    def with_draft(self, draft: Draft, place: int | str | None = None) -> tuple[str, int]:
        """The document with the draft, and the principle that it went to; the work itself stays as it is.

        Args:
            place: a principle's number, or "new", where not the draft's own.

        Raises:
            UserError: it has no place, it does not read back, or lint finds an error that was not there before.
        """
        target = self._place(draft, place)
        text, texts = self.text, self.now()
        self._check_new(draft, texts, target)
        if draft.probe is not None:
            change: editing.Change = editing.Probed(self._known(texts, draft, target), draft.probe)
        elif target is None:
            number = max(p.id for p in texts.principles) + 1
            name = name_for(draft.sentence, [p.name for p in texts.principles])
            change = editing.Added(number, name, draft.sentence)
        else:
            rule = editing.rule_of(self.target, text, self._known(texts, draft, target))
            change = editing.Reworded(target, joined(rule, draft.sentence))
        new = editing.changed(self.target, text, change)
        if worse := [f for f in self.new_findings(new) if f.level == "error"]:
            raise UserError(f"{draft.id} is not taken: {worse[0].message} [{worse[0].rule}]")
        loading.load(self.target, new)
        return new, change.id

    def take(self, draft: Draft, place: int | str | None = None) -> None:
        """Put the draft into the document. Raises as `with_draft`."""
        self.text, number = self.with_draft(draft, place)
        self.taken.append((draft, number))

    def _place(self, draft: Draft, place: int | str | None) -> int | None:
        if place == "new" and draft.kind == "rule":
            return None
        if isinstance(place, int):
            return place
        if place is None and draft.kind == "rule":
            return draft.principle
        # A probe goes with the rule that the same mark led to.
        if number := next((n for d, n in self.taken if d.mark.id == draft.mark.id), draft.principle):
            return number
        raise UserError(
            f"{draft.id}: a probe needs a principle; say which, as {draft.id}:{self.before.principles[0].id}"
        )

    @staticmethod
    def _check_new(draft: Draft, texts: Constitution, target: int | None) -> None:
        """Two marks may say the same."""
        there = [p for p in texts.principles if target in (None, p.id)]
        if draft.probe is not None:
            same = next((p for p in there if draft.probe in p.probes), None)
        else:
            same = next((p for p in there if says(p, draft.sentence, texts)), None)
        if same is not None:
            what = "has that probe" if draft.probe is not None else "says that"
            raise UserError(f"{draft.id} is not taken: principle {same.id} {what} already")

    @staticmethod
    def _known(texts: Constitution, draft: Draft, number: int | None) -> int:
        if number not in [p.id for p in texts.principles]:
            known = ", ".join(str(p.id) for p in texts.principles)
            raise UserError(f"{draft.id}: there is no principle {number}; there are {known}")
        return number

    def new_findings(self, text: str | None = None) -> list[Finding]:
        """What lint says of the document and did not say of the old one."""
        old = Counter((f.level, f.rule, f.message) for f in self._before)
        found = []
        for f in lint.lint(loading.read(self.target, self.text if text is None else text), self.seeds):
            key = (f.level, f.rule, f.message)
            if old[key]:
                old[key] -= 1
            else:
                found.append(f)
        return found

    @cached_property
    def _before(self) -> list[Finding]:
        text = None if self.begun is None else self.begun.decode("utf-8-sig")
        return lint.lint(loading.read(self.source, text), self.seeds)

    def changes(self) -> diffs.Changes:
        """What `constitution diff` says of the old and the new document; tokens at four characters each."""
        return diffs.diff(self.before, self.now(), lambda text: round(len(text) / 4))

    def publish(self) -> Path:
        """Write the document; returns the file.

        Raises:
            UserError: the file was changed meanwhile, or cannot be written.
        """
        path = Path(self.target)
        data = self.text.encode("utf-8")
        try:
            if path.exists():
                path = path.resolve()  # a link stays one
                if path.read_bytes() != self.begun:
                    raise UserError(f"{path} was changed meanwhile: nothing was written; say it again")
            else:
                make_folder(path.parent)
            mark = b"\xef\xbb\xbf" if self.begun is not None and self.begun.startswith(b"\xef\xbb\xbf") else b""
            atomic.write_bytes(path, mark + data)
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror})") from None
        return path


@dataclass(frozen=True)
class Look:
    """What a run's marks say, of which constitution, and whether that is still the run's."""

    run: RunDir
    source: str
    texts: Constitution
    marks: feedback.Marks
    found: Suggested
    since: tuple[str, ...]
    """What changed in the constitution since the run, line by line."""

    def as_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        drafts: dict[str, list[str]] = {}
        for draft in self.found.drafts:
            drafts.setdefault(draft.mark.id, []).append(draft.id)
        said = {"id": "", "time": "", "verdict": "", "note": "", "model": "", "prompt": "", "answer": ""}
        return {
            "run": str(self.run.path),
            "constitution": self.source,
            "changed_since_the_run": list(self.since),
            "groups": [
                {
                    "principle": {"id": g.principle.id, "name": g.principle.name} if g.principle else None,
                    "marks": [
                        {**{k: v for k, v in m.as_dict().items() if k in said}, "message": m.message,
                         "drafts": drafts.get(m.id, [])}
                        for m in g.marks
                    ],
                }
                for g in self.found.groups
            ],
            "drafts": [
                {
                    "id": d.id, "kind": d.kind, "mark": d.mark.id, "principle": d.principle, "why": d.why,
                    **({"probe": editing.as_written(d.probe)} if d.probe else {"sentence": d.sentence}),
                }
                for d in self.found.drafts
            ],
            "not_drafted": [{"kind": m.kind, "mark": m.mark.id, "why": m.why} for m in self.found.missing],
        }  # fmt: skip


def look(run: RunDir, source: str = "") -> Look:
    """Read a run's marks and draft what they call for.

    Args:
        source: the constitution to change; the one that the run was made with unless given.

    Raises:
        UserError: a mark or the constitution cannot be read, or is gone.
    """
    marks = feedback.read(run)
    wanted = source or run.recipe.constitution
    if not source and wanted not in loading.SHIPPED and not Path(wanted).exists():
        copy = run.path / "constitution.yaml"
        raise UserError(
            f"{wanted}, the constitution of the run, is gone: name the one to change with --constitution, "
            f"or the run's copy with --constitution {copy} --out FILE"
        )
    texts = loading.load(wanted)
    path = run.jsonl("prompts")
    prompts = frozenset(folded(p.message) for p in read_jsonl(path, Prompt)) if path.exists() else frozenset()
    changes = diffs.lines(diffs.diff(run.constitution, texts, len))
    return Look(run, wanted, texts, marks, suggest(marks, run.constitution, texts, prompts), tuple(changes))


def begin(looked: Look, out: Path | None, dry: bool = False) -> Work:
    """Begin to change the constitution: in place, or as the file `out`.

    Args:
        dry: only to see what it would become.

    Raises:
        UserError: the constitution is a shipped one or the run's copy and there is no `out`, or `out` exists.
    """
    source = looked.source
    begun = None if source in loading.SHIPPED else _bytes(Path(source))
    text = f"extends: {source}\n" if begun is None else begun.decode("utf-8-sig")
    target = "FILE" if dry and begun is None else source if out is None else str(out)
    if not dry:
        _check_target(looked, text, out)
    seeds = looked.run.recipe.seeds
    known = seeds == "default" or Path(seeds).is_file()
    before = looked.texts if begun is None else loading.load(source, text)
    return Work(source, target, begun, text, before, loading.located_seeds(seeds) if known else [])


def _check_target(looked: Look, text: str, out: Path | None) -> None:
    """Raises UserError if the changed constitution cannot stand there."""
    source, shipped = looked.source, looked.source in loading.SHIPPED
    if out is None:
        if shipped:
            raise UserError(f"the constitution of the run is the shipped {source!r}, which stays as it is: --out FILE")
        if Path(source).resolve().is_relative_to(looked.run.path.resolve()):
            raise UserError(f"{source} is the run's own copy, which stays as it is: --out FILE")
        return
    if str(out) in loading.SHIPPED or out.exists() or out.is_symlink():
        hint = "" if shipped else ", or change the file itself with --write"
        raise UserError(f"{out} exists: name another --out{hint}")
    base = parse_yaml(text, source).get("extends")
    beside = Path(source).parent
    moved = not shipped and out.parent.resolve() != beside.resolve()
    if moved and isinstance(base, str) and base not in loading.SHIPPED and not Path(base).is_absolute():
        raise UserError(f"{source} extends {base!r} from its own folder: write beside it, --out {beside / out.name}")


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        data.decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return data


def chosen(looked: Look, accept: str) -> list[tuple[Draft, int | str | None]]:
    """The drafts that --accept names: `all`, or ids, each perhaps with another place: `rule-3f2a:7`, `rule-3f2a:new`.

    Raises:
        UserError: there is no such draft.
    """
    known = {d.id: d for d in looked.found.drafts}
    if accept.strip() == "all":
        return [(d, None) for d in known.values()]
    found: dict[str, int | str | None] = {}
    for word in (w.strip() for w in accept.split(",") if w.strip()):
        key, colon, place = word.partition(":")
        if key not in known:
            raise UserError(f"there is no draft {key!r:.60}; there are {', '.join(known) or 'none'}")
        if colon and place != "new" and not (place.isascii() and place.isdigit() and len(place) < 4):
            raise UserError(f"{word:.60}: after the colon stands a principle's number, or new")
        found[key] = int(place) if place.isdigit() else place or None
    if not found:
        raise UserError("--accept needs ids of drafts, or all")
    return [(d, found[key]) for key, d in known.items() if key in found]  # a rule before the probe that goes with it


def edited(draft: Draft, said: str) -> Draft:
    """The draft in a person's words: a rule's sentence, or a probe as one line of YAML.

    Raises:
        UserError: it is empty, or no probe.
    """
    if draft.kind == "rule":
        text = " ".join(plain(" ".join(said.split())).split())
        if not text:
            raise UserError("a rule needs words")
        return replace(draft, sentence=text)
    return replace(draft, probe=validate(Probe, parse_yaml(said, "the probe"), "the probe"))


def findings(found: list[Finding]) -> list[dict[str, Any]]:
    """Findings as plain values."""
    return [asdict(f) for f in found]
