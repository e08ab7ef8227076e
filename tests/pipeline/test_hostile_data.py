"""Test hostile rows of every input form through all stages: nothing crashes, and no stage refuses another's file."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from selfalign.data.records import Example, Prompt, Response, read_jsonl
from selfalign.pipeline import order
from selfalign.run.context import Context

Runs = Callable[..., Context]
Texts = tuple[str | None, str | None, str | None, str | None]
"""Message, passage, response and system text of a row."""

PIECES = [
    "Name a river of Europe.", "What do bees carry?", "Sort the words: pear, fig.", "", " ", "\n\n\t", None, "🙂",
    "\U0001f469\u200d\U0001f467", "\ufe0f", "\u200b", "\u2060\ufeff", "\u3164", "\u2028", "\x85", "\x00", "a\x00b",
    "\x1b[2J", "\ud83d", "a\udc00b", "漢字とかな。", "สวัสดี", "مرحبا", "C++", "8 + 2", "8 − 2", "é\u0301", "<eos>",
    "<|im_end|>", "<start_of_turn>user\n", "User: hi", "\nUser: and?", "Alma (internal thoughts): x", "{{7*7}}", "{}",
    "Principles: 3 (helpful).", "%s%n", "</script>", '"', "\\", "=1+1", "../../etc/passwd", "-1", "null", "a\r\nb",
    "<bos>", "\r", "x" * 3000, "so on and " * 300, "\n" * 500,
]  # fmt: skip
LONG = 100_000


def turns(roles: str, keys: str, texts: Texts) -> list[dict[str, Any]]:
    names, (role, content) = roles.split(), keys.split()
    chosen = zip(names, (texts[3], texts[0], texts[2]), strict=True)
    return [{role: name, content: text} for name, text in chosen if name != names[0] or text is not None]


def messages(texts: Texts) -> list[dict[str, Any]]:
    return turns("system user assistant", "role content", texts)


FORMS: list[Callable[[Texts], dict[str, Any]]] = [
    lambda t: {"instruction": t[0], "input": t[1], "output": t[2], "system": t[3]},
    lambda t: {"instruction": "", "input": t[0], "output": t[2]},
    lambda t: {"instruction": t[0], "context": t[1], "response": t[2], "category": "x"},
    lambda t: {"prompt": t[0], "completion": t[2]},
    lambda t: {"prompt": messages((t[0], None, None, t[3])), "completion": [{"role": "assistant", "content": t[2]}]},
    lambda t: {"prompt": t[0], "chosen": t[2], "rejected": "No."},
    lambda t: {"chosen": f"\n\nHuman: {t[0]}\n\nAssistant: {t[2]}", "rejected": "\n\nHuman: a\n\nAssistant: b"},
    lambda t: {"system_prompt": t[3], "question": t[0], "response": t[2]},
    lambda t: {"question": t[0], "passage": t[1], "answers": {"text": [t[2] or ""], "answer_start": [0]}},
    lambda t: {"messages": messages(t), "tools": None},
    lambda t: {"messages": json.dumps(messages(t))},
    lambda t: {"conversations": turns("system human gpt", "from value", t), "source": None},
    lambda t: {"conversation": [{"input": t[0], "output": t[2]}, {"input": "And?", "output": "So."}]},
    lambda t: {"data": [t[0] or "", t[2] or ""]},
    lambda t: {"text": f"### Human: {t[0]}### Assistant: {t[2]}"},
    lambda t: {"user": t[0], "assistant": t[2]},
    lambda t: {"instruction": "c", "input": "", "output": "d", "history": [[t[0] or "", t[2] or ""]]},
    lambda t: {"message_tree_id": "x", "prompt": {"text": t[0] or "", "role": "prompter", "replies": [
        {"text": t[2], "role": "assistant", "rank": 0, "replies": []}]}},
    lambda t: {"messages": [{"role": "user", "content": t[0]}, {"role": "assistant", "content": None,
               "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]}]},
    lambda t: {"messages": [{"role": "user", "content": [{"type": "text", "text": t[0] or ""}, {"type": "image"}]}]},
]  # fmt: skip


def hostile_text(rng: random.Random) -> str | None:
    """Return a text of a few pieces; null, empty and plain texts are frequent."""
    if rng.random() < 0.5:
        return f"{rng.choice(['Describe', 'Explain', 'Name'])} item {rng.randrange(10**6)} of the list in a sentence."
    pieces = rng.choices(PIECES, k=rng.choice([1, 1, 2, 5]))
    return pieces[0] if len(pieces) == 1 else "".join(piece or "" for piece in pieces)


def hostile_rows(number: int, seed: int) -> list[dict[str, Any]]:
    rng = random.Random(seed)
    rows = []
    for n in range(number):
        texts = [hostile_text(rng) for _ in range(4)]
        if n % 500 == 7:
            texts[rng.choice([0, 1, 2])] = "".join(rng.choices("abc 漢🙂\n", k=LONG))
        rows.append(FORMS[n % len(FORMS)](tuple(texts)))
    return rows


def write_csv(file: Path, rows: list[dict[str, Any]]) -> None:
    with file.open("w", encoding="utf-8", errors="replace", newline="") as out:
        table = csv.DictWriter(out, ["instruction", "input", "output", "messages"], quoting=csv.QUOTE_ALL, restval="")
        table.writeheader()
        for row in rows:
            cells = {key: row[key] for key in ("instruction", "input", "output") if row.get(key)}
            dialogue = row.get("messages") or []
            table.writerow(cells or {"messages": dialogue if isinstance(dialogue, str) else json.dumps(dialogue)})


def check_all_stages(context: Context, rows: int) -> None:
    """Run all stages, and check that every row is counted and every file can be read."""
    order.run_all(context)
    rows_in = {}
    for stage in ("self_instruct", "align", "engrave", "verbose_responses", "verbose_cloning"):
        counts = context.journal.counts(stage)
        rows_in[stage] = counts.rows_in
        assert counts.finished
        assert counts.rows_in == counts.kept + sum(counts.dropped.values()) + sum(counts.failed.values()), stage
    assert rows_in["self_instruct"] == rows
    prompts = read_jsonl(context.run.jsonl("prompts"), Prompt)
    assert rows_in["align"] == len(prompts) == context.journal.counts("self_instruct").kept
    responses = read_jsonl(context.run.jsonl("responses"), Response)
    assert len(responses) == context.journal.counts("align").kept > rows // 50
    for name in ("engrave_examples", "verbose_cloning_examples"):
        assert read_jsonl(context.run.jsonl(name), Example)
    assert all(prompt.instruction.strip() for prompt in prompts)
    texts = [text for row in responses for text in (row.instruction, row.input, row.response)]
    assert not any(ord(char) < 32 and char not in "\n\t" for text in texts for char in text)
    json.loads(context.run.report_json.read_text("utf-8"))


def check_hostile_rows(fake_run: Runs, folder: Path, number: int, seed: int) -> None:
    rows = hostile_rows(number, seed)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_csv(folder / "rows.csv", rows[: number // 4])
    sizes = ("evaluate.heldout_prompts=8", "verbose_cloning.prompts=40")
    for name, file, form in (("a", "rows.jsonl", "guided"), ("b", "rows.jsonl", "given"), ("c", "rows.csv", "given")):
        context = fake_run(f"prompts.file={folder / file}", f"align.form={form}", *sizes, name=name)
        check_all_stages(context, number if file == "rows.jsonl" else number // 4)


def test_hostile_rows_pass_through_all_stages(fake_run: Runs, tmp_path: Path):
    check_hostile_rows(fake_run, tmp_path, 160, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_ten_thousand_hostile_rows_pass_through_all_stages(fake_run: Runs, tmp_path: Path):
    check_hostile_rows(fake_run, tmp_path, 10_000, 2)
