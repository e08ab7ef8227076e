"""selfalign from Python, as the command line has it: make or open a run, run stages, read what they made.

    import selfalign

    with selfalign.create("quick", out="runs/mine", limit=20) as run:
        run.run_all()
        for response in run.responses():
            print(response.message, response.response)

Everything that goes wrong for a reason of the user's is a `selfalign.SelfAlignError`, explained in one line.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from selfalign.data.records import Answer, Drop, Prompt, Response, Score, read_jsonl
from selfalign.errors import UserError
from selfalign.evaluation.evaluate import EvaluationRequest
from selfalign.pipeline import order
from selfalign.planning.prepare import prepare
from selfalign.report.scores import read_scores
from selfalign.report.status import status
from selfalign.run import feedback
from selfalign.run.context import ADAPTER_STAGES, Context
from selfalign.run.directory import RunDir, default_out, hold
from selfalign.run.feedback import Feedback
from selfalign.run.ledger import StageCounts
from selfalign.run.recipe import Recipe, Stage
from selfalign.run.saving import StateSaver, fetch_if_missing
from selfalign.run.storage import Storage
from selfalign.system import atomic
from selfalign.system.console import Screen

if TYPE_CHECKING:
    from selfalign.export.dataset import Exported


class Run:
    """A run directory that this process holds. Close it, or use it as a context manager.

    Args:
        context: what the stages get.
        lock: the file descriptor of the run's lock.
    """

    def __init__(self, context: Context, lock: int) -> None:
        self._context: Context = context
        self._lock: int | None = lock

    @property
    def context(self) -> Context:
        return self._context

    @property
    def path(self) -> Path:
        return self._context.run.path

    @property
    def recipe(self) -> Recipe:
        return self._context.recipe

    # -- doing ---------------------------------------------------------------------------------------------------

    def run_all(self) -> None:
        """Run the recipe's stages that are not finished, and publish the manifest.

        Raises:
            SelfAlignError: see `pipeline.run_all`; what was done so far is kept.
        """
        with self._kept():
            order.run_all(self._context)

    def run_stage(self, stage: Stage, adapter: str | Path | None = None) -> None:
        """Run one stage, also where it is finished (its raw outputs then come from the journal).

        Args:
            adapter: of engrave and clone: a folder with an adapter that was trained elsewhere, in place of training.

        Raises:
            SelfAlignError: see `pipeline.run_stage`.
        """
        if stage not in order.STEPS:
            raise UserError(f"{stage!r} is not a stage; stages are {', '.join(order.STEPS)}")
        if adapter is not None and stage not in ADAPTER_STAGES:
            raise UserError(f"the stage {stage!r} takes no adapter; {' and '.join(ADAPTER_STAGES)} do")
        with self._kept():
            self._context.given_adapter = Path(adapter) if adapter is not None else None
            try:
                order.run_stage(self._context, stage, again=True)
            finally:
                self._context.given_adapter = None
            order.write_manifest_if_done(self._context)

    @contextmanager
    def _kept(self) -> Iterator[None]:
        """Save the run to the recipe's storage while the block changes it, and at its end. Raises as `StateSaver`."""
        context = self._context
        if context.recipe.storage and context.saver is None:
            context.saver = StateSaver(self.path, Storage(context.recipe.storage), context.screen.say)
        yield
        if context.saver:
            context.saver.save()

    def export(
        self, form: str, model: str = "", *, kind: str = "", out: str | Path | None = None, force: bool = False
    ) -> Path:
        """A trained model in a form that others load, compared before it is published; returns its folder.

        Args:
            form: adapter, merged, gguf-adapter or gguf.
            model: engraved or final; the last one trained unless given.
            kind: merged: f32, bf16 or f16; gguf: q8_0 or f16; the first of them unless given.
            out: the folder; inside the run unless given.
            force: replace an export that stands there.

        Raises:
            SelfAlignError: see `export.model_export.export`; an export that does not match is kept under another name.
        """
        from selfalign.export import model_export

        return model_export.export(self._context, form, model, kind, Path(out) if out is not None else None, force)

    def run_benchmarks(self, tasks: list[str], **options: Any) -> list[Score]:
        """Measure the run's models on benchmarks; returns all scores of the run.

        Args:
            tasks: some of behaviour, hhh, truthfulqa, truthfulqa-generation, vicuna, questions.
            options: models, others, data, prompt, limit, judge; see `evaluation.evaluate.EvaluationRequest`.

        Raises:
            SelfAlignError: see `pipeline.run_benchmarks`; what was scored so far is kept.
        """
        with self._kept():
            order.run_benchmarks(self._context, EvaluationRequest(tasks, **options))
        return self.scores()

    # -- reading -------------------------------------------------------------------------------------------------

    def prompts(self) -> Iterator[Prompt]:
        """Stage 1's prompts, as they stand in the file.

        Raises:
            UserError: the stage has not run yet, or a line was edited into something else.
        """
        yield from read_jsonl(self._context.run.jsonl("prompts"), Prompt)

    def responses(self) -> Iterator[Response]:
        """Stage 2's kept responses. Raises as `prompts`."""
        yield from read_jsonl(self._context.run.jsonl("responses"), Response)

    def answers(self) -> Iterator[Answer]:
        """Each compared model's answers to the held-out prompts. Raises as `prompts`."""
        yield from read_jsonl(self._context.run.jsonl("answers"), Answer)

    def drops(self) -> Iterator[Drop]:
        """Every row that was not kept, with its stage and reason, as far as the run has come."""
        yield from self._context.journal.drops()

    def scores(self) -> list[Score]:
        """The evaluation; empty before it ran."""
        return [Score(**score) for score in read_scores(self._context.run)]

    def counts(self) -> list[StageCounts]:
        """The ledger of every stage so far: rows in, kept, dropped and failed by reason, tokens, seconds."""
        journal = self._context.journal
        return [journal.counts(stage) for stage in journal.stages()]

    def feedback(self) -> list[Feedback]:
        """The answers that people marked, the oldest mark first (docs/feedback.md).

        Raises:
            UserError: a line was edited into something else.
        """
        return list(feedback.read(self._context.run).values())

    def status(self) -> dict[str, Any]:
        """What `selfalign status --json` prints."""
        return status(self._context.run)

    def export_dataset(
        self,
        form: str = "prompt-completion",
        stage: str = "",
        out: str | Path | None = None,
        force: bool = False,
        kind: str = "",
    ) -> Exported:
        """Write the run's rows as a data set in a known form; returns the files with their numbers of rows, and notes.

        Args:
            form: prompt-completion, prompt-completion-text, messages, alpaca or sharegpt (docs/formats.md).
            stage: engrave or clone (the training pairs), responses or prompts; all that have run unless given.
            out: a folder, or a .jsonl or .parquet file for one stage; RUN/export/... unless given.
            force: replace an export, or the file, that stands there.
            kind: jsonl (unless given) or parquet.

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
        """Write a folder that trains the stage on many GPUs (docs/training.md); returns what the user should know.

        Args:
            stage: engrave or clone.
            gpus: processes on each node.
            strategy: ddp, fsdp or deepspeed.
            quantize: none or 4bit.
            out: the folder; inside the run unless given.

        Raises:
            SelfAlignError: see `export.launch.write`.
        """
        from selfalign.export import launch

        target = Path(out) if out is not None else self._context.run.export(f"launch-{stage}")
        return launch.write(self._context, target, launch.LaunchOptions(stage, gpus, nodes, strategy, quantize))

    # -- ending --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the engine, the journal and the run's lock."""
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
    """A new run, or the one that stands in `out` if its recipe and constitution are the same (it then resumes).

    Args:
        recipe: quick, standard, paper, two-stage, single-gpu, or a YAML file.
        out: the run directory; runs/<recipe> unless given.
        settings: changes to the recipe, as {"align.temperature": 0.7} or ["align.temperature=0.7"].
        limit: cut every size of the recipe to at most this many rows.
        prompts: own rows in place of stage 1: a file, a folder or a hub data set (docs/formats.md).
        new: set an existing run aside and begin again.
        force: overwrite files that were edited by hand.
        screen: where progress goes; nowhere unless given.

    Raises:
        SelfAlignError: recipe, constitution, model or folder are wrong, or another process holds the run.
    """
    path = Path(out) if out is not None else default_out(recipe)
    screen = screen or Screen(-1)
    wanted, texts, model = prepare(recipe, settings, limit, prompts, None if new else path)
    if wanted.storage and fetch_if_missing(path, wanted.storage, new):
        screen.say(f"resumed from {wanted.storage}", "dim")
        # The engine that the run chose on another machine, and the data that it pinned, are known now.
        wanted, texts, model = prepare(recipe, settings, limit, prompts, path)
    lock = hold(path) if (path / "journal.sqlite").exists() else None
    if lock is not None and new:
        os.close(lock)
        lock = None
    try:
        found = RunDir.create(path, wanted, texts, new)
        lock = hold(path) if lock is None else lock
        atomic.sweep(path)
    except BaseException:
        if lock is not None:
            os.close(lock)
        raise
    return Run(Context(found, screen, force=force, _model=model), lock)


def open_run(path: str | Path, *, force: bool = False, screen: Screen | None = None) -> Run:
    """The run in that folder, with the recipe it was made with.

    Raises:
        SelfAlignError: there is none, or another process holds it.
    """
    found = RunDir.open(Path(path))
    lock = hold(Path(path))
    atomic.sweep(Path(path))
    return Run(Context(found, screen or Screen(-1), force=force), lock)
