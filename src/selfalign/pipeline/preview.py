"""Print the prompts and raw outputs of a few rows of stages 1 and 2, without saving them (`run --preview N`).

With user prompts, it prints the first rows of the file; with user responses, the rows as they are read.
"""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

from selfalign.constitution import Constitution
from selfalign.data.prompt_text import BOS
from selfalign.data.records import Prompt, prompt_id
from selfalign.data.user_data import UserData, prompt_fields
from selfalign.errors import UserError
from selfalign.generation.engines.base import Request, RowError, answer
from selfalign.pipeline import step1_prompts, step1a_self_instruct, step1b_red_team, step2_self_align, typed_questions
from selfalign.run.context import Context
from selfalign.run.directory import RunDir
from selfalign.run.recipe import Recipe
from selfalign.system.console import Screen, plain
from selfalign.system.signals import STOP


def show(recipe: Recipe, constitution: Constitution, rows: int, screen: Screen) -> None:
    """Print `rows` requests of Self-Instruct, red-teaming and self-alignment with the engine's outputs."""
    if rows < 1:
        raise UserError(f"--preview {rows}: must be at least 1")
    with tempfile.TemporaryDirectory(prefix="selfalign-preview-") as folder:
        context = Context(RunDir.create(Path(folder) / "run", recipe, constitution), screen)
        try:
            if recipe.align.form == "given":
                _print_given(context, rows)
                return
            for title, request in _requests(context, rows):
                _print(context, title, request)
        finally:
            context.release_engine()
            context.journal.close()


def _user_rows(context: Context, rows: int) -> list[tuple[str, Prompt, str | None]]:
    """Return (position in the file, prompt, response) of the first rows of user data."""
    first = islice(UserData(context.recipe.prompts), rows)
    return [
        (f"{Path(place).name}" + (f", {row.problem}" if row.problem else ""), Prompt(*prompt_fields(row)), row.answer)
        for place, row in first
    ]


def _print_given(context: Context, rows: int) -> None:
    for place, prompt, response in _user_rows(context, rows):
        print(f"\n──── {plain(place)} ──── given\n{plain(prompt.message)}")
        print("(no response)" if response is None else f"⟦{plain(response)}⟧")


def _requests(context: Context, rows: int) -> list[tuple[str, Request]]:
    form = step2_self_align.form(context)
    if context.recipe.prompts.file:
        user_rows = _user_rows(context, rows)
        prompts = step1_prompts.with_exemplar_types(context, [prompt for _, prompt, _ in user_rows])
        return [
            (f"self-align, {place}", step2_self_align.request(context, prompt, form))
            for (place, _, _), prompt in zip(user_rows, prompts, strict=True)
        ]
    titled = [(f"self-instruct {n + 1}", r) for n, r in enumerate(step1a_self_instruct.requests(context, rows))]
    types = context.run.constitution.question_types[:rows]
    for kind in types:
        by_type = context.recipe.prompts.red_team.form == "by_type"
        first = typed_questions.first_request if by_type else step1b_red_team.first_request
        titled.append((f"red-teaming, {kind.name}", first(context, kind)))
    for kind in types:
        prompt = Prompt(prompt_id(kind.question, ""), kind.question, question_type=kind.name, exemplar_type=kind.name)
        titled.append((f"self-align, {kind.name}", step2_self_align.request(context, prompt, form)))
    return titled


def _print(context: Context, title: str, request: Request) -> None:
    try:
        completion = answer(context.engine(), request)
    except RowError as error:
        raise UserError(f"{title}: {error}") from None
    STOP.check()
    print(f"\n──── {title} ──── prompt")
    print(plain("".join(p for p in request.prompt if p is not BOS)), end="")
    for step, part in zip(request.steps, completion.parts, strict=False):
        print(f"{plain(step.cue)}⟦{plain(part.text)}⟧", end="")
        print(f"  ({part.finish}, {part.generated_tokens} tokens)", end="")
    print()
