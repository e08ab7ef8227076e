"""Stage 1, its end: what 1a and 1b wrote, together, with the held-out part marked.   -> 1_prompts/prompts.jsonl

With a file of the user's own prompts this takes the place of 1a and 1b.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from selfalign.context import Context
from selfalign.errors import UserError
from selfalign.journal import Clock, Fate
from selfalign.quality.instruction_filters import cleaned, reason_to_drop_own
from selfalign.quality.novelty import NoveltyIndex
from selfalign.quality.rouge import folded
from selfalign.records import Prompt, content_hash, join_input, json_lines, prompt_id, read_jsonl, write_jsonl


def merge(context: Context) -> list[Path]:
    """Join both sources in an order that depends on content only, and hold out the evaluation's prompts."""
    rows = read_jsonl(context.run.jsonl("self_instruct"), Prompt) + read_jsonl(context.run.jsonl("red_team"), Prompt)
    return [_publish(context, rows)]


def import_file(context: Context, file: Path) -> list[Path]:
    """Take prompts from a file: JSONL with `instruction` (or `prompt`) and perhaps `input`, or plain lines.

    Raises:
        UserError: the file cannot be read, or holds no prompt.
    """
    clock, wanted = Clock(), context.recipe.prompts.file_sha256
    if wanted and hashlib.sha256(_bytes(file)).hexdigest() != wanted:
        raise UserError(f"{file} was changed since the run was begun: restore it, or begin again with --new")
    for ledger in ("topics", "red_team"):
        context.journal.restart(ledger)
    rows: dict[str, Prompt] = {}
    fates: list[Fate] = []
    known: set[str] = set()
    bounds = context.recipe.prompts.tokens
    measure = _counter(context) if bounds else len
    for number, (raw_instruction, raw_text) in enumerate(_read(file)):
        instruction, text = cleaned(raw_instruction), cleaned(raw_text)
        row_id, message = prompt_id(instruction, text), join_input(instruction, text)
        length = None if bounds is None else measure(message)
        reason = reason_to_drop_own(message, length, (bounds[0], bounds[1]) if bounds else (1, 1))
        # Case and punctuation do not make a prompt another one.
        key = folded(message)
        if not reason and key in known:
            reason = "duplicate"
        hit = None if reason else context.benchmarks.find(instruction, message)
        if hit:
            reason, message = hit.reason, hit.beside(message)
        if not reason and context.recipe.prompts.rows and len(rows) >= context.recipe.prompts.rows:
            reason = "more than wanted"
        if reason:
            fates.append((content_hash(row_id, number), number, "dropped", reason, message))
            continue
        known.add(key)
        rows[row_id] = Prompt(row_id, instruction, text)
        fates.append((row_id, number, "kept", "", message))
    if not rows:
        reasons = Counter(fate[3] for fate in fates)
        why = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        raise UserError(f"{file} holds no prompt" + (f" that can be used: {why}" if why else ""))
    context.settle("self_instruct", fates, len(fates), clock, {"from": file.name})
    return [_publish(context, list(rows.values()))]


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"prompts file {str(file)!r} cannot be read: {error.strerror}") from None


def count(file: Path, most: int | None) -> int:
    """How many prompts the file holds, before the filters. Raises as `import_file`."""
    number = len(_read(file))
    if not number:
        raise UserError(f"{file} holds no prompt")
    return min(number, most) if most else number


def _counter(context: Context) -> Callable[[str], int]:
    """Counts a message's tokens: words where there is no model."""
    if not context.has_weights:
        return lambda message: len(message.split())
    tokenizer = context.model.tokenizer()
    return lambda message: len(tokenizer.ids(message))


def _read(file: Path) -> list[tuple[str, str]]:
    if file.suffix not in (".jsonl", ".json"):
        try:
            return [(line.strip(), "") for line in file.read_text("utf-8-sig").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"prompts file {str(file)!r} cannot be read: {error}") from None
    found = []
    for number, value in json_lines(file):
        instruction, text = value.get("instruction", value.get("prompt")), value.get("input", "")
        if not isinstance(instruction, str) or not isinstance(text, str) or not instruction.strip():
            raise UserError(f"{file}:{number}: a prompt needs 'instruction' (or 'prompt') as text")
        found.append((instruction.strip(), text.strip()))
    return found


def _publish(context: Context, rows: list[Prompt]) -> Path:
    # The hash of the content mixes both sources, the same way on every machine.
    rows = sorted(rows, key=lambda r: content_hash(context.recipe.seed, r.id))
    wanted = min(context.recipe.evaluate.run_on, len(rows) // 2)
    heldout = _apart(rows, wanted, [pair.question for pair in context.run.constitution.identity], context)
    rows = [replace(r, split="heldout" if r.id in heldout else "train") for r in rows]
    path = context.run.jsonl("prompts")
    write_jsonl(path, rows)
    context.screen.say(f"  prompts: {len(rows)}, of which {len(heldout)} are held out for the evaluation")
    if len(heldout) < wanted:
        context.screen.say(f"  {wanted} were to be held out: the others are too close to what is trained on", "yellow")
    return path


def _apart(rows: list[Prompt], wanted: int, trained: list[str], context: Context) -> set[str]:
    """Ids of the first rows that are close to no other row and to none of the texts that are always trained on.

    Stage 1's own prompts are all far from each other; a file of the user's may hold several wordings of one.
    """
    limit = context.recipe.prompts.novelty
    known = NoveltyIndex(limit)
    for text in trained:
        known.accept(text)
    near = known.nearest_all(r.instruction for r in rows)
    free = [r for r, found in zip(rows, near, strict=True) if found is None and r.instruction not in known]
    places = {r.id: n for n, r in enumerate(rows)}
    while True:
        chosen, rest = free[:wanted], set(range(len(rows)))
        index = NoveltyIndex(limit)
        for row in chosen:
            index.accept(row.instruction)
            rest.discard(places[row.id])
        others = [rows[n].instruction for n in sorted(rest)]
        close = {found.text for found in index.nearest_all(others) if found} | {o for o in others if o in index}
        # Two of the chosen may be close to each other: neither is trained on.
        if not close:
            return {row.id for row in chosen}
        free = [row for row in free if row.instruction not in close]
