"""`constitution diff A B`: what changed for the model. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfalign.constitution.document import Constitution, Principle
from selfalign.constitution.rendering import render

Changes = dict[str, Any]


def diff(old: Constitution, new: Constitution, count: Callable[[str], int]) -> Changes:
    """Added, removed, renumbered and reworded principles; changed exemplars and other texts; change in tokens.

    Principles are the same where their names are, exemplars where their user messages are.
    """
    a, b = {p.name.lower(): p for p in old.principles}, {p.name.lower(): p for p in new.principles}
    # A principle whose name changed under the same id and rule was renamed, not replaced.
    renamed = [
        (p, q) for p in old.principles for q in new.principles
        if p.id == q.id and p.rule == q.rule and p.name.lower() not in b and q.name.lower() not in a
    ]  # fmt: skip
    gone, come = {p.name.lower() for p, _ in renamed}, {q.name.lower() for _, q in renamed}
    shared = [(a[name], b[name]) for name in a if name in b]
    before, after = count(render(old)), count(render(new))
    return {
        "principles": {
            "added": [_shown(p) for name, p in b.items() if name not in a and name not in come],
            "removed": [_shown(p) for name, p in a.items() if name not in b and name not in gone],
            "renamed": [{"id": q.id, "from": p.name, "to": q.name} for p, q in renamed],
            "renumbered": [{"name": q.name, "from": p.id, "to": q.id} for p, q in shared if p.id != q.id],
            "reworded": [
                {"id": q.id, "name": q.name, "from": p.rule, "to": q.rule} for p, q in shared if p.rule != q.rule
            ],
            "probes": [
                {"id": q.id, "name": q.name, "from": len(p.probes), "to": len(q.probes), **_probes(p, q)}
                for p, q in shared
                if p.probes != q.probes
            ],
        },
        "exemplars": _keyed([e.model_dump() for e in old.exemplars], [e.model_dump() for e in new.exemplars], "user"),
        "question_types": _keyed(
            [t.model_dump() for t in old.question_types], [t.model_dump() for t in new.question_types], "name"
        ),
        "identity": _pairs(old, new),
        "reordered": [key for key in ("principles", "exemplars") if _moved(old, new, key)],
        "texts": [
            {"key": key, "from": x, "to": y} for key, x, y in _texts(old.model_dump(), new.model_dump()) if x != y
        ],
        "tokens": {"from": before, "to": after, "change": after - before},
    }  # fmt: skip


def _shown(principle: Any) -> dict[str, Any]:
    return {"id": principle.id, "name": principle.name, "rule": principle.rule}


def _probes(old: Principle, new: Principle) -> dict[str, list[dict[str, Any]]]:
    """Probes of one principle; they are the same where their messages are. One message may be asked in two ways."""
    asks = dict.fromkeys(p.ask for p in (*old.probes, *new.probes))
    both = [(ask, _asked(old, ask), _asked(new, ask)) for ask in asks]
    return {
        "added": [probe for _, a, b in both if not a for probe in b],
        "removed": [probe for _, a, b in both if not b for probe in a],
        "changed": [{"ask": ask, "from": a, "to": b} for ask, a, b in both if a and b and a != b],
    }


def _asked(principle: Principle, ask: str) -> list[dict[str, Any]]:
    return [p.model_dump(exclude_defaults=True) for p in principle.probes if p.ask == ask]


def _pairs(old: Constitution, new: Constitution) -> dict[str, list[str]]:
    """Identity pairs; a question may have several answers."""
    a, b = ([(i.question, i.answer) for i in texts.identity] for texts in (old, new))
    gone, come = [q for q in a if q not in b], [q for q in b if q not in a]
    changed = [q for q, _ in gone if q in [c for c, _ in come]]
    return {
        "added": [q for q, _ in come if q not in changed],
        "removed": [q for q, _ in gone if q not in changed],
        "changed": list(dict.fromkeys(changed)),
    }


def _moved(old: Constitution, new: Constitution, key: str) -> bool:
    """Whether what both hold stands in another order."""
    name = {"principles": "name", "exemplars": "user"}[key]
    a, b = ([getattr(e, name) for e in getattr(texts, key)] for texts in (old, new))
    return [e for e in a if e in b] != [e for e in b if e in a]


def _keyed(old: list[dict[str, Any]], new: list[dict[str, Any]], key: str) -> dict[str, list[str]]:
    a, b = {e[key]: e for e in old}, {e[key]: e for e in new}
    return {
        "added": [k for k in b if k not in a],
        "removed": [k for k in a if k not in b],
        "changed": [k for k in a if k in b and a[k] != b[k]],
    }


def _texts(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[tuple[str, Any, Any]]:
    found: list[tuple[str, Any, Any]] = []
    for key in old:
        if not prefix and key in ("principles", "exemplars", "question_types", "identity", "format"):
            continue
        if isinstance(old[key], dict):
            found += _texts(old[key], new[key], f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", old[key], new[key]))
    return found


def lines(changes: Changes) -> list[str]:
    """The changes as a person reads them, in the manner of a patch; empty where nothing changed."""
    found: list[str] = []
    principles = changes["principles"]
    found += [f"+ principle {p['id']} ({p['name']}). {p['rule']}" for p in principles["added"]]
    found += [f"- principle {p['id']} ({p['name']}). {p['rule']}" for p in principles["removed"]]
    found += [f"~ principle {p['id']}: renamed from {p['from']!r} to {p['to']!r}" for p in principles["renamed"]]
    found += [f"~ principle {p['name']!r}: number {p['from']} is now {p['to']}" for p in principles["renumbered"]]
    for p in principles["reworded"]:
        found += [f"~ principle {p['id']} ({p['name']})", f"    - {p['from']}", f"    + {p['to']}"]
    for p in principles["probes"]:
        found += _probe_lines(p)
    for key, label in (("exemplars", "exemplar"), ("question_types", "question type"), ("identity", "identity pair")):
        for sign, what in (("+", "added"), ("-", "removed"), ("~", "changed")):
            found += [f"{sign} {label}: {' '.join(str(k).split())[:90]}" for k in changes[key][what]]
    found += [f"~ {key}: in another order" for key in changes["reordered"]]
    for text in changes["texts"]:
        found += [f"~ {text['key']}", f"    - {text['from']}", f"    + {text['to']}"]
    return found


def _probe_lines(changes: Changes) -> list[str]:
    number = (
        f"{changes['from']} probes"
        if changes["from"] == changes["to"]
        else f"{changes['from']} -> {changes['to']} probes"
    )
    found = [f"    {sign} {_probe(p)}" for sign, what in (("+", "added"), ("-", "removed")) for p in changes[what]]
    for p in changes["changed"]:
        found += [f"    - {_probe(x)}" for x in p["from"]] + [f"    + {_probe(x)}" for x in p["to"]]
    return [f"~ principle {changes['id']} ({changes['name']}): {number}{'' if found else ', in another order'}", *found]


def _probe(probe: dict[str, Any]) -> str:
    """A probe in one line; where words are looked for, with them."""
    words = ": " + ", ".join(probe["words"]) if "words" in probe else ""
    wanted = "not " * probe.get("contrast", False) + probe["expect"] + words
    return f"{' '.join(probe['ask'].split())} [{wanted}]"
