"""Finish stage 1: join the prompts of 1a and 1b, and hold some out.   -> 1_prompts/prompts.jsonl

With user prompts (a file, folder or hub data set), 1a and 1b do not run, and the prompts are imported here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

from selfalign.constitution.nearest_type import nearest_types
from selfalign.constitution.rendering import prompt_types
from selfalign.data.records import Prompt, content_hash, read_jsonl, write_jsonl
from selfalign.data.user_data import UserData, prompt_fields
from selfalign.errors import UserError
from selfalign.quality.instruction_filters import reason_to_drop_user_prompt
from selfalign.quality.novelty import NoveltyIndex
from selfalign.quality.rouge import normalize, words
from selfalign.run.context import Context
from selfalign.run.ledger import RowOutcome, not_judged_note
from selfalign.system.clock import Clock
from selfalign.system.signals import STOP


def merge(context: Context) -> list[Path]:
    """Join the prompts of 1a and 1b, and hold out those of the evaluation; return the files."""
    rows = read_jsonl(context.run.jsonl("self_instruct"), Prompt) + read_jsonl(context.run.jsonl("red_team"), Prompt)
    return [_publish(context, rows)]


def import_file(context: Context) -> list[Path]:
    """Import the prompts of the recipe's `prompts.file`; return the files. Only the kept prompts are in memory.

    Raises:
        UserError: the file is unreadable, the format of a row is unknown, or no prompt is usable.
    """
    clock, data = Clock(), UserData(context.recipe.prompts)
    kept: list[Prompt] = []
    dropped: Counter[str] = Counter()
    for stage in ("topics", "red_team"):
        context.journal.restart(stage)
    with context.screen.bar("user prompts", None) as bar, context.journal.ledger("self_instruct") as ledger:
        for prompt, outcome in _filtered(context, data):
            STOP.check()
            ledger.record(outcome)
            if outcome.reason:
                dropped[outcome.reason] += 1
            else:
                kept.append(prompt)
            bar.add(1)
    if not kept:
        why = ", ".join(f"{reason} {n}" for reason, n in dropped.most_common())
        raise UserError(f"{data.name} has no usable prompt" + (f": {why}" if why else ""))
    for text in data.messages():
        context.screen.say(f"  {text}", "dim")
    unjudged = sum(not words(p.message) for p in kept) if len(context.benchmarks) else 0
    notes = {**data.notes(), **not_judged_note({"overlap": unjudged})}
    context.finish("self_instruct", len(kept) + dropped.total(), clock, notes)
    return [_publish(context, kept)]


def _filtered(context: Context, data: UserData) -> Iterator[tuple[Prompt, RowOutcome]]:
    """Yield the prompt of each row with the row's outcome."""
    config, kept = context.recipe.prompts, 0
    known: set[bytes] = set()
    bounds = (config.tokens[0], config.tokens[1]) if config.tokens else None
    count_tokens = context.model.token_counter() if bounds else len
    for number, (place, row) in enumerate(data):
        row_id, instruction, text = prompt_fields(row)
        prompt = Prompt(row_id, instruction, text)
        ledger_text = message = prompt.message
        length = count_tokens(message) if bounds else None
        reason = row.problem or reason_to_drop_user_prompt(message, length, bounds or (1, 1)) or ""
        # Prompts that differ only in case or white space are duplicates.
        key = blake2b(normalize(message).encode("utf-8", "surrogatepass"), digest_size=16).digest()
        if not reason and key in known:
            reason = "duplicate"
        if not reason and (hit := context.benchmarks.find(instruction, message)):
            reason, ledger_text = hit.reason, hit.ledger_text(message)
        if not reason and config.rows and kept >= config.rows:
            reason = "more than wanted"
        if reason:
            # The ledger's text for an empty row is its position in the file.
            row_id, ledger_text = content_hash(row_id, number), ledger_text or place
        else:
            known.add(key)
            kept += 1
        yield prompt, RowOutcome.judged(row_id, number, reason, ledger_text)


def _publish(context: Context, rows: list[Prompt]) -> Path:
    # Sorting by a hash of the content mixes both sources, in the same order on every machine.
    rows = sorted(with_exemplar_types(context, rows), key=lambda r: content_hash(context.recipe.seed, r.id))
    count = min(context.recipe.evaluate.heldout_prompts, len(rows) // 2)
    heldout = _select_distant(rows, count, [pair.question for pair in context.run.constitution.identity], context)
    path = context.run.jsonl("prompts")
    write_jsonl(path, (replace(r, split="heldout" if r.id in heldout else "train") for r in rows))
    context.screen.say(f"  prompts: {len(rows)}, {len(heldout)} of them held out for the evaluation")
    if len(heldout) < count:
        context.screen.say(
            f"  the recipe holds out {count}, but the others are too similar to training prompts", "yellow"
        )
    return path


def with_exemplar_types(context: Context, rows: list[Prompt]) -> list[Prompt]:
    """Return the prompts with the type whose exemplars stage 2 shows: the red-team type, or the nearest type.

    Raises:
        UserError: a prompt needs the nearest type, and wordllama is not installed.
    """
    constitution, align = context.run.constitution, context.recipe.align
    types = set(prompt_types(constitution)) - {""}
    if align.form == "given" or align.exemplars == "fixed" or not types:
        return rows
    open_rows = [r for r in rows if r.question_type not in types]
    nearest = dict(
        zip((r.id for r in open_rows), nearest_types(constitution, [r.message for r in open_rows]), strict=True)
    )
    return [replace(r, exemplar_type=nearest.get(r.id, r.question_type)) for r in rows]


def _select_distant(rows: list[Prompt], count: int, trained: list[str], context: Context) -> set[str]:
    """Return the ids of the first rows that are similar to no other row and to none of the `trained` texts.

    Generated prompts are never similar to each other; user data may have several wordings of a prompt.
    """
    limit = context.recipe.prompts.novelty
    known = NoveltyIndex(limit)
    for text in trained:
        known.accept(text)
    near = known.nearest_all(r.instruction for r in rows)
    free = [r for r, match in zip(rows, near, strict=True) if match is None and r.instruction not in known]
    places = {r.id: n for n, r in enumerate(rows)}
    while True:
        chosen, rest = free[:count], set(range(len(rows)))
        index = NoveltyIndex(limit)
        for row in chosen:
            index.accept(row.instruction)
            rest.discard(places[row.id])
        others = [rows[n].instruction for n in sorted(rest)]
        close = {match.text for match in index.nearest_all(others) if match} | {o for o in others if o in index}
        # Two chosen rows may be similar to each other, because neither is trained on.
        if not close:
            return {row.id for row in chosen}
        free = [row for row in free if row.instruction not in close]
