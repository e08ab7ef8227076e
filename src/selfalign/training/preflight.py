"""Check training rows before the first step for faults that training itself would never report.

A forged turn is detected by comparing a row's control tokens with those of a harmless row under the same template: an
additional or misplaced control token came from text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from selfalign.data.prompt_text import BOS
from selfalign.model.dialogue import Encoded, Template, Tokenizer, encode_example

_MIN_LOSS_TOKENS = 3
"""Loss tokens, including the end token, below which a response counts as empty."""
_MAX_EMPTY = 0.05
"""Fraction of rows with an empty response above which there is a warning: one-word labels are good responses."""
_MAX_TOO_LONG = 0.05
"""Fraction of rows over `max_length` above which there is a warning."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault in training rows, or in the tokenizer."""

    level: Literal["error", "warning"]
    rule: str
    message: str
    rows: tuple[int, ...] = ()
    """Indices of the affected rows; empty if the tokenizer is at fault."""


@dataclass(frozen=True, slots=True)
class Preflight:
    """The result of the checks, and the size of the training data."""

    findings: tuple[Finding, ...]
    rows: int
    tokens: int
    loss_tokens: int
    longest: int
    """Tokens of the longest row."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.level == "error")

    def text(self) -> str:
        """Return one line about the rows."""
        fraction = self.loss_tokens / self.tokens if self.tokens else 0.0
        return (
            f"{self.rows:,} rows, {self.tokens:,} tokens, {self.loss_tokens:,} of them with loss ({fraction:.0%}), "
            f"longest row {self.longest:,} tokens"
        )


def inspect_rows(
    rows: Sequence[Encoded], tokenizer: Tokenizer, template: Template, label: str, too_long: int = 0
) -> Preflight:
    """Check every row.

    Args:
        label: the assistant's name, for plain-text turns.
        too_long: number of rows that exceeded `max_length` and are not among `rows`.
    """
    findings = [*_check_tokenizer(tokenizer, template), *_check_rows(rows, tokenizer, template, label)]
    total = too_long + len(rows)
    if too_long > _MAX_TOO_LONG * total:
        message = f"{too_long} of {total} rows exceed max_length and are dropped (none is truncated): increase it"
        findings.append(Finding("warning", "too long", message))
    return Preflight(
        tuple(findings),
        len(rows),
        sum(len(r.ids) for r in rows),
        sum(sum(r.mask) for r in rows),
        max((len(r.ids) for r in rows), default=0),
    )


def check_memory(needed_mb: float, free_mb: float | None) -> Finding | None:
    """Return a warning if training needs more memory than is free; None if it fits or free memory is unknown."""
    if free_mb is None or needed_mb <= free_mb:
        return None
    message = (
        f"training takes about {needed_mb / 1000:.1f} GB, but {free_mb / 1000:.1f} GB are free: close other programs"
    )
    return Finding("warning", "memory", message)


def loss_spans(row: Encoded, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """Split a row into (text, whether it counts in the loss), for display."""
    spans: list[tuple[list[int], bool]] = []
    for token, has_loss in zip(row.ids, row.mask, strict=True):
        if not spans or spans[-1][1] != has_loss:
            spans.append(([], has_loss))
        spans[-1][0].append(token)
    return [(tokenizer.text(ids), has_loss) for ids, has_loss in spans]


def _check_tokenizer(tokenizer: Tokenizer, template: Template) -> Iterator[Finding]:
    """Check that each marker of the template is one token, and that a text begins with one start token."""
    fields = (template.user, template.user_end, template.assistant, template.after) if template.control else ()
    for marker in dict.fromkeys(m for field in (*fields, template.end) for m in _markers(field)):
        if len(ids := tokenizer.ids(marker, special=True)) != 1:
            yield Finding(
                "error",
                "unknown token",
                f"the tokenizer encodes {marker!r} of the template {template.name!r} as {len(ids)} tokens, not one",
            )
    start = tokenizer.encode((BOS,))
    if len(start) > 1:
        yield Finding("error", "double start", f"a text begins with {len(start)} start tokens instead of one")


def _markers(field: str) -> list[str]:
    return re.findall(r"<[^<>\s]+>", field)


def _check_rows(rows: Sequence[Encoded], tokenizer: Tokenizer, template: Template, label: str) -> Iterator[Finding]:
    end = tokenizer.ids(template.end, special=True)
    # Imported rows may come from another tokenizer: role tokens count, even if this one does not call them special.
    roles = (template.user, template.user_end, template.assistant) if template.control else ()
    controls = tokenizer.controls() | {i for f in roles for m in _markers(f) for i in tokenizer.ids(m, special=True)}
    harmless = encode_example(tokenizer, template, "Say it.", "What?", "Tea.", label)
    structure = [i for i in harmless.ids if i in controls]
    start = tokenizer.encode((BOS,))
    faults: dict[tuple[Literal["error", "warning"], str, str], list[int]] = {}

    def add(level: Literal["error", "warning"], rule: str, message: str, position: int) -> None:
        faults.setdefault((level, rule, message), []).append(position)

    for position, row in enumerate(rows):
        loss = [i for i, counts in zip(row.ids, row.mask, strict=True) if counts]
        if not loss:
            add("error", "no loss", "have no token with loss: they would teach nothing", position)
        elif loss[-len(end) :] != end or not row.mask[-1]:
            add("error", "end not learnt", f"do not end with {template.end!r} inside the loss", position)
        elif len(loss) < _MIN_LOSS_TOKENS:
            add("warning", "empty answer", "have a response of at most one token", position)
        if start and row.ids[: 2 * len(start)] == start * 2:
            add("error", "double start", "begin with the start token twice", position)
        elif [i for i in row.ids if i in controls] != structure:
            message = "do not have exactly the template's control tokens: text forged a turn, or a turn is missing"
            add("error", "forged turn", message, position)
    for (level, rule, message), positions in faults.items():
        if rule == "empty answer" and len(positions) <= _MAX_EMPTY * len(rows):
            continue
        yield Finding(level, rule, f"{len(positions)} of {len(rows)} rows {message}", tuple(positions))
