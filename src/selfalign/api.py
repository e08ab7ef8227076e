"""Create, resume and read runs from Python.

    import selfalign

    with selfalign.create("quick", out="runs/mine", limit=20) as run:
        run.run_all()
        for response in run.responses():
            print(response.message, response.response)

Expected errors are `selfalign.SelfAlignError`, explained in one line. docs/python.md lists the interface.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from selfalign.data import user_pairs
from selfalign.data.records import Drop, Prompt, Response, read_jsonl
from selfalign.errors import UserError
from selfalign.evaluation.evaluate import EvaluationRequest
from selfalign.evaluation.records import Answer, Score
from selfalign.pipeline import order
from selfalign.planning.prepare import prepare
from selfalign.report.scores import read_scores
from selfalign.report.status import status
from selfalign.run import feedback
from selfalign.run.context import ADAPTER_STAGES, Context
from selfalign.run.directory import RunDir, acquire_lock, default_out
from selfalign.run.feedback import Feedback
from selfalign.run.ledger import StageCounts
from selfalign.run.recipe import Recipe, Stage
from selfalign.run.saving import StateSaver, fetch_if_missing
from selfalign.run.storage import Storage
from selfalign.system import atomic, strict_yaml
from selfalign.system.console import Screen
from selfalign.training.settings import TrainingSettings

if TYPE_CHECKING:
    from selfalign.export.dataset import DatasetExport


class Run:
    """A run that this process holds: no other process can open it. Close it, or use it as a context manager.

    Args:
        context: what the stages need.
        lock: the file descriptor of the run's lock.
    """

    def __init__(self, context: Context, lock: int) -> None:
        self._context: Context = context
        self._lock: int | None = lock

    @property
    def context(self) -> Context:
        """What the stages need: recipe, journal, engine, model. It may change between versions."""
        return self._context

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self._context.run.path

    @property
    def recipe(self) -> Recipe:
        """The recipe of the run."""
        return self._context.recipe

    def run_all(self) -> None:
        """Run the unfinished stages of the recipe, and write the manifest. Raises as `pipeline.order.run_all`."""
        with self._saving():
            order.run_all(self._context)

    def run_stage(self, stage: Stage, adapter: str | Path | None = None) -> None:
        """Run one stage, even if it is finished; finished requests are read from the journal.

        Args:
            adapter: for engrave and verbose_cloning: the folder of an adapter that was trained elsewhere.

        Raises:
            SelfAlignError: see `pipeline.order.run_stage`.
        """
        if stage not in order.STEPS:
            raise UserError(f"{stage!r} is not a stage; the stages are {', '.join(order.STEPS)}")
        if adapter is not None and stage not in ADAPTER_STAGES:
            raise UserError(f"the stage {stage!r} takes no adapter; {' and '.join(ADAPTER_STAGES)} do")
        with self._saving():
            order.run_stage(self._context, stage, again=True, adapter=Path(adapter) if adapter is not None else None)
            order.write_manifest_if_done(self._context)

    def prefer(self, pairs: str | Path) -> None:
        """Train stage 3 on the user's preference pairs, with `engrave.method: dpo` (docs/dpo.md).

        Args:
            pairs: a file with prompt, chosen and rejected in each row; the run keeps a copy.

        Raises:
            SelfAlignError: a row is no pair, or as `run_stage`.
        """
        run = self._context.run
        settings = run.recipe.engrave.model_dump() | {"method": "dpo"}
        engrave = strict_yaml.validate(TrainingSettings, settings, f"{run.path}/recipe.yaml: engrave")
        number = user_pairs.copy(Path(pairs), run.jsonl("user_pairs"))
        self._context.screen.say(f"  {pairs}: {number:,} pairs", "dim")
        run.change_recipe(run.recipe.model_copy(update={"engrave": engrave}))
        self.run_stage("engrave")

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Save the run to the recipe's storage while the block changes it, and at its end. Raises as `StateSaver`."""
        context = self._context
        if context.recipe.storage and context.saver is None:
            context.saver = StateSaver(self.path, Storage(context.recipe.storage), context.screen.say)
        yield
        if context.saver:
            context.saver.save()

    def run_benchmarks(self, tasks: list[str], **options: Any) -> list[Score]:
        """Measure the run's models on benchmarks; return all scores of the run.

        Args:
            tasks: some of behaviour, pressure, hhh, truthfulqa, truthfulqa-generation, vicuna, questions.
            options: models, others, data, prompt, limit, judge; see `evaluation.evaluate.EvaluationRequest`.

        Raises:
            SelfAlignError: see `pipeline.order.run_benchmarks`.
        """
        with self._saving():
            order.run_benchmarks(self._context, EvaluationRequest(tasks, **options))
        return self.scores()

    def prompts(self) -> Iterator[Prompt]:
        """Yield the prompts of stage 1.

        Raises:
            UserError: the stage has not run, or a line of the file is invalid.
        """
        yield from read_jsonl(self._context.run.jsonl("prompts"), Prompt)

    def responses(self) -> Iterator[Response]:
        """Yield the kept responses of stage 2. Raises as `prompts`."""
        yield from read_jsonl(self._context.run.jsonl("responses"), Response)

    def answers(self) -> Iterator[Answer]:
        """Yield each model's responses to the held-out prompts. Raises as `prompts`."""
        yield from read_jsonl(self._context.run.jsonl("answers"), Answer)

    def drops(self) -> Iterator[Drop]:
        """Yield each row that was dropped or failed so far, with its stage and the reason."""
        yield from self._context.journal.drops()

    def scores(self) -> list[Score]:
        """Return the scores of the evaluation; an empty list before it ran."""
        return [Score(**score) for score in read_scores(self._context.run)]

    def counts(self) -> list[StageCounts]:
        """Return the ledger of each stage: rows in, kept, dropped and failed by reason, tokens, seconds."""
        journal = self._context.journal
        return [journal.counts(stage) for stage in journal.stages()]

    def feedback(self) -> list[Feedback]:
        """Return the marks on the run's answers, the oldest first (docs/feedback.md).

        Raises:
            UserError: a line of the file is invalid.
        """
        return list(feedback.read(self._context.run).values())

    def status(self) -> dict[str, Any]:
        """Return what `selfalign status --json` prints."""
        return status(self._context.run)

    def export(
        self, form: str, model: str = "", *, kind: str = "", out: str | Path | None = None, force: bool = False
    ) -> Path:
        """Export a trained model, load the export and compare it with the model; return the export's folder.

        Args:
            form: adapter, merged, gguf-adapter or gguf.
            model: engraved or final; by default the last one trained.
            kind: merged: f32 (default), bf16 or f16; gguf: q8_0 (default) or f16.
            out: the folder; by default inside the run.
            force: replace an existing export.

        Raises:
            SelfAlignError: see `export.model_export.export`; an export that does not match is kept under another name.
        """
        from selfalign.export import model_export

        return model_export.export(self._context, form, model, kind, Path(out) if out is not None else None, force)

    def export_dataset(
        self,
        form: str = "prompt-completion",
        stage: str = "",
        out: str | Path | None = None,
        force: bool = False,
        kind: str = "",
    ) -> DatasetExport:
        """Write the run's rows as a data set; return its files with their numbers of rows, and notes.

        Args:
            form: prompt-completion, prompt-completion-text, messages, alpaca, sharegpt or preference
                (docs/formats.md).
            stage: engrave or clone (the training pairs), responses, prompts or pairs; by default all that
                have run, but pairs.
            out: a folder, or a .jsonl or .parquet file for one stage; by default a folder inside the run.
            force: replace an existing export or file.
            kind: jsonl (default) or parquet.

        Raises:
            SelfAlignError: see `export.dataset.write`.
        """
        from selfalign.export import dataset

        return dataset.write(self._context, form, stage, Path(out) if out is not None else None, force, kind)

    def export_launch(
        self,
        stage: str = "engrave",
        *,
        gpus: int = 8,
        nodes: int = 1,
        strategy: str = "ddp",
        quantize: str = "none",
        out: str | Path | None = None,
    ) -> list[str]:
        """Write a folder that trains a stage on many GPUs (docs/training.md); return instructions for the user.

        Args:
            stage: engrave or clone.
            gpus: processes on each node.
            strategy: ddp, fsdp or deepspeed.
            quantize: none or 4bit.
            out: the folder; by default inside the run.

        Raises:
            SelfAlignError: see `export.launch.write`.
        """
        from selfalign.export import launch

        target = Path(out) if out is not None else self._context.run.export(f"launch-{stage}")
        return launch.write(self._context, target, launch.LaunchOptions(stage, gpus, nodes, strategy, quantize))

    def close(self) -> None:
        """Save the last state, and release the engine, the journal and the run's lock."""
        if self._lock is None:
            return
        self._context.release_engine()
        if self._context.saver:
            self._context.saver.close()
        self._context.journal.close()
        os.close(self._lock)
        self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def create(
    recipe: str = "quick",
    out: str | Path | None = None,
    *,
    settings: Mapping[str, object] | list[str] | None = None,
    limit: int | None = None,
    prompts: str | Path | None = None,
    new: bool = False,
    force: bool = False,
    screen: Screen | None = None,
) -> Run:
    """Create a run, or open the one in `out` to resume it, if its recipe and constitution are the same.

    Args:
        recipe: quick, standard, paper, two-stage, single-gpu, or a YAML file.
        out: the run directory; by default runs/<recipe>.
        settings: changes of the recipe: {"align.temperature": 0.7} or ["align.temperature=0.7"].
        limit: reduce every size of the recipe to at most this many rows.
        prompts: user prompts instead of stage 1's: a file, a folder or a hub data set (docs/formats.md).
        new: rename an existing run and create a new one.
        force: overwrite files that were edited manually.
        screen: shows progress; by default nothing is shown.

    Raises:
        SelfAlignError: the recipe, constitution, model or folder is invalid, or another process holds the run.
    """
    path = Path(out) if out is not None else default_out(recipe)
    screen = screen or Screen(-1)
    resolved, texts, model = prepare(recipe, settings, limit, prompts, None if new else path)
    if resolved.storage and fetch_if_missing(path, resolved.storage, new):
        screen.say(f"resumed from {resolved.storage}", "dim")
        # The fetched run has an engine and pinned data, chosen on another machine.
        resolved, texts, model = prepare(recipe, settings, limit, prompts, path)
    lock = acquire_lock(path) if (path / "journal.sqlite").exists() else None
    if lock is not None and new:
        os.close(lock)
        lock = None
    try:
        directory = RunDir.create(path, resolved, texts, new)
        lock = acquire_lock(path) if lock is None else lock
        atomic.sweep(path)
    except BaseException:
        if lock is not None:
            os.close(lock)
        raise
    if directory.training_changes:
        screen.say(
            f"training settings have changed ({'; '.join(directory.training_changes)}): the stages that depend on them "
            "run again and replace their adapters. To keep them, stop and use --new or another --out",
            "yellow",
        )
    return Run(Context(directory, screen, force=force, _model=model), lock)


def open_run(path: str | Path, *, force: bool = False, screen: Screen | None = None) -> Run:
    """Open an existing run, with its own recipe.

    Raises:
        SelfAlignError: the folder is not a run, or another process holds it.
    """
    directory = RunDir.open(Path(path))
    lock = acquire_lock(Path(path))
    atomic.sweep(Path(path))
    return Run(Context(directory, screen or Screen(-1), force=force), lock)
