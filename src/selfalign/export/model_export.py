"""Export one trained model: write it to a hidden folder, load it back, compare it, and publish it only if it matches.

An export that fails the comparison is kept under another name, and the command ends with an error.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from selfalign.errors import UserError
from selfalign.export import record
from selfalign.export.trained_model import TrainedModel, find_trained_model
from selfalign.report import model_card
from selfalign.run.context import Context
from selfalign.system import atomic
from selfalign.system.atomic import file_hash

WEIGHT_TYPES: dict[str, tuple[str, ...]] = {
    "adapter": (),
    "merged": ("f32", "bf16", "f16"),
    "gguf-adapter": (),
    "gguf": ("q8_0", "f16"),
}
"""Form of an export -> the possible types of its weights; the first is the default."""
FAILED_SUFFIX = "does-not-hold"


def export(
    context: Context, form: str, model: str = "", weight_type: str = "", out: Path | None = None, force: bool = False
) -> Path:
    """Export a trained model of the run and return the new folder.

    Args:
        form: adapter, merged, gguf-adapter or gguf.
        model: engraved or final; by default, the model that was trained last.
        weight_type: see `WEIGHT_TYPES`.
        out: the folder to write; `standard_folder` if None.
        force: replace an export that is already there.

    Raises:
        UserError: the run has no such model, an option is invalid, the folder exists, or the export does not match the
            trained model; its files are then kept as NAME-does-not-hold.
    """
    trained = find_trained_model(context, model)
    weight_type = _check_weight_type(form, weight_type)
    context.model.check_trainable(with_gguf="gguf" in form)
    context.model.check_adapter(trained.adapter)
    target = out or standard_folder(trained, form, weight_type)
    record.check_free(target, force)
    failed = target.with_name(f"{target.name}-{FAILED_SUFFIX}")
    record.check_free(failed, force=True)
    outdated = trained.outdated_note()
    context.screen.say(f"{form} of the {trained.name} model of {context.run.path.name}", "bold")
    if outdated:
        context.screen.say(f"  {outdated}: `selfalign run` trains it again", "yellow")
    with atomic.new_folder(target) as folder:
        faults = _write(trained, form, weight_type, folder, outdated)
        if faults:
            with atomic.new_folder(failed) as kept:
                for file in folder.iterdir():
                    file.rename(kept / file.name)
            raise UserError(
                f"the export does not match the trained model: {'; '.join(faults)}. Its files are in {failed}"
            )
    size = sum(f.stat().st_size for f in target.rglob("*") if f.is_file()) / 1e6
    context.screen.say(f"  {target}: {size:,.0f} MB, matches the trained model")
    return target


def standard_folder(trained: TrainedModel, form: str, weight_type: str = "") -> Path:
    """Return the default folder of such an export, which is in the run. Raises UserError for an invalid option."""
    weight_type = _check_weight_type(form, weight_type)
    return trained.context.run.export("-".join(filter(None, (trained.name, form, weight_type))))


def _check_weight_type(form: str, weight_type: str) -> str:
    """Return the type of the weights; if it is empty, the default of the form."""
    if form not in WEIGHT_TYPES:
        raise UserError(f"unknown FORM {form!r}; use one of {', '.join(WEIGHT_TYPES)}")
    types = WEIGHT_TYPES[form]
    if weight_type and weight_type not in types:
        raise UserError(f"--type {weight_type!r}: the form {form} takes {', '.join(types) if types else 'no type'}")
    return weight_type or (types[0] if types else "")


def _write(trained: TrainedModel, form: str, weight_type: str, folder: Path, outdated: str) -> list[str]:
    """Write the model, its card, the notice and export.json; return the differences from the trained model."""
    from selfalign.export import model_writers

    checks = model_writers.WRITERS[form](trained, folder, weight_type)
    context, model = trained.context, trained.context.model
    if model.notice:
        (folder / "NOTICE").write_text(model.notice + "\n", "utf-8")
    comparison = [f"{checks.details['comparison']['text']}.", *(f"Does not match: {fault}." for fault in checks.faults)]
    notes = context.journal.counts("engrave").notes if trained.stage == "engrave" else {}
    user_responses = context.recipe.align.form == "given" and trained.stage == "engrave"
    card = model_card.export_card(
        model,
        context.run.constitution,
        model_card.run_facts(context),
        form=form,
        name=trained.name,
        weight_type=weight_type,
        stage="given" if user_responses else trained.stage,
        pairs=notes.get("pairs", 0),
        responses=sum(part["responses"] for part in notes.get("on_policy", [])),
        comparison=" ".join([*comparison, *([f"{outdated}."] if outdated else [])]),
    )
    (folder / "README.md").write_text(card, "utf-8")
    details: dict[str, Any] = {
        "form": form,
        "type": weight_type,
        "model": trained.name,
        "base_identity": model.identity,
        "adapter": file_hash(trained.adapter / "adapter_model.safetensors"),
        "template": asdict(model.template),
        **({"earlier": outdated} if outdated else {}),
        **checks.details,
        "holds": not checks.faults,
        "faults": checks.faults,
    }
    record.write_record(context, folder, details)
    return checks.faults
