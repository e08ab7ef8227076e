"""Define the rows of on-policy training: a response of the model, with the same one after the teacher's prompt."""

from __future__ import annotations

from dataclasses import dataclass

from selfalign.model.dialogue import Encoded
from selfalign.training.batches import common_prefix_length


@dataclass(frozen=True, slots=True)
class TurnEnd:
    """How the teacher's turns end, and how the model's responses do.

    The teacher's next turn begins with a token such as a blank line. A vocabulary may also have tokens of a full stop
    and a blank line: `joined`, each with the token of its text without the blank line at the same place in `plain`.
    """

    response: int
    """The token that ends the model's responses."""
    turn: int
    """The token that begins the teacher's next turn."""
    joined: tuple[int, ...] = ()
    plain: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class TeacherRow(Encoded):
    """A response after the teacher's prompt. The mask has the tokens whose distributions are compared."""

    end: TurnEnd
    number: int = 0
    """The index of its `ResponseRow` among all rows."""


@dataclass(frozen=True, slots=True)
class ResponseRow(Encoded):
    """A response of the model, with the same one after the teacher's prompt.

    Its last tokens are those of the teacher's mask; it has no loss at some of them, where the response has a blank
    line, because the teacher's turns end there.
    """

    teacher: TeacherRow


def response_row(
    prompt: list[int], response: list[int], context: list[int], scored: list[int], end: TurnEnd, complete: bool
) -> ResponseRow:
    """Return the row of a response; one without a loss token if its tokens differ from those for the teacher.

    Args:
        prompt: the model's prompt.
        response: tokens of the response after `prompt`.
        context: the teacher's prompt.
        scored: tokens of the response after `context`; the first ones may differ from those of `response`.
        complete: whether the model ended the response, and the end is compared, too.
    """
    common = common_prefix_length(response[::-1], scored[::-1])
    breaks = {end.turn, *end.joined}
    mask = [False] * (len(response) - common) + [token not in breaks for token in response[len(response) - common :]]
    compared = [False] * (len(context) + len(scored) - common) + [True] * common
    if complete:
        response, scored, mask, compared = (
            [*response, end.response],
            [*scored, end.turn],
            [*mask, True],
            [*compared, True],
        )
    teacher = TeacherRow([*context, *scored], compared, end)
    return ResponseRow([*prompt, *response], [False] * len(prompt) + mask, teacher)
