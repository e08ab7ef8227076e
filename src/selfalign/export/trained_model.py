"""Find the trained model to export: the base with the adapter of stage 3 or 4."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from selfalign.data.prompt_text import BOS
from selfalign.errors import UserError
from selfalign.evaluation.models import run_models
from selfalign.export import chat_template
from selfalign.run.context import Context
from selfalign.run.recipe import Stage


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A trained model of a run."""

    context: Context
    name: str
    """engraved or final."""
    stage: str
    """The stage that trained its adapter: engrave or verbose_cloning."""

    @property
    def adapter(self) -> Path:
        return self.context.run.adapter(self.stage)

    @property
    def system_prompt(self) -> str:
        return self.context.run.constitution.system_prompt("standard")

    @property
    def assistant(self) -> str:
        """The assistant's name."""
        return self.context.run.constitution.assistant.name

    def chat_template(self) -> str:
        """Return the Jinja chat template."""
        starts_with_bos = bool(self.context.model.tokenizer().encode((BOS,)))
        return chat_template.jinja(self.context.model.template, self.system_prompt, self.assistant, starts_with_bos)

    def dialogue_tokens(self) -> list[tuple[list[dict[str, str]], list[int]]]:
        """Return the test dialogues as chat messages, each with the token ids that training would use."""
        tokenizer, template = self.context.model.tokenizer(), self.context.model.template
        return [
            (
                chat_template.messages((system, turns)),
                tokenizer.encode(template.prompt(system or self.system_prompt, turns, self.assistant)),
            )
            for system, turns in chat_template.dialogues(self.context.run.constitution)
        ]

    def outdated_note(self) -> str:
        """Return a note if a stage that trains this adapter changed afterwards or did not finish; otherwise ""."""
        from selfalign.pipeline import order

        stages: tuple[Stage, ...] = ("engrave", "verbose_cloning") if self.stage == "verbose_cloning" else ("engrave",)
        stale = [s for s in stages if not self.context.run.done(s, order.inputs_hash(self.context, s))]
        if not stale:
            return ""
        return f"This adapter is outdated: {' and '.join(stale)} changed or did not finish since it was trained"


def find_trained_model(context: Context, name: str = "") -> TrainedModel:
    """Return a trained model of the run.

    Args:
        name: engraved or final; by default, the model that was trained last.

    Raises:
        UserError: the run has no trained model, or none with that name.
    """
    context.model.check_weights(f"{context.run.path} has no trained model to export")
    trained = {model: stage for model, stage in run_models(context).items() if stage}
    if not trained:
        raise UserError(f"{context.run.path} has no trained adapter yet: `selfalign run` trains it")
    name = name or list(trained)[-1]
    if name not in trained:
        raise UserError(f"--model {name!r} is not a trained model of this run; choose from {', '.join(trained)}")
    return TrainedModel(context, name, trained[name])
