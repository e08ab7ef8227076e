"""Turns -> text -> (token ids, loss mask): the one template for training, engines and chat.

A base model's own role tokens are used where it has them *and* its end token can be learnt; else the turns are plain
text and the model's end-of-text token ends them. With LoRA on the attention alone the output row of a token is
frozen: a role token that pretraining never showed has a row like every unused token's, and no adapter can single it
out (Gemma 3's <end_of_turn> in the pretrained-only weights is such a one). `Template.detect` looks at the rows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from selfalign.engines.base import BOS, Control, Pieces

UNTRAINED_COSINE = 0.9
"""A row this close to the mean of the unused tokens' rows was never trained."""


@dataclass(frozen=True, slots=True)
class Turn:
    role: Literal["user", "assistant"]
    text: str


@dataclass(frozen=True, slots=True)
class Template:
    """How turns become text.

    Every field is literal text. With `control` the four role fields may become control tokens; without it they are
    encoded as ordinary text, like everything a user or a model wrote.
    """

    name: str
    user: str
    """Before a user's message."""
    user_end: str
    assistant: str
    """Before an answer; generation continues here."""
    space: str
    """Between that and the answer's first word."""
    end: str
    """The control token that ends an answer."""
    after: str
    """Between an ended answer and the next turn."""
    control: bool

    def prompt(self, system: str, turns: Sequence[Turn], label: str) -> Pieces:
        """The text up to where the assistant's next answer begins.

        Args:
            system: the inference prompt.
            turns: the dialogue so far; the last turn is the user's.
            label: the assistant's name, for plain-text turns.
        """
        mark: Callable[[str], str] = Control if self.control else str
        pieces: list[str] = [BOS]
        # Role templates have no system turn that all families share: the prompt opens the first user turn.
        lead = f"{system}\n\n"
        if not self.control:
            pieces.append(lead)
            lead = ""
        for turn in turns:
            if turn.role == "user":
                pieces += [mark(self.user), lead + turn.text.strip(), mark(self.user_end)]
                lead = ""
            else:
                pieces += [mark(self.assistant.format(name=label)), self.space + turn.text.strip()]
                pieces += [Control(self.end), mark(self.after)]
        pieces.append(mark(self.assistant.format(name=label)))
        return tuple(p for p in pieces if p)

    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer besides the end token: a plain-text model may begin the user's next turn."""
        return () if self.control else ("\n\nUser:", "\nUser:")

    def forged(self, text: str, label: str) -> bool:
        """Whether content contains what would read as a turn of its own."""
        if self.control:
            return False
        return (
            re.search(rf"(^|\n)[^\S\n]*(User|Human|Assistant|{re.escape(label)})\s*(\(internal thoughts\))?:", text)
            is not None
        )


PLAIN = Template(
    name="plain",
    user="User: ",
    user_end="\n\n",
    assistant="{name}:",
    space=" ",
    end="<eos>",
    after="\n\n",
    control=False,
)

ROLES: tuple[Template, ...] = (
    Template(
        "gemma", "<start_of_turn>user\n", "<end_of_turn>\n", "<start_of_turn>model\n", "", "<end_of_turn>", "\n", True
    ),
    Template("chatml", "<|im_start|>user\n", "<|im_end|>\n", "<|im_start|>assistant\n", "", "<|im_end|>", "\n", True),
    Template(
        "llama3",
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "",
        "<|eot_id|>",
        "",
        True,
    ),
)


def detect(vocabulary: dict[str, int], eos: str, cosine: Callable[[int, list[int]], float]) -> Template:
    """The template for a base model.

    Args:
        vocabulary: token -> id.
        eos: the text of the end-of-text token, for plain-text turns.
        cosine: similarity of a token's output row with the mean row of other tokens.
    """
    unused = [
        i for token, i in vocabulary.items() if re.fullmatch(r"<unused\d+>|<\|reserved_special_token_\d+\|>", token)
    ]
    for template in ROLES:
        markers = set(re.findall(r"<[^<>]+>", template.user + template.user_end + template.assistant + template.end))
        if not all(marker in vocabulary for marker in markers):
            continue
        if len(unused) >= 8 and cosine(vocabulary[template.end], unused) > UNTRAINED_COSINE:
            continue
        return template
    return plain(eos)


def plain(eos: str) -> Template:
    """Plain-text turns that end in this token."""
    return Template(**{**{f: getattr(PLAIN, f) for f in PLAIN.__slots__}, "end": eos})


@dataclass(frozen=True, slots=True)
class Encoded:
    """A training row: token ids and, for each, whether predicting it counts in the loss."""

    ids: list[int]
    mask: list[bool]


class Tokenizer:
    """A Hugging Face `tokenizers` file, with content kept apart from structure.

    Args:
        path: tokenizer.json.
        bos: text of the token that begins every text; empty for models without one.
    """

    def __init__(self, path: str, bos: str) -> None:
        from tokenizers import Tokenizer as Backend

        self._backend = Backend.from_file(path)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._bos = bos

    def ids(self, text: str, special: bool = False) -> list[int]:
        """The text's token ids; with `special`, control tokens in it become control ids."""
        self._backend.encode_special_tokens = not special
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    def begins_with(self, token: str) -> bool:
        """Whether the tokenizer itself puts this token before a text."""
        own = self._backend.encode("").ids
        return bool(token) and own[:1] == self.ids(token, special=True)

    def controls(self) -> frozenset[int]:
        """Ids of the special tokens."""
        return frozenset(i for i, token in self._backend.get_added_tokens_decoder().items() if token.special)

    def text(self, ids: Sequence[int]) -> str:
        """The ids' text, special tokens by their names; to be looked at."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def encode(self, pieces: Pieces) -> list[int]:
        """Token ids of a prompt, the same as the engine's."""
        ids: list[int] = []
        text = ""
        for piece in (*pieces, Control("")):
            if not isinstance(piece, Control):
                text += piece
                continue
            if text:
                ids += self.ids(text)
                text = ""
            if piece == BOS:
                ids += self.ids(self._bos, special=True) if self._bos else []
            elif piece:
                ids += self.ids(str(piece), special=True)
        return ids


def encode_example(
    tokenizer: Tokenizer, template: Template, system: str, user: str, assistant: str, label: str
) -> Encoded:
    """A training row: loss on the answer and its end token, on nothing else."""
    prompt = tokenizer.encode(template.prompt(system, [Turn("user", user)], label))
    target = tokenizer.ids(template.space + assistant.strip()) + tokenizer.ids(template.end, special=True)
    return Encoded(prompt + target, [False] * len(prompt) + [True] * len(target))
