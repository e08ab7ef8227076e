"""A run's rows as a data set for other programs: training pairs, responses or prompts in a known form, as JSON lines.

{3_engrave,4_verbose_clone}/examples.jsonl, 2_self_align/responses.jsonl or 1_prompts/prompts.jsonl -> train.jsonl and,
where rows are held out from training, test.jsonl

The system text of a row is the inference prompt that its training text has. In the form prompt-completion-text the rows
are that text itself: each is encoded as a trainer does it, and left out where other tokens than ours would come of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from selfalign import atomic, formats
from selfalign.context import ADAPTER_STAGES, Context
from selfalign.dialogue import Template, Tokenizer, Turn, encode_example
from selfalign.engines.base import BOS
from selfalign.errors import UserError
from selfalign.formats import WRITTEN, Row, Written
from selfalign.records import Example, Prompt, Response, stream_jsonl, to_json
from selfalign.training.batches import held_out

STAGES = {
    "engrave": "engrave_examples",
    "clone": "clone_examples",
    "responses": "responses",
    "prompts": "prompts",
}
"""What can be written, and the run's file. engrave and clone are the pairs that were trained on."""

_SPLITS = {"train": "train.jsonl", "heldout": "test.jsonl"}
_OTHER_FILES = (".json", ".csv", ".tsv", ".parquet", ".txt")
_DEFAULT_LENGTH = 1024
"""TRL cuts longer rows unless told otherwise."""

Item = tuple[str, Row]
"""A row and its id."""


@dataclass(slots=True)
class Exported:
    """What was written."""

    files: dict[Path, int] = field(default_factory=dict)
    """File -> rows."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: rows that are not in the files, settings of a trainer."""


def write(
    context: Context, form: str, stage: str = "engrave", out: Path | None = None, force: bool = False
) -> Exported:
    """Write a stage's rows in that form, with the base model's licence notice beside them.

    Args:
        form: one of `formats.WRITTEN`.
        stage: one of `STAGES`.
        out: a file (.jsonl) for the training rows, or a folder; RUN/export/dataset-STAGE-FORM unless given.
        force: overwrite what stands there.

    Raises:
        UserError: form or stage is unknown, the stage has not run, or a file stands where one is to be written.
    """
    if form not in WRITTEN:
        raise UserError(f"--format {form!r} is not known; known are {', '.join(WRITTEN)}")
    if stage not in STAGES:
        raise UserError(f"--stage {stage!r} is not known; known are {', '.join(STAGES)}")
    targets = _targets(context, form, stage, out)
    if (taken := next((path for path in targets.values() if path.exists()), None)) and not force:
        raise UserError(f"{taken} exists: --force overwrites it, or name another --out")
    if not (source := context.run.jsonl(STAGES[stage])).exists():
        raise UserError(f"{source} is missing: the stage that makes it has not run")
    done, maker = Exported(), _maker(context, form)
    _add_notice(context, targets["train"])
    for split in _SPLITS:
        rows = _rows(context, stage, split)
        if split not in targets:
            if number := sum(1 for _ in rows):
                done.notes.append(f"rows that are held out from training and not in the file: {number:,}")
            continue
        number = _write(targets[split], (value for item in rows if (value := maker(item)) is not None))
        if number:
            done.files[targets[split]] = number
        else:
            targets[split].unlink(missing_ok=True)
    if isinstance(maker, _Rendering):
        done.notes += maker.said()
    if not done.files:
        why = f": {done.notes[0]}" if done.notes else ""
        raise UserError(f"{source} has no row that can be written{why}")
    return done


def _targets(context: Context, form: str, stage: str, out: Path | None) -> dict[str, Path]:
    """Split -> file."""
    one = out is not None and out.suffix == ".jsonl" and not out.is_dir()
    if out is not None and not one and (out.suffix in _OTHER_FILES or out.is_file()):
        raise UserError(f"--out {str(out)!r}: JSON lines are written: name a file that ends in .jsonl, or a folder")
    ours = context.run.path.resolve()
    if out is not None and out.resolve().is_relative_to(ours) and not out.resolve().is_relative_to(ours / "export"):
        raise UserError(
            f"--out {str(out)!r} is among the run's own files: name a place outside, or in {ours / 'export'}"
        )
    if out is not None and one:
        return {"train": out}
    folder = out or context.run.path / "export" / f"dataset-{stage}-{form}"
    return {split: folder / name for split, name in _SPLITS.items()}


def _write(path: Path, values: Iterator[dict[str, Any]]) -> int:
    """Publish the values, if there are any; returns how many."""
    first = next(values, None)
    if first is None:
        return 0
    number = 0
    with atomic.new_file(path) as file:
        for value in chain([first], values):
            file.write((to_json(value) + "\n").encode("utf-8"))
            number += 1
    return number


def _add_notice(context: Context, beside: Path) -> None:
    """The terms that the run's folder has, or its model; a NOTICE of the user's own stays as it is."""
    kept = context.run.path / "NOTICE"
    if kept.is_file():
        text = kept.read_text("utf-8")
    elif context.has_weights and context.model.notice:
        text = context.model.notice + "\n"
    else:
        return
    path = beside.with_name("NOTICE")
    if path.exists() and path.read_text("utf-8", "replace") != text:
        path = beside.with_suffix(".NOTICE")
    atomic.write_text(path, text)


def _rows(context: Context, stage: str, split: str) -> Iterator[Item]:
    """The rows of that split as they stand in the stage's file, each once."""
    prompts, seen = context.run.constitution.inference_prompt, set()
    path, apart = context.run.jsonl(STAGES[stage]), set()
    if stage in ADAPTER_STAGES and (share := context.recipe.engrave.validation):
        apart = held_out([record.id for record in _records(path, stage)], share)
    for record in _records(path, stage):
        own = record.split if isinstance(record, Prompt | Response) else "heldout" if record.id in apart else "train"
        if record.id in seen or split != own:
            continue
        seen.add(record.id)
        if isinstance(record, Example):
            yield record.id, Row("our pairs", record.user, "", record.assistant, prompts(record.prompt))
        else:
            answer = record.response if isinstance(record, Response) else None
            yield record.id, Row("our own", record.instruction, record.input, answer, prompts("standard"))


def _records(path: Path, stage: str) -> Iterator[Example] | Iterator[Response] | Iterator[Prompt]:
    if stage == "prompts":
        return stream_jsonl(path, Prompt)
    return stream_jsonl(path, Response) if stage == "responses" else stream_jsonl(path, Example)


def _maker(context: Context, form: str) -> Callable[[Item], dict[str, Any] | None]:
    if form != "prompt-completion-text":
        known: Written = next(f for f in WRITTEN if f == form)
        return lambda item: formats.written(item[1], known)
    if not context.has_weights:
        raise UserError(f"{form} is what a model's tokenizer sees, and the fake engine has no model")
    model = context.model
    tokenizer = model.tokenizer(context.screen.say)
    file = model.folder() / "tokenizer.json"
    return _Rendering(file, tokenizer, model.template, context.run.constitution.assistant.name)


class _Rendering:
    """Rows as our training text; None for a row of which a trainer would make other tokens.

    Args:
        file: tokenizer.json, as trainers use it: control tokens in a text become such, and whatever the tokenizer puts
            around a text is put there.
        label: the assistant's name.
    """

    def __init__(self, file: Path, tokenizer: Tokenizer, template: Template, label: str) -> None:
        from tokenizers import Tokenizer as Backend

        self._whole = Backend.from_file(str(file))
        self._whole.no_truncation()
        self._whole.no_padding()
        self._tokenizer = tokenizer
        self._template = template
        self._label = label
        start = tokenizer.encode((BOS,))
        self._start = "" if self._ids("")[: len(start)] == start else tokenizer.text(start)
        self._longest = 0
        self._left_out: list[str] = []

    def _ids(self, text: str) -> list[int]:
        return list(self._whole.encode(text).ids)

    def __call__(self, item: Item) -> dict[str, Any] | None:
        name, row = item
        value = formats.rendered(row, self._template, self._label, self._start)
        if self._same(row, value):
            return value
        self._left_out.append(name)
        return None

    def _same(self, row: Row, value: dict[str, str]) -> bool:
        """Whether prompt and completion, encoded as texts, are the tokens that this run trains on."""
        system = row.system or ""
        if row.answer is None:
            prompt = self._tokenizer.encode(self._template.prompt(system, [Turn("user", row.message)], self._label))
            return self._ids(value["prompt"]) == prompt
        ours = encode_example(self._tokenizer, self._template, system, row.message, row.answer, self._label)
        self._longest = max(self._longest, len(ours.ids))
        prompt = ours.ids[: ours.mask.index(True)]
        return self._ids(value["prompt"]) == prompt and self._ids(value["prompt"] + value["completion"]) == ours.ids

    def said(self) -> list[str]:
        """What a trainer must be told, and which rows are left out."""
        found = []
        if self._left_out:
            found.append(
                "rows left out, of which a trainer would make other tokens than this run (they spell a control token, "
                f"or tokens would merge across two turns): {len(self._left_out):,}, as {', '.join(self._left_out[:3])}"
            )
        if self._longest:
            cut = f", max_length at least {self._longest:,}" if self._longest > _DEFAULT_LENGTH else ""
            found.append(f"in TRL: eos_token={self._template.end!r}{cut}; loss on the completion only, as it does")
        return found
