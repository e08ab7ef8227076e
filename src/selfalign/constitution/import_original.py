"""Convert files of the original SELF-ALIGN project to a constitution (`selfalign constitution import`).

A file is recognised by its content: the rules-and-examples prompt, Self-Instruct or topic seeds, a system prompt, or
identity conversations. Everything that has no place in a constitution is reported.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfalign.constitution.document import Constitution, inconsistencies
from selfalign.constitution.loading import Located, filled, parse_seed
from selfalign.constitution.rendering import render
from selfalign.data.records import json_lines
from selfalign.errors import UserError
from selfalign.system.strict_yaml import read_text, validate

_RULE = re.compile(r"^(\d{1,3}) \(([^()\n]{2,40})\)\. (.+)$")
_THOUGHTS = re.compile(r"^(.{1,40}?) \(internal thoughts\):", re.MULTILINE)
_CUTOFF = re.compile(r"\b((?:January|February|March|April|May|June|July|August|September|October|November|December|"
                     r"Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)[-. ,]{1,2}\d{4})\b")  # fmt: skip
_PREFIX = "Questions that require "


@dataclass
class Imported:
    """The parts of a constitution, collected from the files read so far."""

    value: dict[str, Any] = field(default_factory=dict)
    """The parts as plain values, without placeholders."""
    seeds: str = ""
    """The seed tasks as JSONL."""
    placed: list[str] = field(default_factory=list)
    not_placed: list[str] = field(default_factory=list)
    rules_text: str = ""
    """The original rules-and-examples prompt, to compare with its rendering."""


def read_files(paths: list[Path]) -> Imported:
    """Read files and folders of the original project.

    Raises:
        UserError: a file cannot be read, or none of them is a rules-and-examples prompt.
    """
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{str(path)!r} does not exist")
        files += _walk(path) if path.is_dir() else [path]
    result = Imported()
    for file in files:
        try:
            _read_one(file, result)
        except UserError as error:
            # A folder may contain other files, but each file that the user names must be valid.
            if file in paths or "is a second file of" in str(error):
                raise
            result.not_placed.append(str(error))
    if not result.rules_text:
        raise UserError(
            "none of the files is a rules-and-examples prompt: lines such as '1 (ethical). ...', then dialogues of "
            "'User:', 'Name (internal thoughts):' and 'Name:'"
        )
    return result


def _walk(folder: Path) -> list[Path]:
    inside = (f for f in folder.rglob("*") if f.is_file())
    return sorted(f for f in inside if not any(p.startswith(".") for p in f.relative_to(folder).parts))


def _read_one(file: Path, result: Imported) -> None:
    if file.suffix not in (".txt", ".md", ".jsonl", ".json"):
        result.not_placed.append(f"{file}: not a text or JSON file")
        return
    text = read_text(file, "file").replace("\r\n", "\n")
    if file.suffix in (".txt", ".md"):
        _read_prompt(file, text, result)
        return
    rows = _json_rows(file, text)
    first = rows[0] if rows else None
    if isinstance(first, dict) and "instances" in first:
        _check_first(result, "seeds", file)
        good = [row for row in rows if parse_seed(row)]
        for number, row in enumerate(rows, 1):
            if not parse_seed(row):
                why = "a seed task needs an 'instruction' and 'instances' with an 'input', as text"
                result.not_placed.append(f"{file}:{number}: {why}")
        result.seeds = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in good)
        result.placed.append(f"{file}: {len(good)} seed tasks")
    elif isinstance(first, dict) and "question_type" in first:
        _read_types(file, rows, result)
    elif isinstance(first, dict) and "conversations" in first:
        _read_identity(file, rows, result)
    else:
        result.not_placed.append(f"{file}: neither seed tasks, topic seeds nor conversations")


def _json_rows(file: Path, text: str) -> list[Any]:
    if text.lstrip().startswith("["):
        try:
            value = json.loads(text)
            # JSON can encode a lone surrogate, which UTF-8 cannot.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file} is not JSON ({error})") from None
        return value if isinstance(value, list) else [value]
    return [row for _, row in json_lines(file)]


def _check_first(result: Imported, what: str, file: Path) -> None:
    taken = {"seeds": bool(result.seeds), "rules": bool(result.rules_text)}
    if taken.get(what, what in result.value):
        raise UserError(f"{file} is a second file of {what}: give only the files that belong together")


# -- prompts -----------------------------------------------------------------------------------------------------------


def _read_prompt(file: Path, text: str, result: Imported) -> None:
    if any(_RULE.match(line) for line in text.split("\n")) and _THOUGHTS.search(text):
        _check_first(result, "rules", file)
        result.value |= parse_rules(text, str(file), result.not_placed)
        result.rules_text = text
        count = f"{len(result.value['principles'])} principles and {len(result.value['exemplars'])} exemplars"
        result.placed.append(f"{file}: {count}")
        return
    kind = next((k for k in ("verbose", "concise", "standard") if k in file.stem.lower()), None)
    prompts = result.value.setdefault("prompts", {})
    if kind is None or kind in prompts:
        why = "a second prompt of that kind" if kind else "its name contains neither verbose, concise nor standard"
        result.not_placed.append(f"{file}: {why}")
        return
    # The last line is the cue of the user's turn, which the dialogue template adds.
    prompts[kind] = re.sub(r"\n+(?:#+ )?User:?\s*$", "", text.strip())
    result.placed.append(f"{file}: the {kind} system prompt")


def parse_rules(text: str, where: str, not_placed: list[str]) -> dict[str, Any]:
    """Parse a rules-and-examples prompt and return its parts of the constitution.

    Raises:
        UserError: the dialogues do not have the expected turns.
    """
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if _RULE.match(line))
    rules: list[dict[str, Any]] = []
    end = at
    # Skip blank lines between rules. The rendering has none; `first_difference` reports that.
    for number in range(at, len(lines)):
        if match := _RULE.match(lines[number]):
            rules.append({"id": int(match[1]), "name": match[2], "rule": match[3]})
            end = number + 1
        elif lines[number].strip():
            break
    rest = "\n".join(lines[end:])
    thoughts = _THOUGHTS.search(rest)
    if thoughts is None:
        raise UserError(f"{where}: no '(internal thoughts):' after the rules")
    name = thoughts[1].strip()
    intro, cue, dialogues = ("\n" + rest).partition("\n\nUser:")
    turns = _turns(cue.lstrip("\n") + dialogues, name)
    opening = "\n".join(lines[:at])
    cutoff = _CUTOFF.search(opening)
    if cutoff is None:
        not_placed.append(f"{where}: no knowledge cut-off before the rules; it is set to 'unknown'")
    first_line = text[: text.index(rest)].count("\n") + 1
    return {
        "assistant": {"name": name, "cutoff": cutoff[1] if cutoff else "unknown"},
        "layout": {"opening": opening.strip(), "examples": intro.strip()},
        "principles": rules,
        "exemplars": _exemplars(turns, f"{where}, after line {first_line}"),
    }


def _with_placeholders(value: Any, name: str, cutoff: str) -> Any:
    """Replace codename and cut-off with placeholders, so that each can be changed in one place."""
    if isinstance(value, str):
        value = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "{name}", value)
        return re.sub(rf"(?<!\w){re.escape(cutoff)}(?!\w)", "{cutoff}", value) if cutoff != "unknown" else value
    if isinstance(value, list):
        return [_with_placeholders(v, name, cutoff) for v in value]
    return {k: _with_placeholders(v, name, cutoff) for k, v in value.items()} if isinstance(value, dict) else value


def _turns(text: str, name: str) -> list[tuple[str, str]]:
    """Return (role, text) of each turn; the roles are user, thoughts, reply and answer."""
    label = re.escape(name)
    pattern = re.compile(rf"(?:^|\n\n)(User|{label} \(internal thoughts\)|{label} \(auto reply\)|{label}):")
    marks = list(pattern.finditer(text))
    roles = {"User": "user", name: "answer"}
    turns = []
    for number, mark in enumerate(marks):
        end = marks[number + 1].start() if number + 1 < len(marks) else len(text)
        role = roles.get(mark[1], "thoughts" if "thoughts" in mark[1] else "reply")
        turns.append((role, text[mark.end() : end].strip()))
    # The prompt ends with the cue for the query.
    return turns[:-1] if turns and turns[-1] == ("user", "") else turns


def _exemplars(turns: list[tuple[str, str]], where: str) -> list[dict[str, Any]]:
    closings = any(role == "reply" for role, _ in turns)
    exemplars: list[dict[str, Any]] = []
    at, begun = 0, False
    while at < len(turns):
        roles = [role for role, _ in turns[at : at + 3]]
        if roles == ["user", "thoughts", "answer"]:
            turn = dict(zip(("user", "thoughts", "answer"), (t for _, t in turns[at : at + 3]), strict=True))
            if begun and closings:
                exemplars[-1].setdefault("follow_ups", []).append(turn)
            else:
                exemplars.append(turn)
            at, begun = at + 3, True
        elif roles[:2] == ["user", "reply"] and begun:
            exemplars[-1]["closing"] = {"user": turns[at][1], "reply": turns[at + 1][1]}
            at, begun = at + 2, False
        else:
            raise UserError(
                f"{where}: expected a user's message, thoughts and an answer, but there is a turn of {roles[0]} "
                f"({turns[at][1][:50]!r})"
            )
    return exemplars


# -- seeds and conversations -------------------------------------------------------------------------------------------


def _read_types(file: Path, rows: list[Any], result: Imported) -> None:
    _check_first(result, "question_types", file)
    types: dict[str, dict[str, Any]] = {}
    shorten = all(str(r.get("question_type", "")).startswith(_PREFIX) for r in rows if isinstance(r, dict))
    for number, row in enumerate(rows, 1):
        keys = ("question_type", "topic", "question")
        if not isinstance(row, dict) or not all(isinstance(row.get(k), str) and row[k].strip() for k in keys):
            result.not_placed.append(f"{file}:{number}: needs question_type, topic and question as text")
            continue
        name = row["question_type"].removeprefix(_PREFIX) if shorten else row["question_type"]
        if name in types:
            result.not_placed.append(f"{file}:{number}: a second seed of the type {name!r} ({row['topic']})")
            continue
        types[name] = {"name": name, "topic": row["topic"], "question": row["question"]}
    result.value["question_types"] = list(types.values())
    note = f" (without their common beginning {_PREFIX.strip()!r})" if shorten and types else ""
    result.placed.append(f"{file}: {len(types)} question types{note}")


def _read_identity(file: Path, rows: list[Any], result: Imported) -> None:
    _check_first(result, "identity", file)
    pairs: dict[tuple[str, str], None] = {}
    later = 0
    for number, row in enumerate(rows, 1):
        talk = row.get("conversations") if isinstance(row, dict) else None
        turns = [t for t in talk if isinstance(t, dict)] if isinstance(talk, list) else []
        texts = [str(t.get("value", "")).strip() for t in turns[:2]]
        if [t.get("from") for t in turns[:2]] != ["human", "gpt"] or not all(texts):
            result.not_placed.append(f"{file}:{number}: does not begin with a human and a gpt turn")
            continue
        later += len(turns) - 2
        if (texts[0], texts[1]) in pairs:
            result.not_placed.append(f"{file}:{number}: the same question and answer as an earlier one")
        pairs[(texts[0], texts[1])] = None
    if later:
        result.not_placed.append(f"{file}: {later} later turns; identity pairs are one question and one answer")
    result.value["identity"] = [{"question": q, "answer": a} for q, a in pairs]
    result.placed.append(f"{file}: {len(pairs)} identity pairs")


# -- the document ------------------------------------------------------------------------------------------------------


def document(result: Imported, name: str, default: Constitution) -> tuple[dict[str, Any], Constitution]:
    """Return the new document as a plain value, and the constitution that is loaded from it.

    Args:
        name: the new document's name.
        default: the constitution whose system prompts replace those that the files do not contain.

    Raises:
        UserError: the parts do not make a consistent constitution.
    """
    who = result.value["assistant"]
    general = _with_placeholders(
        {k: v for k, v in result.value.items() if k != "assistant"}, who["name"], who["cutoff"]
    )
    value = {"format": 1, "name": name, "assistant": who, **general}
    prompts = dict(value.get("prompts", {}))
    for kind in ("standard", "concise", "verbose"):
        if kind not in prompts:
            prompts[kind] = str(getattr(default.prompts, kind)).replace(default.assistant.name, "{name}")
            result.not_placed.append(f"no {kind} system prompt among the files: selfalign's is used")
    codename = value["assistant"]["name"]
    for kind, text in prompts.items():
        other = re.search(r"codename is (\w+)", text)
        if other and other[1] != codename:
            result.not_placed.append(
                f"the {kind} system prompt calls the assistant {other[1]}, the rules {codename}: it is not changed; "
                "write {name} in both to have one name"
            )
    value["prompts"] = prompts
    loaded = validate(Constitution, filled(Located(name, value, {})).value, f"imported constitution {name}")
    for _, message in inconsistencies(loaded):
        raise UserError(f"imported constitution {name}: {message}")
    if difference := first_difference(result.rules_text, loaded):
        result.not_placed.append(difference)
    return {key: value[key] for key in Constitution.model_fields if key in value}, loaded


def first_difference(original: str, constitution: Constitution) -> str:
    """Describe the first difference between the original prompt and the rendering; empty if there is none."""
    old, new = original.strip().split("\n"), (render(constitution) + "User:").split("\n")
    if old[-1].strip() != "User:":
        new = new[:-2]
    for number, (a, b) in enumerate(zip(old, new, strict=False), 1):
        if a.rstrip() != b.rstrip():
            return f"line {number} of the rules prompt renders differently: {a[:60]!r} as {b[:60]!r}"
    return "" if len(old) == len(new) else f"the rules prompt has {len(old)} lines, its rendering {len(new)}"
