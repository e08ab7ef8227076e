"""The export of a run that a push takes: the one that stands at its usual place, or a new one made there.

It stays there, so that the same push again sends the same bytes.
"""

from __future__ import annotations

from pathlib import Path

from selfalign.errors import UserError
from selfalign.export import dataset, job, parcel
from selfalign.run.context import Context
from selfalign.system.atomic import file_hash

_REMAKE = "`selfalign export {run} {form} --force` with the same options makes it anew"


def find(
    context: Context, form: str, model: str = "", kind: str = "", rows_in: str = "prompt-completion", stage: str = ""
) -> Path:
    """The export's folder.

    Args:
        form: one of `parcel.FORMS`.
        model: of a model: engraved or final.
        kind: type of the weights, or of a data set's files: parquet unless given.
        rows_in: of a data set: one of `formats.OUTPUT_FORMATS`.
        stage: of a data set: one of `dataset.STAGES`; all that have run unless given.

    Raises:
        UserError: what stands there is not what the run would export now, or it cannot be made.
    """
    if form == "dataset":
        folder = dataset.place(context, rows_in, stage)
        if not folder.exists():
            dataset.write(context, rows_in, stage, kind=kind or "parquet")
            return folder
        now = {name: file_hash(context.run.jsonl(dataset.STAGES[name])) for name in dataset.stages(context, stage)}
        said = parcel.read_record(folder)
        fresh = said.get("sources") == now
    else:
        folder, adapter = job.place(context, form, model, kind)
        if not folder.exists():
            return job.export(context, form, model, kind)
        said = parcel.read_record(folder)
        fresh = said.get("adapter") == file_hash(adapter / "adapter_model.safetensors")
    again = _REMAKE.format(run=context.run.path, form=form)
    if not fresh or said.get("constitution") != context.run.constitution.digest():
        raise UserError(f"{folder} is not of what the run has now: {again}. Nothing was sent")
    if kind and said.get("type") != kind:
        raise UserError(f"{folder} is of the type {said.get('type')}, not {kind}: {again}. Nothing was sent")
    return folder
