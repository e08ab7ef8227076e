"""One export: made in a folder that nobody sees, loaded back, compared, described, and only then published.

What does not hold is kept beside it under a name that says so, and the command ends with an error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from selfalign.errors import UserError
from selfalign.evaluation import heldout
from selfalign.export import chat_template, record
from selfalign.report import model_card
from selfalign.run.context import Context
from selfalign.run.recipe import Stage
from selfalign.system import atomic
from selfalign.system.atomic import file_hash

Form = Literal["adapter", "merged", "gguf-adapter", "gguf"]
TYPES: dict[str, tuple[str, ...]] = {
    "adapter": (),
    "merged": ("f32", "bf16", "f16"),
    "gguf-adapter": (),
    "gguf": ("q8_0", "f16"),
}
"""Form -> types of its weights, the first of which is taken unless another is named."""
FAILED = "does-not-hold"


@dataclass
class Job:
    """What a form's maker gets."""

    context: Context
    form: str
    model: str
    """engraved or final."""
    stage: str
    """The stage whose adapter that is."""
    kind: str
    """Type of the weights; empty for adapters."""
    found: dict[str, Any] = field(default_factory=dict)
    """What export.json says beside the form: filled by the maker."""

    @property
    def place(self) -> Path:
        """The folder unless the user names another."""
        return self.context.run.export("-".join(filter(None, (self.model, self.form, self.kind))))

    @property
    def adapter(self) -> Path:
        return self.context.run.adapter(self.stage)

    @property
    def system(self) -> str:
        return self.context.run.constitution.system_prompt("standard")

    @property
    def label(self) -> str:
        return self.context.run.constitution.assistant.name

    @property
    def starts(self) -> bool:
        """Whether the tokenizer begins texts with its start token."""
        from selfalign.data.prompt_text import BOS

        return bool(self.context.model.tokenizer().encode((BOS,)))

    def jinja(self) -> str:
        """The chat template."""
        return chat_template.jinja(self.context.model.template, self.system, self.label, self.starts)

    def expected(self) -> list[tuple[list[dict[str, str]], list[int]]]:
        """Dialogues as chat interfaces take them, each with the token ids that it must become."""
        tokenizer, template = self.context.model.tokenizer(), self.context.model.template
        return [
            (
                chat_template.messages((system, turns)),
                tokenizer.encode(template.prompt(system or self.system, turns, self.label)),
            )
            for system, turns in chat_template.dialogues(self.context.run.constitution)
        ]


def export(
    context: Context, form: str, model: str = "", kind: str = "", out: Path | None = None, force: bool = False
) -> Path:
    """Make one export of a run's model and publish it; returns its folder.

    Args:
        form: adapter, merged, gguf-adapter or gguf.
        model: engraved or final; the last one trained unless given.
        kind: type of the weights, see `TYPES`.
        out: where; `RunDir.export` unless given.
        force: replace an export that stands there.

    Raises:
        UserError: it cannot be made from this run, its place is taken, or it does not hold: then the files stay under
            a name that says so.
    """
    name, stage = _model(context, model)
    job = Job(context, form, name, stage, _kind(form, kind))
    _check_base(job)
    _note_earlier(job)
    target = out or job.place
    record.check_free(target, force)
    failed = target.with_name(f"{target.name}-{FAILED}")
    record.check_free(failed, force=True)
    context.screen.say(f"{form} of the {name} model of {context.run.path.name}", "bold")
    with atomic.new_folder(target) as folder:
        faults = _maker(form)(job, folder)
        _describe(job, folder, faults)
        for file in folder.rglob("*"):
            file.chmod(0o755 if file.is_dir() else 0o644)
        if faults:
            with atomic.new_folder(failed) as kept:
                for file in folder.iterdir():
                    file.rename(kept / file.name)
            raise UserError(f"this export does not hold: {'; '.join(faults)}. It stays in {failed}")
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file()) / 1e6
    context.screen.say(f"  {target}: {size:,.0f} MB; it holds")
    return target


def place(context: Context, form: str, model: str = "", kind: str = "") -> tuple[Path, Path]:
    """(where such an export is made, the adapter that it would have). Raises UserError as `export`."""
    name, stage = _model(context, model)
    job = Job(context, form, name, stage, _kind(form, kind))
    return job.place, job.adapter


def _model(context: Context, wanted: str) -> tuple[str, str]:
    """(engraved or final, the stage whose adapter it has)."""
    if not context.has_weights:
        raise UserError(f"{context.run.path} was made with the fake engine, which trains nothing: there is no model")
    trained = {name: stage for name, stage in heldout.models(context).items() if stage}
    if not trained:
        raise UserError(f"{context.run.path} has no trained adapter yet: `selfalign run` goes on with it")
    name = wanted or list(trained)[-1]
    if name not in trained:
        raise UserError(f"--model {name!r} is not a trained model of this run, which has {', '.join(trained)}")
    return name, trained[name]


def _kind(form: str, wanted: str) -> str:
    if form not in TYPES:
        raise UserError(f"FORM {form!r} is not known; known are {', '.join(TYPES)}")
    if wanted and wanted not in TYPES[form]:
        known = f"takes {', '.join(TYPES[form])}" if TYPES[form] else "has no type"
        raise UserError(f"--type {wanted!r}: the form {form} {known}")
    return wanted or (TYPES[form][0] if TYPES[form] else "")


def _check_base(job: Job) -> None:
    """Raises UserError if the adapter was trained on other weights than the recipe's model has now, or cannot load."""
    job.context.model.check_trainable()
    job.context.model.check_adapter(job.adapter)


def _note_earlier(job: Job) -> None:
    """Say it where the adapter is not what the run makes now: a stage was changed or stopped since."""
    from selfalign.pipeline import order

    context = job.context
    stages: tuple[Stage, ...] = ("engrave", "verbose_cloning") if job.stage == "verbose_cloning" else ("engrave",)
    if stale := [s for s in stages if not context.run.done(s, order.inputs_hash(context, s))]:
        what = f"stage {stale[0]} is" if len(stale) == 1 else f"stages {' and '.join(stale)} are"
        text = f"The adapter is an earlier one: the run's {what} not finished as the run stands now"
        job.found["earlier"] = text
        context.screen.say(f"  {text}: `selfalign run` finishes it", "yellow")


def _maker(form: str) -> Callable[[Job, Path], list[str]]:
    from selfalign.export import forms

    return {
        "adapter": forms.adapter,
        "merged": forms.merged,
        "gguf-adapter": forms.gguf_adapter,
        "gguf": forms.gguf,
    }[form]


def _describe(job: Job, folder: Path, faults: list[str]) -> None:
    """Card, notice and record."""
    context, model = job.context, job.context.model
    if model.notice:
        (folder / "NOTICE").write_text(model.notice + "\n", "utf-8")
    (folder / "README.md").write_text(_card(job, faults), "utf-8")
    about = {
        "form": job.form,
        "type": job.kind,
        "model": job.model,
        "base_identity": model.identity,
        "adapter": file_hash(job.adapter / "adapter_model.safetensors"),
        "template": asdict(model.template),
        **job.found,
        "holds": not faults,
        "faults": faults,
    }
    record.write(context, folder, about)


def _card(job: Job, faults: list[str]) -> str:
    context = job.context
    own_answers = context.recipe.align.form == "given"
    compared = " ".join([job.found["comparison"]["text"] + ".", *(f"Does not hold: {fault}." for fault in faults)])
    if job.found.get("earlier"):
        compared += f" {job.found['earlier']}."
    return model_card.export_card(
        context.model,
        context.run.constitution,
        job.form,
        job.model,
        job.kind,
        "given" if own_answers and job.stage == "engrave" else job.stage,
        record.writers(context),
        record.ledger(context),
        record.measured(context),
        compared,
    )
