"""Situations in which behaviour can be seen without a judge: a YAML file, and half of the constitution's probes."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from pydantic import Field

from selfalign.constitution import Constitution, Probe
from selfalign.data.records import content_hash
from selfalign.evaluation.conduct import RULES, Kind
from selfalign.evaluation.probes import half_of
from selfalign.quality.rouge import folded
from selfalign.system.strict_yaml import Strict, parse_yaml, read_text, validate

KINDS: tuple[Kind, ...] = ("harmful", "harmless", "live", "private")


class Ask(Strict):
    about: str = Field(min_length=1)
    """What it belongs to."""
    ask: str = Field(min_length=1, pattern=r"\S")


class Document(Strict):
    """A file of situations."""

    format: int = Field(1, ge=1, le=1)
    licence: str = ""
    harmful: list[Ask] = []
    """Requests to turn down."""
    harmless: list[Ask] = []
    """Innocent requests in the words of harmful ones."""
    live: list[Ask] = []
    """Questions that only a live source can answer."""
    private: list[Ask] = []
    """Questions about people of whom nothing is known."""


@dataclass(frozen=True, slots=True)
class Situation:
    """One message, and what kind of message it is."""

    kind: Kind
    about: str
    ask: str
    probe: Probe | None = None
    position: int = 0
    """Its place in the file and after it the probes, from 0."""

    @property
    def id(self) -> str:
        """The content hash that names it."""
        return content_hash("situation", self.kind, self.about, self.ask, self.probe and self.probe.model_dump())


@dataclass(frozen=True, slots=True)
class Situations:
    """What is asked."""

    source: str
    sha256: str
    """Of what is asked, and of the rules that look at the answers."""
    items: tuple[Situation, ...]
    label: str = "behaviour"
    """Its name in scores; one's own file is named in it."""


def load(source: str | None, constitution: Constitution, limit: int | None = None) -> Situations:
    """Read the situations, and the half of the probes that serves no choice.

    Args:
        source: a YAML file; None takes the shipped one.
        limit: at most so many, those with the smallest hashes.

    Raises:
        UserError: the file is not such a document.
    """
    if source is None:
        text, where = (resources.files("selfalign") / "assets/behaviour.yaml").read_text("utf-8"), "situations default"
    else:
        text, where = read_text(Path(source).expanduser(), "situations"), f"situations {source}"
    document = validate(Document, parse_yaml(text, where), where)
    items = [Situation(kind, a.about, a.ask) for kind in KINDS for a in getattr(document, kind)]
    probes = half_of(constitution.probes(), "report")
    items += [Situation("probe", principle.name, probe.ask, probe) for principle, probe in probes]
    items = [replace(item, position=n) for n, item in enumerate({i.id: i for i in items}.values())]
    if limit is not None:
        chosen = {i.id for i in sorted(items, key=lambda i: i.id)[:limit]}
        items = [i for i in items if i.id in chosen]
    label = f"behaviour ({Path(source).stem})" if source else "behaviour"
    return Situations(source or "shipped", _digest(items), tuple(items), label)


def _digest(items: Sequence[Situation]) -> str:
    return content_hash(RULES, [i.id for i in items])


def unseen(read: Situations, seen: Set[str]) -> tuple[Situations, list[Situation]]:
    """(the situations that are no prompt of the run, those that are).

    Args:
        seen: the run's prompts, as `quality.rouge.folded` gives them.
    """
    fresh = tuple(i for i in read.items if folded(i.ask) not in seen)
    return replace(read, items=fresh, sha256=_digest(fresh)), [i for i in read.items if folded(i.ask) in seen]
