"""Turn a dialogue into text, token ids and a loss mask; training, engines and chat share the same template.

A base model's role tokens are used if it has them *and* its end token can be learnt; otherwise turns are plain text
that ends in the model's end-of-text token. LoRA on the attention layers leaves the output row of a token frozen: a role
token that was absent from pretraining has the same row as every unused token, and no adapter can make the model
generate it (an example is <end_of_turn> in the pretrained-only weights of Gemma 3). `detect` compares these rows.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

from selfalign.data.prompt_text import BOS, Control, Pieces, Turn, replace_surrogates

UNTRAINED_COSINE = 0.9
"""A token whose output row is this close to the mean row of the unused tokens was never trained."""


@dataclass(frozen=True, slots=True)
class Template:
    """The format of a dialogue. Every field is literal text."""

    name: str
    user: str
    """Before a user's message."""
    user_end: str
    """After a user's message."""
    assistant: str
    """Before a response; generation continues here."""
    space: str
    """Between `assistant` and the first word of a response."""
    end: str
    """The control token that ends a response."""
    after: str
    """Between a response and the next turn."""
    control: bool
    """Whether the role fields become control tokens; otherwise they are encoded as ordinary text, like content."""

    def prompt(self, system: str, turns: Sequence[Turn], label: str) -> Pieces:
        """Return the prompt up to where the assistant's next response begins.

        Args:
            system: the system prompt.
            turns: the dialogue so far, ending with a user's turn.
            label: the assistant's name, for plain-text turns.
        """
        mark: Callable[[str], str] = Control if self.control else str
        pieces: list[str] = [BOS]
        # Not all model families have a system turn, so the system prompt begins the first user turn.
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
        """Return further strings that end a response, because a plain-text model may continue with a user turn."""
        return () if self.control else ("\n\nUser:", "\nUser:")

    def forged(self, text: str, label: str) -> bool:
        """Return whether content contains text that looks like a turn, such as "User:" on a new line."""
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
    """Choose the template of a base model.

    Args:
        vocabulary: added tokens -> id.
        eos: the end-of-text token, for plain-text turns.
        cosine: returns the cosine similarity between a token's output row and the mean row of other tokens.
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
    """Return the template of plain-text turns whose responses end in the token `eos`."""
    return replace(PLAIN, end=eos)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A training row."""

    ids: list[int]
    """Token ids, (T,)."""
    mask: list[bool]
    """Whether the loss of predicting each token counts, (T,)."""


_NAMED = re.compile(
    r"<[|｜]/?\w[^<>\s]*>|</?\w[^<>\s]*[|｜]>|</s>|<(?:bos|eos|EOT|(?:start|end)_of_turn|end_of_utterance)>"
    r"|\[(?:/?INST|EOS|EOT)\]"
)
"""Names of control tokens in all model families.

A tokenizer file may list such a token without calling it special (Gemma 3's </s>, the role tokens of some chatml
models). Engines may still end a response there, as llama.cpp does by name, so text must not become one.
"""


class Tokenizer:
    """A Hugging Face `tokenizers` file that never turns content into control tokens. Threads may share it.

    Args:
        path: tokenizer.json.
        bos: the token that begins every text; empty for models without one, None for what the file's post-processor
            adds.
    """

    def __init__(self, path: str, bos: str | None) -> None:
        from tokenizers import Tokenizer as Backend

        self._backend = Backend.from_file(path)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._lock = threading.Lock()
        """Protects the backend, whose state says whether text may become special tokens."""
        added = self._backend.get_added_tokens_decoder()
        named = [token for token in added.values() if not token.special and _NAMED.fullmatch(token.content)]
        for token in named:
            token.special = True
        self._backend.add_special_tokens(named)
        special = {i: token.content for i, token in added.items() if token.special}
        # Characters outside the vocabulary become the unknown token, which counts as text.
        unknown = self._encode("\U0010ffff", special=False).ids
        self._controls = {i: text for i, text in special.items() if i not in unknown}
        self._start = self._start_ids() if bos is None else self.ids(bos, special=True) if bos else []

    def _start_ids(self) -> list[int]:
        """Return the ids that the file's post-processor puts before a text."""
        bare, processed = (self._backend.encode("a", add_special_tokens=add).ids for add in (False, True))
        start = next(n for n in range(len(processed)) if processed[n : n + len(bare)] == bare)
        return list(processed[:start])

    def _encode(self, text: str, special: bool) -> Any:
        with self._lock:
            self._backend.encode_special_tokens = not special
            try:
                return self._backend.encode(text, add_special_tokens=False)
            except TypeError:
                return self._backend.encode(replace_surrogates(text), add_special_tokens=False)

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Return the text's token ids.

        Args:
            special: whether text that spells a control token becomes that token.
        """
        encoding = self._encode(text, special)
        ids: list[int] = encoding.ids
        if special or self._controls.keys().isdisjoint(ids):
            return ids
        # Some vocabularies treat a control token as an ordinary piece: encode text that spells it in two halves.
        spans = zip(ids, encoding.offsets, strict=True)
        cuts = [start + 1 for token, (start, end) in spans if token in self._controls and end - start > 1]
        if not cuts:
            return ids
        return [i for start, end in pairwise((0, *cuts, len(text))) for i in self.ids(text[start:end])]

    def first(self, text: str) -> int:
        """Return the id of a text's first token, or of a `Control`."""
        return self.ids(str(text), special=isinstance(text, Control))[0]

    def joined(self, ending: str) -> dict[int, int]:
        """Return token -> the token of its text without `ending`, for all tokens of a longer text that ends so."""
        plain: dict[int, int] = {}
        for token in range(self._backend.get_vocab_size()):
            text = self.text([token])
            if len(text) > len(ending) and text.endswith(ending) and text.strip():
                ids = self.ids(text.removesuffix(ending))
                if len(ids) == 1:
                    plain[token] = ids[0]
        return plain

    def controls(self) -> frozenset[int]:
        """Return the ids of the control tokens: those that the file calls special, and those with known names."""
        return frozenset(self._controls)

    def control_texts(self) -> frozenset[str]:
        """Return the texts of the control tokens."""
        return frozenset(self._controls.values())

    def text(self, ids: Sequence[int]) -> str:
        """Decode ids for display, special tokens by their names."""
        return str(self._backend.decode(list(ids), skip_special_tokens=False))

    def encode(self, pieces: Pieces) -> list[int]:
        """Return the token ids of a prompt, for training and for every engine that accepts ids."""
        return encode_pieces(pieces, self._start, self.ids)


def encode_pieces(pieces: Pieces, start: list[int], ids_of: Callable[[str, bool], list[int]]) -> list[int]:
    """Return the token ids of a prompt. Adjacent text is encoded as one; only `Control` pieces become control tokens.

    Args:
        start: the ids of `BOS`.
        ids_of: (text, whether it may become control tokens) -> ids.
    """
    ids: list[int] = []
    text = ""
    for piece in (*pieces, Control("")):
        if not isinstance(piece, Control):
            text += piece
            continue
        if text:
            ids += ids_of(text, False)
            text = ""
        if piece == BOS:
            ids += start
        elif piece:
            ids += ids_of(str(piece), True)
    return ids


def as_text(prompt: Pieces, controls: frozenset[str] = frozenset()) -> tuple[str, tuple[str, ...]]:
    """Render a prompt for a server that accepts no token ids.

    Such a server parses every text that spells a control token as that token. In content, even across two pieces, such
    text is escaped by a space after its first character ("< |im_end|>"), which is legible and survives the removal of
    invisible characters. The server itself adds the token that begins a text.

    Args:
        controls: texts of the model's control tokens; empty if unknown.

    Returns:
        (text, control tokens that content spelled).
    """
    text, structure = "", []
    for piece in prompt:
        if isinstance(piece, Control) and piece != BOS:
            structure.append((len(text), len(text) + len(piece)))
        text += "" if isinstance(piece, Control) and piece == BOS else piece
    parts: list[str] = []
    spelled: list[str] = []
    pattern, done, at = _control_pattern(controls), 0, 0
    while match := pattern.search(text, at):
        start, end = match.span()
        inside = next(((s, e) for s, e in structure if s <= start < e), None)
        if inside and end <= inside[1]:
            at = end
            continue
        at = inside[1] if inside else start + 1
        parts.append(text[done:at])
        spelled.append(match[0])
        done = at
    return " ".join((*parts, text[done:])), tuple(dict.fromkeys(spelled))


@lru_cache(maxsize=8)
def _control_pattern(controls: frozenset[str]) -> re.Pattern[str]:
    """Match text that spells a control token, longest first; numbered ones (<unused17>) by their common form."""
    # HTML's <s> is the start token of some models: escape it if the model's control tokens are unknown.
    known = controls or {"<s>"}
    named = {re.sub(r"(?<=\D)\d+(?=\D)", r"\\d+", re.escape(c)) for c in known if len(c) > 1}
    return re.compile("|".join((*sorted(named, key=lambda n: (-len(n), n)), _NAMED.pattern)))


def encode_text(tokenizer: Tokenizer, text: str) -> Encoded:
    """Encode a text without turns, with loss on every token but the one that begins every text."""
    start, ids = tokenizer.encode((BOS,)), tokenizer.ids(text)
    if not start:  # the first token has no prediction
        start, ids = ids[:1], ids[1:]
    return Encoded(start + ids, [False] * len(start) + [True] * len(ids))


def encode_example(
    tokenizer: Tokenizer, template: Template, system: str, user: str, assistant: str, label: str
) -> Encoded:
    """Encode a training row, with loss on the response and its end token only.

    Args:
        label: the assistant's name, for plain-text turns.
    """
    prompt = tokenizer.encode(template.prompt(system, [Turn("user", user)], label))
    target = tokenizer.ids(template.space + assistant.strip()) + tokenizer.ids(template.end, special=True)
    return Encoded(prompt + target, [False] * len(prompt) + [True] * len(target))
