"""Check the principles that internal thoughts cite by number and name, as in "7 (candor)".

`check_citations` checks the thoughts of a model in stage 2, `citation_errors` those of the exemplars. For a model, the
name determines the principle: without a grammar, a small model may write "3 (informative)" although principle 2 is
informative. In an exemplar, number and name must agree.
"""

from __future__ import annotations

from collections.abc import Mapping

from selfalign.data.text import CITATION


def check_citations(thoughts: str, names: Mapping[int, str]) -> tuple[list[int], str | None]:
    """Return the ids of the principles that a model's thoughts cite, and the reason for dropping the thoughts.

    Args:
        names: the principles' names by id (`Constitution.principle_names`).

    Returns:
        The ids in order and without repeats; and the reason, None if the thoughts are well-formed.
    """
    ids = {name.lower(): number for number, name in names.items()}
    cited_names = [name.lower() for _, name in CITATION.findall(thoughts)]
    cited = list(dict.fromkeys(ids[name] for name in cited_names if name in ids))
    if not thoughts.strip():
        return cited, "no thoughts"
    return cited, None if cited else "no principle cited"


def citation_errors(thoughts: str, names: Mapping[int, str]) -> list[str]:
    """Return the errors in the citations of an exemplar's thoughts: unknown numbers, and names of other principles."""
    cited = CITATION.findall(thoughts)
    correct = [names.get(int(digits), "").lower() == name.lower() for digits, name in cited]
    if any(correct):
        # Text before the first correct citation, such as "a meal for 4 (or 5) people", is no citation.
        cited = cited[correct.index(True) :]
    if not cited:
        return ['cites no principle; end its thoughts with e.g. "3 (helpful)"']
    errors = []
    for digits, name in cited:
        if int(digits) not in names:
            errors.append(f'cites "{digits} ({name})", but there is no principle {digits}')
        elif names[int(digits)].lower() != name.lower():
            errors.append(f'cites "{digits} ({name})", but principle {digits} is {names[int(digits)]!r}')
    return errors


def remove_citation(thoughts: str, number: int) -> str:
    """Return the thoughts without the citation of one principle."""
    matches = list(CITATION.finditer(thoughts))
    if not matches:
        return thoughts
    remaining = ", ".join(m[0] for m in matches if int(m[1]) != number)
    return thoughts[: matches[0].start()] + remaining + thoughts[matches[-1].end() :]
