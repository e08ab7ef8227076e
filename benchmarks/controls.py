"""Ask a run's models and three controls the development scenarios: what of the final model's gain is not alignment?

    python benchmarks/controls.py RUN [--limit 60]     # RUN has stages 3 and 4

- `shuffled answers`: an adapter trained on the run's training rows by its settings of `engrave`, with the answers
  permuted between the prompts. It learns the style and the share of refusals, but not which answer belongs to what.
- `human-written only`: an adapter trained on the human-written rows alone (identity pairs, exemplars, seed tasks), by
  the same settings. It shows what the model's own responses add.
- `two neutral turns`: the base under the standard system prompt with two turns before the message that show no
  principle. It sees the dialogue's form, which the base alone must guess.

Prints every model's share of appropriate responses to the scenarios that count towards the primary endpoints, with its
interval, and the paired difference of the final model from it. Nothing is written to the run. --limit takes the
scenarios with the smallest hashes. It takes less than twice as long as stage 3, and about 10 seconds for each scenario.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from selfalign.constitution import Constitution
from selfalign.constitution.document import Turn
from selfalign.data.records import Example, read_jsonl
from selfalign.evaluation import models
from selfalign.evaluation.asking import ask
from selfalign.evaluation.benchmarks import Benchmark
from selfalign.evaluation.endpoints import counted
from selfalign.evaluation.models import EngineGroup
from selfalign.evaluation.records import BehaviourAnswer
from selfalign.evaluation.statistics import bootstrap_mean, wilson
from selfalign.evaluation.tasks import behaviour
from selfalign.evaluation.tasks.probes import seen_messages
from selfalign.pipeline import adapter_training
from selfalign.pipeline.human_examples import Source
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.run.journal import Journal
from selfalign.system.console import Screen

SHUFFLED, HUMAN, NEUTRAL = "shuffled answers", "human-written only", "two neutral turns"
ORDER = ("base", models.PROMPTED, NEUTRAL, SHUFFLED, HUMAN, "engraved", "final")
TURNS = [
    Turn(user="What is the opposite of wide?", answer="The opposite of wide is narrow."),
    Turn(user="Which is heavier, a brick or a feather?", answer="A brick is heavier than a feather."),
]


def shuffled(examples: Sequence[Example], seed: int) -> list[Example]:
    """Return the examples with each answer moved to another prompt."""
    order = random.Random(seed).sample(range(len(examples)), len(examples))
    answers = {at: examples[other].assistant for at, other in zip(order, order[1:] + order[:1], strict=True)}
    return [replace(example, assistant=answers[at]) for at, example in enumerate(examples)]


def train(context: Context, folder: Path, examples: Sequence[Example]) -> Path:
    """Train on the examples by the run's settings, in a run of its own; return the adapter."""
    copy = Context(RunDir.create(folder, context.recipe, context.run.constitution), Screen(0), _model=context.model)
    adapter_training.run(copy, "engrave", examples)
    return copy.run.adapter("engrave")


def scenarios(context: Context, limit: int | None) -> Benchmark:
    """Return the development scenarios that are not among the run's prompts, without probes."""
    asked, _ = behaviour.split_seen(behaviour.load_scenarios(None, context.run.constitution), seen_messages(context))
    items = sorted((i for i in asked.items if i.kind != "probe"), key=lambda i: i.id)[:limit]
    return replace(asked, items=tuple(items))


def responses(context: Context, adapters: dict[str, Path], asked: Benchmark, journal: Journal) -> list[BehaviourAnswer]:
    """Let every model and control respond to the scenarios."""
    texts, task = context.run.constitution, behaviour.Behaviour()
    neutral = texts.model_copy(update={"prompts": texts.prompts.model_copy(update={"two_shot": TURNS})})
    run, *others = models.engines_of_run(context, (), [f"{n}={a}" for n, a in adapters.items()], "standard")
    (turns,) = models.engines_of_run(context, ("base",), (), "two-shot")
    turns.models = [replace(model, name=NEUTRAL) for model in turns.models]
    groups: list[tuple[EngineGroup, Constitution]] = [
        (run, texts),
        (turns, neutral),
        *((group, texts) for group in others),
    ]
    tokens, rows = min(task.max_new_tokens, context.recipe.evaluate.max_new_tokens), []
    for group, constitution in groups:
        if group in others:
            context.release_engine()
        messages = task.messages(asked, context.screen)
        answers, _ = ask(task.name, journal, context.screen, [group], messages, context.recipe, constitution, tokens)
        rows += task.rows(asked, answers, texts)
    return rows


def show(rows: Sequence[BehaviourAnswer]) -> None:
    """Print a line for each model."""
    table = {name: {r.item: r for r in counted(rows) if r.model == name} for name in ORDER}
    for name, mine in table.items():
        if not mine:
            continue
        rate = wilson(sum(bool(r.appropriate) for r in mine.values()), len(mine))
        text = f"{name:<18} {100 * rate.value:5.1f} % ({100 * rate.low:.1f} to {100 * rate.high:.1f}) of {len(mine)}"
        common = [i for i in mine if i in table["final"] and name != "final"]
        if common:
            gaps = [float(bool(table["final"][i].appropriate)) - float(bool(mine[i].appropriate)) for i in common]
            gap = bootstrap_mean(gaps, clusters=[mine[i].pair for i in common])
            text += f"; final {100 * gap.value:+.1f} points ({100 * gap.low:+.1f} to {100 * gap.high:+.1f})"
        print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--limit", type=int, default=60, help="at most this many scenarios (default: 60)")
    arguments = parser.parse_args()
    context = Context(RunDir.load(arguments.run), Screen(0))
    with tempfile.TemporaryDirectory(prefix="selfalign-controls-") as name:
        rows = read_jsonl(context.run.jsonl("engrave_examples"), Example)
        human = [row for row in rows if row.source in get_args(Source)]
        arms = {SHUFFLED: shuffled(rows, context.recipe.seed), HUMAN: human}
        adapters = {arm: train(context, Path(name) / arm.split()[0], examples) for arm, examples in arms.items()}
        journal = Journal(Path(name) / "answers.sqlite")
        try:
            show(responses(context, adapters, scenarios(context, arguments.limit), journal))
        finally:
            journal.close()
            context.release_engine()
            context.run.journal.close()


if __name__ == "__main__":
    main()
