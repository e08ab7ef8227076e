"""Measure the models of a run, or models without a run, on tasks: items -> 5_evaluation/<task>.jsonl, scores.json.

Results in the journal are not computed again, so the same command resumes an interrupted evaluation. The usage log
`benchmarks.json` records which files were read, by which weights, and how often.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfalign.constitution import Constitution
from selfalign.data.records import content_hash
from selfalign.data.scenarios import Half
from selfalign.errors import UserError
from selfalign.evaluation import benchmarks, models
from selfalign.evaluation.asking import OpenEndedTask, ask
from selfalign.evaluation.benchmarks import Benchmark
from selfalign.evaluation.models import EngineGroup, ScorerGroup
from selfalign.evaluation.prompting import PromptKind
from selfalign.evaluation.records import Score
from selfalign.evaluation.results import ResultStore, column, model_of
from selfalign.evaluation.scoring import ScoredTask, score
from selfalign.evaluation.tasks import TASKS, behaviour, pressure, task_of
from selfalign.evaluation.tasks.probes import seen_messages
from selfalign.run import recipe as recipes
from selfalign.run.context import Context
from selfalign.run.journal import Journal
from selfalign.run.recipe import Recipe
from selfalign.system.clock import Clock
from selfalign.system.console import Screen

STAGE = "benchmarks"
"""The name under which a run records the files that this module publishes."""


@dataclass(frozen=True, slots=True)
class EvaluationRequest:
    """The tasks and models of an evaluation."""

    tasks: Sequence[str]
    """Keys of `tasks.TASKS`."""
    models: Sequence[str] = ()
    """Models of the run; empty for all."""
    others: Sequence[str] = ()
    """NAME=ADAPTER, NAME=MODEL, NAME=URL#ID."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Benchmark -> file, folder or hub id; behaviour -> file of scenarios."""
    prompt: PromptKind = "standard"
    limit: int | None = None
    """The maximum number of items of each benchmark."""
    scenarios: Half | None = None
    """The half of the shipped scenarios; by default the recipe's."""
    judge: str = ""
    """The judge of open-ended responses: [NAME=]MODEL or [NAME=]URL#ID; empty for none."""

    @property
    def scored(self) -> list[ScoredTask]:
        """The requested tasks that are scored by log-likelihoods."""
        return [t for name in self.tasks if isinstance(t := TASKS[name], ScoredTask)]

    @property
    def open_ended(self) -> list[OpenEndedTask[Any]]:
        """The requested tasks that models answer in their own words."""
        return [t for name in self.tasks if isinstance(t := TASKS[name], OpenEndedTask)]

    def check(self, constitution: Constitution) -> None:
        """Raise a UserError if a task is unknown, or the system prompt cannot be used."""
        check_tasks(self.tasks)
        if self.scenarios == "test" and pressure.NAME in self.tasks:
            raise UserError(
                "--scenarios test: `pressure` asks the half for development only; name it in a command alone"
            )
        if self.prompt == "two-shot" and not constitution.prompts.two_shot:
            raise UserError("--prompt two-shot: the constitution's prompts.two_shot is empty: add two worked turns")


def check_tasks(names: Sequence[str], option: str = "--benchmarks") -> None:
    """Raise a UserError for the first name that is not a task; `option` is where the names come from."""
    for name in names:
        if name not in TASKS:
            raise UserError(f"{option}: {name!r} is not known; use one of {', '.join(TASKS)}")


def run(context: Context, request: EvaluationRequest) -> list[Path]:
    """Measure a run's models; return the written files.

    Raises:
        UserError: a benchmark, a model or a scorer is not available, or a file was edited.
        Interrupted: a signal arrived; the same command resumes.
    """
    run, names, others = context.run, request.models, request.others
    request.check(run.constitution)
    evaluation = _Evaluation(request, _store(context), context.recipe, run.constitution)
    if request.scored:
        evaluation.scorers = models.scorers_of_run(context, names, others, request.prompt)
        evaluation.scorer_identities = _scorer_identities(context)
    if request.open_ended:
        evaluation.engines = models.engines_of_run(context, names, others, request.prompt)
        evaluation.engine_identities = _engine_identities(context)
    # All items are loaded before any result is written or removed, so that a wrong request changes nothing.
    evaluation.load(seen_messages(context) if {behaviour.NAME, pressure.NAME} & set(request.tasks) else set())
    published = [evaluation.store.path(name) for name in _file_names()]
    run.check_not_edited([run.scores, *published], context.force)
    run.manifest.unlink(missing_ok=True)
    files = evaluation.measure(context.release_engine)
    publish_scores(evaluation.store)
    run.mark_done(STAGE, content_hash(list(request.tasks)), [file for file in published if file.exists()])
    for task in request.open_ended:
        context.check_failures(context.journal.counts(task.name))
    return [*files, run.scores]


def run_alone(
    folder: Path,
    specs: Sequence[str],
    request: EvaluationRequest,
    constitution: Constitution,
    prompted: bool,
    screen: Screen,
) -> list[Score]:
    """Measure models without a run; return the scores, which are written to the folder.

    Args:
        folder: created if it does not exist; an evaluation in it is resumed.
        specs: models, as for `models.scorers_of`.
        prompted: also measure each model with the constitution in its prompt.

    Raises:
        UserError: as in `run`, or the folder contains other files.
    """
    request.check(constitution)
    scorers = models.scorers_of(specs, request.prompt, prompted) if request.scored else []
    engines = models.engines_of(specs, request.prompt, prompted) if request.open_ended else []
    if folder.exists() and any(folder.iterdir()) and not (folder / "journal.sqlite").exists():
        raise UserError(f"{folder} contains other files than an evaluation's: choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    journal = Journal(folder / "journal.sqlite")
    try:
        store = ResultStore(folder, journal, screen, constitution=constitution.digest())
        evaluation = _Evaluation(request, store, recipes.load("quick"), constitution, scorers, engines)
        evaluation.load(set())
        evaluation.measure()
        return publish_scores(store)
    finally:
        journal.close()


def refresh(context: Context) -> None:
    """Restore the scores of tasks in scores.json, after the stage `evaluate` wrote those of the held-out prompts.

    Rows of models that have been trained again since are removed.
    """
    store = _store(context)
    if not store.usage_log():
        return
    scored = {} if context.model.is_fake else _scorer_identities(context)
    open_ended = _engine_identities(context)
    for label, measured in store.measured_models().items():
        task = task_of(label)
        identities = scored if isinstance(task, ScoredTask) else open_ended
        outdated = {c for c, identity in measured.items() if identities.get(model_of(c), identity) != identity}
        if not outdated or not store.path(task.name).exists():
            continue
        benchmark = label.removesuffix(task.suffix)
        rows: list[Any] = store.read(task.name, task.record)
        store.write(task.name, [r for r in rows if r.benchmark != benchmark or column(r) not in outdated])
        task.drop_stale_verdicts(store)
        store.forget(label, outdated)
        context.screen.say(f"  {label}: removed the scores of earlier weights: {', '.join(sorted(outdated))}")
    publish_scores(store)


def check_ready(context: Context) -> None:
    """Raise a UserError if a benchmark in the recipe is not available. A run calls it before it generates anything."""
    tasks = context.recipe.evaluate.tasks
    check_tasks(tasks, "evaluate.tasks")
    for name in tasks:
        if origin := TASKS[name].origin:
            benchmarks.load(origin, None, context.recipe.evaluate.benchmarks)


def publish_scores(store: ResultStore) -> list[Score]:
    """Replace the scores of all tasks in scores.json, and return them. Other scores in the file stay."""
    scores = [s for task in TASKS.values() for s in task.scores(store)]
    store.write_scores([*(s for s in store.scores() if not is_task_score(s)), *scores])
    return scores


def is_task_score(score: Score) -> bool:
    """Return whether a score belongs to a task, and not to the held-out prompts."""
    return score.benchmark.split("/")[0].split(" ")[0] in (*TASKS, behaviour.PROBES)


# -- parts of an evaluation ----------------------------------------------------------------------------------------


def _store(context: Context) -> ResultStore:
    run = context.run
    files, digest = context.recipe.evaluate.benchmarks, run.constitution.digest()
    return ResultStore(run.evaluation, context.journal, context.screen, files, digest, run.rewriting)


def _file_names() -> list[str]:
    """Return the names of all files of rows and verdicts."""
    return [*TASKS, *(task.verdicts for task in TASKS.values() if task.verdicts)]


def _identities(groups: Sequence[ScorerGroup] | Sequence[EngineGroup]) -> dict[str, str]:
    return {model.name: model.identity for group in groups for model in group.models}


def _scorer_identities(context: Context) -> dict[str, str]:
    """Return model of the run -> the identity of its current weights in the scorer."""
    return _identities(models.scorers_of_run(context, (), (), "standard"))


def _engine_identities(context: Context) -> dict[str, str]:
    """Return model of the run -> the identity of its current weights in the engine."""
    return _identities(models.engines_of_run(context, (), (), "standard"))


@dataclass
class _Evaluation:
    """An evaluation of a run's models, or of models without a run."""

    request: EvaluationRequest
    store: ResultStore
    recipe: Recipe
    constitution: Constitution
    scorers: list[ScorerGroup] = field(default_factory=list)
    engines: list[EngineGroup] = field(default_factory=list)
    scorer_identities: Mapping[str, str] = field(default_factory=dict)
    """Model of the run -> the identity of its current weights. Rows of other weights are removed."""
    engine_identities: Mapping[str, str] = field(default_factory=dict)
    items: dict[str, Benchmark] = field(default_factory=dict)
    """Task -> its items."""

    def load(self, seen: Set[str]) -> None:
        """Read the items of all tasks, and check the judge.

        Args:
            seen: the run's prompts (`rouge.without_end`); scenarios among them are skipped.
        """
        request, say = self.request, self.store.screen.say
        for name, task in TASKS.items():
            if name not in request.tasks:
                continue
            if task.origin is None:
                self.items[name] = self._load_scenarios(name, seen)
            else:
                source = request.data.get(task.origin.name)
                items = benchmarks.load(task.origin, source, self.store.recipe_files).first(request.limit)
                size = f"{len(items.items)} items of {items.source}"
                say(f"  {items.label}: {size}, sha256 {items.sha256[:12]}", "dim")
                self.items[name] = items
        if request.judge and request.open_ended:
            models.judge_group(request.judge, self.recipe.engine)

    def _load_scenarios(self, name: str, seen: Set[str]) -> Benchmark:
        """Return the scenarios of the task `behaviour` or `pressure` that are not among the run's prompts."""
        request, say = self.request, self.store.screen.say
        source, half = request.data.get(behaviour.NAME), request.scenarios or self.recipe.evaluate.scenarios
        if name == pressure.NAME:
            # The test half is read for the primary endpoints only.
            scenarios = behaviour.load_scenarios(source, self.constitution)
        else:
            scenarios = behaviour.load_scenarios(source, self.constitution, request.limit, half)
        fresh, known = behaviour.split_seen(scenarios, seen)
        if name == pressure.NAME:
            fresh = pressure.under_pressure(fresh, request.limit)
        if not fresh.items:
            raise UserError(f"{name}: {scenarios.source} has no scenarios to ask that are not among the run's prompts")
        say(f"  {fresh.label}: {len(fresh.items)} scenarios, {scenarios.source}", "dim")
        for scenario in known:
            say(f"  skipped, it is one of the run's prompts: {scenario.ask}", "yellow")
        return fresh

    def measure(self, release_engine: Callable[[], None] = lambda: None) -> list[Path]:
        """Measure all tasks and publish their rows; return the files.

        Args:
            release_engine: frees the run's engine before a judge starts.
        """
        request = self.request
        try:
            for scored in request.scored:
                self._score(scored)
        finally:
            _close(self.scorers)
        for task in request.open_ended:
            self._ask(task)
            if request.judge and task.judged:
                release_engine()
                with models.open_judge(request.judge, self.recipe.engine, self.store.screen.say) as judge:
                    task.judge(self.store, self.items[task.name], judge)
        return [self.store.path(task.name) for task in (*request.scored, *request.open_ended)]

    def _score(self, task: ScoredTask) -> None:
        items = self.items[task.name]
        rows = score(task, items, self.scorers, self.constitution, self.store.journal, self.store.screen)
        self.store.update(task, items, _columns(self.scorers), self.scorer_identities, rows)

    def _ask(self, task: OpenEndedTask[Any]) -> None:
        items, store, clock = self.items[task.name], self.store, Clock()
        limit = self.recipe.evaluate.max_new_tokens
        limit = min(limit, task.max_new_tokens or limit)
        messages = task.messages(items, store.screen)
        try:
            responses, outcomes = ask(
                task.name, store.journal, store.screen, self.engines, messages, self.recipe, self.constitution, limit
            )
        finally:
            _close(self.engines)
        store.journal.restart(task.name)
        store.journal.record(task.name, outcomes)
        store.journal.finish(task.name, len(outcomes), clock.seconds())
        rows = task.rows(items, responses, self.constitution)
        current = {**self.engine_identities, **_identities(self.engines)}
        store.update(task, items, _columns(self.engines), current, rows)
        task.drop_stale_verdicts(store)


def _columns(groups: Sequence[ScorerGroup] | Sequence[EngineGroup]) -> dict[str, str]:
    return {model.column: model.identity for group in groups for model in group.models}


def _close(groups: Sequence[ScorerGroup] | Sequence[EngineGroup]) -> None:
    for group in groups:
        group.close()
