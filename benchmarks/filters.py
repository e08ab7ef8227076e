"""Compare the default filters with the paper's on the raw responses of finished runs.

    python benchmarks/filters.py RUN [RUN ...]     # seconds; runs with stage 2, in either form, or stage 4

Prints what each set of filters drops and why, where they differ, and the faults of the responses that each keeps: ends
in mid-sentence, repeats itself, contains internal thoughts, or unsafe by a named rule.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from selfalign.constitution import Constitution
from selfalign.constitution.citations import check_citations
from selfalign.constitution.leaks import leaks_of
from selfalign.data.records import Prompt, read_jsonl
from selfalign.quality import safety
from selfalign.quality.filter_settings import FilterSettings, ResponseFilter
from selfalign.quality.response_filters import filter_response, loops, repetitive
from selfalign.run.directory import RunDir

NAMES = ("default", "paper")


@dataclass
class RawResponse:
    message: str
    text: str
    truncated: bool


def raw_responses(run: RunDir, stage: str) -> list[RawResponse]:
    """Return the raw responses of stage 2 (`align`, with well-formed thoughts) or 4 (`verbose_responses`)."""
    messages = {p.id: p.message for p in read_jsonl(run.jsonl("prompts"), Prompt)}
    name, responses = run.constitution.assistant.name, []
    query = "SELECT row_id, raw FROM work WHERE stage = ? AND state = 'raw_saved'"
    for row_id, raw in run.journal._db.execute(query, (stage,)):
        parts = json.loads(raw)
        text = parts[-1]["text"]
        if row_id not in messages:
            continue
        if stage == "align" and len(parts) == 1:  # a single pass generates thoughts and response together
            thoughts, cue, text = text.partition(f"{name}:")
            if not cue or check_citations(thoughts, run.constitution.principle_names())[1]:
                continue
        elif stage == "align" and len(parts) < 3:
            continue
        # Stage 2 filters its responses as generated, stage 4 without blanks around them.
        text = text if stage == "align" else text.strip()
        responses.append(RawResponse(messages[row_id], text, parts[-1]["finish"] == "length"))
    return responses


def faults(text: str, message: str) -> list[str]:
    """Name the faults of a response."""
    names = []
    if not text.rstrip().endswith((".", "!", "?", '"', "'", ")", "`", "”", ":")):
        names.append("ends in mid-sentence")
    if loops(text) or repetitive(text):
        names.append("repeats itself")
    if "internal thoughts" in text.lower() or "principles:" in text.lower():
        names.append("contains thoughts")
    if safety.first_violation(text, message, list(safety.RULES)):
        names.append("unsafe by a rule")
    return names


def compare(run: RunDir, stage: str, constitution: Constitution) -> None:
    rows = raw_responses(run, stage)
    if not rows:
        return
    print(f"\n{run.path.name}, {stage}: {len(rows)} responses")
    verdicts = {}
    for name in NAMES:
        filters: ResponseFilter = getattr(
            FilterSettings.model_validate(name), "responses" if stage == "align" else "verbose"
        )
        leaks = leaks_of(constitution, filters.leak_words, verbose_only=stage != "align")
        verdicts[name] = [filter_response(r.text, r.truncated, r.message, leaks, filters) for r in rows]
        kept = [(v.text, r.message) for v, r in zip(verdicts[name], rows, strict=True) if not v.reason]
        reasons = Counter(v.reason for v in verdicts[name] if v.reason)
        wrong = Counter(f for text, message in kept for f in faults(text, message))
        print(f"  {name}: {len(kept)} kept; dropped: {', '.join(f'{r} {n}' for r, n in reasons.most_common())}")
        names = ", ".join(f"{f} {n}" for f, n in wrong.most_common())
        print(f"    faults of the kept: {names or 'none'}")
    ours, papers = (verdicts[name] for name in NAMES)
    pairs = list(zip(ours, papers, strict=True))
    only = Counter((p.reason, "kept by ours only") for o, p in pairs if p.reason and not o.reason)
    only += Counter((o.reason, "kept by the paper only") for o, p in pairs if o.reason and not p.reason)
    for (reason, who), number in only.most_common():
        print(f"    {who}: {number} ({reason})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    for path in parser.parse_args().runs:
        opened = RunDir.open(path)
        for stage in ("align", "verbose_responses"):
            compare(opened, stage, opened.constitution)
