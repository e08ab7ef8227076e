"""What `selfalign evaluate` does with its words: a run's own stage, benchmarks on a run, or models by themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from selfalign import api, constitution
from selfalign.data.records import Score
from selfalign.errors import UserError
from selfalign.evaluation import evaluate
from selfalign.evaluation.evaluate import EvaluationRequest
from selfalign.evaluation.prompting import PROMPTS
from selfalign.evaluation.tasks import ORIGINS, TASKS, behaviour
from selfalign.pipeline import order
from selfalign.report import terminal
from selfalign.system.console import Screen


@dataclass(frozen=True, slots=True)
class Asked:
    """The options as they were typed."""

    tasks: str
    models: str
    others: Sequence[str]
    data: Sequence[str]
    prompt: str
    prompted: bool
    limit: int | None
    constitution: str
    out: Path | None
    judge: str

    def request(self) -> EvaluationRequest:
        """The same as values.

        Raises:
            UserError: one of them is not known.
        """
        if self.prompt not in PROMPTS[:-1]:
            raise UserError(f"--prompt {self.prompt!r} is not known; known are {', '.join(PROMPTS[:-1])}")
        tasks = _list(self.tasks)
        evaluate.check_tasks(tasks)
        sources = dict(_source(text) for text in self.data)
        return EvaluationRequest(tasks, _list(self.models), self.others, sources, self.prompt, self.limit, self.judge)


def _list(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _source(text: str) -> tuple[str, str]:
    name, _, source = text.partition("=")
    names = (*ORIGINS, behaviour.NAME)
    if name not in names or not source:
        raise UserError(f"--data {text!r}: write NAME=SOURCE, with one of {', '.join(names)} for the name")
    return name, source


def run(targets: Sequence[str], asked: Asked, force: bool, as_json: bool, screen: Screen) -> None:
    """See `selfalign evaluate`."""
    request = asked.request()
    runs = [t for t in targets if (Path(t) / "journal.sqlite").exists() and (Path(t) / "recipe.yaml").is_file()]
    if runs and len(targets) > 1:
        raise UserError(f"{runs[0]} is a run: evaluate one run at a time, or models")
    if runs:
        _run(Path(runs[0]), request, force, as_json, screen)
        return
    if not request.tasks:
        raise UserError(f"{targets[0]!r} is no run: say with --benchmarks what to measure ({', '.join(TASKS)})")
    if request.models or request.others:
        raise UserError("--models and --with are for a run; name models one after the other")
    names = "_".join(re.sub(r"[^\w.-]+", "-", t).strip("-")[-40:] for t in targets)
    folder = asked.out or Path("evaluations") / names
    texts = constitution.load(asked.constitution)
    _show(evaluate.run_alone(folder, targets, request, texts, asked.prompted, screen), as_json)
    screen.say(f"  results: {folder}", "dim")


def _run(path: Path, request: EvaluationRequest, force: bool, as_json: bool, screen: Screen) -> None:
    with api.open_run(path, force=force, screen=screen) as opened:
        if not request.tasks:
            asked = (
                request.models,
                request.others,
                request.data,
                request.limit,
                request.judge,
                request.prompt != "standard",
            )
            if any(asked):
                raise UserError("say with --benchmarks what is to be measured: alone, the command runs the stage")
            opened.run_stage("evaluate")
            if as_json:
                _show(opened.scores(), as_json)
            return
        order.run_benchmarks(opened.context, request)
        _show([s for s in opened.scores() if evaluate.is_task_score(s)], as_json)


def _show(scores: Sequence[Score], as_json: bool) -> None:
    if as_json:
        print(json.dumps([asdict(s) for s in scores], indent=1, ensure_ascii=False))
    else:
        terminal.show_benchmarks(scores)
