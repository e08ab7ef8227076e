"""Turns -> text -> (token ids, loss mask): the one template for training, engines and chat.

A base model's own role tokens are used where it has them *and* its end token can be learnt; else the turns are plain
text and the model's end-of-text token ends them. With LoRA on the attention alone the output row of a token is
frozen: a role token that pretraining never showed has a row like every unused token's, and no adapter can single it
out (Gemma 3's <end_of_turn> in the pretrained-only weights is such a one). `Template.detect` looks at the rows.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from selfalign.data.prompt_text import BOS, Control, Pieces, Turn, whole_characters

UNTRAINED_COSINE = 0.9
"""A row this close to the mean of the unused tokens' rows was never trained."""


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
            system: the system prompt.
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


_NAMED = re.compile(
    r"<[|｜]/?\w[^<>\s]*>|</?\w[^<>\s]*[|｜]>|</s>|<(?:bos|eos|EOT|(?:start|end)_of_turn|end_of_utterance)>"
    r"|\[(?:/?INST|EOS|EOT)\]"
)
"""Names of control tokens in all families.

A tokenizer file may list such a token without calling it special (Gemma 3's </s>, the role tokens of some chatml
models). An engine ends an answer there all the same (llama.cpp goes by names, too), so text must not become one.
"""


class Tokenizer:
    """A Hugging Face `tokenizers` file, with content kept apart from structure. Threads may share it.

    Args:
        path: tokenizer.json.
        bos: text of the token that begins every text; empty for models without one, None for what the file's own
            post-processor puts there.
    """

    def __init__(self, path: str, bos: str | None) -> None:
        from tokenizers import Tokenizer as Backend

        self._backend = Backend.from_file(path)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._lock = threading.Lock()
        """Whether special tokens in a text count is a state of the backend."""
        added = self._backend.get_added_tokens_decoder()
        named = [token for token in added.values() if not token.special and _NAMED.fullmatch(token.content)]
        for token in named:
            token.special = True
        self._backend.add_special_tokens(named)
        special = {i: token.content for i, token in added.items() if token.special}
        # What the vocabulary has no token for becomes the unknown one: that is text, not structure.
        unknown = self._encode("\U0010ffff", special=False).ids
        self._controls = {i: text for i, text in special.items() if i not in unknown}
        self._start = self._begins() if bos is None else self.ids(bos, special=True) if bos else []

    def _begins(self) -> list[int]:
        bare, whole = (self._backend.encode("a", add_special_tokens=add).ids for add in (False, True))
        return list(whole[: next(n for n in range(len(whole)) if whole[n : n + len(bare)] == bare)])

    def _encode(self, text: str, special: bool) -> Any:
        with self._lock:
            self._backend.encode_special_tokens = not special
            try:
                return self._backend.encode(text, add_special_tokens=False)
            except TypeError:
                return self._backend.encode(whole_characters(text), add_special_tokens=False)

    def ids(self, text: str, special: bool = False) -> list[int]:
        """The text's token ids; with `special`, control tokens in it become control ids, else none does."""
        found = self._encode(text, special)
        ids: list[int] = found.ids
        if special or self._controls.keys().isdisjoint(ids):
            return ids
        # To some kinds of vocabulary a control token is a piece like others: what spells it is encoded in two halves.
        spans = zip(ids, found.offsets, strict=True)
        cuts = [start + 1 for token, (start, end) in spans if token in self._controls and end - start > 1]
        if not cuts:
            return ids
        return [i for start, end in pairwise((0, *cuts, len(text))) for i in self.ids(text[start:end])]

    def first(self, text: str) -> int:
        """The id of a text's first token; of a `Control`, its own."""
        return self.ids(str(text), special=isinstance(text, Control))[0]

    def controls(self) -> frozenset[int]:
        """Ids of the control tokens: those that the file calls special, and those that are it by their names."""
        return frozenset(self._controls)

    def control_texts(self) -> frozenset[str]:
        """How the control tokens are spelled."""
        return frozenset(self._controls.values())

    def text(self, ids: Sequence[int]) -> str:
        """The ids' text, special tokens by their names; to be looked at."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def encode(self, pieces: Pieces) -> list[int]:
        """Token ids of a prompt: what training sees, and what every engine gets that takes ids."""
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
                ids += self._start
            elif piece:
                ids += self.ids(str(piece), special=True)
        return ids


def as_text(prompt: Pieces, controls: frozenset[str] = frozenset()) -> tuple[str, tuple[str, ...]]:
    """A prompt for a server that takes no token ids: (text, control tokens that content spelled).

    Such a server takes whatever spells a control token for it. Where content does, be it across the seam of two
    pieces, a space after the token's first character breaks it ("< |im_end|>"). It stays legible, and is not put
    together again by what strips invisible characters. The server itself begins the text with its token.

    Args:
        controls: how the model's control tokens are spelled; empty where that is not known.
    """
    text, structure = "", []
    for piece in prompt:
        if isinstance(piece, Control) and piece != BOS:
            structure.append((len(text), len(text) + len(piece)))
        text += "" if isinstance(piece, Control) and piece == BOS else piece
    parts: list[str] = []
    spelled: list[str] = []
    pattern, done, at = _spelled(controls), 0, 0
    while found := pattern.search(text, at):
        start, end = found.span()
        inside = next(((s, e) for s, e in structure if s <= start < e), None)
        if inside and end <= inside[1]:
            at = end
            continue
        at = inside[1] if inside else start + 1
        parts.append(text[done:at])
        spelled.append(found[0])
        done = at
    return " ".join((*parts, text[done:])), tuple(dict.fromkeys(spelled))


@lru_cache(maxsize=8)
def _spelled(controls: frozenset[str]) -> re.Pattern[str]:
    """Matches what spells a control token, the longest first; numbered ones (<unused17>) by their common form."""
    # HTML's <s> begins a text in some models: broken where the model's own tokens are not known.
    known = controls or {"<s>"}
    named = {re.sub(r"(?<=\D)\d+(?=\D)", r"\\d+", re.escape(c)) for c in known if len(c) > 1}
    return re.compile("|".join((*sorted(named, key=lambda n: (-len(n), n)), _NAMED.pattern)))


def encode_example(
    tokenizer: Tokenizer, template: Template, system: str, user: str, assistant: str, label: str
) -> Encoded:
    """A training row: loss on the answer and its end token, on nothing else."""
    prompt = tokenizer.encode(template.prompt(system, [Turn("user", user)], label))
    target = tokenizer.ids(template.space + assistant.strip()) + tokenizer.ids(template.end, special=True)
    return Encoded(prompt + target, [False] * len(prompt) + [True] * len(target))
