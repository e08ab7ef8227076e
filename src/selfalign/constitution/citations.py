"""Check the principles that internal thoughts cite."""

from __future__ import annotations

from selfalign.constitution.document import Constitution
from selfalign.data.text import CITATION


def judge_thoughts(thoughts: str, constitution: Constitution) -> tuple[list[int], str | None]:
    """The principles that the thoughts cite (ids in order, once each), and why the thoughts are not well-formed.

    The name decides: without a grammar a small model writes "3 (informative)" where 2 is informative.
    """
    known = {p.name.lower(): p.id for p in constitution.principles}
    names = [name.lower() for _, name in CITATION.findall(thoughts)]
    cited = list(dict.fromkeys(known[name] for name in names if name in known))
    if not thoughts.strip():
        return cited, "no thoughts"
    return cited, None if cited else "no principle cited"
