"""User prompts that differ in signs only, and texts in other scripts than Latin, through stages 1 and 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from selfalign.data.records import Prompt, Response, read_jsonl
from selfalign.pipeline import order
from selfalign.run.context import Context

ROWS = {
    "Write hello world in C.": "Call puts inside the function main.",
    "Write hello world in C++.": "Use std::cout inside the function main.",
    "Write hello world in C#.": "Use Console.WriteLine inside the method Main.",
    "What is 8 + 2?": "Eight plus two is ten.",
    "What is 8 - 2?": "Eight minus two is six.",
    "What does 🍎 mean?": "It shows an apple, often a red one.",
    "What does 🔥 mean?": "It shows a flame, often for something exciting.",
    "面包是怎么做的？": "面团发酵之后放进热烤箱里烤大约一个小时。",
    "Как пекут хлеб?": "Тесто поднимается, и его ставят в горячую печь на час.",
    "+++ ?": "These signs have no meaning without a context.",
}


def test_requests_that_differ_in_signs_are_kept_and_filters_name_what_they_cannot_judge(
    fake_run: Callable[..., Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "rows.jsonl"
    rows = [{"instruction": text, "output": answer} for text, answer in ROWS.items()]
    rows += [{"instruction": "WHAT  is 8 + 2?", "output": "Eight and two make ten."}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    context = fake_run(f"prompts.file={file}", "align.form=given", "evaluate.heldout_prompts=0")
    messages: list[str] = []
    monkeypatch.setattr(context.screen, "say", lambda text, style="": messages.append(text))
    for stage in ("prompts", "align"):
        order.run_stage(context, stage)  # type: ignore[arg-type]
    assert {p.instruction for p in read_jsonl(context.run.jsonl("prompts"), Prompt)} == set(ROWS)
    assert {r.response for r in read_jsonl(context.run.jsonl("responses"), Response)} == set(ROWS.values())
    assert context.journal.counts("self_instruct").dropped == {"duplicate": 1}
    assert context.journal.counts("self_instruct").notes["not judged"] == {"overlap": 1}
    assert context.journal.counts("align").notes["not judged"] == {"stock refusals": 2, "unsafe": 2}
    lines = [text for text in messages if "cannot judge" in text]
    assert lines == [
        "  kept because filters cannot judge their language or script: overlap 1",
        "  kept because filters cannot judge their language or script: stock refusals 2, unsafe 2",
    ]
