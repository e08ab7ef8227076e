"""Before any training step: is every row what training needs? The faults that stay silent elsewhere.

Encoded rows and what the tokenizer says about the template's tokens -> findings. A row's structure is compared with
that of a row of harmless words under the same template: a control token more, or in another place, came from text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from selfalign.data.prompt_text import BOS
from selfalign.model.dialogue import Encoded, Template, Tokenizer, encode_example

_SHORT = 3
"""Loss tokens, the end token included, below which an answer is doubtful."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong with training rows."""

    level: Literal["error", "warning"]
    rule: str
    message: str
    rows: tuple[int, ...] = ()
    """Positions of the rows it is about; empty where it is about the tokenizer."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """What was found, and what training will see."""

    findings: tuple[Finding, ...]
    rows: int
    tokens: int
    loss_tokens: int
    longest: int

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level == "error")

    def text(self) -> str:
        """One line about the rows."""
        share = self.loss_tokens / self.tokens if self.tokens else 0.0
        return (
            f"{self.rows:,} rows, {self.tokens:,} tokens, {self.loss_tokens:,} of them with loss ({share:.0%}), "
            f"longest row {self.longest:,} tokens"
        )


def inspect_rows(
    rows: Sequence[Encoded], tokenizer: Tokenizer, template: Template, label: str, too_long: int = 0
) -> Preflight:
    """Look at every row.

    Args:
        label: the assistant's name, for plain-text turns.
        too_long: rows that were longer than the limit and are not among `rows`.
    """
    findings = [*_tokens(tokenizer, template), *_rows(rows, tokenizer, template, label)]
    if too_long > 0.05 * (too_long + len(rows)):
        findings.append(
            Finding(
                "warning",
                "too long",
                f"{too_long} of {too_long + len(rows)} rows are longer than max_length and left out (none is ever "
                "cut): a higher max_length keeps them",
            )
        )
    return Preflight(
        tuple(findings),
        len(rows),
        sum(len(r.ids) for r in rows),
        sum(sum(r.mask) for r in rows),
        max((len(r.ids) for r in rows), default=0),
    )


def _tokens(tokenizer: Tokenizer, template: Template) -> Iterator[Finding]:
    """Whether the tokenizer knows the template's tokens, and begins a text once."""
    fields = (template.user, template.user_end, template.assistant, template.after) if template.control else ()
    for marker in dict.fromkeys(m for field in (*fields, template.end) for m in _markers(field)):
        if len(found := tokenizer.ids(marker, special=True)) != 1:
            yield Finding(
                "error",
                "unknown token",
                f"the tokenizer does not know {marker!r} of the template {template.name!r}: it is {len(found)} tokens",
            )
    start = tokenizer.encode((BOS,))
    if len(start) > 1:
        yield Finding("error", "double start", f"a text begins with {len(start)} tokens of start instead of one")


def _markers(field: str) -> list[str]:
    return re.findall(r"<[^<>\s]+>", field)


def _rows(rows: Sequence[Encoded], tokenizer: Tokenizer, template: Template, label: str) -> Iterator[Finding]:
    end = tokenizer.ids(template.end, special=True)
    # Rows may come from elsewhere: role tokens count, whether or not the tokenizer calls them special.
    roles = (template.user, template.user_end, template.assistant) if template.control else ()
    controls = tokenizer.controls() | {i for f in roles for m in _markers(f) for i in tokenizer.ids(m, special=True)}
    harmless = encode_example(tokenizer, template, "Say it.", "What?", "Tea.", label)
    structure = [i for i in harmless.ids if i in controls]
    start = tokenizer.encode((BOS,))
    faults: dict[tuple[Literal["error", "warning"], str, str], list[int]] = {}

    def note(level: Literal["error", "warning"], rule: str, message: str, position: int) -> None:
        faults.setdefault((level, rule, message), []).append(position)

    for position, row in enumerate(rows):
        loss = [i for i, counts in zip(row.ids, row.mask, strict=True) if counts]
        if not loss:
            note("error", "no loss", "have no token with loss: nothing would be learnt from them", position)
        elif loss[-len(end) :] != end or not row.mask[-1]:
            note("error", "end not learnt", f"do not end with {template.end!r} inside the loss", position)
        elif len(loss) < _SHORT:
            note("warning", "empty answer", "have an answer of one token or none", position)
        if start and row.ids[: 2 * len(start)] == start * 2:
            note("error", "double start", "begin with the start token twice", position)
        elif [i for i in row.ids if i in controls] != structure:
            message = "have control tokens that are not the template's: a turn that text forged, or one that is missing"
            note("error", "forged turn", message, position)
    for (level, rule, message), found in faults.items():
        yield Finding(level, rule, f"{len(found)} of {len(rows)} rows {message}", tuple(found))


def check_memory(needed_mb: float, free_mb: float | None) -> Finding | None:
    """Whether training fits this machine's memory, as far as that is known."""
    if free_mb is None or needed_mb <= free_mb:
        return None
    return Finding(
        "warning",
        "memory",
        f"training takes about {needed_mb / 1000:.1f} GB and {free_mb / 1000:.1f} GB are free: close other programs",
    )


def loss_spans(row: Encoded, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The row's text in stretches, each with whether it is learnt: what a person should see before training."""
    found: list[tuple[list[int], bool]] = []
    for token, counts in zip(row.ids, row.mask, strict=True):
        if not found or found[-1][1] != counts:
            found.append(([], counts))
        found[-1][0].append(token)
    return [(tokenizer.text(ids), counts) for ids, counts in found]
