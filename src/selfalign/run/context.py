"""Provide a stage with its run, model, engine and screen, and finish its ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from selfalign.data import scenarios
from selfalign.data.prompt_text import Pieces
from selfalign.data.records import Prompt, Response, content_hash
from selfalign.errors import Resumable, TooManyFailed
from selfalign.generation import engines, executors
from selfalign.generation.engines.base import Engine, Sampling
from selfalign.generation.loop import JournaledEngine
from selfalign.generation.settings import AlignSettings
from selfalign.model.base_model import Model
from selfalign.quality.contamination import SCENARIO_FRAME, SCENARIO_ROUGE, Benchmarks
from selfalign.run.directory import RunDir
from selfalign.run.inputs import Rows
from selfalign.run.journal import Journal
from selfalign.run.ledger import NOT_JUDGED, RowOutcome, StageCounts
from selfalign.run.recipe import EvaluateSettings, Recipe, RedTeamSettings, SelfInstructSettings, VerboseCloningSettings
from selfalign.system.clock import Clock
from selfalign.system.console import Screen

if TYPE_CHECKING:
    from selfalign.generation.calibration import Calibration
    from selfalign.run.saving import StateSaver

ADAPTER_STAGES = ("engrave", "verbose_cloning")


SamplingConfig = SelfInstructSettings | RedTeamSettings | AlignSettings | VerboseCloningSettings | EvaluateSettings
"""The parts of the recipe with sampling settings."""


@dataclass
class Context:
    """The run, model, engine and screen of a stage. Model and engine are loaded when they are first used."""

    run: RunDir
    screen: Screen
    force: bool = False
    saver: StateSaver | None = None
    """Saves the run to the recipe's storage."""
    _model: Model | None = None
    _engine: Engine | None = None
    _engine_for: dict[str | None, str] = field(default_factory=dict)
    """The identities of the weights that the engine loaded."""
    _printed_note: str = ""
    """The last note of the engine that was printed."""

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @property
    def journal(self) -> Journal:
        return self.run.journal

    @property
    def model(self) -> Model:
        """The base model."""
        if self._model is None:
            self._model = engines.base_model(self.recipe.model, self.recipe.engine)
        return self._model

    def identities(self, adapters: tuple[str, ...] = ()) -> dict[str | None, str]:
        """Return a hash of the weights for the base (None) and each of these stages' adapters."""
        if engines.kind(self.recipe.engine) == "openai":
            served = self.recipe.engine.served
            base = content_hash(self.model.identity, served.get("base"))
            return {None: base, **{a: content_hash(base, a, served.get(a)) for a in adapters}}
        return self.model.identities({a: self.run.adapter_gguf(a) for a in adapters})

    def has_adapter(self, stage: str) -> bool:
        """Return whether the stage's adapter can be loaded."""
        return self.model.has_adapter(self.run.adapter_gguf(stage))

    def adapter(self, stage: str) -> Path:
        """Return the folder of a stage's PEFT adapter. Raises as `Model.check_adapter`."""
        folder = self.run.adapter(stage)
        self.model.check_adapter(folder)
        return folder

    def engine(self, adapters: tuple[str, ...] = ()) -> Engine:
        """Return an engine with the adapters of these stages; start it if the current one does not have them."""
        identities = self.identities(adapters)
        if self._engine is None or not identities.items() <= self._engine_for.items():
            self.release_engine()
            config = self.recipe.engine
            served = engines.kind(config) == "openai"
            if served:
                self._check_served(adapters)
            trained = () if self.model.is_fake else adapters
            folders = {a: self.run.adapter(a) if served else self.adapter(a) for a in trained}
            executor = self.recipe.executor
            self._engine = executors.start(
                executor, config, self.model, folders, self.slots, self.screen.say, self.run.log
            )
            self._engine_for = identities
            self._print_engine(self._engine.parallel)
        return self._engine

    def journaled_engine(
        self,
        stage: str,
        on_done: Callable[[int, int], None] = lambda rows, tokens: None,
        adapters: tuple[str, ...] = (),
    ) -> JournaledEngine:
        """Return the engine for the requests of a stage, behind the journal.

        Args:
            on_done: gets (rows, generated tokens) as requests finish.
            adapters: stages whose adapters requests may name.
        """
        return JournaledEngine(self.engine(adapters), self.journal, stage, self.identities(adapters), on_done)

    def _print_engine(self, slots: int) -> None:
        config = self.recipe.engine
        # The frozen recipe names the engine that auto chose; the reason is only known for what auto chooses now.
        kind, (automatic, why) = engines.kind(config), engines.choose(config.model_copy(update={"kind": "auto"}))
        reason = f" ({why})" if kind == automatic else ""
        text = f"  engine {kind}{reason}, {slots} requests at once"
        if self.recipe.executor.kind == "ray":
            text += f" by {getattr(self._engine, 'where', 'Ray workers')}"
        elif config.slots == "auto" and kind == "llama_cpp":
            rates = ", ".join(f"{n}: {rate:.0f}" for n, rate in self.calibration().by_slots.items())
            text += f"; measured tokens/s by requests at once: {rates}"
        self.screen.say(text, "dim")
        self._print_note()

    def _print_note(self) -> None:
        note = self._engine.note if self._engine else ""
        if note and note != self._printed_note:
            self.screen.say(f"  {note}", "yellow")
        self._printed_note = note

    def slots(self) -> int:
        """Return the number of concurrent requests: the recipe's, or the fastest on this machine."""
        config = self.recipe.engine
        return engines.slots(config, lambda: self.calibration().slots)

    def speed(self) -> Calibration | None:
        """Return the measured speed of llama.cpp on this machine; None with another engine or on a cluster."""
        here = not self.recipe.executor.address
        return self.calibration() if here and engines.kind(self.recipe.engine) == "llama_cpp" else None

    def calibration(self) -> Calibration:
        """Return the speed of llama.cpp on this machine, measured once per model. Raises as `calibration`."""
        from selfalign.generation import calibration

        config, model = self.recipe.engine, self.model
        return calibration.calibrate(model.gguf, model.identity, config.context, config.threads, say=self.screen.say)

    def _check_served(self, adapters: tuple[str, ...]) -> None:
        """Check that the recipe names the server's model ids of the base and the adapters, which we cannot load there.

        Raises:
            Resumable: an id that this stage needs is missing.
        """
        for name in ("base", *adapters):
            if name in self.recipe.engine.served:
                continue
            how = "start it"
            if name != "base":
                how = (
                    f"serve it (llama.cpp: llama-server -m BASE.gguf --lora {self.run.adapter_gguf(name)}; vLLM: "
                    f"--enable-lora --lora-modules {name}={self.run.adapter(name)})"
                )
            raise Resumable(
                f"the recipe does not name the server's model id for {name!r}: {how}, then run the same command again "
                f"with --set engine.served.{name}=ID"
            )

    def sampling(self, config: SamplingConfig) -> Sampling:
        """Return a stage's sampling settings, with the engine's `top_k`."""
        top_k = self.recipe.engine.top_k
        return Sampling(config.temperature, config.top_p, config.max_new_tokens, top_k=top_k)

    def warm_prefix(self, prefix: Pieces) -> None:
        """Let the engine compute a prefix that the next requests share."""
        message = self.engine().warm_prefix(prefix, None)
        self.screen.detail(f"  a prefix that many requests share: {message}")

    def release_engine(self) -> None:
        """Close the engine and free its memory."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None

    @cached_property
    def benchmarks(self) -> Benchmarks:
        """The items that the models will be evaluated on, which prompts and responses must not overlap.

        Raises:
            UserError: a benchmark file of the recipe cannot be read.
        """
        overlap = self.recipe.filters.overlap
        benchmarks = Benchmarks(overlap.words, overlap.rouge)
        benchmarks.add("probes", (probe.ask for _, probe in self.run.constitution.probes()))
        benchmarks.add("scenarios", scenarios.shipped().texts(), SCENARIO_ROUGE, SCENARIO_FRAME)
        for name in self.recipe.evaluate.benchmarks:
            benchmarks.add_file(Path(name))
        return benchmarks

    # -- input files ---------------------------------------------------------------------------------------------

    def prompts(self) -> Rows[Prompt]:
        """Return the rows of stage 1's prompts file."""
        return Rows(self.run.jsonl("prompts"), Prompt, self.journal, ("self_instruct", "red_team"))

    def responses(self) -> Rows[Response]:
        """Return the rows of stage 2's responses file."""
        return Rows(self.run.jsonl("responses"), Response, self.journal, ("align",))

    # -- ledger --------------------------------------------------------------------------------------------------

    def write_ledger(
        self,
        stage: str,
        outcomes: Iterable[RowOutcome],
        rows_in: int,
        clock: Clock,
        notes: dict[str, object] | None = None,
    ) -> StageCounts:
        """Replace the stage's ledger by these outcomes, and finish the stage. Raises as `finish`."""
        with self.journal.ledger(stage, rows_in) as ledger:
            for outcome in outcomes:
                ledger.record(outcome)
        return self.finish(stage, rows_in, clock, notes)

    def finish(self, stage: str, rows_in: int, clock: Clock, notes: dict[str, object] | None = None) -> StageCounts:
        """Mark the stage as finished, check that its counts balance, and print them.

        Raises:
            CountMismatch: rows were lost or counted twice.
        """
        counts = self.journal.finish(stage, rows_in, clock.seconds(), notes)
        text = f"  {stage}: {counts.rows_in} in, {counts.kept} kept"
        for name, reasons in (("dropped", counts.dropped), ("failed", counts.failed)):
            if reasons:
                text += f"; {name}: " + ", ".join(f"{reason} {n}" for reason, n in reasons.items())
        self.screen.say(text)
        if unjudged := counts.notes.get(NOT_JUDGED):
            rows = ", ".join(f"{name} {number:,}" for name, number in unjudged.items())
            self.screen.say(f"  kept because filters cannot judge their language or script: {rows}", "dim")
        totals = counts.generation
        if totals.seconds and not self.model.is_fake:
            self.screen.say(
                f"  {totals.generated_tokens:,} tokens generated at {totals.tokens_per_second:.0f} tokens/s; prompt "
                f"tokens: {totals.prompt_tokens:,} computed, {totals.cached_tokens:,} from the cache "
                f"({totals.hit_rate:.1%}); engine busy {totals.busy:.0%}",
                "dim",
            )
            self._print_note()
        if totals.escaped_rows:
            first, word = next(iter(self.journal.escaped(stage))), "row" if totals.escaped_rows == 1 else "rows"
            self.screen.say(
                f"  control tokens in the text were escaped: {totals.escaped_rows:,} {word} (first: {first}; all: "
                f"selfalign status {self.run.path} --json)",
                "yellow",
            )
        return counts

    def check_failures(self, counts: StageCounts) -> None:
        """Raise TooManyFailed if more rows failed than the recipe allows."""
        failed = sum(counts.failed.values())
        if counts.rows_in and failed / counts.rows_in > self.recipe.max_failed:
            reason = next(iter(counts.failed))
            raise TooManyFailed(
                f"{counts.stage}: {failed} of {counts.rows_in} rows failed ({reason}, ...); the others are saved. "
                "The same command retries the failed rows; a higher max_failed in the recipe continues without them"
            )
