"""Export a run's rows as a data set for other programs, with a card.

It reads {3_engrave,4_verbose_clone}/examples.jsonl, 3_engrave/pairs.jsonl, 2_self_align/responses.jsonl and
1_prompts/prompts.jsonl. It writes a folder with the split train, the split test if rows are held out from training, and
README.md, constitution.yaml, NOTICE and export.json.

Each row has the system prompt of its training text. In the format prompt-completion-text, the rows are the training
text itself, and rows that another trainer would encode to different tokens are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from selfalign.data import formats
from selfalign.data.formats import OUTPUT_FORMATS, OutputFormat, Row
from selfalign.data.records import Example, PreferencePair, Prompt, Response, stream_jsonl
from selfalign.errors import UserError
from selfalign.export import dataset_card, record, row_files
from selfalign.export.dataset_card import Configs
from selfalign.export.training_text import TrainingText
from selfalign.run.context import ADAPTER_STAGES, Context
from selfalign.system import atomic, strict_yaml
from selfalign.system.atomic import file_hash
from selfalign.training.batches import held_out_ids

STAGES = {
    "engrave": "engrave_examples",
    "verbose_cloning": "verbose_cloning_examples",
    "responses": "responses",
    "prompts": "prompts",
    "pairs": "pairs",
}
"""Rows that can be exported -> their file in the run. engrave and verbose_cloning are the training pairs; pairs are the
preference pairs, in the format preference only."""

_SPLITS = {"train": "train", "heldout": "test"}
"""Split of a row -> name of its file."""
_UNSUPPORTED_SUFFIXES = (".json", ".csv", ".tsv", ".txt")

Renderer = Callable[[str, Row], dict[str, Any] | None]
"""Function (id, row) -> the row to write; None skips it."""


@dataclass(slots=True)
class DatasetExport:
    """The files of an exported data set."""

    files: dict[Path, int] = field(default_factory=dict)
    """File -> rows."""
    notes: list[str] = field(default_factory=list)
    """Messages for the user: rows that are not in the files, and settings for a trainer."""


def write(
    context: Context,
    row_format: str,
    stage: str = "",
    out: Path | None = None,
    force: bool = False,
    file_type: str = "",
) -> DatasetExport:
    """Write the run's rows in a format, with a card and the licence terms of the base model.

    Args:
        row_format: one of `formats.OUTPUT_FORMATS`.
        stage: one of `STAGES`. If empty, each stage that has run becomes a configuration of the data set; a single
            file gets the rows of engrave. The format preference has the rows of pairs.
        out: a folder, or a file (.jsonl, .parquet) for the training rows only; by default, RUN/export/....
        force: replace an existing export, or overwrite an existing file.
        file_type: jsonl or parquet; by default the suffix of `out`, else jsonl.

    Raises:
        UserError: the format, stage or type is unknown, the stage has not run, or the target exists.
    """
    if row_format not in OUTPUT_FORMATS:
        raise UserError(f"unknown --format {row_format!r}; use one of {', '.join(OUTPUT_FORMATS)}")
    if stage and stage not in STAGES:
        raise UserError(f"unknown --stage {stage!r}; use one of {', '.join(STAGES)}")
    stage = stage_of(row_format, stage)
    if out is not None:
        record.check_outside_run(context, out)
        if out.suffix.removeprefix(".") in row_files.FILE_TYPES and not out.is_dir():
            return _write_file(context, row_format, stage or "engrave", out, force, file_type)
        if out.suffix in _UNSUPPORTED_SUFFIXES or out.is_file():
            suffixes = " or ".join(f".{suffix}" for suffix in row_files.FILE_TYPES)
            raise UserError(f"--out {str(out)!r} is not a folder, and not a file that ends in {suffixes}")
    file_type = file_type or row_files.FILE_TYPES[0]
    row_files.check_file_type(file_type)
    names = stages(context, stage)
    target = out or standard_folder(context, row_format, stage)
    record.check_free(target, force)
    return _write_folder(context, row_format, names, target, file_type)


def stage_of(row_format: str, stage: str = "") -> str:
    """Return the stage, which is pairs for the format preference. Raises UserError if they do not fit together."""
    stage = stage or ("pairs" if row_format == "preference" else "")
    if (row_format == "preference") != (stage == "pairs"):
        raise UserError(
            f"--format {row_format} does not apply to --stage {stage}: the rows of pairs, and only these, have the "
            "format preference"
        )
    return stage


def standard_folder(context: Context, row_format: str, stage: str = "") -> Path:
    """Return the default folder of such an export, which is in the run."""
    stage = "" if row_format == "preference" else stage
    return context.run.export("-".join(filter(None, ("dataset", stage, row_format))))


def stages(context: Context, stage: str = "") -> list[str]:
    """Return the given stage, or all that have run. Raises UserError if there are no rows."""
    known = [name for name in STAGES if name != "pairs"]
    names = [stage] if stage else [name for name in known if context.run.jsonl(STAGES[name]).exists()]
    for name in names or ["prompts"]:
        _source(context, name)
    return names


def _source(context: Context, stage: str) -> Path:
    if not (path := context.run.jsonl(STAGES[stage])).exists():
        why = "only engrave.method=dpo makes pairs, in stage 3" if stage == "pairs" else "its stage has not run"
        raise UserError(f"{path} is missing: {why}")
    return path


def _write_file(context: Context, row_format: str, stage: str, out: Path, force: bool, file_type: str) -> DatasetExport:
    """Write the training rows of one stage to a single file."""
    suffix = out.suffix.removeprefix(".")
    if file_type and file_type != suffix:
        raise UserError(f"--out {str(out)!r} does not end in .{file_type}, as --type requires")
    if out.exists() and not force:
        raise UserError(f"{out} exists: --force overwrites it, or choose another --out")
    row_files.check_file_type(suffix)
    source = _source(context, stage)
    exported, render, notes = DatasetExport(), *_renderer(context, row_format)
    rows = _rendered(context, stage, "train", render)
    if (first := next(rows, None)) is not None:
        with atomic.new_file(out) as file:
            count = row_files.write_rows(file, suffix, row_format, stage != "prompts", chain([first], rows))
        exported.files[out] = count
        record.write_notice_beside(context, out)
    if held_out_rows := sum(1 for _ in _rows(context, stage, "heldout")):
        exported.notes.append(f"rows that are held out from training and not in the file: {held_out_rows:,}")
    exported.notes += notes()
    _check_not_empty(exported, source)
    return exported


def _write_folder(context: Context, row_format: str, names: list[str], target: Path, file_type: str) -> DatasetExport:
    """Write the data set: the rows of each stage as a configuration, then card, constitution, notice and record."""
    exported, configs, (render, notes) = DatasetExport(), Configs(), _renderer(context, row_format)
    with atomic.new_folder(target) as folder:
        for stage in names:
            for split, name in _SPLITS.items():
                path = f"{f'{stage}/' if len(names) > 1 else ''}{name}.{file_type}"
                rows = _rendered(context, stage, split, render)
                if (first := next(rows, None)) is None:
                    continue
                (folder / path).parent.mkdir(exist_ok=True)
                with (folder / path).open("wb") as file:
                    count = row_files.write_rows(file, file_type, row_format, stage != "prompts", chain([first], rows))
                configs.setdefault(stage, {})[name] = path, count
                exported.files[target / path] = count
        exported.notes += notes()
        _check_not_empty(exported, _source(context, names[0]))
        if terms := record.base_terms(context):
            (folder / "NOTICE").write_text(terms, "utf-8")
        (folder / "constitution.yaml").write_text(strict_yaml.dump(context.run.constitution), "utf-8")
        card = dataset_card.card(context, configs, row_format, exported.notes)
        (folder / "README.md").write_text(card, "utf-8")
        splits = {stage: {s: count for s, (_, count) in files.items()} for stage, files in configs.items()}
        sources = {name: file_hash(_source(context, name)) for name in names}
        details = {"form": "dataset", "type": file_type, "rows_in": row_format, "configs": splits, "sources": sources}
        record.write_record(context, folder, details)
    return exported


def _check_not_empty(exported: DatasetExport, source: Path) -> None:
    if not exported.files:
        why = f": {exported.notes[0]}" if exported.notes else ""
        raise UserError(f"{source} has no row that can be written{why}")


def _rendered(context: Context, stage: str, split: str, render: Renderer) -> Iterator[dict[str, Any]]:
    rows = (render(row_id, row) for row_id, row in _rows(context, stage, split))
    return (row for row in rows if row is not None)


def _rows(context: Context, stage: str, split: str) -> Iterator[tuple[str, Row]]:
    """Yield the id and the row of each record of a split in the stage's file, without duplicates."""
    system_prompt, seen = context.run.constitution.system_prompt, set()
    path, heldout_ids = context.run.jsonl(STAGES[stage]), set()
    if stage in (*ADAPTER_STAGES, "pairs") and (fraction := context.recipe.engrave.validation):
        trained = "engrave" if stage == "pairs" else stage
        examples = _records(context.run.jsonl(STAGES[trained]), trained)
        heldout_ids = held_out_ids([example.id for example in examples], fraction)
    for entry in _records(path, stage):
        in_training = "heldout" if entry.id in heldout_ids else "train"
        entry_split = entry.split if isinstance(entry, Prompt | Response) else in_training
        if entry.id in seen or split != entry_split:
            continue
        seen.add(entry.id)
        if isinstance(entry, PreferencePair):
            system = system_prompt(entry.prompt)
            yield entry.id, Row("selfalign pairs", entry.user, "", entry.chosen, system, rejected=entry.rejected)
        elif isinstance(entry, Example):
            yield entry.id, Row("selfalign pairs", entry.user, "", entry.assistant, system_prompt(entry.prompt))
        else:
            response = entry.response if isinstance(entry, Response) else None
            yield entry.id, Row("selfalign", entry.instruction, entry.input, response, system_prompt("standard"))


def _records(
    path: Path, stage: str
) -> Iterator[Example] | Iterator[Response] | Iterator[Prompt] | Iterator[PreferencePair]:
    if stage == "pairs":
        return stream_jsonl(path, PreferencePair)
    if stage == "prompts":
        return stream_jsonl(path, Prompt)
    return stream_jsonl(path, Response) if stage == "responses" else stream_jsonl(path, Example)


def _renderer(context: Context, row_format: str) -> tuple[Renderer, Callable[[], list[str]]]:
    """Return a function that renders a row, and one that returns the notes after the last row."""
    if row_format != "prompt-completion-text":
        known: OutputFormat = next(f for f in OUTPUT_FORMATS if f == row_format)
        return lambda row_id, row: formats.format_row(row, known), list
    context.model.check_weights(f"{row_format} needs a model's tokenizer")
    model = context.model
    tokenizer = model.tokenizer(context.screen.say)
    file = model.folder() / "tokenizer.json"
    text = TrainingText(file, tokenizer, model.template, context.run.constitution.assistant.name)
    return text.render, text.notes
