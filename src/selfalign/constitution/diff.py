"""Compare the texts of two constitutions that the model sees (`selfalign constitution diff A B`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from selfalign.constitution.document import Constitution, Principle
from selfalign.constitution.rendering import longest

Changes = dict[str, Any]


def diff(old: Constitution, new: Constitution, count: Callable[[str], int]) -> Changes:
    """Return the changes of principles, exemplars and other texts, and of the number of tokens.

    Principles are matched by name, exemplars by user message.

    Args:
        count: returns the number of tokens of a text.
    """
    a, b = {p.name.lower(): p for p in old.principles}, {p.name.lower(): p for p in new.principles}
    # A principle with a new name but the same id and rule is renamed, not replaced.
    renamed = [
        (p, q) for p in old.principles for q in new.principles
        if p.id == q.id and p.rule == q.rule and p.name.lower() not in b and q.name.lower() not in a
    ]  # fmt: skip
    old_names, new_names = {p.name.lower() for p, _ in renamed}, {q.name.lower() for _, q in renamed}
    shared = [(a[name], b[name]) for name in a if name in b]
    before, after = longest(old, count), longest(new, count)
    return {
        "principles": {
            "added": [_summary(p) for name, p in b.items() if name not in a and name not in new_names],
            "removed": [_summary(p) for name, p in a.items() if name not in b and name not in old_names],
            "renamed": [{"id": q.id, "from": p.name, "to": q.name} for p, q in renamed],
            "renumbered": [{"name": q.name, "from": p.id, "to": q.id} for p, q in shared if p.id != q.id],
            "reworded": [
                {"id": q.id, "name": q.name, "from": p.rule, "to": q.rule} for p, q in shared if p.rule != q.rule
            ] + [
                {"id": q.id, "name": f"{q.name}, antithesis", "from": p.antithesis, "to": q.antithesis}
                for p, q in shared if p.antithesis != q.antithesis
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
        "type_exemplars": _keyed(_type_exemplars(old), _type_exemplars(new), "key"),
        "identity": _pairs(old, new),
        "reordered": [key for key in ("principles", "exemplars") if _moved(old, new, key)],
        "texts": [
            {"key": key, "from": x, "to": y} for key, x, y in _texts(old.model_dump(), new.model_dump()) if x != y
        ],
        "tokens": {"from": before, "to": after, "change": after - before},
    }  # fmt: skip


def _summary(principle: Any) -> dict[str, Any]:
    return {"id": principle.id, "name": principle.name, "rule": principle.rule}


def _probes(old: Principle, new: Principle) -> dict[str, list[dict[str, Any]]]:
    """Compare the probes of a principle, matched by message. Several probes may have the same message."""
    messages = dict.fromkeys(p.ask for p in (*old.probes, *new.probes))
    pairs = [(ask, _probes_of(old, ask), _probes_of(new, ask)) for ask in messages]
    return {
        "added": [probe for _, a, b in pairs if not a for probe in b],
        "removed": [probe for _, a, b in pairs if not b for probe in a],
        "changed": [{"ask": ask, "from": a, "to": b} for ask, a, b in pairs if a and b and a != b],
    }


def _probes_of(principle: Principle, ask: str) -> list[dict[str, Any]]:
    return [p.model_dump(exclude_defaults=True) for p in principle.probes if p.ask == ask]


def _pairs(old: Constitution, new: Constitution) -> dict[str, list[str]]:
    """Compare identity pairs; a question may have several responses."""
    a, b = ([(i.question, i.answer) for i in texts.identity] for texts in (old, new))
    removed, added = [q for q in a if q not in b], [q for q in b if q not in a]
    changed = [q for q, _ in removed if q in [c for c, _ in added]]
    return {
        "added": [q for q, _ in added if q not in changed],
        "removed": [q for q, _ in removed if q not in changed],
        "changed": list(dict.fromkeys(changed)),
    }


def _type_exemplars(constitution: Constitution) -> list[dict[str, Any]]:
    return [
        {"key": f"{kind.name}: {exemplar.user}", **exemplar.model_dump()}
        for kind in constitution.question_types
        for exemplar in kind.exemplars
    ]


def _moved(old: Constitution, new: Constitution, key: str) -> bool:
    """Return whether the entries that both constitutions contain are in a different order."""
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
    texts: list[tuple[str, Any, Any]] = []
    for key in old:
        if not prefix and key in ("principles", "exemplars", "question_types", "identity", "format"):
            continue
        if isinstance(old[key], dict):
            texts += _texts(old[key], new[key], f"{prefix}{key}.")
        else:
            texts.append((f"{prefix}{key}", old[key], new[key]))
    return texts


def lines(changes: Changes) -> list[str]:
    """Format the changes as lines, similar to a patch. The list is empty if there are none."""
    output: list[str] = []
    principles = changes["principles"]
    output += [f"+ principle {p['id']} ({p['name']}). {p['rule']}" for p in principles["added"]]
    output += [f"- principle {p['id']} ({p['name']}). {p['rule']}" for p in principles["removed"]]
    output += [f"~ principle {p['id']}: renamed from {p['from']!r} to {p['to']!r}" for p in principles["renamed"]]
    output += [f"~ principle {p['name']!r}: number {p['from']} is now {p['to']}" for p in principles["renumbered"]]
    for p in principles["reworded"]:
        output += [f"~ principle {p['id']} ({p['name']})", f"    - {p['from']}", f"    + {p['to']}"]
    for p in principles["probes"]:
        output += _probe_lines(p)
    labels = {
        "exemplars": "exemplar", "question_types": "question type", "type_exemplars": "exemplar of type",
        "identity": "identity pair",
    }  # fmt: skip
    for key, label in labels.items():
        for sign, what in (("+", "added"), ("-", "removed"), ("~", "changed")):
            output += [f"{sign} {label}: {' '.join(str(k).split())[:90]}" for k in changes[key][what]]
    output += [f"~ {key}: in a different order" for key in changes["reordered"]]
    for text in changes["texts"]:
        output += [f"~ {text['key']}", f"    - {text['from']}", f"    + {text['to']}"]
    return output


def _probe_lines(changes: Changes) -> list[str]:
    number = (
        f"{changes['from']} probes"
        if changes["from"] == changes["to"]
        else f"{changes['from']} -> {changes['to']} probes"
    )
    output = [f"    {sign} {_probe(p)}" for sign, what in (("+", "added"), ("-", "removed")) for p in changes[what]]
    for p in changes["changed"]:
        output += [f"    - {_probe(x)}" for x in p["from"]] + [f"    + {_probe(x)}" for x in p["to"]]
    return [
        f"~ principle {changes['id']} ({changes['name']}): {number}{'' if output else ', in a different order'}",
        *output,
    ]


def _probe(probe: dict[str, Any]) -> str:
    """Format a probe as one line, with its check and its words."""
    words = ": " + ", ".join(probe["words"]) if "words" in probe else ""
    check = "not " * probe.get("contrast", False) + probe["expect"] + words
    return f"{' '.join(probe['ask'].split())} [{check}]"
