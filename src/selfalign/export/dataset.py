"""A run's rows as a data set for other programs: pairs, responses and prompts in a known form, with a card.

{3_engrave,4_verbose_clone}/examples.jsonl, 2_self_align/responses.jsonl and 1_prompts/prompts.jsonl -> a folder with
train and, where rows are held out from training, test; README.md, constitution.yaml, NOTICE, export.json

The system text of a row is the system prompt that its training text has. In the form prompt-completion-text the rows
are that text itself: each is encoded as a trainer does it, and left out where other tokens than ours would come of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from selfalign.data import formats
from selfalign.data.formats import OUTPUT_FORMATS, OutputFormat, Row
from selfalign.data.prompt_text import BOS, Turn
from selfalign.data.records import Example, Prompt, Response, stream_jsonl
from selfalign.errors import UserError
from selfalign.export import data_card, dataset, record, rows
from selfalign.export.data_card import Config
from selfalign.model.dialogue import Template, Tokenizer, encode_example
from selfalign.run.context import ADAPTER_STAGES, Context
from selfalign.system import atomic, strict_yaml
from selfalign.system.atomic import file_hash
from selfalign.training.batches import held_out_ids

STAGES = {
    "engrave": "engrave_examples",
    "verbose_cloning": "verbose_cloning_examples",
    "responses": "responses",
    "prompts": "prompts",
}
"""What can be written, and the run's file. engrave and clone are the pairs that were trained on."""

_SPLITS = {"train": "train", "heldout": "test"}
"""Split of a row -> name of its file."""
_OTHER_FILES = (".json", ".csv", ".tsv", ".txt")
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
    context: Context, form: str, stage: str = "", out: Path | None = None, force: bool = False, kind: str = ""
) -> Exported:
    """Write rows in that form, with their card and the base model's licence notice.

    Args:
        form: one of `formats.OUTPUT_FORMATS`.
        stage: one of `STAGES`; unless given, every stage that has run, each as a configuration of one data set (in a
            single file: engrave).
        out: a folder, or a file (.jsonl, .parquet) for the training rows alone; RUN/export/... unless given.
        force: replace an export, or overwrite the file, that stands there.
        kind: jsonl or parquet; jsonl unless given, or what the file's name says.

    Raises:
        UserError: form, stage or type is unknown, the stage has not run, or the place is taken.
    """
    if form not in OUTPUT_FORMATS:
        raise UserError(f"--format {form!r} is not known; known are {', '.join(OUTPUT_FORMATS)}")
    if stage and stage not in STAGES:
        raise UserError(f"--stage {stage!r} is not known; known are {', '.join(STAGES)}")
    if out is not None:
        record.check_outside(context, out)
    if out is not None and out.suffix.removeprefix(".") in rows.KINDS and not out.is_dir():
        return _one_file(context, form, stage or "engrave", out, force, kind)
    if out is not None and (out.suffix in _OTHER_FILES or out.is_file()):
        ends = " or ".join(f".{suffix}" for suffix in rows.KINDS)
        raise UserError(f"--out {str(out)!r}: JSON lines or Parquet are written: name a folder, or a file in {ends}")
    kind = kind or rows.KINDS[0]
    rows.check(kind)
    wanted = stages(context, stage)
    target = out or place(context, form, stage)
    record.check_free(target, force)
    return _folder(context, form, wanted, target, kind)


def place(context: Context, form: str, stage: str = "") -> Path:
    """The folder unless the user names another."""
    return context.run.export("-".join(filter(None, ("dataset", stage, form))))


def stages(context: Context, stage: str = "") -> list[str]:
    """That stage, or every one that has run. Raises UserError where there are no rows of it."""
    found = [stage] if stage else [name for name in STAGES if context.run.jsonl(STAGES[name]).exists()]
    for name in found or ["prompts"]:
        _source(context, name)
    return found


def _source(context: Context, stage: str) -> Path:
    if not (path := context.run.jsonl(STAGES[stage])).exists():
        raise UserError(f"{path} is missing: the stage that makes it has not run")
    return path


def _one_file(context: Context, form: str, stage: str, out: Path, force: bool, kind: str) -> Exported:
    """The training rows alone."""
    if kind and kind != out.suffix.removeprefix("."):
        raise UserError(f"--out {str(out)!r} is no file of --type {kind}: name another, or a folder")
    if out.exists() and not force:
        raise UserError(f"{out} exists: --force overwrites it, or name another --out")
    kind = out.suffix.removeprefix(".")
    rows.check(kind)
    source = _source(context, stage)
    done, maker = Exported(), _maker(context, form)
    values = _values(context, stage, "train", maker)
    if (first := next(values, None)) is not None:
        with atomic.new_file(out) as file:
            done.files[out] = rows.write(file, kind, form, stage != "prompts", chain([first], values))
        record.publish_notice(context, out)
    if number := sum(1 for _ in _rows(context, stage, "heldout")):
        done.notes.append(f"rows that are held out from training and not in the file: {number:,}")
    return _finished(done, maker, [source])


def _folder(context: Context, form: str, names: list[str], target: Path, kind: str) -> Exported:
    """The data set: every stage's rows as a configuration, and what belongs beside them."""
    done, maker, configs = Exported(), _maker(context, form), []
    with atomic.new_folder(target) as folder:
        for stage in names:
            config = Config(stage)
            for split, name in _SPLITS.items():
                path = f"{f'{stage}/' if len(names) > 1 else ''}{name}.{kind}"
                values = _values(context, stage, split, maker)
                if (first := next(values, None)) is None:
                    continue
                (folder / path).parent.mkdir(exist_ok=True)
                with (folder / path).open("wb") as file:
                    number = rows.write(file, kind, form, stage != "prompts", chain([first], values))
                config.files[name], done.files[target / path] = (path, number), number
            if config.files:
                configs.append(config)
        _finished(done, maker, [_source(context, stage) for stage in names])
        _describe(context, folder, configs, form, kind, done.notes, names)
    return done


def _describe(
    context: Context, folder: Path, configs: list[Config], form: str, kind: str, notes: list[str], names: list[str]
) -> None:
    """Card, constitution, notice and record."""
    if terms := record.notice(context):
        (folder / "NOTICE").write_text(terms, "utf-8")
    (folder / "constitution.yaml").write_text(strict_yaml.dump(context.run.constitution), "utf-8")
    (folder / "README.md").write_text(data_card.text(context, configs, form, notes), "utf-8")
    splits = {config.name: {split: number for split, (_, number) in config.files.items()} for config in configs}
    sources = {name: file_hash(context.run.jsonl(STAGES[name])) for name in names}
    about = {"form": "dataset", "type": kind, "rows_in": form, "configs": splits, "sources": sources}
    record.write(context, folder, about)
    for file in folder.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)


def _finished(done: Exported, maker: Callable[[Item], Any], sources: list[Path]) -> Exported:
    """With the notes of the form; raises UserError where no row was written."""
    if isinstance(maker, _Rendering):
        done.notes += maker.said()
    if not done.files:
        why = f": {done.notes[0]}" if done.notes else ""
        raise UserError(f"{sources[0]} has no row that can be written{why}")
    return done


def _values(
    context: Context, stage: str, split: str, maker: Callable[[Item], dict[str, Any] | None]
) -> Iterator[dict[str, Any]]:
    return (value for item in _rows(context, stage, split) if (value := maker(item)) is not None)


def _rows(context: Context, stage: str, split: str) -> Iterator[Item]:
    """The rows of that split as they stand in the stage's file, each once."""
    prompts, seen = context.run.constitution.system_prompt, set()
    path, apart = context.run.jsonl(STAGES[stage]), set()
    if stage in ADAPTER_STAGES and (share := context.recipe.engrave.validation):
        apart = held_out_ids([made.id for made in _records(path, stage)], share)
    for made in _records(path, stage):
        own = made.split if isinstance(made, Prompt | Response) else "heldout" if made.id in apart else "train"
        if made.id in seen or split != own:
            continue
        seen.add(made.id)
        if isinstance(made, Example):
            yield made.id, Row("our pairs", made.user, "", made.assistant, prompts(made.prompt))
        else:
            answer = made.response if isinstance(made, Response) else None
            yield made.id, Row("our own", made.instruction, made.input, answer, prompts("standard"))


def _records(path: Path, stage: str) -> Iterator[Example] | Iterator[Response] | Iterator[Prompt]:
    if stage == "prompts":
        return stream_jsonl(path, Prompt)
    return stream_jsonl(path, Response) if stage == "responses" else stream_jsonl(path, Example)


def _maker(context: Context, form: str) -> Callable[[Item], dict[str, Any] | None]:
    if form != "prompt-completion-text":
        known: OutputFormat = next(f for f in OUTPUT_FORMATS if f == form)
        return lambda item: formats.format_row(item[1], known)
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
        value = dataset.rendered(row, self._template, self._label, self._start)
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


def rendered(row: Row, template: Template, label: str, start: str) -> dict[str, str]:
    """The row as the text that our training sees: prompt up to the answer's cue, completion with the end token.

    Args:
        label: the assistant's name.
        start: the token that begins a text, where the tokenizer does not put it there by itself; else "".
    """
    pieces = template.prompt(row.system or "", [Turn("user", row.message)], label)
    value = {"prompt": "".join(start if piece is BOS else piece for piece in pieces)}
    if row.answer is not None:
        value["completion"] = f"{template.space}{row.answer.strip()}{template.end}"
    return value
